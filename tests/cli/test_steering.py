"""Whatever names come from outside, the terminal shows them and does not obey them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from cutset.cli.screen import NOTE, LogFormatter, show_traceback, stdout
from cutset.cluster.devices import Cluster, Device
from cutset.cluster.file_writer import cluster_to_toml
from cutset.costs.profile import load_profile, profile_to_json
from cutset.errors import CutsetError
from cutset.report.text import print_bench, print_checks
from cutset.serve.logs import JsonFormatter

from .conftest import Cutset, Outcome

SEEN = r"\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\u200e\ufeff\x08\x7f[bold]x[/bold]:smile:"
EVIL = (
    "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\u200e\ufeff\x08\x7f[bold]x[/bold]:smile:"
    "\u2028\r\n\t"
)
FILE_NAME = EVIL.replace("/", "").strip() + "f"
SEEN_FILE = SEEN.replace("/", "") + "f"
_QUICK = ("--backend", "onnxruntime")  # instead of loading all of them to time them
_SHORT = ("--runs", 5, "--batch-size", 1)


def steering(text: str) -> set[str]:
    """The characters of what was printed that are more than visible; lines end with a newline."""
    return {
        each
        for each in set(text) - set("\n\u200c\u200d")
        if not each.isprintable() and unicodedata.category(each) != "Zs"
    }


def check(outcome: Outcome, *, code: int = 0, seen: str = SEEN) -> Outcome:
    assert outcome.code == code, outcome
    assert steering(outcome.out + outcome.err) == set()
    text = "".join((outcome.out + outcome.err).replace("│", "").split())
    assert seen in text
    return outcome


@pytest.fixture(scope="module")
def evil_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose author chose every name that is free to choose."""
    bundle = tmp_path_factory.mktemp("evil") / "b.cutset"
    shutil.copytree(small_bundle, bundle)
    file = bundle / "manifest.json"
    document: dict[str, Any] = json.loads(file.read_text())
    document["labels"] = [f"{k}{EVIL}" for k in range(4)]
    document["model"] = document["weights"] = document["output_names"][0] = EVIL
    document["created_by"] = {f"lib{EVIL}": EVIL}
    plan = document["plan"]
    plan["notes"] = plan["unused_devices"] = [EVIL]
    for k, stage in enumerate(plan["stages"]):
        stage["device"] = f"{k}{EVIL}"
    for alternative in plan["alternatives"]:
        names = [f"{k}{EVIL}" for k in range(len(alternative["devices"]))]
        alternative["devices"] = names
        alternative["reason"] = EVIL
    file.write_text(json.dumps(document))
    return bundle


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    path = tmp_path_factory.mktemp("rows") / f"{FILE_NAME}.npy"
    np.save(path, np.ones((2, 8), dtype=np.float32))
    return path


def test_run_shows_labels_and_names_of_files(cutset: Cutset, evil_bundle: Path, rows: Path) -> None:
    other = Path(os.fsdecode(os.fsencode(rows.parent) + b"/\xff\x80.npy"))  # no UTF-8
    shutil.copy(rows, other)
    check(cutset("run", evil_bundle, rows, *_QUICK), seen=r"\x1b[2J\x1b]0;title")
    output = rows.with_name("out.jsonl")
    asked = (evil_bundle, rows, other, *_QUICK, "--json", "-o", output)
    outcome = check(cutset("run", *asked), seen=r"\udcff\udc80.npy")
    assert outcome.document["rows"][0]["top"][0]["label"].endswith(EVIL)
    first, *_ = output.read_text().splitlines()
    assert steering(first) == set()
    assert json.loads(first)["top"][0]["label"].endswith(EVIL)


def test_bundles(cutset: Cutset, evil_bundle: Path, tmp_path: Path) -> None:
    check(cutset("verify", evil_bundle), seen="")
    check(cutset("verify", evil_bundle, "--json"), seen="")
    missing = tmp_path / EVIL
    for command in ("verify", "bench", "serve"):
        check(cutset(command, missing), code=4)
    check(cutset("run", evil_bundle, tmp_path / f"{FILE_NAME}.png"), code=1, seen=SEEN_FILE)


def test_pages_and_drawings(cutset: Cutset, evil_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / FILE_NAME
    folder.mkdir()
    page = folder / "r.html"
    check(cutset("report", evil_bundle, "-o", page, "--svg", folder), seen=SEEN_FILE)
    for path in folder.iterdir():
        assert steering(path.read_text(encoding="utf-8")) - set("\t\r\x7f") == set(), path.name
    assert "[bold]x[/bold]:smile:" in page.read_text(encoding="utf-8")


def test_models_weights_and_profiles(cutset: Cutset, small_model: str, tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    assert cutset("profile", small_model, "-o", profile, *_SHORT).code == 0
    check(cutset("profile", small_model, "--device", f"me{EVIL}", *_SHORT))
    import msgspec

    found = msgspec.structs.replace(load_profile(profile), device=EVIL, model=EVIL)
    (tmp_path / "evil.json").write_text(
        profile_to_json(found).replace('"torch"', '"a[bold]\\u001b"')
    )
    for name in (f"x{EVIL}", f"timm:{EVIL}", f"{EVIL}.py:make", f"{small_model}{EVIL}"):
        check(cutset("inspect", name), code=1)
    check(
        cutset("split", small_model, "--weights", f"{EVIL}.pth", "--stages", 2, "-o", "b"), code=1
    )
    asked = ("plan", small_model, "--stages", 2, "--profile", tmp_path / "evil.json")
    assert steering("".join(cutset(*asked)[1:])) == set()
    check(cutset("plan", small_model, "--cut", EVIL, "--cost", "flops"), code=3)


def test_clusters_and_cost_graphs(cutset: Cutset, small_model: str, tmp_path: Path) -> None:
    devices = tuple(Device(name=f"{name}{EVIL}", memory_bytes=10**9) for name in "ab")
    cluster = tmp_path / "c.toml"
    cluster.write_text(cluster_to_toml(Cluster(devices=devices)), encoding="utf-8")
    asked = ("--cluster", cluster, "--cost", "flops")
    check(cutset("plan", small_model, *asked))
    check(cutset("plan", small_model, *asked, "--objective", "pareto"))
    document = check(cutset("plan", small_model, *asked, "--json"), seen="").document
    assert document["stages"][0]["device"] == f"a{EVIL}"
    small = Cluster(devices=tuple(Device(name=f"{n}{EVIL}", memory_bytes=1) for n in "ab"))
    cluster.write_text(cluster_to_toml(small), encoding="utf-8")
    check(cutset("plan", small_model, *asked), code=3)
    graph = tmp_path / "g.json"
    nodes = [{"name": EVIL, "seconds": {"": 1.0, f"z{EVIL}": 1.0}}]
    good = {"format": "cutset-cost-graph/1", "nodes": nodes, "tensors": []}
    graph.write_text(json.dumps(good))
    check(cutset("plan", "--cost-graph", graph, "--stages", 1))
    graph.write_text(json.dumps(good | {EVIL: 1}))
    check(cutset("plan", "--cost-graph", graph, "--stages", 1), code=3, seen="[bold]x[/bold]")
    key = json.dumps(EVIL.replace("\x7f", ""))
    cluster.write_text('[[device]]\nname = "a"\n' + key + " = 1\n")
    check(
        cutset("plan", "--cost-graph", graph, "--cluster", cluster), code=3, seen="[bold]x[/bold]"
    )


def test_what_the_parser_says(cutset: Cutset) -> None:
    for arguments in (
        (EVIL,),
        ("plan", f"--{EVIL}"),
        ("run", "b", "x", "--top", EVIL),
        ("run", "b", "x", "--engine", EVIL),
        ("plan", "m", "--objective", EVIL),
    ):
        outcome = cutset(*arguments)
        assert outcome.code in (2, 4, 6)
        assert steering(outcome.out + outcome.err) == set()


def test_measurements_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    console = stdout()
    stage = {
        "backend": EVIL,
        "busy": 0.5,
        "waiting": 0.3,
        "sending": 0.1,
        "sent_bytes_per_row": 8.0,
    }
    names = ("predicted_period_s", "slowest_stage_alone_s", "whole_model_period_s")
    latency = {"latency_s": dict.fromkeys(("p50", "p95", "p99"), 1.0)}
    seconds = dict.fromkeys(("period_s", "rows_per_s", *names), 1.0)
    print_bench(console, {**seconds, **latency, "stages": [stage]})
    print_checks(console, [(EVIL, True, EVIL)])
    printed = capsys.readouterr().out
    assert steering(printed) == set()
    assert "[bold]x[/bold]" in "".join(printed.split())


def test_logs_and_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord(f"cutset{EVIL}", logging.INFO, "f", 1, "%s", (EVIL,), None)
    try:
        raise CutsetError(EVIL)
    except CutsetError as error:
        record.exc_info = (CutsetError, error, error.__traceback__)
        show_traceback(CutsetError, error, error.__traceback__)
    for text in (LogFormatter(NOTE).format(record), capsys.readouterr().err):
        assert steering(text) == set()
        assert "[bold]x[/bold]:smile:" in text
    document = JsonFormatter().format(record)
    assert steering(document) == set()
    assert json.loads(document)["message"] == EVIL
