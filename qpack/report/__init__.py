"""The report: JSON with a schema version, and Markdown."""
