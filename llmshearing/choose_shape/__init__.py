"""From what a user can afford to the shape to shear to: candidates within a budget, and what each of them costs."""
