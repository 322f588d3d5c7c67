"""Calibration, quantization and the budget search: floats in, integers and steps out."""
