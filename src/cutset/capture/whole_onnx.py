"""A captured model as one ONNX model, exported once: stages and pieces are cut out of it."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from cutset.capture.onnx.lengths import extract_piece
from cutset.capture.onnx.operations import PASSED_ON
from cutset.capture.onnx_export import export_onnx
from cutset.capture.pieces import build_piece, export_piece
from cutset.errors import EngineError
from cutset.tensors import TensorSpec

if TYPE_CHECKING:
    from cutset.capture.captured_model import CapturedModel


class WholeOnnx:
    """The ONNX form of a model in which chosen tensors keep their names."""

    def __init__(self, captured: CapturedModel, ends: Sequence[TensorSpec]) -> None:
        """Exports the whole model.

        Args:
            captured: the captured model.
            ends: tensors made inside at which pieces may begin or end.

        Raises:
            EngineError: ONNX cannot express it; says why.
        """
        # The model would keep itself alive as a key of the table below.
        self._graph = captured.graph
        stop = len(captured.graph.operations)
        piece = build_piece(captured, 0, stop, watch=ends)
        self._names = {spec.name for spec in (*piece.input_specs, *piece.output_specs)}
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            exported = export_piece(
                piece, captured.example_inputs, is_free=captured.micro_batch_only is None
            )
            path = Path(folder) / "whole.onnx"
            missing = export_onnx(
                exported,
                path,
                input_names=[spec.name for spec in piece.input_specs],
                output_names=[spec.name for spec in piece.output_specs],
            )
            if missing:
                raise EngineError(f"the model has no ONNX form: {missing}")
            self._extractor = onnx.utils.Extractor(onnx.load(path))

    def has(self, ends: Sequence[TensorSpec]) -> bool:
        """Whether pieces may begin and end at these tensors."""
        return self._names.issuperset(spec.name for spec in ends)

    def stage(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Any:
        """The model of a stage: a piece that returns also what it merely passes on.

        Raises:
            EngineError: see `piece`.
        """
        given = {spec.name for spec in inputs}
        model = self.piece(inputs, [spec.name for spec in outputs if spec.name not in given])
        made = {value.name: value for value in model.graph.output}
        takes = {value.name: value for value in model.graph.input}
        del model.graph.output[:]
        for spec in outputs:
            if spec.name in given:
                passed = f"{spec.name}{PASSED_ON}"
                model.graph.node.append(onnx.helper.make_node("Identity", [spec.name], [passed]))
                value = onnx.ValueInfoProto()
                value.CopyFrom(takes[spec.name])
                value.name = passed
                model.graph.output.append(value)
            else:
                model.graph.output.append(made[spec.name])
        return model

    def piece(self, inputs: Sequence[TensorSpec], output_names: Sequence[str]) -> Any:
        """What lies between, as an ``onnx.ModelProto`` of its own.

        Args:
            inputs: what the piece takes; it has those that it reads.
            output_names: what it makes, none of it merely passed on.

        Raises:
            EngineError: the piece reads more than lengths off a tensor that it does not get.
        """
        return extract_piece(self._extractor, self._graph, inputs, output_names)


_exported: weakref.WeakKeyDictionary[CapturedModel, WholeOnnx | str] = weakref.WeakKeyDictionary()
"""The form of each model that is still there, or why it has none: in words, since an exception
would keep the model alive by its traceback."""


def whole_onnx(captured: CapturedModel, ends: Sequence[TensorSpec]) -> WholeOnnx:
    """The ONNX form of a model, exported at the first call: that takes longer than all else here.

    Args:
        captured: the captured model.
        ends: tensors made inside at which pieces may begin or end.

    Raises:
        EngineError: ONNX cannot express the model; says why.
    """
    found = _exported.get(captured)
    if found is None or (isinstance(found, WholeOnnx) and not found.has(ends)):
        inside = [spec for spec in dict.fromkeys(ends) if spec not in captured.graph.inputs]
        try:
            found = WholeOnnx(captured, inside)
        except EngineError as error:
            found = str(error)
        _exported[captured] = found
    if isinstance(found, str):
        raise EngineError(found)
    return found
