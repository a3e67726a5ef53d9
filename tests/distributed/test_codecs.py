"""Pipelines with codecs: their answers are those of the whole model with the same codecs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cutset.bundles.coded_model import CodedModel, measured_agreement
from cutset.bundles.manifest import decode_manifest, encode_manifest
from cutset.bundles.open import open_bundle, read_manifest
from cutset.bundles.proof.verify import verify_bundle
from cutset.bundles.strict_json import MANIFEST_NAME
from cutset.bundles.write.export import export_bundle
from cutset.capture.captured_model import CapturedModel
from cutset.capture.torch_export import capture_model
from cutset.data.images import Preprocessing
from cutset.data.pixels import normalised
from cutset.engines.local import LocalEngine
from cutset.errors import ContractViolation, EngineError, ManifestError, StageFailed
from cutset.planning.plan import Plan
from cutset.runtime.session import open_session
from hostile import copy_of

from .bundles import SmallNet, hand_plan

CODECS = ("int8", "fp16")


def coded_plan(captured: CapturedModel, positions: tuple[int, ...], micro_batch: int) -> Plan:
    plan = hand_plan(captured, positions, micro_batch)
    stages = [
        msgspec.structs.replace(stage, codec=codec)
        for stage, codec in zip(plan.stages, (*CODECS, "none"), strict=True)
    ]
    return msgspec.structs.replace(plan, stages=tuple(stages))


class _SkipNet(nn.Module):
    """A tensor that two boundaries pass on, and whole numbers beside floats."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(24, 24) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top = x.argmax(1)
        a = torch.relu(self.first(x))
        b = torch.relu(self.second(a))
        return self.third(b) + a, top


@pytest.fixture(scope="module")
def captured(model: SmallNet) -> CapturedModel:
    return capture_model(model, (torch.randn(2, 3, 16, 16),))


@pytest.fixture(scope="module")
def coded_bundle(captured: CapturedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages, micro-batch 4, int8 and fp16 between them."""
    plan = coded_plan(captured, (3, 6), 4)
    rows = [captured.rows(2)]
    agreement = measured_agreement(captured, CodedModel(captured, plan), rows, calibrated=False)
    folder = tmp_path_factory.mktemp("bundles") / "coded.cutset"
    return export_bundle(captured.module, plan, folder, captured=captured, agreement=agreement)


def whole(captured: CapturedModel, plan: Plan, rows: np.ndarray) -> np.ndarray:
    coded = CodedModel(captured, plan)
    parts = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    return np.concatenate([coded.run((part,), len(part))[1][0] for part in parts])


@pytest.mark.parametrize("shares_memory", [True, False], ids=["shared", "network"])
def test_answers_do_not_depend_on_where_the_stages_are(
    captured: CapturedModel, coded_bundle: Path, shares_memory: bool
) -> None:
    rows = np.random.default_rng(1).normal(size=(11, 3, 16, 16)).astype(np.float32)
    expected = whole(captured, open_bundle(coded_bundle).manifest.plan, rows)
    engine = LocalEngine(("a", "b", "c"), num_threads=1, shares_memory=shares_memory)
    with open_session(coded_bundle, backend="torch", engine=engine) as session:
        answer = session.run(rows)
        assert np.array_equal(answer, expected)
        exact = captured.run_whole((rows,))[0]
        assert 0 < np.abs(answer - exact).max() < 0.2
        # What a codec refuses fails its request, and no other.
        with pytest.raises(StageFailed, match=r"cannot be sent out of stage 0.* codec int8"):
            session.run(np.full((1, 3, 16, 16), np.nan, np.float32))
        assert np.array_equal(session.run(rows), expected)
        # Of 22 rows: 8 x 16 x 16 numbers of a byte, 16 x 4 x 4 of two, and headers. What is sent
        # is counted a moment after it has come.
        received = [stage.stats.received_bytes for stage in session.stats().stages]
        assert received[0] == (22 + 1) * 3 * 16 * 16 * 4
        assert 22 * 2048 < received[1] < 22 * (2048 + 64)
        assert 22 * 512 < received[2] < 22 * (512 + 64)


def test_verify_proves_the_codecs_and_says_what_they_do(
    captured: CapturedModel, coded_bundle: Path
) -> None:
    report = verify_bundle(coded_bundle, captured=captured)
    assert report.check("numerics").ok
    assert report.bit_exact
    detail = report.check("numerics").detail
    assert "which is the whole model with int8 after stage 0, fp16 after stage 1" in detail
    assert "2 of 2 rows keep its top label" in detail
    assert "the whole model gives the same with 1, 2 and 4 rows" in detail
    document = report.as_json()
    assert document["agreement"]["num_rows"] == 2
    assert document["least_share"] == pytest.approx(0.2236068)
    assert read_manifest(coded_bundle).format == "cutset-bundle/3"


def test_another_codec_than_the_reference_was_made_with_is_found(
    captured: CapturedModel, coded_bundle: Path, tmp_path: Path
) -> None:
    folder = copy_of(coded_bundle, tmp_path / "other.cutset")
    manifest = read_manifest(folder)
    stage, plan = manifest.stages[0], manifest.plan.stages[0]
    stage = msgspec.structs.replace(stage, output_codecs=("fp16",))
    plan = msgspec.structs.replace(plan, codec="fp16")
    changed = msgspec.structs.replace(
        manifest,
        stages=(stage, *manifest.stages[1:]),
        plan=msgspec.structs.replace(manifest.plan, stages=(plan, *manifest.plan.stages[1:])),
    )
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    report = verify_bundle(folder, captured=captured)
    assert not report.ok
    assert report.differences[0].stage == 1
    assert "differs from the reference" in report.check("numerics").detail


@pytest.mark.parametrize(
    ("change", "json_path"),
    [
        (lambda d: d.update(format="cutset-bundle/2"), "$.format"),
        (lambda d: d.pop("agreement"), "$.agreement"),
        (lambda d: d["agreement"].update(num_same=3), "$.agreement.num_same"),
        (lambda d: d["agreement"].update(num_rows=0), "$.agreement.num_rows"),
        (lambda d: d["agreement"].update(max_abs_error=-1.0), "$.agreement.max_abs_error"),
        (lambda d: d["stages"][0].pop("output_codecs"), "$.stages[0].output_codecs"),
        (lambda d: d["stages"][0].update(output_codecs=["zip"]), "$.stages[0].output_codecs"),
        (lambda d: d["stages"][0].update(output_codecs=["none"]), "$.stages[0].output_codecs"),
        (
            lambda d: d["stages"][0].update(output_codecs=["int8", "int8"]),
            "$.stages[0].output_codecs",
        ),
        (lambda d: d["stages"][2].update(output_codecs=["fp16"]), "$.stages[2].output_codecs"),
        (lambda d: d["plan"]["stages"][2].update(codec="fp16"), "$.plan.stages[2].codec"),
        (lambda d: d["plan"]["stages"][0].update(codec="\x1b[2J"), "$.plan.stages[0].codec"),
        (lambda d: d["plan"]["stages"][0].update(codec="fp16"), "$.stages[0].output_codecs"),
    ],
)
def test_what_a_manifest_may_not_say_of_codecs(
    coded_bundle: Path, change: Callable[[dict[str, Any]], object], json_path: str
) -> None:
    document = json.loads((coded_bundle / MANIFEST_NAME).read_text())
    change(document)
    with pytest.raises(ManifestError) as caught:
        decode_manifest(json.dumps(document).encode())
    assert caught.value.path == json_path


def test_a_bundle_without_codecs_keeps_the_format_of_before(bundle: Path) -> None:
    text = (bundle / MANIFEST_NAME).read_text()
    assert read_manifest(bundle).format == "cutset-bundle/2"
    assert "output_codecs" not in text
    assert "agreement" not in text


def test_tensors_that_boundaries_pass_on_are_written_at_each(tmp_path: Path) -> None:
    torch.manual_seed(3)
    captured = capture_model(_SkipNet().eval(), (torch.randn(2, 24),))
    names = [operation.name for operation in captured.graph.operations]
    relus = [index for index, name in enumerate(names) if name.startswith("relu")]
    positions = (relus[0] + 1, relus[1] + 1)
    plan = coded_plan(captured, positions, 4)
    agreement = measured_agreement(
        captured, CodedModel(captured, plan), [captured.rows(2)], calibrated=False
    )
    folder = export_bundle(
        captured.module,
        plan,
        tmp_path / "skip.cutset",
        captured=captured,
        agreement=agreement,
        max_tensors=3,
    )
    entries = read_manifest(folder).stages
    assert [stage.output_codecs for stage in entries] == [
        tuple("int8" if spec.dtype == "float32" else "none" for spec in entries[0].outputs),
        tuple("fp16" if spec.dtype == "float32" else "none" for spec in entries[1].outputs),
        (),
    ]
    report = verify_bundle(folder, captured=captured)
    assert report.ok, [check.detail for check in report.checks]
    rows = np.random.default_rng(5).normal(size=(3, 24)).astype(np.float32)
    _, expected = CodedModel(captured, plan).run((rows,), 3)
    with open_session(folder, backend="torch") as session:
        answers = list(session.run_named(rows).values())
    assert all(np.array_equal(a, b) for a, b in zip(answers, expected, strict=True))


IMAGES = Preprocessing(
    resize=16, crop=(16, 16), interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
)


def image_bundle(captured: CapturedModel, folder: Path, input_codec: str) -> Path:
    plan = msgspec.structs.replace(hand_plan(captured, (3,), 4), input_codec=input_codec)
    return export_bundle(captured.module, plan, folder, captured=captured, preprocessing=IMAGES)


@pytest.fixture(scope="module")
def pixel_bundle(captured: CapturedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "pixels.cutset"
    return image_bundle(captured, folder, "uint8-image")


@pytest.mark.parametrize("shares_memory", [True, False], ids=["shared", "network"])
def test_pixels_become_the_callers_own_rows_bit_for_bit(
    captured: CapturedModel, pixel_bundle: Path, shares_memory: bool
) -> None:
    folder = pixel_bundle
    assert read_manifest(folder).format == "cutset-bundle/3"
    pixels = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), np.uint8)
    rows = normalised(pixels, IMAGES)
    parts = [captured.run_whole((part,))[0] for part in (rows[:4], rows[4:])]
    expected = np.concatenate(parts)
    engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=shares_memory)
    with open_session(folder, backend="torch", engine=engine) as session:
        assert np.array_equal(session.run(pixels), expected)
        assert session.stats().stages[0].stats.received_bytes == pixels.nbytes
        assert torch.equal(session.run(torch.from_numpy(pixels)), torch.from_numpy(expected))
        # Rows still come as they are, and odd ones are refused.
        assert np.array_equal(session.run(rows), expected)
        assert session.stats().stages[0].stats.received_bytes == 2 * pixels.nbytes + rows.nbytes
        with pytest.raises(ContractViolation, match="convert it to float32"):
            session.run(pixels.transpose(0, 3, 1, 2))
        with pytest.raises(EngineError, match="there are no images"):
            session.run(pixels[:0])


def test_a_plan_that_wants_rows_gets_rows_of_pixels(
    captured: CapturedModel, tmp_path: Path
) -> None:
    folder = image_bundle(captured, tmp_path / "images.cutset", "none")
    assert read_manifest(folder).format == "cutset-bundle/2"
    pixels = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    with open_session(folder, backend="torch") as session:
        expected = captured.run_whole((normalised(pixels, IMAGES),))[0]
        assert np.array_equal(session.run(pixels), expected)
        assert session.stats().stages[0].stats.received_bytes == 4 * pixels.nbytes


@pytest.mark.parametrize(
    ("change", "json_path"),
    [
        (lambda d: d["plan"].update(input_codec="jpeg"), "$.plan.input_codec"),
        (lambda d: d.update(preprocessing=None), "$.plan.input_codec"),
        (lambda d: d["preprocessing"].update(crop=[8, 8]), "$.plan.input_codec"),
        (lambda d: d["plan"].update(input_codec="none"), "$.format"),
        (lambda d: d.update(format="cutset-bundle/2"), "$.format"),
    ],
)
def test_what_a_manifest_may_not_say_of_pixels(
    pixel_bundle: Path, change: Callable[[dict[str, Any]], object], json_path: str
) -> None:
    document = json.loads((pixel_bundle / MANIFEST_NAME).read_text())
    change(document)
    with pytest.raises(ManifestError) as caught:
        decode_manifest(json.dumps(document).encode())
    assert caught.value.path == json_path
