"""Several devices a stage, as the commands plan and show them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cutset.bundles.open import read_manifest

from .conftest import Cutset

THREE = """
[link]
bandwidth = "1 Gbit/s"
""" + "".join(f'[[device]]\nname = "{name}"\n' for name in ("device-0", "device-1", "c"))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    path = tmp_path / "three.toml"
    path.write_text(THREE)
    return path


def test_replicas_are_planned_and_shown(cutset: Cutset, small_model: str, three: Path) -> None:
    options = ("--cluster", three, "--cost", "flops")
    alone = cutset("plan", small_model, *options, "--json").document
    assert alone["format"] == "cutset-plan/1"
    assert alone["copies"]["devices"] == ["device-0", "device-1", "c"]
    assert all("replicas" not in stage for stage in alone["stages"])
    again = cutset("plan", small_model, *options, "--no-replicas", "--json").document
    assert again["stages"] == alone["stages"]
    best = cutset("plan", small_model, *options, "--replicas", 3, "--json").document
    assert best["format"] == "cutset-plan/2"
    assert best["period_s"] <= alone["copies"]["period_s"] * (1 + 1e-9)
    assert best["period_s"] < alone["period_s"]
    (whole,) = best["stages"]
    groups = [(each["device"], each["share"]) for each in whole["replicas"]]
    assert groups == [(name, pytest.approx(1 / 3)) for name in ("device-0", "device-1", "c")]
    shown = cutset("plan", small_model, *options, "--replicas", 3)
    assert "33.3%" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--replicas", 0), "--replicas is 1 to 1024 devices, got 0"),
        (("--replicas", 2, "--no-replicas"), "--no-replicas is --replicas 1"),
        (("--write",), "--write is for the plan of a --bundle"),
        (("--bundle", "x"), "name either a MODEL, or a --cost-graph, or a --bundle"),
    ],
)
def test_wishes_that_contradict_each_other_are_usage_errors(
    cutset: Cutset, small_model: str, three: Path, given: tuple[object, ...], words: str
) -> None:
    outcome = cutset("plan", small_model, "--cluster", three, "--cost", "flops", *given)
    assert outcome.code == 2
    assert words in " ".join(outcome.err.split())


def test_what_groups_are_not_planned_with_ends_as_a_plan_error(
    cutset: Cutset, small_model: str, three: Path
) -> None:
    options = ("--cluster", three, "--cost", "flops", "--replicas", 2)
    fixed = cutset("plan", small_model, *options, "--fixed-order")
    assert fixed.code == 3
    assert "not planned with a fixed order" in " ".join(fixed.err.split())


def test_shards_are_planned_anew_for_another_cluster(
    cutset: Cutset, small_bundle: Path, three: Path
) -> None:
    before = read_manifest(small_bundle).plan
    options = ("plan", "--bundle", small_bundle, "--cluster", three)
    plan = cutset(*options, "--replicas", 3, "--json").document
    assert [stage["last"] for stage in plan["stages"]] == [stage.last for stage in before.stages]
    assert len(plan["stages"]) == 2
    assert sorted(len(stage.get("replicas", [0])) for stage in plan["stages"]) == [1, 2]
    assert read_manifest(small_bundle).plan == before
    refused = cutset(*options, "--stages", 2)
    assert refused.code == 2
    assert "--stages is not for a --bundle" in refused.err
    one = three.with_name("one.toml")
    one.write_text('[[device]]\nname = "c"\n')
    unknown = cutset("plan", "--bundle", small_bundle, "--cluster", one)
    assert unknown.code == 3
    assert "no device of the bundle's plan is in this cluster" in unknown.err
    one.write_text('[[device]]\nname = "device-0"\n')
    missing = cutset("plan", "--bundle", small_bundle, "--cluster", one)
    assert missing.code == 3
    assert "2 stages need 2 devices" in missing.err
    # A device that was planned for went, another one came.
    one.write_text('[[device]]\nname = "device-0"\n[[device]]\nname = "new"\nspeed = 2\n')
    other = cutset("plan", "--bundle", small_bundle, "--cluster", one, "--json").document
    assert {stage["device"] for stage in other["stages"]} == {"device-0", "new"}
    assert [note for note in other["notes"] if note.startswith("seconds of stage 1: by multiply")]
    assert json.loads((small_bundle / "manifest.json").read_text())["plan"]["format"] == (
        "cutset-plan/1"
    )


def test_a_new_plan_takes_the_place_of_the_old_one(
    cutset: Cutset, small_bundle: Path, three: Path, tmp_path: Path
) -> None:
    import shutil

    bundle = tmp_path / "copy"
    shutil.copytree(small_bundle, bundle)
    options = ("--cluster", three, "--replicas", 3, "--write", "--json")
    plan = cutset("plan", "--bundle", bundle, *options).document
    written = read_manifest(bundle).plan
    assert written.has_groups
    assert [stage.device for stage in written.stages] == [s["device"] for s in plan["stages"]]
    # Planned once more from that, shares and seconds stay as they are.
    again = cutset("plan", "--bundle", bundle, *options).document
    assert again["period_s"] == pytest.approx(plan["period_s"])
    assert cutset("verify", bundle).code == 0
    page = tmp_path / "page.html"
    assert cutset("report", bundle, "-o", page).code == 0
    said = page.read_text()
    groups = [stage.where for stage in written.stages if len(stage.group) > 1]
    assert groups
    assert all(f"<td>{group}</td>" in said for group in groups)
    assert "stage bring?" in said
