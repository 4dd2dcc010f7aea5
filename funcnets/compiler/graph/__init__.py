"""Analyses and edits of graphs."""
