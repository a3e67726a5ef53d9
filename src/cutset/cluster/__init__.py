"""Devices and the links between them, as values and as a file."""
