"""Models in a file of the caller's own: a Python file, or a program saved by torch.export."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from cutset.capture.arguments import Arguments, ExampleInputs, split_inputs
from cutset.errors import ModelError
from cutset.models.found import FoundModel
from cutset.models.randomise import randomise
from cutset.models.weights import load_weights_file
from cutset.models.weights_request import (
    NamedWeights,
    RandomWeights,
    WeightsRequest,
    file_sha256,
    near_names,
)

logger = logging.getLogger(__name__)

_EXAMPLE_INPUTS = "example_inputs"
_NUM_OFFERED = 8


def find_in_python_file(file: str, factory: str, request: WeightsRequest | None) -> FoundModel:
    """Imports a file and calls a factory in it; see `cutset.models.find_model`.

    The file's folder is appended to `sys.path` and stays there, so that the file can import its
    neighbours, as it could if it were run.

    Raises:
        ModelError: the file or the factory is missing, one of them raises, no example inputs
            are given, or the weights have a name or cannot be read.
        WeightsMismatch: a file of weights is for another model.
    """
    name = f"{file}:{factory}"
    module = _import_file(Path(file))
    found = found_of(_make(module, file, factory), name, lambda: _file_inputs(module, name))
    return with_weights(dataclasses.replace(found, name=name), request)


def found_of(made: Any, name: str, other_inputs: Callable[[], Any] = lambda: None) -> FoundModel:
    """What a factory gave, as a found model with its own weights.

    Args:
        made: a `FoundModel`, a module, or a tuple that begins with one.
        name: of the factory, for messages.
        other_inputs: gives the example inputs where the factory gave none.

    Raises:
        ModelError: it gave something else, or there are no example inputs.
    """
    if isinstance(made, FoundModel):
        return made
    model, inputs = _module_and_inputs(made, name)
    inputs = other_inputs() if inputs is None else inputs
    if inputs is None:
        raise ModelError(f"{name} gave no example inputs; return a pair (module, example_inputs)")
    words = f"as {name} made them"
    return FoundModel(model=model, name=name, weights=words, example_inputs=inputs)


def found_module(
    model: nn.Module, example_inputs: ExampleInputs | None, request: WeightsRequest | None
) -> FoundModel:
    """The caller's own module as a found model; its name is its class's.

    Raises:
        ModelError: no example inputs are given, or they are no such thing; the weights have a name
            or cannot be read.
        WeightsMismatch: a file of weights is for another model.
    """
    name = type(model).__qualname__
    if example_inputs is None:
        raise ModelError(
            f"a module alone ({name}) does not tell what it takes; give example inputs with two "
            "rows or more as well: prepare_model(module, example_inputs)"
        )
    words = "as they were in the module"
    found = FoundModel(model=model, name=name, weights=words, example_inputs=example_inputs)
    return with_weights(found, request)


def with_weights(found: FoundModel, request: WeightsRequest | None) -> FoundModel:
    """A model in evaluation mode, with the weights that are asked for or with its own.

    Raises:
        ModelError: its example inputs are none, or the weights have a name or cannot be read.
        WeightsMismatch: a file of weights is for another model.
    """
    name, words = found.name, found.weights
    _check_inputs(found.example_inputs, name)
    found.model.eval()
    if isinstance(request, NamedWeights):
        raise ModelError(
            f"{name} has no weights called {request.name!r}; leave --weights out to keep its own, "
            "or pass --weights FILE.pth|FILE.safetensors|random:SEED"
        )
    if isinstance(request, RandomWeights):
        randomise(found.model, found.example_inputs, request.seed)
        words = f"random, seed {request.seed}"
    elif request is not None:
        words = load_weights_file(found.model, request)
    return dataclasses.replace(found, weights=words)


def _module_and_inputs(made: Any, name: str) -> tuple[nn.Module, Any]:
    """What a factory gave: a module, and its example inputs or None.

    Raises:
        ModelError: it gave something else.
    """
    parts = made if isinstance(made, tuple) else (made,)
    if isinstance(parts[0] if parts else None, nn.Module):
        if len(parts) < 3:
            return parts[0], parts[1] if len(parts) == 2 else None
        if len(parts) == 3 and isinstance(parts[1], tuple | list) and isinstance(parts[2], Mapping):
            return parts[0], Arguments(args=tuple(parts[1]), kwargs=parts[2])
    raise ModelError(
        f"{name} gave {_kind(made)}; expected a torch.nn.Module, a pair (module, example_inputs) "
        "with a tensor, a tuple of positional or a dict of keyword arguments, a triple (module, "
        "args, kwargs), or a cutset.models.FoundModel"
    )


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"file {path} does not exist")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    module_name = f"_cutset_file_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, "a .py file always has a loader"
    assert spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and type hints look their module up by name.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ModelError(
            f"file {path.name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module


def _make(module: ModuleType, file: str, factory: str) -> Any:
    offered = sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            (callable(value) and getattr(value, "__module__", None) == module.__name__)
            or isinstance(value, nn.Module)
        )
    )
    if not hasattr(module, factory):
        more = ", ..." if len(offered) > _NUM_OFFERED else ""
        raise ModelError(
            f"file {file} has no {factory!r}{near_names(factory, offered)}; it offers "
            f"{', '.join(offered[:_NUM_OFFERED]) or 'no functions or classes'}{more}"
        )
    maker = getattr(module, factory)
    if isinstance(maker, nn.Module) or not callable(maker):
        return maker
    try:
        return maker()
    except Exception as error:
        raise ModelError(
            f"{file}:{factory}() raised {type(error).__name__}: {error}; a factory is called "
            "without arguments"
        ) from error


def _file_inputs(module: ModuleType, name: str) -> Any:
    maker = getattr(module, _EXAMPLE_INPUTS, None)
    if maker is None:
        raise ModelError(
            f"{name} gave no example inputs; return a pair (module, example_inputs), or define "
            f"a function {_EXAMPLE_INPUTS}() in the file: two rows for every input"
        )
    if not callable(maker):
        return maker
    try:
        return maker()
    except Exception as error:
        raise ModelError(
            f"{_EXAMPLE_INPUTS}() in the file of {name} raised {type(error).__name__}: {error}"
        ) from error


def _check_inputs(inputs: Any, name: str) -> None:
    right_kind = isinstance(inputs, torch.Tensor | Mapping | Arguments) or (
        isinstance(inputs, Sequence) and not isinstance(inputs, str)
    )
    leaves = pytree.tree_leaves(split_inputs(inputs)) if right_kind else []
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not right_kind or not tensors:
        raise ModelError(
            f"example inputs of {name} are {_kind(inputs)}; expected a tensor, a sequence of "
            "positional arguments or a mapping of keyword arguments, with at least one tensor"
        )


def _kind(value: Any) -> str:
    """The value's class; of a tuple also what it holds."""
    name = type(value).__name__
    if not isinstance(value, tuple):
        return name
    return f"{name} of {', '.join(type(item).__name__ for item in value) or 'nothing'}"


def find_in_program_file(file: str, request: WeightsRequest | None) -> FoundModel:
    """Loads a program that the caller saved with `torch.export.save`.

    `torch.export.load` can run code that the file holds: the file is the caller's own, as a
    Python file would be. Programs inside a bundle are never loaded here. The program must have
    been exported with a free number of rows; a range that was declared for it binds the program
    itself, not the pieces that are made of it. Its module paths and classes are kept in it, and
    so the units of its architecture are found as in the original.

    Raises:
        ModelError: the file is missing or no program, weights were asked for, the program has
            no example inputs, or it was exported with a fixed number of rows.
    """
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"file {file} does not exist")
    if request is not None:
        raise ModelError(
            f"{file} holds its own weights; leave --weights out, or name the model that it was "
            "exported from (FILE.py:FACTORY)"
        )
    try:
        program = torch.export.load(path)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"file {file} is no program that torch.export.load can read: "
            f"{type(error).__name__}: {lines[0]}"
        ) from error
    if program.example_inputs is None:
        raise ModelError(f"program {file} holds no example inputs; export it again with them")
    args, kwargs = program.example_inputs
    model = _callable_program(program, file)
    for name, lengths in _other_free_lengths(program).items():
        logger.warning(
            "%s: input %r was exported with other free lengths than the number of rows; the "
            "pieces take the example's alone: %s",
            file,
            name,
            ", ".join(f"dimension {dim} of {length}" for dim, length in lengths),
        )
    args, kwargs = _two_rows((args, kwargs))
    return FoundModel(
        model=model,
        name=file,
        weights=f"held in {path.name}, sha256 {file_sha256(path)}",
        example_inputs=Arguments(args=args, kwargs=kwargs),
    )


def _other_free_lengths(
    program: torch.export.ExportedProgram,
) -> dict[str, tuple[tuple[int, int], ...]]:
    """By input: dimensions but the first that may have any length, and the example's lengths."""
    assert program.example_inputs is not None
    leaves = pytree.tree_leaves(program.example_inputs)
    found = {}
    for name, leaf in zip(program.graph_signature.user_inputs, leaves, strict=True):
        value = next(node for node in program.graph.nodes if node.name == name).meta.get("val")
        if isinstance(value, torch.Tensor):
            free = [dim for dim, length in enumerate(value.shape) if not isinstance(length, int)]
            lengths = tuple((dim, leaf.shape[dim]) for dim in free if dim > 0)
            if lengths:
                found[name] = lengths
    return found


def _callable_program(program: torch.export.ExportedProgram, file: str) -> nn.Module:
    """The program as a module whose rows are free.

    Raises:
        ModelError: an input was exported with a fixed number of rows.
    """
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or node.name not in inputs:
            continue
        if isinstance(value, torch.Tensor) and value.dim() > 0 and isinstance(value.shape[0], int):
            raise ModelError(
                f"program {file} was exported for {value.shape[0]} rows of {node.name!r} only; "
                "export it with a dynamic first dimension: "
                f"dynamic_shapes={{{node.name!r}: {{0: torch.export.Dim('batch')}}}}"
            )
    # Guards would be traced with the program, and bind every capture to the range of rows that
    # was written down at export; without them torch checks the range where the program is run.
    model = program.module(check_guards=False)
    # A program is what it was exported as; torch refuses to switch its mode, even to the same one.
    model.train = lambda mode=True: model  # type: ignore[method-assign] # noqa: ARG005
    model.eval = lambda: model  # type: ignore[method-assign]
    return model


def _two_rows(inputs: Any) -> Any:
    """Repeats a single row, because a lone row would be taken for a fixed length."""
    return pytree.tree_map(
        lambda value: (
            torch.cat((value, value))
            if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == 1
            else value
        ),
        inputs,
    )
