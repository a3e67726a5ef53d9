"""The model as a graph: its operations, its units, and where it may be cut."""
