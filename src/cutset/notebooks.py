"""How the library's objects show themselves in a notebook: with the report's drawings.

Drawing stands above all that is drawn and needs an extra, so an object that is looked at asks for
it by name, and shows its plain text where the extra is missing.
"""

from __future__ import annotations

import importlib
from typing import Any

from cutset.programs import NOTEBOOK_DRAWINGS


def drawn(what: str, *values: Any) -> str | None:
    """HTML from a function of `cutset.report.notebook`.

    Args:
        what: name of the function.
        values: what it draws.

    Returns:
        None where the extra ``cutset[report]`` is not installed: notebooks then show the text.
    """
    try:
        html: str = getattr(importlib.import_module(NOTEBOOK_DRAWINGS), what)(*values)
    except ModuleNotFoundError:
        return None
    return html
