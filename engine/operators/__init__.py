"""Physical operators, one a file."""
