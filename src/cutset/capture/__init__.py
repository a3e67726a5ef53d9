"""From a model to a graph: captured once, cut into pieces, followed by rows."""
