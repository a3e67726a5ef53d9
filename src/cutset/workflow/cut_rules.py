"""Cut rules of other packages: they refuse positions that Cutset's own rules would allow."""

from __future__ import annotations

from typing import Any

from cutset.errors import PlanError
from cutset.extensions import extension_names, find_extension
from cutset.graph.cuts import CutPoint, CutRule
from cutset.graph.ir import Graph

GROUP = "cutset.cut_rules"


def installed_cut_rules() -> tuple[CutRule, ...]:
    """The rules of all packages that are installed, by their names in alphabetical order.

    Raises:
        PlanError: one cannot be imported, or is no function.
    """
    names = extension_names(GROUP)
    return tuple(_checked(name, find_extension(GROUP, name, PlanError)) for name in names)


def _checked(name: str, rule: Any) -> CutRule:
    """The rule, with its name before its reasons and in its errors."""
    what = f"cut rule {name!r} (entry points {GROUP!r})"
    if not callable(rule):
        raise PlanError(f"{what} is {rule!r}, expected a function of a graph and a cut point")

    def reason_at(graph: Graph, point: CutPoint) -> str:
        try:
            reason = rule(graph, point)
        except Exception as error:
            raise PlanError(
                f"{what} fails at {point.after!r}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(reason, str):
            raise PlanError(
                f"{what} gives {reason!r} at {point.after!r}, expected why no cut may be there, "
                'or "" where one may'
            )
        return f"{name}: {reason}" if reason else ""

    return reason_at
