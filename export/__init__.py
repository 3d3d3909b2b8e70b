"""The exporter."""
