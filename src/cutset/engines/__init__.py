"""Ways to start workers and to watch them: processes on this machine."""
