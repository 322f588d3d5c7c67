"""Model architectures; one idea a file, `gpt.py` puts them together."""
