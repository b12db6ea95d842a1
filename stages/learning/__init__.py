"""The network: building, weights, freezing, augmentation, the training loop."""
