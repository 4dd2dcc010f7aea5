"""Passes over a traced graph."""
