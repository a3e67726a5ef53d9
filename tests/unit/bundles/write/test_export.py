from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from checked_here import check_here
from cutset.bundles.open import open_bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.bundles.write.description import replace_plan
from cutset.bundles.write.export import export_bundle
from cutset.capture.arguments import ExampleInputs
from cutset.capture.onnx import onnx_file
from cutset.capture.torch_export import capture_model
from cutset.cluster.devices import equal_cluster
from cutset.costs.cost_model import costs_from_flops
from cutset.errors import BundleError, ChecksumMismatch, ModelError
from cutset.graph.cuts import find_cut_points
from cutset.graph.ir import Graph
from cutset.planning import Plan, PlanRequest, make_plan
from models_of_trouble import ManyInsAndOuts, TiedWeights, residual_net


def _plan(model: nn.Module, example: ExampleInputs, num_stages: int, max_tensors: int = 1) -> Plan:
    graph = capture_model(model, example).graph
    cuts = find_cut_points(graph, max_tensors=max_tensors)
    costs = costs_from_flops(graph, cuts)
    return make_plan(
        graph, cuts, costs, PlanRequest(cluster=equal_cluster(num_stages), num_stages=num_stages)
    )


def _plan_with_cut(graph: Graph, point: int) -> Plan:
    """Two stages, cut at one of the points by its index."""
    cuts = find_cut_points(graph)
    costs = costs_from_flops(graph, cuts)
    cut = cuts.points[point].after
    return make_plan(graph, cuts, costs, PlanRequest(cluster=equal_cluster(2), cut_names=(cut,)))


EXAMPLE = torch.randn(2, 3, 8, 8)


def test_a_bundle_is_whole_proven_and_speaks_of_no_file(tmp_path: Path) -> None:
    model = residual_net()
    path = export_bundle(model, _plan(model, EXAMPLE, 2), tmp_path / "b", example_inputs=EXAMPLE)
    report = check_here(path, model=model)
    assert report.ok
    assert report.bit_exact
    content = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
    assert str(Path.cwd()).encode() not in content
    assert b'models_of_trouble.py", line' not in content


def test_a_plan_that_says_more_takes_the_place_of_the_first(tmp_path: Path) -> None:
    model = residual_net()
    path = export_bundle(model, _plan(model, EXAMPLE, 2), tmp_path / "b", example_inputs=EXAMPLE)
    bundle = open_bundle(path)
    plan = msgspec.structs.replace(bundle.manifest.plan, notes=("measured",))
    replace_plan(bundle, plan)
    assert open_bundle(path).manifest.plan == plan
    assert check_here(path, model=model).ok
    assert list(tmp_path.iterdir()) == [path]


def test_a_bundle_that_is_gone_cannot_be_written_anew(tmp_path: Path) -> None:
    model = residual_net()
    path = export_bundle(model, _plan(model, EXAMPLE, 2), tmp_path / "b", example_inputs=EXAMPLE)
    bundle = open_bundle(path)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"b.manifest\.json cannot be written: No such file"):
        replace_plan(bundle, bundle.manifest.plan)
    assert list(tmp_path.iterdir()) == [tmp_path / "elsewhere"]


def test_a_stage_holds_its_own_weights_only(tmp_path: Path) -> None:
    model = residual_net()
    path = export_bundle(model, _plan(model, EXAMPLE, 2), tmp_path / "b", example_inputs=EXAMPLE)
    manifest = open_bundle(path).manifest
    held = [set(stage.parameters) for stage in manifest.stages]
    assert not held[0] & held[1]
    used = {name for names in held for name in names}
    assert used | set(manifest.unused_parameters) == {p.name for p in manifest.graph.parameters}
    assert manifest.unused_parameters == ("1.num_batches_tracked",)


def test_shared_weights_are_listed(tmp_path: Path) -> None:
    model, example = TiedWeights(), torch.randn(2, 6)
    path = export_bundle(model, _plan(model, example, 2), tmp_path / "b", example_inputs=example)
    assert open_bundle(path).manifest.shared_parameters == ("encode.weight",)
    assert check_here(path, model=model).ok


def test_names_of_several_outputs(tmp_path: Path) -> None:
    model = ManyInsAndOuts().eval()
    example = {"image": torch.randn(2, 6), "extra": torch.randn(2, 3)}
    captured = capture_model(model, example)
    plan = _plan(model, example, 2, max_tensors=2)
    path = export_bundle(model, plan, tmp_path / "b", captured=captured, max_tensors=2)
    bundle = open_bundle(path)
    assert bundle.manifest.output_names == ("features", "scores")
    inputs = (torch.randn(3, 6), torch.randn(3, 3))
    values = load_program(bundle, 1)(load_program(bundle, 0)(inputs))
    by_name = dict(zip((s.name for s in bundle.manifest.stages[1].outputs), values, strict=True))
    expected = model(inputs[0], extra=inputs[1])
    for spec, name in zip(bundle.manifest.outputs, ("features", "scores"), strict=True):
        assert torch.equal(by_name[spec.name], expected[name])


def test_the_reference_holds_every_boundary(tmp_path: Path) -> None:
    model = residual_net()
    path = export_bundle(model, _plan(model, EXAMPLE, 3), tmp_path / "b", example_inputs=EXAMPLE)
    manifest = open_bundle(path).manifest
    tensors = load_file(path / manifest.reference)
    wanted = {spec.name for stage in manifest.stages for spec in (*stage.inputs, *stage.outputs)}
    outer = {spec.name for spec in manifest.graph.inputs}
    assert set(tensors) == wanted | {f"rows-1/{name}" for name in wanted - outer}
    with torch.no_grad():
        assert torch.equal(tensors[f"rows-1/{manifest.outputs[0].name}"], model(EXAMPLE[:1]))
        assert torch.equal(tensors[manifest.outputs[0].name], model(EXAMPLE))


def test_a_failed_check_leaves_what_was_there(tmp_path: Path) -> None:
    model = residual_net()
    plan = _plan(model, EXAMPLE, 2)
    path = export_bundle(model, plan, tmp_path / "b", example_inputs=EXAMPLE, model_name="first")

    def fail(folder: Path) -> None:
        assert (folder / "manifest.json").is_file()
        raise RuntimeError("not good enough")

    with pytest.raises(RuntimeError, match="not good enough"):
        export_bundle(
            model, plan, path, example_inputs=EXAMPLE, model_name="second", replace=True, check=fail
        )
    assert [each.name for each in tmp_path.iterdir()] == ["b"]
    assert json.loads((path / "manifest.json").read_text())["model"] == "first"
    export_bundle(model, plan, path, example_inputs=EXAMPLE, model_name="third", replace=True)
    assert json.loads((path / "manifest.json").read_text())["model"] == "third"
    assert [each.name for each in tmp_path.iterdir()] == ["b"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    model = residual_net()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(BundleError, match=name):
            export_bundle(
                model, _plan(model, EXAMPLE, 1), tmp_path / name, example_inputs=EXAMPLE,
                replace=True,
            )  # fmt: skip


def test_what_onnx_cannot_express_is_said(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i1(x)

    model = nn.Sequential(nn.Linear(4, 4), Odd(), nn.Linear(4, 4))
    example = torch.randn(2, 4)
    path = export_bundle(model, _plan(model, example, 1), tmp_path / "b", example_inputs=example)
    (stage,) = open_bundle(path).manifest.stages
    assert stage.model is None
    assert "i1" in stage.model_missing
    assert check_here(path, model=model).ok


def test_large_weights_lie_beside_the_onnx_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_INLINE_BYTES", 1 << 15)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 4))
    example = torch.randn(2, 64)
    path = export_bundle(model, _plan(model, example, 2), tmp_path / "b", example_inputs=example)
    bundle = open_bundle(path)
    names = {entry.path for entry in bundle.manifest.files}
    assert "stage-0/model.onnx.data" in names  # 66 kB of weights
    assert "stage-1/model.onnx.data" not in names  # 4 kB
    assert (path / "stage-0/model.onnx").stat().st_size < 1 << 14
    report = check_here(path, model=model)
    assert report.ok, report.as_json()
    (path / "stage-0/model.onnx.data").unlink()
    with pytest.raises(ChecksumMismatch, match=r"stage-0/model\.onnx\.data is missing"):
        open_bundle(path)


class Spectrum(nn.Module):
    """Complex numbers at the boundary behind it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x)


class Power(nn.Module):
    """Real numbers again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


@pytest.mark.parametrize(
    ("model", "example", "reason"),
    [
        (
            nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.ReLU()).bfloat16(),
            torch.randn(2, 4, 8).bfloat16(),
            r"ONNX Runtime cannot run it: .* model\.onnx .*bfloat16",
        ),
        (
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Spectrum(), Power()),
            torch.randn(2, 8),
            "ONNX Runtime has no tensors of dtype complex64",
        ),
    ],
)
def test_what_onnx_runtime_cannot_run_is_left_out_and_said(
    model: nn.Module, example: torch.Tensor, reason: str, tmp_path: Path
) -> None:
    captured = capture_model(model, example)
    plan = _plan_with_cut(captured.graph, -1)
    path = export_bundle(model, plan, tmp_path / "b", captured=captured)
    stages = open_bundle(path).manifest.stages
    assert [stage.model for stage in stages] == [None, None]
    assert all(re.search(reason, stage.model_missing) for stage in stages)
    assert str(tmp_path) not in (path / "manifest.json").read_text()
    assert not list(path.glob("*/model.onnx*"))
    report = check_here(path, model=model)
    assert report.ok
    assert report.bit_exact
    assert "no stage has an ONNX model" in report.check("numerics").detail


class Chaos(nn.Module):
    """The logistic map, in which a difference in the last bit doubles with every step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(x)
        for _ in range(40):
            x = 3.99 * x * (1 - x)
        return x


def test_an_onnx_model_with_other_numbers_is_left_out_and_said(tmp_path: Path) -> None:
    """The chaotic stage has none; the one before it keeps its own."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), Chaos())
    example = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    captured = capture_model(model, example)
    plan = _plan_with_cut(captured.graph, 0)
    path = export_bundle(model, plan, tmp_path / "b", captured=captured)
    first, second = open_bundle(path).manifest.stages
    assert first.model is not None
    assert second.model is None
    assert re.fullmatch(r"ONNX Runtime's results are off by \S+, allowed \S+", second.model_missing)
    report = check_here(path, model=model)
    assert report.ok
    assert report.bit_exact
    assert "stage 1 has no ONNX model (ONNX Runtime's results" in report.check("numerics").detail


def test_what_no_bundle_may_hold_is_said_before_anything_is_written(tmp_path: Path) -> None:
    class Rare(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    model = nn.Sequential(nn.Linear(4, 4), Rare())
    example = torch.randn(2, 4)
    with pytest.raises(
        BundleError, match=r"aten\.special_bessel_j0\.default in 1 \(test_export\.py:\d+\)"
    ):
        export_bundle(model, _plan(model, example, 1), tmp_path / "b", example_inputs=example)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 4, 6])
def test_labels_are_as_many_as_classes(tmp_path: Path, count: int) -> None:
    model = residual_net()
    plan = _plan(model, EXAMPLE, 2)
    wanted = rf"^{count} labels for the output float32\[batch, 5\]: expected one for each entry"
    with pytest.raises(ModelError, match=wanted):
        export_bundle(model, plan, tmp_path / "b", example_inputs=EXAMPLE, labels=["a"] * count)
    assert list(tmp_path.iterdir()) == []


def test_a_capture_of_another_object_is_refused(tmp_path: Path) -> None:
    captured = capture_model(residual_net(), EXAMPLE)
    plan = _plan_with_cut(captured.graph, 0)
    with pytest.raises(ValueError, match="captured is of another model"):
        export_bundle(residual_net(), plan, tmp_path / "b", captured=captured)
    assert list(tmp_path.iterdir()) == []
