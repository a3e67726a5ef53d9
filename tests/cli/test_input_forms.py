"""Each form in which a model may be given goes the whole way: inspect, plan, split, verify, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn
from torch.export import Dim, export, save

from cutset.bundles.open import open_bundle
from cutset.models import find_model

from .conftest import Cutset

SOURCE = """
import torch
from torch import nn


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, *, shift=None):
        x = torch.relu(self.first(x))
        if shift is not None:
            x = x + shift
        return self.last(torch.relu(x))


def module():
    return Conditioned()


def tensor():
    return Conditioned(), torch.ones(2, 8)


def pair():
    return Conditioned(), (torch.ones(2, 8),)


def triple():
    return Conditioned(), (torch.ones(2, 8),), {"shift": torch.ones(2, 8)}


def mapping():
    return Conditioned(), {"x": torch.ones(2, 8), "shift": torch.ones(2, 8)}


def example_inputs():
    return (torch.ones(2, 8),)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    (folder / "net.py").write_text(SOURCE)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    rows = {0: Dim("rows")}
    save(export(plain, (torch.ones(2, 8),), dynamic_shapes=(rows,)), folder / "free.pt2")
    save(export(plain, (torch.ones(2, 8),)), folder / "fixed.pt2")
    sized = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    free = rows | {2: Dim("height", min=4, max=64), 3: Dim("width", min=4, max=64)}
    example = torch.ones(2, 3, 8, 12)
    save(export(sized, (example,), dynamic_shapes=(free,)), folder / "free_size.pt2")
    _write_onnx(folder / "net.onnx")
    return folder


def _write_onnx(path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (8, 8)), ("v", (8, 3)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "v"], ["y"], "last"),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", 8), ("y", 3))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


FORMS = (
    "torchvision:squeezenet1_1",
    "squeezenet1_1",
    "timm:test_resnet",
    "FOLDER/net.py:module",
    "FOLDER/net.py:Conditioned",
    "FOLDER/net.py:tensor",
    "FOLDER/net.py:pair",
    "FOLDER/net.py:triple",
    "FOLDER/net.py:mapping",
    "FOLDER/free.pt2",
    "FOLDER/free_size.pt2",
    "FOLDER/net.onnx",
)
QUICK = FORMS[2:4] + FORMS[7:10] + FORMS[11:]
"""Of forms that differ in little one goes the whole way in every run of the tests."""


@pytest.mark.parametrize(
    "form",
    [form if form in QUICK else pytest.param(form, marks=pytest.mark.soak) for form in FORMS],
)
def test_every_form_goes_the_whole_way(
    cutset: Cutset, files: Path, tmp_path: Path, form: str
) -> None:
    spec = form.replace("FOLDER", str(files))
    is_named = ":" in form or "." not in form
    weights = ("--weights", "random:0") if is_named and "FOLDER" not in form else ()
    folder = tmp_path / "form.cutset"
    # One form is measured with every number of rows, as it is if nobody says a number.
    size = () if form.endswith(":module") else ("--batch-size", 2)
    steps = [
        ("inspect", spec),
        ("plan", spec, "--stages", 2, "--cost", "flops"),
        ("split", spec, "--stages", 2, *size, "-o", folder, *weights),
        ("verify", folder, "--model", spec, *weights),
    ]
    for step in steps:
        outcome = cutset(*step)
        assert outcome.code == 0, outcome.err
    words = " ".join(outcome.out.split())
    assert "the whole model gives the same" in words
    rows = {
        spec.name: torch.randn(spec.concrete_shape(3))
        for spec in open_bundle(folder).manifest.graph.inputs
    }
    save_file(rows, tmp_path / "rows.safetensors")
    outcome = cutset(
        *("run", folder, tmp_path / "rows.safetensors", "--backend", "auto"),
        *("-o", tmp_path / "out.safetensors"),
    )
    assert outcome.code == 0, outcome.err
    (answer,) = load_file(tmp_path / "out.safetensors").values()
    if Path(spec).suffix == ".onnx":
        assert answer.shape == (3, 3)
        return
    found = find_model(spec, weights=weights[1] if weights else None)
    given = tuple(rows.values()) if len(rows) == 1 else rows
    with torch.no_grad():
        expected = found.model(**given) if isinstance(given, dict) else found.model(*given)
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)


def test_a_program_of_a_fixed_number_of_rows_is_refused_with_the_way_out(
    cutset: Cutset, files: Path, tmp_path: Path
) -> None:
    fixed = files / "fixed.pt2"
    for step in (("inspect", fixed), ("split", fixed, "--stages", 2, "-o", tmp_path / "x.cutset")):
        outcome = cutset(*step)
        assert outcome.code == 1
        assert "was exported for 2 rows of 'input' only; export it with a dynamic" in outcome.err


def test_a_program_of_free_size_says_what_is_held(
    cutset: Cutset, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cutset("inspect", files / "free_size.pt2").code == 0
    assert "take the example's alone: dimension 2 of 8, dimension 3 of 12" in caplog.text


@pytest.mark.parametrize(
    "returned", ["(model, inputs, inputs)", "(inputs, model)", "(model, 1, {}, {})", "()", "None"]
)
def test_a_factory_that_gives_something_else_is_told_what_is_taken(
    cutset: Cutset, tmp_path: Path, returned: str
) -> None:
    (tmp_path / "odd.py").write_text(
        "import torch\n\ndef make():\n"
        "    model, inputs = torch.nn.Linear(2, 2), (torch.ones(2, 2),)\n"
        f"    return {returned}\n"
    )
    outcome = cutset("inspect", f"{tmp_path / 'odd.py'}:make")
    assert outcome.code == 1
    assert "a triple (module, args, kwargs)" in " ".join(outcome.err.split())
