"""Finds a model by what a user calls it: architecture, weights, example inputs, preprocessing.

Importing this package does not import torch; finding a model does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cutset.capture.arguments import Arguments, ExampleInputs
from cutset.errors import ModelError
from cutset.models.found import FoundModel
from cutset.models.weights_request import WEIGHT_SUFFIXES, WeightsRequest, parse_weights

if TYPE_CHECKING:
    import torch

__all__ = ["Arguments", "ExampleInputs", "FoundModel", "find_model"]

_FORMS = "torchvision:NAME, NAME, timm:NAME, FILE.py:FACTORY, FILE.pt2 or FILE.onnx"


def find_model(
    model: str | torch.nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    weights: str | None = None,
) -> FoundModel:
    """Finds a model and its weights.

    A ``FILE.py`` and a ``FILE.pt2`` are the caller's own: the first is imported, which runs it;
    the second is read by `torch.export.load`, which can run code too. Name only files that you
    would run. Programs inside a bundle never come this way.

    Args:
        model: a module, which `example_inputs` come with, or one of

            - ``torchvision:NAME`` or a bare ``NAME``: any builder registered with torchvision;
            - ``timm:NAME``: any model of timm, with or without a tag (needs the extra ``timm``);
            - ``FILE.py:FACTORY``: a function or class of the file, called without arguments, or
              a module object. It gives a module, a pair ``(module, example_inputs)``, a triple
              ``(module, args, kwargs)`` or a whole `FoundModel`. Where it gives no example inputs,
              the file's function ``example_inputs()`` is asked;
            - ``FILE.pt2``: a program saved by `torch.export.save`;
            - ``FILE.onnx``: an ONNX model, read as data and run in ONNX Runtime alone;
            - ``SOURCE:NAME``: a model of a source that another package adds (entry points
              ``cutset.models``).
        example_inputs: what a module is called with, two rows or more of each tensor.
        weights: one of

            - None: the library's default weights for torchvision and timm (never random ones),
              the weights that the factory or the program came with otherwise;
            - ``DEFAULT`` or another name that torchvision or timm know for this model, read
              from their cache or downloaded by them;
            - ``FILE.pth`` (also ``.pt``, ``.bin``, ``.ckpt``; read with ``weights_only=True``)
              or ``FILE.safetensors``: a state dict whose names and shapes are the model's. It may
              lie under keys of the file; where several do and not one alone fits the model,
              ``FILE.pth:KEY`` (or ``:KEY:KEY``) says which. A prefix before all names is taken
              off. Both are said in a log warning and in `FoundModel.weights`.
              With ``:by-order`` after the file's name, entries are matched by their order
              instead of their names, and only where every shape agrees;
            - ``random:SEED``: reproducible random weights, batch-norm statistics included.

    Returns:
        the model in evaluation mode with everything that belongs to it.

    Raises:
        ModelError: nothing has this name (near names are given), a module comes without example
            inputs or a name with some, a file is missing or cannot be read, the weights
            cannot be had here, or the extra ``timm`` is not installed.
        WeightsMismatch: the weights belong to another model.
    """
    request = parse_weights(weights)
    if not isinstance(model, str):
        return _found_object(model, example_inputs, request)
    if example_inputs is not None:
        raise ModelError(
            f"{model!r} comes with its own example inputs; give example_inputs with a module only"
        )
    spec = model
    path, colon, factory = spec.rpartition(":")
    if colon and Path(path).suffix == ".py":
        from cutset.models.from_file import find_in_python_file

        return find_in_python_file(path, factory, request)
    if Path(spec).suffix == ".pt2":
        from cutset.models.from_file import find_in_program_file

        return find_in_program_file(spec, request)
    if Path(spec).suffix == ".onnx":
        from cutset.models.from_onnx import find_in_onnx_file

        return find_in_onnx_file(spec, request)
    library, colon, name = spec.partition(":")
    if not colon and _is_path(spec):
        raise ModelError(_why_no_model(Path(spec)))
    if library == "timm" and colon:
        from cutset.models.from_timm import find_in_timm

        return find_in_timm(name, request)
    if not colon or library == "torchvision":
        from cutset.models.from_torchvision import find_in_torchvision

        return find_in_torchvision(name if colon else spec, request)
    from cutset.models.from_packages import find_in_package, source_names

    found = find_in_package(spec, request)
    if found is not None:
        return found
    added = "".join(f", {source}:NAME" for source in source_names())
    raise ModelError(f"{spec!r} names no model; write {_FORMS}{added}")


def _is_path(spec: str) -> bool:
    """Whether a bare name can only be meant as a path: no registered model's name has a suffix."""
    path = Path(spec)
    if path.name != spec or path.suffix in (".py", *WEIGHT_SUFFIXES):
        return True
    return bool(path.suffix) and path.exists()


def _why_no_model(path: Path) -> str:
    """What is said of a path that is no model."""
    if path.suffix == ".py":
        return (
            f"{path} names a file but nothing in it; write {path}:FACTORY, where FACTORY is a "
            "function or class of the file"
        )
    if path.suffix in WEIGHT_SUFFIXES:
        return (
            f"{path} would be a file of weights, which says no architecture; name the model that "
            f"they are of, and give them with --weights {path}"
        )
    if not path.exists():
        return f"{path}: no such file; a model is named by {_FORMS}"
    if (path / "manifest.json").is_file():
        return f"{path} is a bundle, split already: see cutset verify, run, bench or serve {path}"
    kind = "folder" if path.is_dir() else "file"
    return f"{path} is a {kind} that no model can be read from; a model is named by {_FORMS}"


def _found_object(
    model: object, example_inputs: ExampleInputs | None, request: WeightsRequest | None
) -> FoundModel:
    """A module that is at hand.

    Raises:
        ModelError: it is no module, or comes without example inputs.
    """
    import torch

    from cutset.models.from_file import found_module

    if isinstance(model, torch.nn.Module):
        return found_module(model, example_inputs, request)
    if isinstance(model, FoundModel):
        raise ModelError("a FoundModel is found already: give it to prepare_found")
    raise ModelError(
        f"{type(model).__name__} is no model: expected a torch.nn.Module with example inputs, or "
        f"a name ({_FORMS})"
    )
