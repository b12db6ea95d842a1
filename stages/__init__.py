"""The stages of the pipeline: one module per stage of dvc.yaml, and what they share."""

import gc

# Seldom look for garbage: imports make a million objects that stay, and to look among them time and
# again is a sixth of a start.
gc.set_threshold(10_000)
