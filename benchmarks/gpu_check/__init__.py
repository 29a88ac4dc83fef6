"""What can only be known on a GPU: see ``__main__``."""
