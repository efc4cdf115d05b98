"""Networks in flax NNX; they know nothing of training, of workers or of axis names."""
