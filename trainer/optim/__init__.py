"""Optimizers, their schedules and what they share between ranks; `optimizers.py` is the facade."""
