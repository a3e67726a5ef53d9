"""Pipelines whose tensors are packed between stages: every bit as without, in fewer bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cutset.bundles.coded_model import CodedModel, measured_agreement
from cutset.bundles.manifest import decode_manifest
from cutset.bundles.open import read_manifest
from cutset.bundles.proof.verify import verify_bundle
from cutset.bundles.strict_json import MANIFEST_NAME
from cutset.bundles.write.export import export_bundle
from cutset.capture.captured_model import CapturedModel
from cutset.engines.local import LocalEngine
from cutset.errors import EngineError, ManifestError
from cutset.runtime.session import open_session

from .bundles import hand_plan
from .test_codecs import captured, whole

__all__ = ["captured"]  # a fixture

pytest.importorskip("zstandard", reason="needs zstandard: pip install 'cutset[zstd]'")


def packed(captured: CapturedModel, folder: Path, *codecs: str) -> Path:
    """A bundle of three stages, micro-batch 4, with these codecs between them."""
    plan = hand_plan(captured, (3, 7), 4)
    pairs = zip(plan.stages, (*codecs, "none"), strict=True)
    stages = tuple(msgspec.structs.replace(stage, codec=codec) for stage, codec in pairs)
    plan = msgspec.structs.replace(plan, stages=stages)
    agreement = None
    if codecs != ("zstd", "zstd"):
        coded = CodedModel(captured, plan)
        agreement = measured_agreement(captured, coded, [captured.rows(2)], calibrated=False)
    return export_bundle(captured.module, plan, folder, captured=captured, agreement=agreement)


@pytest.fixture(scope="module")
def lossless(captured: CapturedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(captured, tmp_path_factory.mktemp("bundles") / "p.cutset", "zstd", "zstd")


ROWS = np.random.default_rng(1).normal(size=(11, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("shares_memory", [True, False], ids=["shared", "network"])
def test_packed_tensors_give_the_models_own_bits(
    captured: CapturedModel, lossless: Path, shares_memory: bool
) -> None:
    parts = [captured.run_whole((ROWS[k : k + 4],))[0] for k in range(0, 11, 4)]
    engine = LocalEngine(("a", "b", "c"), num_threads=1, shares_memory=shares_memory)
    with open_session(lossless, backend="torch", engine=engine) as session:
        assert np.array_equal(session.run(ROWS), np.concatenate(parts))
        # Numbers that no lossy codec would write come through as well.
        odd = np.full((1, 3, 16, 16), np.nan, np.float32)
        assert np.array_equal(session.run(odd), captured.run_whole((odd,))[0], equal_nan=True)
        received = [stage.stats.received_bytes for stage in session.stats().stages]
        # Behind a ReLU: 8 x 16 x 16 numbers of four bytes, half of them zeros.
        assert 0 < received[1] < 0.8 * 12 * 8 * 16 * 16 * 4


def test_a_lossy_codec_packed_gives_what_it_gives_alone(
    captured: CapturedModel, tmp_path: Path
) -> None:
    folder = packed(captured, tmp_path / "p.cutset", "int8+zstd", "fp16+zstd")
    manifest = read_manifest(folder)
    assert [stage.output_codecs for stage in manifest.stages] == [
        ("int8+zstd",),
        ("fp16+zstd",),
        (),
    ]
    report = verify_bundle(folder, captured=captured)
    assert report.ok, [check.detail for check in report.checks]
    assert report.bit_exact
    assert "with int8+zstd after stage 0, fp16+zstd after" in report.check("numerics").detail
    with open_session(folder, backend="torch") as session:
        assert np.array_equal(session.run(ROWS), whole(captured, manifest.plan, ROWS))


def test_a_bundle_that_only_packs_is_proven_as_the_model_itself(
    captured: CapturedModel, lossless: Path
) -> None:
    report = verify_bundle(lossless, captured=captured)
    assert report.ok, [check.detail for check in report.checks]
    assert report.bit_exact
    text = (lossless / MANIFEST_NAME).read_text()
    assert read_manifest(lossless).format == "cutset-bundle/3"
    assert "agreement" not in text


@pytest.mark.parametrize(
    ("change", "json_path"),
    [
        (lambda d: d.update(format="cutset-bundle/2"), "$.format"),
        (
            lambda d: d.update(
                agreement={"num_rows": 2, "num_same": 2, "max_abs_error": 0, "calibrated": False}
            ),
            "$.agreement",
        ),
        (lambda d: d["plan"]["stages"][0].update(codec="none+zstd"), "$.plan.stages[0].codec"),
        (lambda d: d["plan"]["stages"][0].update(codec="zstd+zstd"), "$.plan.stages[0].codec"),
        (lambda d: d["plan"]["stages"][0].update(codec="fp16+zstd"), "$.stages[0].output_codecs"),
        (lambda d: d["plan"].update(input_codec="zstd"), "$.plan.input_codec"),
        (lambda d: d["stages"][2].update(output_codecs=["zstd"]), "$.stages[2].output_codecs"),
    ],
)
def test_what_a_manifest_may_not_say_of_packing(
    lossless: Path, change: Callable[[dict[str, Any]], object], json_path: str
) -> None:
    document = json.loads((lossless / MANIFEST_NAME).read_text())
    change(document)
    with pytest.raises(ManifestError) as caught:
        decode_manifest(json.dumps(document).encode())
    assert caught.value.path == json_path


def test_a_worker_without_the_package_says_so_before_anything_travels(
    lossless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = 'raise ModuleNotFoundError("No module named \'zstandard\'", name="zstandard")\n'
    (tmp_path / "zstandard.py").write_text(missing)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = r"stage \d cannot run where .* 'zstandard', .*: pip install 'cutset\[zstd\]'"
    with pytest.raises(EngineError, match=words):
        open_session(lossless, backend="torch").close()
