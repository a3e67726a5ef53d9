"""How a version is released: its part of the changelog, the checks before it, its tag."""
