"""The stages of the pipeline: one module per stage of dvc.yaml, and what they share."""

import gc

# Imports make a million objects that stay: to look for garbage among them is a sixth of a start.
gc.set_threshold(10_000)
