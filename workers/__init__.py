"""Models and where they run. Knows no SQL and no plan."""
