"""Semantic joins: strategies that find the pairs of rows for which a question is true without asking about all."""
