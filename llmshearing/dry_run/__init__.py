"""What a recipe would do, found out without weights: shapes, cross-checks of its settings, and estimates."""
