"""Scores, their confidence intervals, and the predictions they are computed from."""
