"""Reading what may come from anyone: nothing is run before all of it is checked."""
