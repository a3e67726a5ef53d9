"""Runs the command line as ``python -m cutset.cli``."""

from cutset.cli import main

main()
