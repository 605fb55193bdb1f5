"""The embedded models at work."""
