"""Links between two neighbours: what goes over a wire, in which form, and who waits for whom."""
