"""Training one fold: the loop, its inputs, class imbalance, checkpoints, cached features."""
