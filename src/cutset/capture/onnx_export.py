"""Writes a stage as an ONNX model."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from onnx_ir.passes import PassError
from torch.export import ExportedProgram

from cutset.capture.onnx import onnx_file

logger = logging.getLogger(__name__)


def export_onnx(
    exported: ExportedProgram,
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> str:
    """Writes an exported stage as ONNX.

    Not every operation of torch has a counterpart in ONNX, so that a stage without an ONNX model
    is no error: the manifest says so and why.

    Args:
        exported: the stage.
        path: the file to write.
        input_names: names of its inputs, in order.
        output_names: names of its outputs, in order; one that is also an input (a tensor that
            is only passed on) gets the suffix ``_out``, since ONNX names must be unique.

    Returns:
        Why the stage cannot be expressed in ONNX, or ``""``.

    Raises:
        OSError: the file cannot be written.
    """
    unique = [f"{name}_out" if name in input_names else name for name in output_names]
    # The exporter prints its progress and warns about what does not matter here.
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet):
            try:
                program = _to_onnx(exported, input_names, unique, optimize=True)
            except PassError as error:
                # The simplifier stumbles over some models (RAFT); what it left behind is not used.
                logger.info(
                    "ONNX of %s is not simplified: %s", path.parent.name, _root_cause(error)
                )
                program = _to_onnx(exported, input_names, unique, optimize=False)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = _root_cause(error)
        logger.info("no ONNX model for %s: %s", path.parent.name, reason)
        return reason
    assert program is not None
    graph = program.model.graph
    ends = {*graph.inputs, *graph.outputs}
    end_names = {value.name for value in ends}
    for node in graph.all_nodes():
        # Scopes and traces of the exporter; they name the author's files and double the size.
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            # The exporter gives the ends the names it was told, also where a value has one already.
            if value.name in end_names and value not in ends:
                value.name = f"inner_{node.name}_{value.name}"
    for value in list(graph.initializers.values()):
        # A node that was folded into a stored tensor may have had the name of an end, too.
        if value.name in end_names and value not in ends:
            value.name = f"stored_{value.name}"
    program.save(path, external_data=_weight_bytes(program) > onnx_file.MAX_INLINE_BYTES)
    return ""


def _weight_bytes(program: Any) -> int:
    stored = (value.const_value for value in program.model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in stored if tensor is not None)


def _to_onnx(
    exported: ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str],
    *,
    optimize: bool,
) -> Any:
    return torch.onnx.export(
        exported,
        dynamo=True,
        verbose=False,
        optimize=optimize,
        input_names=list(input_names),
        output_names=list(output_names),
    )


def _root_cause(error: BaseException) -> str:
    """The first line of what the exporter stumbled over; its own message only lists its steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
