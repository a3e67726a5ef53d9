"""Mutations of a JSON document by its types.

Each key, wherever it stands, gets another type, an extreme number, another word, is missing,
doubled, or swapped with what stands elsewhere.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

Path_ = tuple[Any, ...]

EXTREMES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**53, 2**60, 2**63, 2**64, 10**30, 1.5, -1.0, 1e300, 1e308),
    *("", "x", "\0", "\x1b[2J\u202e", "x" * 100_000, "batch", "batch*0", "batch*" + "9" * 30),
    *("../x", "float32", "latency", "cutset-bundle/1", [], {}, [[]], [None], {"a": 1}, ["batch"]),
)


def _places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    if path:
        yield path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield from _places(item, (*path, key))


def _at(document: Any, path: Path_) -> Any:
    for key in path:
        document = document[key]
    return document


class Mutator:
    """Chooses among kinds of keys first, so that what is there once is changed as often."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self._document = document
        self._random = random.Random(seed)
        self._kinds: dict[Path_, list[Path_]] = {}
        for path in _places(document):
            kind = tuple(key for key in path if isinstance(key, str))
            self._kinds.setdefault(kind, []).append(path)

    def _place(self) -> Path_:
        return self._random.choice(self._kinds[self._random.choice(list(self._kinds))])

    def text(self) -> str:
        document = copy.deepcopy(self._document)
        doubled = None
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            path = self._place()
            with contextlib.suppress(KeyError, IndexError, TypeError):  # gone by an earlier one
                doubled = self._change(_at(document, path[:-1]), path[-1]) or doubled
        data = json.dumps(document)
        return data.replace(f'"{doubled}":', f'"{doubled}": 1, "{doubled}":', 1)

    def _change(self, parent: Any, key: Any) -> str | None:
        action = self._random.randrange(7)
        value = parent[key]
        if action < 3:
            parent[key] = copy.deepcopy(self._random.choice(EXTREMES))
        elif action == 3:
            del parent[key]
        elif action == 4 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(value))
        elif action == 4:
            return str(key)
        elif action == 5 and isinstance(value, list):
            self._random.shuffle(value)
        elif action == 5 and type(value) in (int, float):
            parent[key] = value * self._random.choice((0, -1, 2, 10, 10**6))
        else:
            parent[key] = copy.deepcopy(_at(self._document, self._place()))
        return None
