"""How a long call tells what it does now."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with a few words before each step."""


def no_progress(_text: str) -> None:
    """Is told of a step and keeps it to itself."""
