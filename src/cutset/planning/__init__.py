"""Which stage goes to which device, and the proof of how good that is. Imports no torch."""
