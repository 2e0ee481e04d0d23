"""The report: later work."""
