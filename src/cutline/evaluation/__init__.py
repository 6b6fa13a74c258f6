"""Scores that can be trusted."""
