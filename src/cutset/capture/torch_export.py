"""From a model to a graph, by `torch.export`.

The captured program is brought into one form: no operation changes a tensor in place, so that
a stage can never alter what another stage still reads. Where every in-place operation acts on a
tensor that nobody else sees (``relu_`` after a convolution), it is exchanged for its twin that
returns a new tensor. Where a view is changed, torch's own functionalisation rewrites the program.
Both compute the same numbers with the same kernels.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch._dynamo.exc import UserError, UserErrorType
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from cutset.capture.arguments import ExampleInputs, split_inputs, untouched
from cutset.capture.captured import ONE_NUMBER, check_computes
from cutset.capture.captured_model import CapturedModel, leaf_with_rows
from cutset.capture.constants import known_constants
from cutset.capture.diagnosis import (
    check_conditions,
    check_program,
    export_error,
    is_about_values,
    is_held_at_a_number,
)
from cutset.capture.functionalise import replace_inplace_operations
from cutset.capture.input_rows import check_input_rows, name_input_without_rows
from cutset.capture.lowering import lower_program
from cutset.capture.number_of_rows import fixed_rows_error
from cutset.capture.regions import inline_regions
from cutset.capture.rehearsal import check_runs, kept_from_calls
from cutset.capture.torch_settings import plain_modes
from cutset.errors import CaptureError
from cutset.graph.ir import Graph
from cutset.tensors import BATCH

logger = logging.getLogger(__name__)

MAX_ROWS = 1 << 24
"""Upper end of the range of rows that a captured model is asked to hold for."""


def capture_graph(model: torch.nn.Module, example_inputs: ExampleInputs) -> Graph:
    """Captures a model as plain data; see `capture_model`."""
    return capture_model(model, example_inputs).graph


@plain_modes()
def capture_model(
    model: torch.nn.Module,
    example_inputs: ExampleInputs,
    *,
    micro_batch_only: int | None = None,
) -> CapturedModel:
    """Captures a model in evaluation mode with a dynamic number of rows, or for one alone.

    Args:
        model: any module that `torch.export` can trace; it is not changed, but for being put
            into evaluation mode.
        example_inputs: inputs with at least two rows along the first dimension of every tensor.
        micro_batch_only: capture the way that the model takes with just so many rows, those of the
            example repeated or cut off, of which one is enough; 1 or more. None for any number.

    Raises:
        ValueError: `micro_batch_only` is below 1.
        CaptureError: an input has fewer than two rows, the model cannot be traced, or its
            result does not grow with the rows.
    """
    model.eval()
    args, kwargs = split_inputs(example_inputs)
    if micro_batch_only is not None and micro_batch_only < 1:
        raise ValueError(f"micro_batch_only={micro_batch_only}: a micro-batch has one row or more")
    check_input_rows(model, args, kwargs, least=1 if micro_batch_only else 2)
    if micro_batch_only is not None:
        args, kwargs = pytree.tree_map(
            lambda leaf: leaf_with_rows(leaf, micro_batch_only), (args, kwargs)
        )
    with untouched(model):
        check_runs(model, args, kwargs)
        try:
            return _capture(model, args, kwargs, micro_batch_only)
        except CaptureError:
            captured = _capture_without_what_was_kept(model, args, kwargs, micro_batch_only)
            if captured is None:
                raise
            return captured


def _capture(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    micro_batch_only: int | None,
) -> CapturedModel:
    def attempt() -> CapturedModel:
        export = _export if micro_batch_only is None else _export_for_one_number
        exported = export(model, args, kwargs)
        inline_regions(exported)
        check_program(exported)
        exported = replace_inplace_operations(exported)
        captured = lower_program(model, exported, (args, kwargs), micro_batch_only=micro_batch_only)
        check_computes(captured.graph)
        return captured

    try:
        return attempt()
    except CaptureError as error:
        if not is_about_values(error):
            raise
    # Not at once: working out all that stands on constants takes half as long again (Swin: 15 s).
    with known_constants(model):
        return attempt()


def _capture_without_what_was_kept(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    micro_batch_only: int | None,
) -> CapturedModel | None:
    """The model as if no call had left anything in it; None where none did, or it does not help.

    A grid that is kept with the shape it was made for binds a capture to that many rows. Verifying
    a bundle compares what is captured with the model as it is.
    """
    kept = kept_from_calls(model, args, kwargs)
    if not kept:
        return None
    paths = {module: path for path, module in model.named_modules()}
    names = ", ".join(f"{paths[module]}.{name}".lstrip(".") for module, name in kept)
    with untouched(model):
        for module, name in kept:
            vars(module)[name] = None
        try:
            captured = _capture(model, args, kwargs, micro_batch_only)
        except (CaptureError, TypeError, AttributeError):
            return None
    logger.info("captured as if no earlier call had left %s in the model", names)
    return captured


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ExportedProgram:
    try:
        return _export_with(model, args, kwargs, ExportDim(BATCH, min=1, max=MAX_ROWS))
    except UserError as error:
        # torch could not prove its own conditions on the number of rows for the whole range; it
        # is right to be strict, and yet most such conditions do hold. They are tried instead.
        refusal = error
    except Exception as error:
        raise _rows_error(model, args, kwargs, error) from error
    try:
        exported = _export_with(model, args, kwargs, ExportDim.AUTO)
    except Exception as error:
        raise export_error(model, error) from error
    check_conditions(exported, _rows_error(model, args, kwargs, refusal), refusal)
    return exported


def _rows_error(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], cause: Exception
) -> CaptureError:
    """Why the number of rows is not free: the input or the line to blame, if it is found."""
    kind = cause.error_type if isinstance(cause, UserError) else None
    if kind is not UserErrorType.CONSTRAINT_VIOLATION and f" for {BATCH} " not in str(cause):
        return export_error(model, cause)
    plain = export_error(model, cause)
    finding = str(plain).partition(": ")[2].partition(". ")[0]
    if "TORCH_LOGS" in finding:  # torch's heading of a list
        finding = "torch.export cannot hold what it does for every number of rows"
    named = name_input_without_rows(model, args, kwargs)
    named = named or fixed_rows_error(model, args, kwargs, finding)
    if named or not is_held_at_a_number(cause):
        return named or plain
    return CaptureError(
        "torch.export holds the number of rows at that of the example, though no line of the "
        "model was seen to ask for it: it cannot follow an operation in it with a free number. "
        f"To go on, {ONE_NUMBER}"
    )


def _export_for_one_number(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ExportedProgram:
    try:
        return _export_with(model, args, kwargs, None)
    except Exception as error:
        raise export_error(model, error) from error


def _export_with(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Any
) -> ExportedProgram:
    """Exports with the first dimension of every tensor as `rows` says; fixed where None."""

    def dims(value: Any) -> dict[int, Any] | None:
        return {0: rows} if rows is not None and isinstance(value, torch.Tensor) else None

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    shapes = pytree.tree_map(dims, dict(bound))
    with torch.no_grad(), _without_torchs_words(), warnings.catch_warnings():
        # A forward that keeps a tensor in a plain attribute (a cache, what it last saw) computes
        # the same without; what a program holds is in its signature.
        warnings.filterwarnings("ignore", message="The tensor attribute.* assigned during exp")
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _without_torchs_words() -> Iterator[None]:
    """Keeps off the terminal what torch prints where it cannot trace: whole graphs, and a warning.

    What it says of the cause is in the error that it raises.
    """
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was_disabled, log.disabled = log.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.disabled = was_disabled
