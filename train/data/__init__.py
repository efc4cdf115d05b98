"""Data for training: the order in which workers take examples, loading them in the background, and data sets."""
