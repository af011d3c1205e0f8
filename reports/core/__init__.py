"""Machinery of the reports: not a format, not for discovery."""
