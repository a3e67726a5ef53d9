"""Plans over all downsets of a graph, where one order of operations is not all there is."""
