"""Ways to start workers and to watch them: on this machine, or on the nodes of a Ray cluster."""
