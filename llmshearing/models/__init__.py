"""Models that the trainer builds."""
