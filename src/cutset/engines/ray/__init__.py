"""The engine for many machines: an actor of a Ray cluster for each stage."""
