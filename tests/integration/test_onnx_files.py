"""ONNX files of both of torch's exporters, and without any names, from the file to answers."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from torchvision.models import resnet18

from cutset.backends.selection import load_stage
from cutset.bundles.open import open_bundle
from cutset.bundles.proof.verify import verify_bundle
from cutset.errors import EngineError, ManifestError, ModelError
from cutset.models.randomise import randomise
from cutset.runtime.session import open_session
from cutset.workflow import PreparedModel, plan_stages, prepare_model, split_model
from hostile import edit_manifest, relist

BLOCKS = [
    ("layer1.0", "block"),
    ("layer1.1", "block"),
    ("layer2.0", "block"),
    ("layer2.1", "block"),
    ("layer3.0", "block"),
    ("layer3.1", "block"),
    ("layer4.0", "block"),
    ("layer4.1", "block"),
]
# Those of the model in torch; only the flattening has no module, and so each exporter's own name.
DYNAMO = [("relu", "activation"), ("maxpool", "pool"), *BLOCKS, ("view", "pool")]
SCRIPT = [("relu", "activation"), ("maxpool", "pool"), *BLOCKS, ("/Flatten_output_0", "pool")]
# Without names the same places, known by the tensors there; a block ends in its activation.
BARE = [
    ("relu", "activation"),
    ("max_pool2d", "pool"),
    ("relu_2", "activation"),
    ("relu_4", "activation"),
    ("relu_6", "activation"),
    ("relu_8", "activation"),
    ("relu_10", "activation"),
    ("relu_12", "activation"),
    ("relu_14", "activation"),
    ("relu_16", "activation"),
    ("view", "pool"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ResNet18 at 64 x 64 from either exporter, and without names and metadata."""
    folder = tmp_path_factory.mktemp("files")
    model = resnet18(weights=None).eval()
    rows = torch.randn(2, 3, 64, 64)
    randomise(model, (rows,), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (rows,),
            folder / "dynamo.onnx",
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
        torch.onnx.export(
            model,
            (rows,),
            folder / "script.onnx",
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )
    bare = onnx.load(folder / "dynamo.onnx")
    for node in bare.graph.node:
        node.name = ""
        node.ClearField("metadata_props")
    onnx.save(bare, folder / "bare.onnx")
    return folder


@dataclasses.dataclass(frozen=True)
class Split:
    prepared: PreparedModel
    bundle: Path


@pytest.fixture(scope="module")
def split(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    prepared = prepare_model(str(files / "script.onnx"))
    folder = tmp_path_factory.mktemp("bundles") / "three.cutset"
    bundle = split_model(prepared, plan_stages(prepared, num_stages=3), folder)
    assert bundle.verification.ok
    return Split(prepared, bundle.directory)


@pytest.mark.parametrize(
    ("name", "expected"), [("dynamo", DYNAMO), ("script", SCRIPT), ("bare", BARE)]
)
def test_cut_points_and_a_proven_split(
    files: Path, tmp_path: Path, name: str, expected: list[tuple[str, str]]
) -> None:
    prepared = prepare_model(str(files / f"{name}.onnx"))
    assert [(point.after, point.kind) for point in prepared.cuts.points] == expected
    assert len(prepared.cuts.units) == 8
    plan = plan_stages(prepared, num_stages=2)
    report = split_model(prepared, plan, tmp_path / "two.cutset").verification
    assert [check.name for check in report.checks if check.ok] == [
        "contracts",
        "completeness",
        "units",
        "numerics",
        "integrity",
    ]


def test_three_workers_give_the_whole_models_answers(split: Split) -> None:
    rows = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with open_session(split.bundle, micro_batch=2) as session:
        answer = session.run(rows)
    with torch.inference_mode():
        (whole,) = split.prepared.module(rows)
    torch.testing.assert_close(torch.as_tensor(answer), whole, rtol=1e-4, atol=1e-4)


def test_there_is_nothing_for_torch(split: Split) -> None:
    assert not list(split.bundle.rglob("*.pt2"))
    with pytest.raises(EngineError, match="holds no torch program"):
        load_stage(open_bundle(split.bundle), 0, backend="torch", num_threads=1, micro_batch=1)


def copied(bundle: Path, target: Path) -> Path:
    target.mkdir()
    for file in bundle.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(bundle)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(file.read_bytes())
    return target


def test_a_stage_that_computes_something_else_is_found(split: Split, tmp_path: Path) -> None:
    bundle = copied(split.bundle, tmp_path / "b.cutset")
    model = onnx.load(bundle / "stage-1/model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Abs"
    (bundle / "stage-1/model.onnx").write_bytes(model.SerializeToString())
    relist(bundle)
    report = verify_bundle(bundle)
    assert not report.check("numerics").ok
    assert "onnx.Abs" in report.check("completeness").detail


def test_a_stage_with_other_weights_is_found(split: Split, tmp_path: Path) -> None:
    bundle = copied(split.bundle, tmp_path / "b.cutset")
    model = onnx.load(bundle / "stage-1/model.onnx")
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = bytes(len(weights.raw_data))
    (bundle / "stage-1/model.onnx").write_bytes(model.SerializeToString())
    relist(bundle)
    report = verify_bundle(bundle)
    assert not report.check("numerics").ok
    assert report.check("completeness").ok
    assert report.differences[0].stage == 1


def test_programs_in_some_stages_only_contradict(split: Split, tmp_path: Path) -> None:
    bundle = copied(split.bundle, tmp_path / "b.cutset")
    edit_manifest(
        bundle, lambda document: document["stages"][1].update(program="stage-1/model.onnx")
    )
    with pytest.raises(ManifestError, match="null in some stages only"):
        open_bundle(bundle)


def test_other_weights_cannot_be_asked_for(files: Path) -> None:
    with pytest.raises(ModelError, match="holds its own weights"):
        prepare_model(str(files / "script.onnx"), weights="random:0")
