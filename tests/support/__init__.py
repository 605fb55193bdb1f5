"""Test doubles and helpers that several tests share."""
