"""The classic convolutional networks as pure functions over parameter trees, in PyTorch."""
