"""Exact solvers for chains of pieces, and bounds for what they cannot search."""
