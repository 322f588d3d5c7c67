"""Presets: configurations that reproduce a system or suit a machine. See `qpack presets`."""
