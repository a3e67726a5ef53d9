"""The model as a graph: capture it, find its units, find where it may be cut."""
