"""Whole runs from one configuration: text, model, artifact, report, each stage on record."""
