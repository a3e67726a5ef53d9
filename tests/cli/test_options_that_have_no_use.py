"""An option that has no use where it stands is refused with the reason, never just taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cutset.errors import EngineError
from cutset.measure.probe import Probe, ProbeRequest

from .conftest import Cutset


@pytest.fixture(scope="module")
def profile(cutset: Cutset, small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seconds of one row with one thread."""
    path = tmp_path_factory.mktemp("profiles") / "p.json"
    outcome = cutset("profile", small_model, "--batch-size", 1, "--runs", 5, "-o", path)
    assert outcome.code == 0, outcome.err
    return path


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--batch-size", 4), "micro-batches of 1 row, not the 4 that were asked for"),
        (("--threads", 3), "measured with 1 thread, not the 3 of --threads"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "split"])
def test_a_profile_of_other_rows_or_threads_than_asked_for(
    cutset: Cutset,
    small_model: str,
    profile: Path,
    tmp_path: Path,
    command: str,
    option: tuple[object, ...],
    words: str,
) -> None:
    target = ("-o", tmp_path / "b.cutset") if command == "split" else ()
    asked = (command, small_model, "--stages", 2, "--profile", profile, *target)
    outcome = cutset(*asked, *option)
    assert outcome.code == 3
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_profiles_that_a_cluster_names_are_held_to_the_options_too(
    cutset: Cutset, small_model: str, profile: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_bytes(profile.read_bytes())
    slow = json.loads(profile.read_text()) | {"device": "slow", "num_threads": 2}
    (tmp_path / "b.json").write_text(json.dumps(slow))
    cluster = tmp_path / "two.toml"
    cluster.write_text(
        '[[device]]\nname = "a"\nprofile = "a.json"\n[[device]]\nname = "b"\nprofile = "b.json"\n'
        '[link]\nbandwidth = "1 Gbit/s"\nlatency = "1 ms"\n'
    )
    asked = ("plan", small_model, "--cluster", cluster)
    assert cutset(*asked).code == 0
    outcome = cutset(*asked, "--threads", 1)
    assert outcome.code == 3
    assert "the profile of 'slow' was measured with 2 threads, not the 1 of" in outcome.err


def test_options_that_say_what_the_profile_says_are_taken(
    cutset: Cutset, small_model: str, profile: Path
) -> None:
    asked = ("plan", small_model, "--stages", 2, "--profile", profile, "--json")
    outcome = cutset(*asked, "--batch-size", 1, "--threads", 1)
    assert outcome.code == 0, outcome.err
    assert outcome.document == cutset(*asked).document


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "M", "--stages", 2, "--cost", "flops", "--threads", 2), "for measured costs"),
        (
            ("plan", "M", "--stages", 2, "--objective", "pareto", "--granularity", "op"),
            "--granularity op is for one plan",
        ),
        (
            ("plan", "--cost-graph", "g.json", "--stages", 2, "--micro-batch-only", 1),
            "--micro-batch-only is not for a --cost-graph: it has no model",
        ),
        (("verify", "B", "--weights", "random:0"), "--weights is for the whole --model"),
        (
            ("report", "p.json", "-o", "r.html", "--keep", "Block"),
            "--keep is for the plan's --model",
        ),
        (
            ("report", "p.json", "-o", "r.html", "--micro-batch-only", 1),
            "--micro-batch-only is for the plan's --model",
        ),
        (("report", "B", "-o", "r.html", "--micro-batch-only", 1), "a bundle knows"),
        (("serve", "B", "--no-auth", "--token-file", "T"), "--no-auth everyone; give one"),
        (
            ("probe", "M", "-o", "c.toml", "--micro-batch-only", 3, "--batch-size", 2),
            "--micro-batch-only 3 allows no --batch-size of 2",
        ),
        (("probe", "M", "-o", "c.toml", "--address", " "), "--address is empty"),
    ],
)
def test_what_has_no_use_is_wrong_usage(
    cutset: Cutset,
    small_model: str,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    places = {"M": small_model, "B": small_bundle, "T": token}
    outcome = cutset(*(places.get(each, each) for each in arguments))
    assert outcome.code == 2
    assert words in " ".join(outcome.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "num_rows", "sent"),
    [
        ((), None, ()),
        (("--micro-batch-only", 3), 3, ("--micro-batch-only", "3")),
        (("--batch-size", 3, "--micro-batch-only", 3), 3, ("--micro-batch-only", "3")),
        (("--part", "body", "--batch-size", 2), 2, ("--part", "body")),
    ],
)
def test_the_nodes_of_a_probe_are_sent_what_was_asked_for(
    cutset: Cutset,
    small_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    num_rows: int | None,
    sent: tuple[str, ...],
) -> None:
    asked: list[ProbeRequest] = []

    def probe_cluster(request: ProbeRequest, *, progress: object) -> Probe:
        asked.append(request)
        raise EngineError("no cluster")

    monkeypatch.setattr("cutset.measure.probe.probe_cluster", probe_cluster)
    outcome = cutset("probe", small_model, "-o", tmp_path / "c.toml", *options)
    assert "no cluster" in outcome.err
    (request,) = asked
    assert request.batch_size == num_rows
    assert request.options == ("--max-tensors", "1", *sent)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--calibration", "x.npy"), "--calibration is for codecs that --allow names"),
        (("--min-agreement", 0.9), "--min-agreement is for codecs that --allow names"),
        (("--max-error", 0.0), "--max-error is for codecs that --allow names"),
        (("--allow", "zip"), "--allow 'zip' is no codec; there are fp16, int8"),
    ],
)
def test_options_of_codecs_without_one(
    cutset: Cutset, small_model: str, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    asked = ("split", small_model, "--stages", 2, "--cost", "flops", "-o", tmp_path / "b.cutset")
    outcome = cutset(*asked, *options)
    assert outcome.code == 2
    assert words in " ".join(outcome.err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_cost_graph_has_no_tensors_for_codecs(cutset: Cutset, tmp_path: Path) -> None:
    asked = ("plan", "--cost-graph", tmp_path / "g.json", "--stages", 2, "--allow", "fp16")
    outcome = cutset(*asked)
    assert outcome.code == 2
    assert "--allow is not for a --cost-graph: it knows bytes" in outcome.err
