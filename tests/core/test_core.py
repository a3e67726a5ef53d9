"""What an installed Cutset must do where torch is not installed.

``make test-core`` runs this in a clean environment with the wheel, on the folder that
``make_bundles.py`` wrote elsewhere and that the variable ``CUTSET_CORE`` names. Nothing is imported
from the rest of the test suite.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

import cutset
from cutset.data.images import Preprocessing, read_image

pytestmark = pytest.mark.core

MADE = Path(os.environ.get("CUTSET_CORE", "made by make_bundles.py")).resolve()
BUNDLES = ("torch.cutset", "onnx.cutset")
COMMAND = str(Path(sys.executable).with_name("cutset"))
LIMIT_S = 120
TOLERANCE = 1e-4
HINT = "needs the package 'torch', which is not installed: pip install 'cutset[torch]'\n"
GRAPH = {
    "format": "cutset-cost-graph/1",
    "nodes": [{"name": name, "seconds": {"": 0.01}} for name in ("a", "b")],
    "tensors": [{"source": "a", "targets": ["b"], "num_bytes": 1000}],
}
EXTRAS_MODULES = ("torch", "torchvision", "timm", "onnxscript", "sympy")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def document(*arguments: object) -> dict:
    """What a command prints with ``--json``."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """What torch itself gave for the pictures."""
    return np.load(MADE / "scores.npy")


def test_torch_is_not_there() -> None:
    assert [name for name in EXTRAS_MODULES if importlib.util.find_spec(name)] == []
    assert importlib.metadata.version("cutset") == cutset.__version__


def test_the_command_answers() -> None:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    assert "split" in done.stdout


def test_a_picture_becomes_the_row_that_torchvision_makes_of_it() -> None:
    manifest = json.loads((MADE / "torch.cutset" / "manifest.json").read_text())
    preprocessing = msgspec.convert(manifest["preprocessing"], Preprocessing)
    pictures = sorted((MADE / "pictures").iterdir())
    rows = np.stack([read_image(path, preprocessing) for path in pictures])
    assert np.array_equal(rows, np.load(MADE / "rows.npy"))


def test_pictures_run(scores: np.ndarray, tmp_path: Path) -> None:
    labels = (MADE / "labels.txt").read_text().split()
    found = document("run", MADE / "torch.cutset", MADE / "pictures")
    assert [row["top"][0]["label"] for row in found["rows"]] == labels
    raw = tmp_path / "raw.safetensors"
    done = run("run", MADE / "torch.cutset", MADE / "rows.npy", "-o", raw)
    assert done.returncode == 0, done.stderr
    ((_, answers),) = load_file(raw).items()
    assert np.allclose(answers, scores, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", BUNDLES)
def test_arrays_run(name: str) -> None:
    rows = np.load(MADE / "rows.npy")
    with cutset.open_session(MADE / name) as session:
        answers = session.run(np.concatenate([rows, rows]))
        assert {stage.backend for stage in session.stats().stages} == {"onnxruntime"}
    assert isinstance(answers, np.ndarray)
    assert np.allclose(answers[:2], answers[2:], rtol=0, atol=1e-6)
    if name == "torch.cutset":
        assert np.allclose(answers[:2], np.load(MADE / "scores.npy"), rtol=0, atol=TOLERANCE)


def test_bench() -> None:
    found = document("bench", MADE / "onnx.cutset", "--seconds", 0.3)
    assert "rows_per_s" in json.dumps(found)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_proves_itself(name: str) -> None:
    checks = {each["name"]: each for each in document("verify", MADE / name)["checks"]}
    assert set(checks) == {"contracts", "completeness", "units", "numerics", "integrity"}
    assert all(each["ok"] for each in checks.values())
    if name == "torch.cutset":  # not a word that torch's own programs were proven
        assert "torch equals" not in checks["numerics"]["detail"]


def test_a_changed_bundle_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "changed.cutset"
    shutil.copytree(MADE / "onnx.cutset", copy)
    shard = copy / "stage-1" / "model.onnx"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = run("verify", copy)
    assert done.returncode in (4, 5)
    assert "stage-1/model.onnx" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_of_a_cost_graph(tmp_path: Path) -> None:
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps(GRAPH))
    found = document("plan", "--cost-graph", graph, "--stages", 2)
    assert [stage["device"] for stage in found["stages"]] == ["device-0", "device-1"]


def test_an_onnx_file_is_looked_at_measured_and_planned(tmp_path: Path) -> None:
    seen = document("inspect", MADE / "small.onnx")
    assert [point["after"] for point in seen["cut_points"]] == ["r0", "r1", "r2", "f"]
    assert run("profile", MADE / "small.onnx", "-o", tmp_path / "here.json").returncode == 0
    profile = json.loads((tmp_path / "here.json").read_text())
    assert [list(piece["timings"]) for piece in profile["pieces"]] == [["onnxruntime"]] * 5
    found = document("plan", MADE / "small.onnx", "--stages", 2)
    assert [stage["backend"] for stage in found["stages"]] == ["onnxruntime"] * 2
    assert found["expected"]["where"] == "this machine"


def test_an_onnx_file_is_split_proven_and_run(tmp_path: Path) -> None:
    """The pieces are those that were made where torch is installed, byte for byte."""
    bundle = tmp_path / "here.cutset"
    made = document("split", MADE / "small.onnx", "--stages", 2, "--cost", "flops", "-o", bundle)
    assert len(made["stages"]) == 2
    for stage in ("stage-0", "stage-1"):
        there = MADE / "onnx.cutset" / stage / "model.onnx"
        assert (bundle / stage / "model.onnx").read_bytes() == there.read_bytes()
    checks = document("verify", bundle, "--model", MADE / "small.onnx")["checks"]
    assert all(each["ok"] for each in checks)
    (detail,) = (each["detail"] for each in checks if each["name"] == "numerics")
    assert detail.endswith("the whole model gives the same with 1 and 2 rows")
    rows = np.load(MADE / "rows.npy")
    with cutset.open_session(bundle) as here, cutset.open_session(MADE / "onnx.cutset") as there:
        assert np.array_equal(here.run(rows), there.run(rows))


def test_an_onnx_file_whose_rows_see_each_other_is_refused(tmp_path: Path) -> None:
    """What names the operation needs no torch either."""
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"], axis=0),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "mixing", ends[:1], ends[1:])
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "mixing.onnx",
    )
    done = run("inspect", tmp_path / "mixing.onnx")
    assert done.returncode == 1
    assert "operation onnx.Softmax: a row's result depends on the rows beside it" in done.stderr
    assert "Traceback" not in done.stderr


def test_report(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run("report", MADE / "onnx.cutset", "-o", page)
    assert done.returncode == 0, done.stderr
    assert page.stat().st_size > 100_000


def test_doctor() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    abilities = {each["name"]: each for each in json.loads(done.stdout)["abilities"]}
    assert abilities["run stages with onnxruntime"]["ok"]
    assert abilities["share memory between workers"]["ok"]
    assert not abilities["run stages with torch"]["ok"]
    assert "pip install 'cutset[torch]'" in abilities["run stages with torch"]["detail"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "resnet18"),
        ("profile", "resnet18", "-o", "profile.json"),
        ("plan", "resnet18", "--stages", "2"),
        ("split", "resnet18", "--stages", "2", "-o", "resnet18.cutset"),
    ],
    ids=lambda arguments: f"{arguments[0]}-{Path(arguments[1]).name}",
)
def test_what_needs_torch_says_what_to_type(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("cutset: ")
    assert done.stderr.endswith(HINT)
    assert done.stderr.count("\n") == 1


def test_a_backend_that_needs_torch_says_what_to_type() -> None:
    done = run("run", MADE / "torch.cutset", MADE / "rows.npy", "--backend", "torch")
    assert done.returncode in (1, 6)
    assert "pip install 'cutset[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server of the bundle that takes pictures."""
    process = subprocess.Popen(
        [COMMAND, "serve", str(MADE / "torch.cutset"), "--port", "0", "--name", "small"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    watchdog = threading.Timer(LIMIT_S, process.kill)
    watchdog.start()
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                yield found[0]
                break
        else:
            pytest.fail("".join(said))
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(LIMIT_S)
        process.stderr.close()


def ask(url: str, body: bytes, content_type: str) -> dict:
    """Posts to the server."""
    request = urllib.request.Request(url, body, {"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return json.load(answer)


def test_serve(server: str, scores: np.ndarray) -> None:
    picture = (MADE / "pictures" / "0.png").read_bytes()
    found = ask(f"{server}/classify?top=1", picture, "image/png")
    assert found["labels"][0]["label"] == (MADE / "labels.txt").read_text().split()[0]
    rows = np.load(MADE / "rows.npy")
    wanted = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": rows.tolist()}
    with urllib.request.urlopen(f"{server}/v2/models/small", timeout=LIMIT_S) as answer:
        wanted["name"] = json.load(answer)["inputs"][0]["name"]
    body = json.dumps({"inputs": [wanted]}).encode()
    (output,) = ask(f"{server}/v2/models/small/infer", body, "application/json")["outputs"]
    answers = np.array(output["data"]).reshape(output["shape"])
    assert np.allclose(answers, scores, rtol=0, atol=TOLERANCE)
