"""ONNX files as models: hand-made graphs, captured, cut and run piece by piece."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cutset.capture.onnx.extraction import build_onnx_piece
from cutset.capture.onnx.inference import make_session, run_session
from cutset.capture.onnx.onnx_file import read_onnx_file
from cutset.capture.onnx.onnx_graph import CapturedOnnx, capture_onnx
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.errors import CaptureError, ModelError
from cutset.graph.cuts import CutPoints, find_cut_points

Node = onnx.NodeProto


def weight(name: str, *shape: int) -> TensorProto:
    generator = np.random.default_rng(len(name))
    return numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)


def write(
    path: Path,
    nodes: list[Node],
    stored: list[TensorProto],
    *,
    shape: tuple[Any, ...] = ("N", 4),
    output: str = "y",
    functions: tuple[Any, ...] = (),
    domains: tuple[str, ...] = (),
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        stored,
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))
    path.write_bytes(model.SerializeToString())
    return path


def captured(path: Path) -> tuple[CapturedOnnx, CutPoints]:
    found = capture_onnx(read_onnx_file(path))
    return found, find_cut_points(found.graph)


def run_in_pieces(found: CapturedOnnx, cuts: CutPoints, rows: torch.Tensor) -> torch.Tensor:
    edges = [0, *(point.position for point in cuts.points), len(found.graph.operations)]
    values: tuple[np.ndarray, ...] = (as_array(rows),)
    for start, stop in pairwise(edges):
        model = build_onnx_piece(found, start, stop, load=True)
        onnx.checker.check_model(model)
        session = make_session(model.SerializeToString(), 1)
        names = [node.name for node in session.get_inputs()]
        values = run_session(session, dict(zip(names, values, strict=True)))
    return as_tensor(values[0])


def assert_pieces_equal_the_whole(found: CapturedOnnx, cuts: CutPoints) -> None:
    shape = found.graph.inputs[0].shape[1:]
    rows = torch.randn(5, *(int(dim) for dim in shape), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run_in_pieces(found, cuts, rows), found.module(rows)[0])


def block(prefix: str, taken: str, made: str, scope: str) -> list[Node]:
    """Two products beside a skip, under the node names that an exporter writes."""
    return [
        helper.make_node("MatMul", [taken, "w"], [f"{prefix}1"], name=f"{scope}one/MatMul"),
        helper.make_node("Relu", [f"{prefix}1"], [f"{prefix}2"], name=f"{scope}act/Relu"),
        helper.make_node("MatMul", [f"{prefix}2", "w"], [f"{prefix}3"], name=f"{scope}two/MatMul"),
        helper.make_node("Add", [f"{prefix}3", taken], [made], name=f"{scope}Add"),
    ]


def two_blocks(first: str, second: str, *, skip_in_second: bool = True) -> list[Node]:
    nodes = [*block("a", "x", "h", first), *block("b", "h", "y", second)]
    if not skip_in_second:
        nodes[-1] = helper.make_node("Neg", ["b3"], ["y"], name=f"{second}Neg")
    return nodes


def test_scopes_in_node_names_are_units(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx", two_blocks("/body/body.0/", "/body/body.1/"), [weight("w", 4, 4)]
    )
    found, cuts = captured(path)
    assert [unit.path for unit in cuts.units] == ["body.0", "body.1"]
    assert [(point.after, point.kind) for point in cuts.points] == [("body.0", "block")]
    assert found.graph.flops == 4 * 16
    assert_pieces_equal_the_whole(found, cuts)


def test_a_block_built_like_a_unit_is_one_without_its_skip(tmp_path: Path) -> None:
    nodes = two_blocks("/body/body.0/", "/body/body.1/", skip_in_second=False)
    _, cuts = captured(write(tmp_path / "m.onnx", nodes, [weight("w", 4, 4)]))
    assert [unit.path for unit in cuts.units] == ["body.0", "body.1"]
    assert [point.after for point in cuts.points] == ["body.0"]


def test_without_scopes_forks_and_joins_are_units(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"], name="n0"),
        *two_blocks("", ""),
    ]
    nodes[1].input[0], nodes[4].input[1] = "s", "s"
    for node in nodes:
        node.name = ""
    found, cuts = captured(write(tmp_path / "m.onnx", nodes, [weight("w", 4, 4)]))
    assert [unit.path for unit in cuts.units] == ["branches0", "branches1"]
    assert [point.after for point in cuts.points] == ["s", "branches0"]
    assert {point.reason for point in cuts.refused} == {
        "inside branches0 (Branches): 2 tensors live",
        "inside branches1 (Branches): 2 tensors live",
    }
    assert_pieces_equal_the_whole(found, cuts)


def test_metadata_names_modules_and_tells_calls_apart(tmp_path: Path) -> None:
    nodes = two_blocks("", "")
    inner = ["one", "act", "two", ""] * 2
    for index, (node, leaf) in enumerate(zip(nodes, inner, strict=True)):
        # A module between that is entered and left, so that the block is called twice.
        scopes = ["", "block", *([f"block.{leaf}"] if leaf else []), "call"]
        classes = ["net.Net", "net.Block", *(["net.Leaf"] if leaf else []), "aten"]
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(scopes))
        node.metadata_props.add(key="pkg.torch.onnx.class_hierarchy", value=str(classes))
        node.name = f"n{index}"
    middle = helper.make_node("Softplus", ["h"], ["h2"], name="middle")
    middle.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'mid', 'call']")
    middle.metadata_props.add(
        key="pkg.torch.onnx.class_hierarchy", value="['net.Net', 'net.Mid', 'aten']"
    )
    nodes[4].input[0], nodes[7].input[1] = "h2", "h2"
    found, cuts = captured(
        write(tmp_path / "m.onnx", [*nodes[:4], middle, *nodes[4:]], [weight("w", 4, 4)])
    )
    assert [(unit.path, unit.class_name) for unit in cuts.units] == [
        ("block", "net.Block"),
        ("block#2", "net.Block"),
    ]
    assert_pieces_equal_the_whole(found, cuts)


def test_lengths_are_no_data_and_are_worked_out_again(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["wanted"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Reshape", ["b", "wanted"], ["c"]),
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    numbers = [
        numpy_helper.from_array(np.array([value], dtype=np.int64), name)
        for name, value in (("zero", 0), ("one", 1), ("rest", 4))
    ]
    found, cuts = captured(write(tmp_path / "m.onnx", nodes, [weight("w", 4, 4), *numbers]))
    assert [op.name for op in found.graph.operations] == ["a", "b", "c", "y"]
    assert [point.after for point in cuts.points] == ["a", "c"]
    assert all(len(point.tensors) == 1 for point in cuts.points)
    assert_pieces_equal_the_whole(found, cuts)


def test_a_branch_is_one_operation_that_reads_from_outside(tmp_path: Path) -> None:
    def body(operator: str) -> onnx.GraphProto:
        node = helper.make_node(operator, ["a"], [f"out_{operator}"])
        value = helper.make_tensor_value_info(f"out_{operator}", TensorProto.FLOAT, None)
        return helper.make_graph([node], operator, [], [value])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["is_large"]),
        helper.make_node(
            "If", ["is_large"], ["b"], then_branch=body("Neg"), else_branch=body("Abs")
        ),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    limit = numpy_helper.from_array(np.array(1.0, dtype=np.float32), "limit")
    found, cuts = captured(write(tmp_path / "m.onnx", nodes, [weight("w", 4, 4), limit]))
    operation = next(op for op in found.graph.operations if op.target == "onnx.If")
    assert operation.inputs == ("is_large", "a")
    assert_pieces_equal_the_whole(found, cuts)


def test_several_results_are_picked(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["right", "left"], ["c"], axis=1),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    found, cuts = captured(write(tmp_path / "m.onnx", nodes, [weight("w", 4, 4)]))
    assert [op.target for op in found.graph.operations] == [
        "onnx.Split",
        "getitem",
        "getitem",
        "onnx.Concat",
        "onnx.MatMul",
    ]
    assert_pieces_equal_the_whole(found, cuts)


def test_a_fixed_number_of_rows_is_made_free_where_that_is_proven(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [weight("w", 4, 4)], shape=(1, 4))
    found, _ = captured(path)
    assert found.graph.inputs[0].shape == ("batch", 4)
    (note,) = found.notes
    assert "the file is made for 1 row at a time; with 2, 3, 5 rows it gives the same" in note


def _shape(name: str, *lengths: int) -> TensorProto:
    return numpy_helper.from_array(np.array(lengths, dtype=np.int64), name)


@pytest.mark.parametrize("rows", [1, "n"])
@pytest.mark.parametrize("lengths", [(1, 8), (1, -1), (1, 2, 4)])
def test_a_literal_that_stands_for_the_rows_is_made_free(
    tmp_path: Path, rows: int | str, lengths: tuple[int, ...]
) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["t"]),
        helper.make_node("Reshape", ["t", "shape"], ["y"], name="flat"),
    ]
    path = write(tmp_path / "m.onnx", nodes, [_shape("shape", *lengths)], shape=(rows, 2, 4))
    found, _ = captured(path)
    (note,) = found.notes
    claims = "made for 1 row at a time" if rows == 1 else "claims a free number of rows"
    assert claims in note
    assert "node 'flat' holds 1 in its Reshape; that was made free" in note
    assert found.micro_batch_only is None
    x = torch.arange(-12.0, 12.0).reshape(3, 2, 4)
    (y,) = found.module(x)
    assert y.shape[0] == 3
    assert torch.equal(y.reshape(3, 8), x.relu().reshape(3, 8))


def test_rows_that_would_see_each_other_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]
    path = write(tmp_path / "m.onnx", nodes, [], shape=(1, 4))
    with pytest.raises(CaptureError, match=r"rows would see each other.*--micro-batch-only 1"):
        captured(path)
    found = capture_onnx(read_onnx_file(path), micro_batch_only=1)
    assert found.micro_batch_only == 1
    assert found.graph.outputs == ("y",)
    with pytest.raises(CaptureError, match="made for 1 row at a time and cannot be captured for 2"):
        capture_onnx(read_onnx_file(path), micro_batch_only=2)


def _with_two_written_down(tmp_path: Path, rows: int | str) -> Path:
    """Turned so that the rows lie inside when a literal shape is given: no -1 in front helps."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "shape"], ["r"], name="inside"),
        helper.make_node("Transpose", ["r"], ["y"], perm=[1, 0]),
    ]
    return write(tmp_path / "m.onnx", nodes, [_shape("shape", 4, 1)], shape=(rows, 4))


def test_a_file_that_works_for_its_own_number_alone_is_taken_for_that(tmp_path: Path) -> None:
    found, _ = captured(_with_two_written_down(tmp_path, 1))
    assert found.micro_batch_only == 1
    assert found.example_inputs[0].shape == (1, 4)
    (note,) = found.notes
    assert "node 'inside' (Reshape to [4, 1]) holds 4" not in note
    assert "node 'inside' (Reshape to [4, 1]) fails with 2 rows" in note


def test_a_file_that_claims_free_rows_and_has_none_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _with_two_written_down(tmp_path, "n")
    with pytest.raises(CaptureError, match=r"claims a free number of rows, but node 'inside'"):
        captured(path)
    assert capfd.readouterr() == ("", "")


def test_a_weight_among_the_results_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [weight("w", 4, 4)], shape=("N", 4))
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    onnx.save(model, path)
    with pytest.raises(CaptureError, match="result 'w' is a weight"):
        captured(path)


@pytest.mark.parametrize(
    ("shape", "words"), [(("N", "M"), "of any length in dimension 1"), ((), "has no shape")]
)
def test_a_shape_that_is_not_known(tmp_path: Path, shape: tuple[Any, ...], words: str) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])], [], shape=shape)
    with pytest.raises(CaptureError, match=words):
        captured(path)


def test_randomness_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["y"])]
    with pytest.raises(CaptureError, match="is random"):
        captured(write(tmp_path / "m.onnx", nodes, []))


def test_an_operator_of_another_domain_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Magic", ["x"], ["y"], domain="my.ops")]
    path = write(tmp_path / "m.onnx", nodes, [], domains=("my.ops",))
    with pytest.raises(ModelError, match=r"operator domain 'my\.ops'"):
        read_onnx_file(path)


def test_local_functions_are_written_out(tmp_path: Path) -> None:
    function = helper.make_function(
        "my.ops",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="my.ops")]
    path = write(tmp_path / "m.onnx", nodes, [], functions=(function,), domains=("my.ops",))
    found, _ = captured(path)
    assert [op.target for op in found.graph.operations] == ["onnx.Add"]


def external(path: Path, location: str, length: int = 64) -> Path:
    """The file with its weight moved to `location`."""
    write(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight("w", 4, 4)])
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    (path.parent / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    found, cuts = captured(external(tmp_path / "m.onnx", "w.bin"))
    assert_pieces_equal_the_whole(found, cuts)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "", "link.bin", "missing.bin"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match="tensor 'w'"):
        read_onnx_file(external(folder / "m.onnx", location))


def test_weights_that_end_beyond_their_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which has 64"):
        read_onnx_file(external(tmp_path / "m.onnx", "w.bin", length=65))


def test_quantised_values_cross_a_cut_as_bytes(tmp_path: Path) -> None:
    def around(name: str) -> list[Node]:
        return [
            helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"]),
        ]

    nodes = [
        *around("x"),
        helper.make_node("MatMul", ["x_d", "w"], ["a"]),
        *around("a"),
        helper.make_node("MatMul", ["a_d", "w"], ["y"]),
    ]
    stored = [
        weight("w", 4, 4),
        numpy_helper.from_array(np.array(0.1, dtype=np.float32), "scale"),
        numpy_helper.from_array(np.array(128, dtype=np.uint8), "zero"),
    ]
    found, cuts = captured(write(tmp_path / "m.onnx", nodes, stored))
    assert "a_q" in [point.after for point in cuts.points]
    assert "a_d" not in [point.after for point in cuts.points]
    (tensor,) = next(point for point in cuts.points if point.after == "a_q").tensors
    assert (tensor.dtype, tensor.bytes_per_sample) == ("uint8", 4)
    assert_pieces_equal_the_whole(found, cuts)


def test_no_onnx_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="no ONNX model"):
        read_onnx_file(path)
    with pytest.raises(ModelError, match="does not exist"):
        read_onnx_file(tmp_path / "none.onnx")
