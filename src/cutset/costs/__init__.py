"""What a stage, a link and a device cost: counted from the graph or measured."""
