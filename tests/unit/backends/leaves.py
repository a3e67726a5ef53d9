"""Leaves the process when it is imported, as another's module may."""

raise SystemExit(3)
