"""Batch jobs: one query over files that are too large for one run, partition by partition."""
