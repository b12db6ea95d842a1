"""Scores, their intervals, and the predictions that they come from."""
