from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from cutset.bundles.open import load_onnx_model, open_bundle
from cutset.errors import UnsafeBundle
from hostile import MODEL, add_to_list, edit_onnx, relist


def refusal(bundle: Path) -> str:
    opened = open_bundle(bundle)
    with pytest.raises(UnsafeBundle) as caught:
        load_onnx_model(opened, 1)
    assert caught.value.path == MODEL
    return str(caught.value)


def make_external(
    model: onnx.ModelProto, location: str, *, length: int = 4, **more: str
) -> TensorProto:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": str(length), **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_good_model_is_found(good_bundle: Path) -> None:
    assert load_onnx_model(open_bundle(good_bundle), 1) == good_bundle / MODEL


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "sub/file.bin", "..", ".", "", "a\\b", "unlisted"]
)
def test_external_data_outside_the_bundle(bundle: Path, location: str) -> None:
    edit_onnx(bundle, lambda model: make_external(model, location))
    assert "tensor" in refusal(bundle)


def test_external_data_that_the_manifest_lists(bundle: Path) -> None:
    (bundle / "stage-1/model.onnx.data").write_bytes(bytes(8))
    add_to_list(bundle, "stage-1/model.onnx.data")
    edit_onnx(bundle, lambda model: make_external(model, "model.onnx.data", length=8))
    assert load_onnx_model(open_bundle(bundle), 1) == bundle / MODEL


@pytest.mark.parametrize(
    ("length", "more"),
    [(9, {}), (1, {"offset": "8"}), (1, {"offset": "-1"}), (1, {"basepath": "/etc"})],
)
def test_external_data_beyond_its_file(bundle: Path, length: int, more: dict[str, str]) -> None:
    (bundle / "stage-1/model.onnx.data").write_bytes(bytes(8))
    add_to_list(bundle, "stage-1/model.onnx.data")
    edit_onnx(bundle, lambda model: make_external(model, "model.onnx.data", length=length, **more))
    refusal(bundle)


def test_external_data_in_an_attribute_of_a_subgraph(bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = TensorProto(data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/passwd")
        inner = onnx.helper.make_node("Constant", [], ["c"])
        inner.attribute.append(onnx.helper.make_attribute("value", TensorProto()))
        inner.attribute[0].t.CopyFrom(tensor)
        graph = onnx.helper.make_graph([inner], "inner", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=graph))

    edit_onnx(bundle, change)
    assert "'/etc/passwd'" in refusal(bundle)


@pytest.mark.parametrize("domain", ["ai.onnx.contrib", "my.ops", "org.pytorch.aten"])
def test_operator_domain_that_needs_a_library(bundle: Path, domain: str) -> None:
    edit_onnx(bundle, lambda model: setattr(model.graph.node[0], "domain", domain))
    assert repr(domain) in refusal(bundle)


def test_imported_domain_that_needs_a_library(bundle: Path) -> None:
    edit_onnx(bundle, lambda model: model.opset_import.add(domain="my.ops", version=1))
    assert "'my.ops'" in refusal(bundle)


@pytest.mark.parametrize("operator", ["EPContext", "PythonOp"])
def test_operator_that_loads_something(bundle: Path, operator: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.microsoft"
        model.graph.node[0].op_type = operator

    edit_onnx(bundle, change)
    assert "would load code or files" in refusal(bundle)


def test_local_function(bundle: Path) -> None:
    edit_onnx(bundle, lambda model: model.functions.add(name="f", domain="d"))
    assert "local functions" in refusal(bundle)


def test_subgraphs_over_many_levels(bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        graph = onnx.helper.make_graph([], "innermost", [], [])
        for _ in range(31):
            node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=graph)
            graph = onnx.helper.make_graph([node], "g", [], [])
        model.graph.node.extend(graph.node)

    edit_onnx(bundle, change)
    load_onnx_model(open_bundle(bundle), 1)


def test_no_onnx_model_at_all(bundle: Path) -> None:
    (bundle / MODEL).write_bytes(b"\x80\x04pickle")
    relist(bundle)
    assert "not an ONNX model" in refusal(bundle)
