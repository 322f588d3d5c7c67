"""Lossless codecs behind one bounded contract. numpy and the standard library; no torch."""
