"""What goes wrong with a testbed."""

from __future__ import annotations


class TestbedError(Exception):
    """What was to be done, what stood in the way, and what to do about it."""

    __test__ = False  # pytest takes every class called Test... for one of its own
