"""Model architectures; one idea a file."""
