from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutset.bundles.consistency import check_relative_path
from cutset.bundles.manifest import (
    MAX_MANIFEST_BYTES,
    decode_manifest,
    encode_manifest,
    sha256_of,
)
from cutset.errors import ManifestError, UnsafeBundle, UnsupportedVersion


@pytest.fixture(scope="module")
def document(good_bundle: Path) -> dict[str, Any]:
    """The manifest of the good bundle as JSON; not to be changed."""
    loaded: dict[str, Any] = json.loads((good_bundle / "manifest.json").read_text())
    return loaded


_ALTERNATIVE = {
    "num_stages": 3,
    "devices": ["a", "b"],
    "last": ["x", "y", "output"],
    "period_s": 1.0,
    "latency_s": 1.0,
}
_SHAPE = "$.graph.operations[0].outputs[0].shape"


def decode(document: dict[str, Any]) -> None:
    decode_manifest(json.dumps(document).encode())


def error_after(document: dict[str, Any], path: str, value: Any) -> ManifestError:
    """What decoding says once the value at a dotted path was replaced."""
    changed = copy.deepcopy(document)
    *parents, last = path.split(".")
    place: Any = changed
    for key in parents:
        place = place[int(key) if key.isdecimal() else key]
    place[int(last) if last.isdecimal() else last] = value
    with pytest.raises(ManifestError) as caught:
        decode(changed)
    assert caught.value.exit_code == 4
    assert "manifest.json" in str(caught.value)
    return caught.value


def test_round_trip(good_bundle: Path) -> None:
    manifest = decode_manifest((good_bundle / "manifest.json").read_bytes())
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert data.endswith(b"}\n")
    assert encode_manifest(decode_manifest(data)) == data


def test_numbers_that_json_lacks_are_not_written(good_bundle: Path) -> None:
    manifest = decode_manifest((good_bundle / "manifest.json").read_bytes())
    plan = msgspec.structs.replace(manifest.plan, period_s=float("inf"))
    with pytest.raises(ManifestError) as caught:
        encode_manifest(msgspec.structs.replace(manifest, plan=plan))
    assert caught.value.path == "$.plan.period_s"


@pytest.mark.parametrize(
    ("path", "json_path"),
    [
        ("new_key", "$"),
        ("graph.new_key", "$.graph"),
        ("stages.1.new_key", "$.stages[1]"),
        ("stages.1.inputs.0.new_key", "$.stages[1].inputs[0]"),
        ("graph.operations.0.modules.0.new_key", "$.graph.operations[0].modules[0]"),
        ("plan.new_key", "$.plan"),
        ("files.0.new_key", "$.files[0]"),
    ],
)
def test_unknown_key(document: dict[str, Any], path: str, json_path: str) -> None:
    error = error_after(document, path, 1)
    assert "unknown field `new_key`" in str(error)
    assert error.path == json_path


@pytest.mark.parametrize("key", ["stages", "graph", "files", "num_threads", "labels"])
def test_missing_key(document: dict[str, Any], key: str) -> None:
    with pytest.raises(ManifestError, match=f"missing required field `{key}`"):
        decode({name: value for name, value in document.items() if name != key})


@pytest.mark.parametrize(
    ("path", "value", "json_path"),
    [
        ("num_threads", "1", "$.num_threads"),
        ("num_threads", 0, "$.num_threads"),
        ("num_threads", 1025, "$.num_threads"),
        ("max_tensors", 0, "$.max_tensors"),
        ("stages", [], "$.stages"),
        ("stages.1.index", 0, "$.stages[1].index"),
        ("stages.0.flops", 1.5, "$.stages[0].flops"),
        ("stages.0.inputs", [], "$.stages[0].inputs"),
        ("stages.1.operations.0", "nonsense", "$.stages[1].operations[0]"),
        ("stages.1.parameters.0", "nonsense", "$.stages[1].parameters[0]"),
        ("stages.1.inputs.0.name", "nonsense", "$.stages[1].inputs"),
        ("stages.1.inputs.0.dtype", "float31", "$.stages[1].inputs[0]"),
        ("stages.1.inputs.0.shape.0", "rows", "$.stages[1].inputs[0]"),
        ("stages.1.inputs.0.shape.0", -1, "$.stages[1].inputs[0]"),
        ("stages.1.program", "stage-0/program.pt2", "$.stages[1].program"),
        ("stages.1.program", "stage-1/other.pt2", "$.stages[1].program"),
        ("stages.1.model", None, "$.stages[1].model_missing"),
        ("stages.1.model_missing", "why", "$.stages[1].model_missing"),
        ("reference", "nothing.safetensors", "$.reference"),
        ("outputs.0.name", "x", "$.outputs"),
        ("output_names", ["a", "b"], "$.output_names"),
        ("labels", [], "$.labels"),
        ("labels", ["a", "b", "c", "d"], "$.labels"),
        ("labels", ["a"] * 6, "$.labels"),
        ("shared_parameters", ["nonsense"], "$.shared_parameters[0]"),
        ("unused_parameters", ["nonsense"], "$.unused_parameters[0]"),
        ("graph.operations.3.inputs", ["relu_4"], "$.graph.operations[3].inputs[0]"),
        ("graph.operations.3.parameters", ["nonsense"], "$.graph.operations[3].parameters[0]"),
        ("graph.operations.3.name", "conv2d", "$.graph.operations[3].name"),
        ("graph.outputs", ["nonsense"], "$.graph.outputs[0]"),
        ("files.0.num_bytes", -1, "$.files[0].num_bytes"),
        ("files.0.sha256", "ABC", "$.files[0].sha256"),
        ("files.1.path", "reference.safetensors", "$.files[1].path"),
        ("files.0.path", "manifest.json", "$.files[0].path"),
        ("plan.stages", [], "$.plan.stages"),
        ("part", {"path": "body", "work_share": 0.0}, "$.part.work_share"),
        ("part", {"path": "body", "work_share": 1.5}, "$.part.work_share"),
        ("micro_batch_only", 0, "$.micro_batch_only"),
        ("micro_batch_only", 10**12, "$.micro_batch_only"),
        ("micro_batch_only", 1 << 16, "$.micro_batch_only"),
        ("torch_settings", {"default_dtype": "int8"}, "$.torch_settings.default_dtype"),
        ("torch_settings", {"other": "on"}, "$.torch_settings.other"),
        (
            "stages.0.outputs",
            [{"name": f"t{i}", "shape": ["batch"], "dtype": "bool"} for i in range(65_536)],
            "$.stages[0].outputs",
        ),
        ("plan.format", "cutset-plan/3", "$.plan.format"),
        ("plan.micro_batch", 0, "$.plan.micro_batch"),
        ("plan.micro_batch", -1, "$.plan.micro_batch"),
        ("plan.micro_batch", 10**12, "$.plan.micro_batch"),
        ("plan.period_s", -1.0, "$.plan.period_s"),
        ("plan.bound_s", 1e308, "$.plan.bound_s"),
        ("plan.gap", -0.5, "$.plan.gap"),
        ("plan.stages.0.compute_s", -1.0, "$.plan.stages[0].compute_s"),
        ("plan.stages.1.memory_bytes", -1, "$.plan.stages[1].memory_bytes"),
        ("plan.stages.1.index", 7, "$.plan.stages[1].index"),
        ("plan.stages.1.stop", 10**9, "$.plan.stages[1].stop"),
        ("stages.0.weight_bytes", -1, "$.stages[0].weight_bytes"),
        ("stages.0.flops", 1 << 61, "$.stages[0].flops"),
        ("graph.operations.0.flops", -1, "$.graph.operations[0].flops"),
        ("graph.operations.0.outputs.0.shape.1", 1 << 31, _SHAPE + "[1]"),
        ("graph.operations.0.outputs.0.shape", ["batch", 10**9, 10**9], _SHAPE),
        ("graph.operations.0.outputs.0.shape", ["batch"] * 65, _SHAPE),
        ("graph.inputs.0.shape", ["batch", 10**9, 10**9, 3], "$.graph.inputs[0].shape"),
        ("graph.inputs.0.shape.0", f"batch*{10**12}", "$.graph.inputs[0].shape[0]"),
        ("graph.inputs.0.shape", ["batch", 10**9], "$.graph.inputs[0].shape"),
        ("plan.objective", "", "$.plan.objective"),
        ("plan.alternatives", [_ALTERNATIVE], "$.plan.alternatives[0]"),
        ("plan.alternatives", [{**_ALTERNATIVE, "devices": []}], "$.plan.alternatives[0]"),
        (
            "plan.alternatives",
            [{**_ALTERNATIVE, "devices": [], "last": []}],
            "$.plan.alternatives[0]",
        ),
        (
            "plan.expected",
            {
                "where": "this machine",
                "compute_s": [1.0],
                "message_s": [],
                "period_s": 1.0,
                "latency_s": 1.0,
            },
            "$.plan.expected.compute_s",
        ),
    ],
)
def test_contradiction(document: dict[str, Any], path: str, value: Any, json_path: str) -> None:
    assert error_after(document, path, value).path == json_path


@pytest.mark.parametrize("num_results", [0, 2])
@pytest.mark.parametrize("json_path", ["$.graph.outputs[0]", "$.stages[0].outputs[0]"])
def test_what_is_one_tensor_elsewhere_has_one_result(
    document: dict[str, Any], json_path: str, num_results: int
) -> None:
    of_model = json_path == "$.graph.outputs[0]"
    name = document["stages"][-1 if of_model else 0]["outputs"][0]["name"]
    operations = document["graph"]["operations"]
    (index,) = (i for i, operation in enumerate(operations) if operation["name"] == name)
    outputs = operations[index]["outputs"] * num_results
    error = error_after(document, f"graph.operations.{index}.outputs", outputs)
    assert error.path == json_path
    assert f"names the single tensor '{name}', which the graph lacks" in str(error)


@pytest.mark.parametrize("shape", [[], ["batch"], [5, "batch"]])
def test_labels_without_classes(document: dict[str, Any], shape: list[Any]) -> None:
    labelled = {**document, "labels": ["a", "b", "c", "d", "e"]}
    decode(labelled)
    error = error_after(labelled, "outputs.0.shape", shape)
    assert error.path == "$.labels"
    assert "has 5 entries, but the first output has no classes" in str(error)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'"cutset-bundle/1"', b"\xff", b"[" * 100_000, b"{}"]
)
def test_no_manifest(data: bytes) -> None:
    with pytest.raises(ManifestError):
        decode_manifest(data)


@pytest.mark.parametrize(
    ("text", "twice", "path"),
    [
        ('"format":', '"format": "cutset-bundle/2", "format":', "$.format"),
        ('"micro_batch":', '"micro_batch": 1, "micro_batch":', "$.plan.micro_batch"),
        ('"class_name":', '"class_name": "x", "class_name":', "$.graph.operations[0].modules[0]"),
        ('"cutset":', '"cutset": "x", "cutset":', "$.created_by.cutset"),
    ],
)
def test_a_key_that_is_there_twice(
    document: dict[str, Any], text: str, twice: str, path: str
) -> None:
    data = json.dumps(document).replace(text, twice, 1)
    with pytest.raises(ManifestError, match="is there twice") as caught:
        decode_manifest(data.encode())
    assert caught.value.path is not None
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "0x1", "1" * 5000])
def test_no_number(document: dict[str, Any], number: str) -> None:
    plan = {**document["plan"], "period_s": 12345.0}
    data = json.dumps({**document, "plan": plan}).replace("12345.0", number, 1)
    with pytest.raises(ManifestError):
        decode_manifest(data.encode())


def test_rows_of_a_micro_batch_take_memory_too(document: dict[str, Any]) -> None:
    many = {**document, "plan": {**document["plan"], "micro_batch": 1 << 24}}
    error = error_after(many, "outputs.0.shape", ["batch", 1 << 12])
    assert error.path == "$.outputs[0]"
    assert "16777216 rows" in str(error)


def test_too_many_values() -> None:
    with pytest.raises(ManifestError, match="about 1048577 values"):
        decode_manifest(b'{"format": "cutset-bundle/2", "a": [' + b"1," * (1 << 20) + b"1]}")


def test_too_large() -> None:
    with pytest.raises(ManifestError, match="at most 16777216 are read"):
        decode_manifest(b" " * (MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize("version", ["cutset-bundle/4", "cutset-bundle/10", "cutset-bundle/999"])
def test_newer_version(version: str) -> None:
    with pytest.raises(UnsupportedVersion) as caught:
        decode_manifest(json.dumps({"format": version}).encode())
    assert (caught.value.expected, caught.value.actual) == ("cutset-bundle/3", version)
    assert caught.value.exit_code == 4


NEW_IN_2 = ("part", "micro_batch_only", "torch_settings")


def test_format_1_is_read(document: dict[str, Any]) -> None:
    old = {key: value for key, value in document.items() if key not in NEW_IN_2}
    decode({**old, "format": "cutset-bundle/1"})


@pytest.mark.parametrize("key", NEW_IN_2)
def test_format_1_has_no_later_key(document: dict[str, Any], key: str) -> None:
    old = {name: value for name, value in document.items() if name not in NEW_IN_2}
    with pytest.raises(ManifestError) as caught:
        decode({**old, "format": "cutset-bundle/1", key: None})
    assert caught.value.path == f"$.{key}"


@pytest.mark.parametrize("version", ["", "cutset-bundle", "cutset-bundle/0", "cutset-bundle/1 "])
def test_no_version(version: str) -> None:
    with pytest.raises(ManifestError) as caught:
        decode_manifest(json.dumps({"format": version}).encode())
    assert caught.value.path == "$.format"


@pytest.mark.parametrize("path", ["a", "a.b", "stage-0/program.pt2", "_x/Y-1.z", "a/b/c/d"])
def test_good_paths(path: str) -> None:
    check_relative_path(path, json_path="$")


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "a/..", "a/../b", "./a", ".a", "a/.b", "-a"),
        *("a\\b", "C:a", "a b", "a\n", "a\x00", "é", "~/a", "a" * 129, "/".join("abcdefghi")),
    ],
)
def test_bad_paths(path: str) -> None:
    with pytest.raises(UnsafeBundle) as caught:
        check_relative_path(path, json_path="$.here")
    assert "$.here" in str(caught.value)


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
