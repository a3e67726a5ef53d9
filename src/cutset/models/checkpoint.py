"""Files of weights: what is in them, without running their code, and which part a model means.

Training scripts save a state dict beside other things, under keys of their own, and wrappers put a
prefix before every name (`torch.nn.DataParallel`, `torch.compile`, Lightning). No key and no prefix
is known here by name: a set of weights is a dict of named tensors, wherever it lies, and a prefix
is what all names begin with and the model's do not.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises with weights_only=True
from typing import Any, TypeAlias

import torch

from cutset.errors import ModelError
from cutset.models.weights_request import WeightsFile
from cutset.printable import first_line

StateDict: TypeAlias = "Mapping[str, torch.Tensor]"
Sets: TypeAlias = "dict[tuple[str, ...], StateDict]"

_MAX_DEPTH = 6
_MAX_DICTS = 10_000
_SHOWN = 6


class VersionedState(dict[str, torch.Tensor]):
    """A state dict with torch's ``_metadata``: the version of each module that wrote it.

    Some modules need it to load what an older version of them wrote.
    """

    _metadata: Mapping[str, object] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """The set of weights that a model means.

    Attributes:
        state: its tensors, by the model's names for them.
        remark: where it lay and what was taken off its names, in words; ``""`` where nothing is to
            be said.
    """

    state: StateDict
    remark: str


def read_checkpoint(path: Path) -> Sets:
    """Reads every set of named tensors in a file, by the keys that lead to it.

    A pickled file is read with ``weights_only=True``, mapped where it can be. What belongs to an
    optimiser is no set of weights. If the file itself is one, there is no other.

    Raises:
        ModelError: the file is damaged, holds code or holds no named tensors.
    """
    if path.suffix == ".safetensors":
        return {(): _read_safetensors(path)}
    found = _read_pickled(path)
    sets: Sets = {}
    _collect(found, (), sets, [0])
    if sets:
        return sets
    if isinstance(found, Mapping) and found:
        what = ", ".join(f"{key!r}: {type(found[key]).__name__}" for key in list(found)[:_SHOWN])
        what += ", ..." if len(found) > _SHOWN else ""
    else:
        what = type(found).__name__ + (" without entries" if found == {} else "")
    raise ModelError(
        f"weights file {path}: expected named tensors (a state dict) in it, found {what}"
    )


def _collect(found: object, keys: tuple[str, ...], sets: Sets, seen: list[int]) -> None:
    """Adds the sets of named tensors below `keys`; `seen` counts the dicts that were looked at."""
    seen[0] += 1
    if not isinstance(found, Mapping) or not found or seen[0] > _MAX_DICTS:
        return
    if "param_groups" in found:  # an optimiser's state, as torch.optim.Optimizer documents it
        return
    if all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()):
        sets[keys] = found
    elif len(keys) < _MAX_DEPTH:
        for key, value in found.items():
            if isinstance(key, str):
                _collect(value, (*keys, key), sets, seen)


def pick_state(sets: Sets, request: WeightsFile, expected: Callable[[], StateDict]) -> Picked:
    """The set of weights that a request means, by the model's names.

    Args:
        sets: as `read_checkpoint` gives them.
        request: the file, and the keys where the caller said them.
        expected: gives the model's own state dict; asked only where the file leaves a choice.

    Raises:
        ModelError: there are several sets and neither the request nor the model tells which; or
            there is none under the request's keys.
    """
    if request.keys:
        chosen = {keys: state for keys, state in sets.items() if keys == request.keys}
        if not chosen:
            raise ModelError(
                f"weights file {request.path} holds no named tensors under "
                f"{':'.join(request.keys)!r}; it holds {_listed(sets)}"
            )
    else:
        chosen = sets
    if len(chosen) > 1 and not request.by_order:
        fitting = {keys: state for keys, state in chosen.items() if _fits(state, expected)}
        chosen = fitting if len(fitting) == 1 else chosen
    if len(chosen) > 1:
        first = ":".join(next(iter(sets)))
        raise ModelError(
            f"weights file {request.path} holds several sets of named tensors: {_listed(sets)}. "
            f"Choose one: --weights {request.path}:{first}"
        )
    ((keys, state),) = chosen.items()
    prefix = "" if request.by_order else _foreign_prefix(state, expected)
    remarks = [f"its {':'.join(keys)!r}"] if keys else []
    remarks += [f"prefix {prefix!r} taken off every name"] if prefix else []
    return Picked(state=_without(prefix, state), remark=", ".join(remarks))


def _listed(sets: Sets) -> str:
    """What a file holds, for an error."""
    some = [
        f"{':'.join(keys) or 'at its top'!r} ({len(state)} tensor{'s' * (len(state) > 1)})"
        for keys, state in list(sets.items())[:_SHOWN]
    ]
    return ", ".join(some) + (", ..." if len(sets) > _SHOWN else "")


def _fits(state: StateDict, expected: Callable[[], StateDict]) -> bool:
    """Whether a set has the model's names and shapes, but for counters that may be missing."""
    named = _without(_foreign_prefix(state, expected), state)
    own = {name: t for name, t in expected().items() if isinstance(t, torch.Tensor)}
    return named.keys() <= expected().keys() and all(
        named[name].shape == want.shape
        if name in named
        else name.rpartition(".")[2] == "num_batches_tracked"
        for name, want in own.items()
    )


def _foreign_prefix(state: StateDict, expected: Callable[[], StateDict]) -> str:
    """What stands before every name without being the model's: ``"module."``, or ``""``.

    Of all prefixes that the names share, the shortest that leaves the most of the model's names.
    """
    shared = _shared_prefixes(state)
    if not shared:
        return ""
    own = expected().keys()

    def known(prefix: str) -> int:
        return sum(name[len(prefix) :] in own for name in state)

    return max(["", *shared], key=known)  # the first of equals


def _shared_prefixes(state: StateDict) -> list[str]:
    """Every prefix that ends in a dot and begins all names, the shortest first."""
    low, high = min(state), max(state)  # what these two share, all between them share
    same = next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return [low[: k + 1] for k in range(same) if low[k] == "." and k + 1 < len(low)]


def _without(prefix: str, state: StateDict) -> VersionedState:
    plain = VersionedState({name[len(prefix) :]: value for name, value in state.items()})
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, Mapping):
        plain._metadata = {
            path[len(prefix) :]: value
            for path, value in versions.items()
            if isinstance(path, str) and f"{path}.".startswith(prefix)
        }
    return plain


def _read_pickled(path: Path) -> Any:
    """What `torch.load` reads with ``weights_only=True``.

    Raises:
        ModelError: says what the file is instead. Never torch's advice to read it without care.
    """
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _refuse_programs(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ", or is damaged"
        raise ModelError(
            f"weights file {path} holds more than tensors{what}; reading it could run code, so it "
            "is not read. Save model.state_dict() instead of the model, or a .safetensors file"
        ) from error
    except Exception as error:  # damaged files make torch's readers raise nearly anything
        if not path.stat().st_size:
            reason = "it is empty"
        elif zipped:
            reason = "it is a zip archive, but none that torch.save wrote whole"
        else:
            reason = "it is damaged, or torch.save did not write it"
        raise ModelError(f"weights file {path} cannot be read: {reason}") from error


def _refuse_programs(path: Path) -> None:
    """Tells archives that torch writes for programs from those that it writes for tensors.

    Raises:
        ModelError: the archive holds a program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2] for name in archive.namelist()}
    except Exception as error:  # a name that is no UTF-8 is no BadZipFile, and neither is a version
        raise ModelError(f"weights file {path} cannot be read: it is damaged") from error
    if "constants.pkl" in members:
        raise ModelError(
            f"weights file {path} is a TorchScript file: a program, not weights alone. Where you "
            f"trust it, save its weights: torch.save(torch.jit.load({str(path)!r}).state_dict(), "
            "'weights.pth')"
        )
    if "archive_format" in members or "models/model.json" in members:
        raise ModelError(
            f"weights file {path} is an exported program (torch.export.save): a model with its "
            "weights. Give it as the model, with a name that ends in .pt2"
        )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"weights file {path} cannot be read: {first_line(error)}") from error
    if not found:
        raise ModelError(f"weights file {path}: expected named tensors, found none")
    return found
