"""Captures a model of any kind that there is: a module of torch, a part of one, an ONNX file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cutset.capture.arguments import ExampleInputs, untouched
from cutset.capture.captured import Captured, check_computes
from cutset.capture.independence import check_rows
from cutset.capture.onnx.onnx_file import OnnxModule
from cutset.capture.onnx.onnx_graph import capture_onnx
from cutset.errors import CaptureError, ModelError
from cutset.progress import Progress

if TYPE_CHECKING:
    import torch

    from cutset.capture.parts import CapturedPart

logger = logging.getLogger(__name__)


def capture(
    model: torch.nn.Module | OnnxModule,
    example_inputs: ExampleInputs,
    *,
    part: str | None,
    max_tensors: int,
    micro_batch_only: int | None,
    progress: Progress,
) -> tuple[Captured, CapturedPart | None]:
    """Captures a model, and tries whether its rows are independent of each other.

    Args:
        model: a module of torch in evaluation mode, or an ONNX model.
        example_inputs: what a module of torch is called with.
        part: dotted path of the module to capture in the place of the whole model, or None.
        max_tensors: how many tensors may cross a cut, for the parts that are offered where the
            model cannot be captured.
        micro_batch_only: the only number of rows that it is captured for, or None for any.
        progress: told of every step.

    Returns:
        The captured model, and the part where one was named.

    Raises:
        ModelError: the model has no such part.
        CaptureError: it cannot be captured, or a row's result depends on the rows beside it.
    """
    chosen = None
    captured: Captured
    if isinstance(model, OnnxModule):
        captured = _capture_onnx(model, part, micro_batch_only)
    else:
        from cutset.capture.parts import capture_part

        with untouched(model):
            if part is None:
                captured = _capture_whole(
                    model, example_inputs, max_tensors, micro_batch_only, progress
                )
            else:
                chosen = capture_part(
                    model, example_inputs, part, micro_batch_only=micro_batch_only
                )
                captured = chosen.captured
    progress("trying whether rows are independent of each other")
    check_rows(captured)
    return captured, chosen


def _capture_onnx(module: OnnxModule, part: str | None, micro_batch_only: int | None) -> Captured:
    """An ONNX file's model; what is compared from here on is it with a free number of rows.

    Raises:
        ModelError: a part is named.
        CaptureError: the model cannot be captured.
    """
    if part is not None:
        raise ModelError(
            f"part {part!r}: an ONNX file has no modules, of which one could be split alone; "
            "extract the part with onnx.utils.extract_model"
        )
    captured = capture_onnx(module, micro_batch_only=micro_batch_only)
    for note in captured.notes:
        logger.warning("%s: %s", module.name, note)
    check_computes(captured.graph)
    return captured


def _capture_whole(
    model: torch.nn.Module,
    example_inputs: ExampleInputs,
    max_tensors: int,
    micro_batch_only: int | None,
    progress: Progress,
) -> Captured:
    """The whole of a module of torch.

    Raises:
        CaptureError: it cannot be captured; names the parts of it that could be.
    """
    from cutset.capture.parts import find_parts
    from cutset.capture.torch_export import capture_model

    try:
        return capture_model(model, example_inputs, micro_batch_only=micro_batch_only)
    except CaptureError as refusal:
        progress("looking for parts that can be captured")
        try:
            parts = find_parts(model, example_inputs, max_tensors=max_tensors)
        except Exception as error:  # noqa: BLE001 - a model may fail on its example in any way
            logger.debug("no part can be captured: %s", error)
            parts = ()
        if parts:
            refusal.parts = tuple((offer.path, offer.work_share) for offer in parts)
            text = (
                f"{str(refusal).rstrip('.')}. A part of it can be split alone if you name it "
                f"(--part {parts[0].path}): {', '.join(map(str, parts))}. Its results are not the "
                "model's; the rest stays with you: see PreparedModel.part_in"
            )
            refusal.args = (text,)
        raise
