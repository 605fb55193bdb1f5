"""Rewriting rules, one a file."""
