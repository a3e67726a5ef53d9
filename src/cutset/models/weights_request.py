"""Which weights a caller asks for, as plain values, and near names for wrong ones."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from cutset.errors import ModelError

PICKLED_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
"""Suffixes of files that `torch.load` reads."""

WEIGHT_SUFFIXES = (*PICKLED_SUFFIXES, ".safetensors")
HOW_TO_GIVE_WEIGHTS = "pass --weights FILE.pth|FILE.safetensors|random:SEED"

_BY_ORDER = ":by-order"
_RANDOM = "random"


_BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedWeights:
    """Weights that the model's library knows under `name`; ``"DEFAULT"`` is its best."""

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """Weights in a file.

    Attributes:
        path: an existing file.
        by_order: match entries by order and shape instead of by name and shape.
        keys: lead to the named tensors in a file that holds several sets of them; none: the only
            set, or the only one that fits the model.
    """

    path: Path
    by_order: bool
    keys: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomWeights:
    """Random weights, the same for the same `seed` (0 to 2**63 - 1)."""

    seed: int


WeightsRequest: TypeAlias = NamedWeights | WeightsFile | RandomWeights


def parse_weights(text: str | None) -> WeightsRequest | None:
    """Reads what a caller wrote for the weights; None stays None.

    Raises:
        ModelError: the seed is no number in range, or the file does not exist.
    """
    if text is None:
        return None
    head, colon, seed = text.partition(":")
    if head == _RANDOM:
        if not (colon and seed.isdecimal() and int(seed) < 2**63):
            raise ModelError(
                f"weights {text!r}: expected random:SEED with a whole number from 0, "
                "for example random:0"
            )
        return RandomWeights(seed=int(seed))
    by_order = text.endswith(_BY_ORDER)
    text, *keys = _at_keys(text.removesuffix(_BY_ORDER))
    path = Path(text)
    if by_order or path.suffix in WEIGHT_SUFFIXES or path.is_file():
        if not path.is_file():
            raise ModelError(f"weights file {path} does not exist; {HOW_TO_GIVE_WEIGHTS}")
        if path.suffix not in WEIGHT_SUFFIXES:
            raise ModelError(
                f"weights file {path}: expected a name that ends in one of "
                f"{', '.join(WEIGHT_SUFFIXES)}, found {path.suffix or 'no suffix'!r}"
            )
        return WeightsFile(path=path, by_order=by_order, keys=tuple(keys))
    return NamedWeights(name=text)


def _at_keys(text: str) -> list[str]:
    """``FILE:KEY:KEY`` at its colons after the file's name, where there is such a file."""
    parts = text.split(":")
    for count in range(len(parts), 0, -1):
        path = Path(":".join(parts[:count]))
        if path.suffix in WEIGHT_SUFFIXES and path.is_file():
            return [str(path), *parts[count:]]
    return [text]


def near_names(name: str, known: Iterable[str]) -> str:
    """``"; did you mean A, B?"`` with at most four known names near to `name`, or ``""``.

    Names that go on where `name` ends come first, the shortest of them first: ``vit_tiny`` is meant
    as ``vit_tiny_patch16_224`` rather than as ``davit_tiny``, which has more letters in common.
    """
    name, known = name.lower(), list(known)
    longer = [each for each in known if name and each.startswith(name)]
    longer.sort(key=lambda each: (len(each), each))
    near = dict.fromkeys([*longer, *difflib.get_close_matches(name, known, n=4, cutoff=0.6)])
    return f"; did you mean {', '.join(list(near)[:4])}?" if near else ""


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in lower-case hex.

    Raises:
        ModelError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"weights file {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
