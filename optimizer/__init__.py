"""Plans and what changes them: pure functions over sqlglot trees."""
