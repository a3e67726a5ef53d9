"""What every captured model answers, whatever it was captured from."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cutset.backends.onnxruntime import OnnxruntimeBackend
from cutset.capture.captured import Captured, PieceFiles
from cutset.capture.onnx.onnx_file import read_onnx_file
from cutset.capture.onnx.onnx_graph import capture_onnx
from cutset.capture.torch_export import capture_model
from cutset.errors import EngineError
from cutset.graph.cuts import find_cut_points
from cutset.graph.ir import boundary_specs, made_between

KINDS = ("torch", "onnx")


@pytest.fixture(scope="module")
def captured_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Captured]:
    """One small network, captured by torch and out of a file with its weights beside it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    path = tmp_path_factory.mktemp("captured") / "m.onnx"
    helper = onnx.helper
    layers = [model[0], model[2], model[4]]
    stored = [
        onnx.numpy_helper.from_array(tensor.detach().numpy(), f"{name}{index}")
        for index, layer in enumerate(layers)
        for name, tensor in (("w", layer.weight), ("b", layer.bias))
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h0"], transB=1),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("Gemm", ["h1", "w1", "b1"], ["h2"], transB=1),
        helper.make_node("Tanh", ["h2"], ["h3"]),
        helper.make_node("Gemm", ["h3", "w2", "b2"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 4), ("y", 3))
    ]
    graph = helper.make_graph(nodes, "m", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=9),
        path,
        save_as_external_data=True,
        size_threshold=0,
        location="m.data",
    )
    example = torch.arange(8.0).reshape(2, 4)
    return {
        "torch": capture_model(model.eval(), example),
        "onnx": capture_onnx(read_onnx_file(path)),
    }


@pytest.fixture(params=KINDS)
def captured(request: pytest.FixtureRequest, captured_models: dict[str, Captured]) -> Captured:
    return captured_models[request.param]


def _edges(captured: Captured) -> list[int]:
    cuts = find_cut_points(captured.graph)
    assert len(cuts.points) == 2
    return [0, *(point.position for point in cuts.points), len(captured.graph.operations)]


def test_both_kinds_compute_the_same(captured_models: dict[str, Captured]) -> None:
    rows = captured_models["torch"].rows(7)
    one, other = (captured_models[kind].run_whole(rows) for kind in KINDS)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-6)


def test_rows_are_the_example_s_repeated_or_cut_off(captured: Captured) -> None:
    (two,) = captured.rows(2)
    assert two.dtype == np.float32
    for count, places in ((1, [0]), (5, [0, 1, 0, 1, 0])):
        (found,) = captured.rows(count)
        assert np.array_equal(found, two[places])
    if captured.no_programs == "":
        assert two.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_pieces_one_after_the_other_are_the_whole(captured: Captured) -> None:
    given = captured.rows(3)
    before = given[0].copy()
    values = given
    for start, stop in pairwise(_edges(captured)):
        made = captured.piece_run(start, stop)(values)
        assert list(made) == [spec.name for spec in boundary_specs(captured.graph, stop)]
        values = tuple(made.values())
    np.testing.assert_allclose(values[0], captured.run_whole(given)[0], rtol=1e-6, atol=1e-6)
    assert np.array_equal(given[0], before)


def test_what_is_watched_is_given_as_well(captured: Captured) -> None:
    edges = _edges(captured)
    inside = boundary_specs(captured.graph, edges[1])
    found = captured.piece_run(0, edges[-1], inside)(captured.rows(2))
    assert set(found) == {*captured.graph.outputs, *(spec.name for spec in inside)}
    alone = captured.piece_run(0, edges[1])(captured.rows(2))
    np.testing.assert_allclose(found[inside[0].name], alone[inside[0].name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_piece_s_onnx_model_has_the_graph_s_names(captured: Captured, is_complete: bool) -> None:
    _, start, stop, _ = _edges(captured)
    given = boundary_specs(captured.graph, start)
    made = made_between(captured.graph, start, stop)
    assert captured.no_models((*given, *made)) == ""
    model, folder = captured.piece_model(start, stop, is_complete=is_complete)
    assert [value.name for value in model.graph.input] == [spec.name for spec in given]
    assert [value.name for value in model.graph.output] == [spec.name for spec in made]
    assert (folder is None) == (is_complete or captured.no_programs == "")
    lie_elsewhere = {tensor.data_location for tensor in model.graph.initializer}
    assert (onnx.TensorProto.EXTERNAL in lie_elsewhere) == (folder is not None)


def test_a_backend_loads_a_piece_of_either_kind(captured: Captured) -> None:
    backend, edges = OnnxruntimeBackend(), _edges(captured)
    assert backend.why_no_pieces(captured, ()) == ""
    load = backend.load_piece
    first, rest = (load(captured, *ends, num_threads=1) for ends in pairwise((0, *edges[1::2])))
    given = captured.rows(3)
    np.testing.assert_allclose(
        rest(first(given))[0], captured.run_whole(given)[0], rtol=1e-5, atol=1e-6
    )


def test_an_onnx_file_has_no_torch_program(captured_models: dict[str, Captured]) -> None:
    assert captured_models["torch"].no_programs == ""
    with pytest.raises(EngineError, match="0 to 1: a model from an ONNX file has no torch program"):
        captured_models["onnx"].piece_module(0, 1)


def test_a_stage_s_files_are_named(captured: Captured, tmp_path: Path) -> None:
    _, start, stop, _ = _edges(captured)
    inside = (*boundary_specs(captured.graph, start), *boundary_specs(captured.graph, stop))
    writer = captured.stage_writer(captured.rows(2), inside)
    (tmp_path / "first").mkdir()
    writer.write(0, start, tmp_path / "first")
    files = writer.write(start, stop, tmp_path)
    is_of_torch = captured.no_programs == ""
    weights = ("2.weight", "2.bias") if is_of_torch else ("w1", "b1")
    program = "program.pt2" if is_of_torch else None
    assert files == PieceFiles(weight_names=weights, program=program, model="model.onnx")
    assert all((tmp_path / name).is_file() for name in (program, files.model) if name)


def test_threads_are_set_for_a_while(captured: Captured) -> None:
    def now() -> int:
        if captured.no_programs == "":
            return torch.get_num_threads()
        return captured.module.num_threads

    before = now()
    with captured.computing(before + 1):
        assert now() == before + 1
        captured.run_whole(captured.rows(1))
    assert now() == before


def test_an_onnx_model_gives_what_it_is_given(captured_models: dict[str, Captured]) -> None:
    module = captured_models["onnx"].module
    rows = np.ones((3, 4), np.float32)
    (array,), (tensor,) = module(rows), module(torch.from_numpy(rows))
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(array, tensor.numpy())
