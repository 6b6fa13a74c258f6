"""Models in PyTorch: encoders, attention, decoders, captioners."""
