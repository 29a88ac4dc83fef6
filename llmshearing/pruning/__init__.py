"""Targeted structured pruning (Sheared LLaMA, section 2.1), from the mathematics up.

1. ``hard_concrete``  masks z from their parameters log_alpha
2. ``target``         which groups of units exist, and how many of each stay
3. ``lagrangian``     the constraint on their expected number
4. ``learned``        masks, multipliers and their optimizer: one step of the min-max problem
5. ``fold``           where z multiplies in a LLaMA, and what shearing cuts
6. ``masked``         the fold on a live model; ``shear`` the fold on a state dict
7. ``algorithm``      all of it as a Composer algorithm (the only module here that imports Composer)
"""
