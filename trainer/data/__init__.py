"""Text to tokens to training batches."""
