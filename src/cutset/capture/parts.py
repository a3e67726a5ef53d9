"""The parts of a model that can be captured, where the whole cannot.

Some models decide on values: a detector keeps the boxes that score well, and how many that are
no graph can say. Most of their work still lies in one module that decides nothing (a backbone
with its pyramid). Where the user names that module it is captured and split like any model; the
rest stays with the caller, who runs it from the model's own object with the module's forward
exchanged. A part's results are not the model's, so none is ever taken that was not named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from cutset.capture.arguments import (
    Arguments,
    ExampleInputs,
    call_model,
    split_inputs,
    untouched,
)
from cutset.capture.captured_model import CapturedModel
from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError, ModelError
from cutset.graph.cuts import find_cut_points

logger = logging.getLogger(__name__)

Run = Callable[[tuple[torch.Tensor, ...]], Sequence[torch.Tensor]]
"""Takes a part's flat inputs and gives its flat outputs, in the order of its graph."""

MOST_OFFERS = 5
_LEAST_SHARE = 0.01
"""Modules that do less of the work are not tried; there may be thousands."""


def part_in_words(path: str, work_share: float) -> str:
    """``"backbone (98.2% of the work)"``."""
    return f"{path} ({work_share:.1%} of the work)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CapturedPart:
    """A module within a model, captured on what reaches it.

    Attributes:
        path: dotted path of the module in the model.
        work_share: the share of the whole model's multiply-adds that it does, above 0, at most 1;
            of its time, where the model has no multiply-adds that torch counts.
        captured: the module as a captured model.
        example_inputs: what reached it.
    """

    path: str
    work_share: float
    captured: CapturedModel
    example_inputs: Arguments

    def __str__(self) -> str:
        return part_in_words(self.path, self.work_share)

    @contextlib.contextmanager
    def run_elsewhere(self, model: torch.nn.Module, run: Run) -> Iterator[torch.nn.Module]:
        """Within the context `model` calls `run` in the place of the part; the rest stays as it is.

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartOffer:
    """A module that could be split in the place of a model that cannot be captured.

    Attributes:
        path: dotted path of the module in the model.
        work_share: as in `CapturedPart`.
    """

    path: str
    work_share: float

    def __str__(self) -> str:
        return part_in_words(self.path, self.work_share)


def capture_part(
    model: torch.nn.Module,
    example_inputs: ExampleInputs,
    path: str,
    *,
    micro_batch_only: int | None = None,
) -> CapturedPart:
    """Captures the module at `path` on what reaches it when the model is run on an example.

    Args:
        model: a model that can be run on the example, whether or not it can be captured.
        example_inputs: as for `capture_model`.
        path: dotted path of the module in the model.
        micro_batch_only: as for `capture_model`.

    Raises:
        ModelError: the model has no such module, or does not call it exactly once.
        CaptureError: the module cannot be captured.
    """
    model.eval()
    modules = dict(model.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        outermost = ", ".join(name for name, _ in model.named_children())
        raise ModelError(
            f"the model has no module {path!r} that could be a part; its outermost are "
            f"{outermost or 'none'}"
        )
    module = modules[path]
    seen = _run_and_watch(model, example_inputs, keep=module)
    calls = seen.get(module, ())
    if len(calls) != 1:
        number = f"{len(calls)} times" if calls else "not at all"
        raise ModelError(
            f"part {path!r} cannot be split: on the example the model calls it {number}. A part "
            "is a module that every run calls once"
        )
    (call,) = calls
    assert call.arguments is not None
    share = call.work_share(seen[model][0])
    if share == 0.0:
        raise ModelError(
            f"part {path!r} cannot be split: on the example it does none of the model's work"
        )
    if why := _why_none(module, seen, _other_runs(model, example_inputs)):
        logger.warning("part %s: %s", path, why)
    return CapturedPart(
        path=path,
        work_share=share,
        captured=capture_model(module, call.arguments, micro_batch_only=micro_batch_only),
        example_inputs=call.arguments,
    )


def find_parts(
    model: torch.nn.Module, example_inputs: ExampleInputs, *, max_tensors: int = 1
) -> tuple[PartOffer, ...]:
    """The modules within a model that could be split, those with the most work first.

    Such a module is called once by every run and with all rows, whatever their values, and can be
    captured and cut. They are tried from the outside inwards: of a module that is offered the
    inner ones are not looked at.

    Args:
        model: a model that can be run on the example, whether or not it can be captured.
        example_inputs: as for `capture_model`.
        max_tensors: how many tensors may cross a cut.

    Returns:
        At most five; none where the model cannot be run with one row or with other values.
    """
    model.eval()
    seen = _run_and_watch(model, example_inputs)
    others = _other_runs(model, example_inputs)
    whole = seen[model][0]
    offers: list[PartOffer] = []
    modules = sorted(model.named_modules(), key=lambda item: item[0].count("."))
    for path, module in modules:
        inside = any(path.startswith(f"{offer.path}.") for offer in offers)
        if not path or inside or _why_none(module, seen, others):
            continue
        share = seen[module][0].work_share(whole)
        if share < _LEAST_SHARE:
            continue
        (call,) = _run_and_watch(model, example_inputs, keep=module)[module]
        assert call.arguments is not None
        try:
            captured = capture_model(module, call.arguments)
        except CaptureError as error:
            logger.debug("%s cannot be captured: %s", path, error)
            continue
        if find_cut_points(captured.graph, max_tensors=max_tensors).points:
            offers.append(PartOffer(path=path, work_share=share))
    return tuple(sorted(offers, key=lambda offer: -offer.work_share)[:MOST_OFFERS])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """What a module was called with, and what it did.

    Attributes:
        first_lengths: the first length of every tensor that it was called with.
        arguments: copies of what it was called with, if they are wanted.
        flops: multiply-adds, as torch counts them.
        seconds: it took.
    """

    first_lengths: tuple[int, ...]
    arguments: Arguments | None
    flops: int
    seconds: float

    def work_share(self, whole: _Call) -> float:
        """Its share of the whole model's call."""
        if whole.flops:
            return min(1.0, self.flops / whole.flops)
        return min(1.0, self.seconds / whole.seconds) if whole.seconds else 0.0


_Calls: TypeAlias = dict[torch.nn.Module, list[_Call]]


def _run_and_watch(
    model: torch.nn.Module, example_inputs: ExampleInputs, keep: torch.nn.Module | None = None
) -> _Calls:
    """Runs a model and notes the calls of each module; the arguments of `keep` are copied."""
    calls: _Calls = {model: []}
    begun: list[tuple[Arguments | None, int, float]] = []
    # The counter follows the gradients of parameters, and then never lets go of them.
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]

    def enter(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        copied = None
        if module is keep:
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
            copied = Arguments(args=args, kwargs=kwargs)
        begun.append((copied, counter.get_total_flops(), time.perf_counter()))

    def leave(module: torch.nn.Module, args: Any, kwargs: Any, _result: Any) -> None:
        copied, flops, started = begun.pop()
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        call = _Call(
            first_lengths=tuple(tensor.shape[0] for tensor in tensors if tensor.dim()),
            arguments=copied,
            flops=counter.get_total_flops() - flops,
            seconds=time.perf_counter() - started,
        )
        calls.setdefault(module, []).append(call)

    hooks = []
    with untouched(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            for tensor in trained:
                tensor.requires_grad_(False)
            for module in model.modules():
                hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.append(module.register_forward_hook(leave, with_kwargs=True))
            call_model(model, example_inputs)
        finally:
            for hook in hooks:
                hook.remove()
            for tensor in trained:
                tensor.requires_grad_(True)
    return calls


def _other_runs(
    model: torch.nn.Module, example_inputs: ExampleInputs
) -> tuple[tuple[float, _Calls | None], ...]:
    """Runs with the example's first row alone, and with other values in as many rows.

    Returns:
        For each the rows in it over those of the example, and its calls; None where it fails.
    """
    leaves, spec = pytree.tree_flatten(split_inputs(example_inputs))
    places = [i for i, t in enumerate(leaves) if isinstance(t, torch.Tensor) and t.dim()]
    num_rows = leaves[places[0]].shape[0] if places else 1

    def first(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:1].clone()

    def other(tensor: torch.Tensor) -> torch.Tensor:
        return -tensor.flip(0) if tensor.is_floating_point() else tensor.flip(0)

    found: list[tuple[float, _Calls | None]] = []
    for change, factor in ((first, 1 / max(1, num_rows)), (other, 1.0)):
        changed = [change(leaf) if i in places else leaf for i, leaf in enumerate(leaves)]
        args, kwargs = pytree.tree_unflatten(changed, spec)
        try:
            calls = _run_and_watch(model, Arguments(args=args, kwargs=kwargs))
        except Exception as error:  # noqa: BLE001 - a model may fail in any way
            logger.debug("the model fails with other rows than its example's: %s", error)
            found.append((factor, None))
        else:
            found.append((factor, calls))
    return tuple(found)


def _why_none(
    module: torch.nn.Module, seen: _Calls, others: Sequence[tuple[float, _Calls | None]]
) -> str:
    """Why a module is no step that every run takes once and with all rows, or ``""``."""
    calls = seen.get(module, ())
    if len(calls) != 1:
        return "the model does not call it exactly once"
    for factor, run in others:
        if run is None:
            return "the model does not run with one row alone, or with other values"
        found = run.get(module, ())
        if len(found) != 1:
            return "whether the model calls it depends on the values, or on the number of rows"
        (call,) = found
        # With one row every tensor has one; more of them (a detector's proposals) are other rows.
        lengths_now = [length * factor for length in calls[0].first_lengths]
        expected = lengths_now if factor == 1.0 else [1.0] * len(lengths_now)
        if [float(length) for length in call.first_lengths] != [round(e, 6) for e in expected]:
            lengths = ", ".join(map(str, calls[0].first_lengths))
            return (
                "its rows are not the model's: how many reach it depends on the values (on the "
                f"example {lengths})"
            )
    return ""
