"""JSON from outside: what msgspec's decoder lets pass, and errors that name the place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cutset.errors import ManifestError

MANIFEST_NAME = "manifest.json"


def contradiction(json_path: str, what: str) -> ManifestError:
    """The error for a value at `json_path` that contradicts the rest, or is out of its range."""
    return ManifestError(f"{MANIFEST_NAME}: {json_path} {what}", path=json_path)


@dataclass(frozen=True)
class _Twice:
    """Stands for an object in which, or below which, a key is given twice."""

    path: str


def repeated_key(data: bytes) -> str | None:
    """The JSON path of a key that is given twice in its object, or None.

    Readers differ in which of the two they take, so what one has checked another need not use.

    Raises:
        ValueError: it is no JSON, or has a number that JSON does not know (``NaN``).
        RecursionError: it is nested too deeply.
    """
    found = json.loads(data, object_pairs_hook=_keep_repeated, parse_constant=_refuse_constant)
    path = _path_in(found)
    return None if path is None else f"${path}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _keep_repeated(pairs: list[tuple[str, Any]]) -> _Twice | None:
    """Nothing of an object but where a key is repeated, so that documents take little memory."""
    seen: set[str] = set()
    for key, value in pairs:
        if key in seen:
            return _Twice(f".{key[:120]}")
        seen.add(key)
        below = _path_in(value)
        if below is not None:
            return _Twice(f".{key[:120]}{below}")
    return None


def _path_in(value: Any) -> str | None:
    if isinstance(value, _Twice):
        return value.path
    if isinstance(value, list):
        for index, item in enumerate(value):
            below = _path_in(item)
            if below is not None:
                return f"[{index}]{below}"
    return None
