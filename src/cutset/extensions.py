"""What other packages add to Cutset, found by the entry points of their distributions.

A distribution lists, in a group of Cutset's, a name and the object behind it::

    [project.entry-points."cutset.engines"]
    plain = "my_package.engine:Plain"

Nothing of it is imported before its name is asked for.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from cutset.errors import CutsetError


def extension_names(group: str) -> tuple[str, ...]:
    """The names that installed distributions add to a group, in order."""
    return tuple(sorted({point.name for point in importlib.metadata.entry_points(group=group)}))


def find_extension(group: str, name: str, error: type[CutsetError]) -> Any | None:
    """What a distribution adds to a group under a name, imported; None where none does.

    Args:
        group: such as ``"cutset.engines"``.
        name: the name in it.
        error: of what kind an error is.

    Raises:
        CutsetError: of the kind `error`: several distributions use the name, or what one names
            cannot be imported; says which and why.
    """
    found = list(importlib.metadata.entry_points(group=group, name=name))
    if not found:
        return None
    what = f"{name!r} (entry points {group!r})"
    if len(found) > 1:
        places = " and ".join(sorted(_distribution_of(point) for point in found))
        raise error(f"{what} is of several packages: {places}; uninstall all of them but one")
    (point,) = found
    try:
        return point.load()
    except (Exception, SystemExit) as reason:
        raise error(
            f"{what} of the package {_distribution_of(point)} cannot be loaded from"
            f" {point.value!r}: {type(reason).__name__}: {reason}"
        ) from reason


def _distribution_of(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"
