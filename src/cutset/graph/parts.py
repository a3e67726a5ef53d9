"""The part of a model that can be captured, where the whole cannot.

Some models decide on values: a detector keeps the boxes that score well, and how many that are
no graph can say. Most of their work still lies in one module that decides nothing (a backbone
with its pyramid). That module is captured and split like any model; the rest stays with the
caller, who runs it from the model's own object with the module's forward exchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cutset.errors import CaptureError
from cutset.graph.capture import ExampleInputs, capture_model
from cutset.graph.cuts import find_cut_points
from cutset.graph.lowering import CapturedModel

logger = logging.getLogger(__name__)

Run = Callable[[tuple[torch.Tensor, ...]], Sequence[torch.Tensor]]
"""Takes a part's flat inputs and gives its flat outputs, in the order of its graph."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapturedPart:
    """A module within a model, captured on what reaches it.

    Attributes:
        path: dotted path of the module in the model.
        captured: the module as a captured model.
        example_inputs: what reached it, as positional or as keyword arguments.
    """

    path: str
    captured: CapturedModel
    example_inputs: tuple[Any, ...] | dict[str, Any]

    @contextlib.contextmanager
    def run_elsewhere(self, model: torch.nn.Module, run: Run) -> Iterator[torch.nn.Module]:
        """Within the context `model` leaves the part's work to `run`, and is itself else.

        Args:
            model: the whole model, the caller's own object.
            run: called with the part's inputs whenever the model calls the part.
        """
        module = model.get_submodule(self.path)

        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves = pytree.tree_leaves((args, kwargs))
            inputs = tuple(leaves[position] for position in self.captured.leaf_of_input)
            return self.captured.nest(tuple(run(inputs)))

        # An attribute of the instance hides the class's method as long as it is there.
        before = module.__dict__.get("forward")
        module.forward = forward
        try:
            yield model
        finally:
            del module.forward
            if before is not None:
                module.forward = before


def capture_largest_part(
    model: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    path: str | None = None,
    max_tensors: int = 1,
) -> CapturedPart:
    """Captures the module within a model that does the most work and can be cut.

    The modules that are called once, with tensors alone, are tried from the outside inwards: of
    a module that can be captured the inner ones are not looked at. One that has a cut point comes
    before one that has none.

    Args:
        model: a model that can be run on the example, whether or not it can be captured.
        example_inputs: as for `capture_model`.
        path: the dotted path of a module; no other is tried.
        max_tensors: how many tensors may cross a cut.

    Raises:
        CaptureError: there is no such module; the message has the reason of the outermost ones.
    """
    model.eval()
    seen = _arguments_of_modules(model, example_inputs)
    if path is not None:
        seen = {path: seen[path]} if path in seen else {}
    best: CapturedPart | None = None
    most = (False, -1)
    reasons: list[str] = []
    captured_paths: list[str] = []
    for name, calls in seen.items():
        inside = any(name.startswith(f"{outer}.") for outer in captured_paths)
        if len(calls) != 1 or inside:
            continue
        args, kwargs = calls[0]
        if (args and kwargs) or not (args or kwargs):
            continue
        example = kwargs or args
        try:
            captured = capture_model(model.get_submodule(name), example)
        except CaptureError as error:
            logger.debug("%s cannot be captured: %s", name, error)
            reasons.append(f"{name}: {error}")
            continue
        captured_paths.append(name)
        cuts = find_cut_points(captured.graph, max_tensors=max_tensors)
        work = (bool(cuts.points), captured.graph.flops)
        if work > most:
            most = work
            best = CapturedPart(path=name, captured=captured, example_inputs=example)
    if best is None:
        raise CaptureError(
            "neither the model nor a module in it can be captured; the outermost say: "
            f"{'; '.join(reasons[:3]) or 'no module is called once and with tensors alone'}"
        )
    return best


def _arguments_of_modules(
    model: torch.nn.Module, example_inputs: ExampleInputs
) -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """What each module but the root is called with, by path, outer modules first."""
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    def recorder(path: str) -> Callable[..., None]:
        def record(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(path, []).append((args, dict(kwargs)))

        return record

    hooks = [
        module.register_forward_pre_hook(recorder(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path
    ]
    try:
        with torch.no_grad():
            _call(model, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(sorted(calls.items(), key=lambda item: item[0].count(".")))


def _call(model: torch.nn.Module, example_inputs: ExampleInputs) -> None:
    if isinstance(example_inputs, torch.Tensor):
        model(example_inputs)
    elif isinstance(example_inputs, Mapping):
        model(**example_inputs)
    else:
        model(*example_inputs)
