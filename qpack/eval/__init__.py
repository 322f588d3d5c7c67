"""Scores of a model on text: nats, bytes, bits per byte, KL."""
