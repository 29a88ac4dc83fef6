"""Targeted structured pruning (Sheared LLaMA, section 2.1), from the mathematics up.

1. ``hard_concrete``  masks z from their parameters log_alpha
2. ``target``         which groups of units exist, and how many of each stay
3. ``lagrangian``     the constraint on their expected number
4. ``chooser``        what chooses units: ``learned`` masks, or ``selection`` by importance and at random
5. ``fold``           what masks become where ``llmshearing.architecture`` says that they multiply
6. ``masked``         the fold on a live model; ``shear`` the fold on a state dict
7. ``functional``     all of it in any training loop
8. ``algorithm``      all of it as a Composer algorithm
"""
