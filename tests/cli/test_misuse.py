"""Bad input: its exit code, one clear line, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from .conftest import COMMAND, LIMIT_S, Cutset
from .test_own_images import IMAGES, MODEL


def _one_line(err: str) -> str:
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("cutset: ")
    return lines[0]


def test_an_unknown_model_gets_near_names(cutset: Cutset, tmp_path: Path) -> None:
    outcome = cutset("split", "resnet51", "--stages", 2, "-o", tmp_path / "b")
    assert outcome.code == 1
    assert "resnet50" in _one_line(outcome.err)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model(cutset: Cutset, small_model: str, tmp_path: Path) -> None:
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    outcome = cutset(
        "split", small_model, "--weights", tmp_path / "other.pth", "--stages", 2,
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert outcome.code == 1
    assert "other.weight" in _one_line(outcome.err)
    assert not (tmp_path / "b").exists()


def test_no_weights_and_no_network(
    cutset: Cutset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    # A proxy that nobody listens at: as good as no network.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    outcome = cutset("split", "alexnet", "--stages", 2, "-o", tmp_path / "b")
    assert outcome.code == 1
    assert "random:SEED" in _one_line(outcome.err)


@pytest.mark.parametrize("arguments", [("inspect", "missing.py:make"), ("inspect", "no.pt2")])
def test_a_missing_model_file(cutset: Cutset, arguments: tuple[str, ...]) -> None:
    outcome = cutset(*arguments)
    assert outcome.code == 1
    assert arguments[1].partition(":")[0] in _one_line(outcome.err)


def test_a_missing_bundle(cutset: Cutset, tmp_path: Path) -> None:
    for command in (["verify"], ["run"], ["bench"]):
        rest = ["x.npy"] if command == ["run"] else []
        outcome = cutset(*command, tmp_path / "none.cutset", *rest)
        assert outcome.code == 4, command
        assert "none.cutset" in _one_line(outcome.err)
        assert outcome.out == "", command


def test_an_image_that_is_no_image(cutset: Cutset, tmp_path: Path) -> None:
    from PIL import Image

    bundle = tmp_path / "m.cutset"
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "images.toml").write_text(IMAGES)
    split = cutset(
        *("split", f"{tmp_path / 'net.py'}:make", "--preprocess", tmp_path / "images.toml"),
        *("--stages", 2, "--cost", "flops", "-o", bundle),
    )
    assert split.code == 0, split.err
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"not an image")
    Image.new("L", (300, 300), 90).save(folder / "c.png")
    outcome = cutset("run", bundle, folder, "--backend", "onnxruntime", "--json")
    assert outcome.code == 1
    assert "b.jpg" in _one_line(outcome.err)
    document = outcome.document
    assert [Path(row["input"]).name for row in document["rows"]] == ["a.png", "c.png"]
    assert [Path(row["input"]).name for row in document["failed"]] == ["b.jpg"]


def _edited(bundle: Path, tmp_path: Path, **changes: object) -> Path:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy.cutset"))
    manifest = json.loads((copy / "manifest.json").read_text()) | changes
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_a_flipped_byte(cutset: Cutset, small_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_bundle, tmp_path / "copy.cutset"))
    program = copy / "stage-1" / "program.pt2"
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 1
    program.write_bytes(bytes(content))
    outcome = cutset("verify", copy, "--json")
    assert outcome.code == 4
    assert "stage-1/program.pt2" in _one_line(outcome.err)
    assert [c["ok"] for c in outcome.document["checks"] if c["name"] == "integrity"] == [False]
    assert cutset("run", copy, "x.npy").code == 4


def test_a_missing_shard(cutset: Cutset, small_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_bundle, tmp_path / "copy.cutset"))
    (copy / "stage-0" / "program.pt2").unlink()
    outcome = cutset("verify", copy)
    assert outcome.code == 4
    assert "stage-0/program.pt2" in _one_line(outcome.err)


def test_an_unknown_manifest_key(cutset: Cutset, small_bundle: Path, tmp_path: Path) -> None:
    outcome = cutset("verify", _edited(small_bundle, tmp_path, surprise=1))
    assert outcome.code == 4
    assert "surprise" in _one_line(outcome.err)


def test_a_newer_format(cutset: Cutset, small_bundle: Path, tmp_path: Path) -> None:
    outcome = cutset("verify", _edited(small_bundle, tmp_path, format="cutset-bundle/3"))
    assert outcome.code == 4
    assert "cutset-bundle/3" in _one_line(outcome.err)


def test_more_stages_than_pieces(cutset: Cutset, small_model: str, tmp_path: Path) -> None:
    outcome = cutset("split", small_model, "--stages", 6, "--cost", "flops", "-o", tmp_path / "b")
    assert outcome.code == 3
    assert "5" in _one_line(outcome.err)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_cut_quotes_its_reason(cutset: Cutset, small_model: str, tmp_path: Path) -> None:
    outcome = cutset(
        "split", small_model, "--cut", "2.first", "--cost", "flops", "-o", tmp_path / "b"
    )
    assert outcome.code == 3
    assert "inside 2 (Block): 2 tensors live" in _one_line(outcome.err)


def test_an_unknown_cut_gets_near_names(cutset: Cutset, tmp_path: Path) -> None:
    outcome = cutset("plan", "alexnet", "--cut", "features.3x", "--cost", "flops")
    assert outcome.code == 3
    assert "features.3" in _one_line(outcome.err)


def test_nothing_is_overwritten_unasked(
    cutset: Cutset, small_model: str, small_bundle: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.txt").write_text("...")
    for target, options in ((small_bundle, ()), (precious, ()), (precious, ("--force",))):
        outcome = cutset("split", small_model, "--stages", 2, "-o", target, *options)
        assert outcome.code == 4
        assert target.name in _one_line(outcome.err)
    assert (precious / "chapter1.txt").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "alexnet"),
        ("plan", "alexnet", "--stages", "0"),
        ("plan", "alexnet", "--cost-graph", "g.json"),
        ("plan",),
        ("plan", "alexnet", "--stages", "2", "--max-latency", "-1"),
        ("plan", "alexnet", "--stages", "2", "--cost", "guess"),
        ("run", "b.cutset", "x.npy", "-o", "out.csv"),
        ("split", "alexnet", "--stages", "2"),
        ("nothing",),
    ],
)
def test_wrong_usage_is_2(cutset: Cutset, arguments: tuple[str, ...]) -> None:
    assert cutset(*arguments).code == 2


def test_a_cluster_file_that_is_missing(cutset: Cutset, tmp_path: Path) -> None:
    outcome = cutset("plan", "alexnet", "--cluster", tmp_path / "c.toml", "--cost", "flops")
    assert outcome.code == 3
    assert "c.toml" in _one_line(outcome.err)


def test_debug_shows_the_traceback(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [COMMAND, "--debug", "inspect", "missing.py:make"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_nothing(cutset: Cutset, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True, timeout=30
    )
    try:
        outcome = cutset(
            "split", "squeezenet1_1", "--weights", "random:0", "--stages", 2, "--cost", "flops",
            "-o", disk / "b",
        )  # fmt: skip
        left = list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=30)
    assert outcome.code == 4
    assert "cannot be written" in _one_line(outcome.err)
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_and_no_file(
    small_bundle: Path, tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    rows = tmp_path / "rows.npy"
    import numpy as np

    np.save(rows, np.zeros((500_000, 8), dtype=np.float32))
    process = subprocess.Popen(
        [COMMAND, "run", str(small_bundle), str(rows), "-o", str(tmp_path / "out.jsonl")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        workers = _children_when_up(process.pid, 2)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert _one_line(err) == "cutset: interrupted"
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert len(gone) >= 2
    assert alive == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.npy"]


def _children_when_up(pid: int, number: int) -> list[psutil.Process]:
    """Waits until the process has that many children."""
    from threading import Event

    parent, pause = psutil.Process(pid), Event()
    for _ in range(LIMIT_S * 20):
        children = parent.children(recursive=True)
        if len(children) >= number:
            return children
        pause.wait(0.05)
    raise AssertionError("the workers never came up")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--host", "0.0.0.0"), "--token-file"),
        (("--tls-cert", "c.pem"), "--tls-key"),
        (("--nan", "maybe"), "maybe"),
        (("--token-file", "none"), "none"),
    ],
)
def test_a_door_that_would_stand_open_is_not_opened(
    cutset: Cutset, small_bundle: Path, options: tuple[str, ...], word: str
) -> None:
    outcome = cutset("serve", small_bundle, *options)
    assert outcome.code == 2
    assert word in outcome.err


@pytest.mark.parametrize("command", ["run", "bench", "serve"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--address", "auto"), "--address is for --engine ray"),
        (("--engine", "local", "--cluster", "x.toml"), "--cluster is for --engine ssh or ray"),
        (("--engine", "ray", "--replan-after", "0"), "--replan-after must be above 0, got 0"),
    ],
)
def test_options_of_the_ray_engine(
    cutset: Cutset, command: str, option: tuple[str, ...], message: str
) -> None:
    inputs = ("rows.npy",) if command == "run" else ()
    outcome = cutset(command, "some.cutset", *inputs, *option)
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("plan", "m", "--stages", 2, "--max-latency", "50 msec"), "did you mean 'ms'"),
        (("plan", "m", "--stages", 2, "--max-latency", "nan"), "cannot read 'nan'"),
        (("plan", "m", "--stages", 2, "--max-latency", "inf"), "must be finite"),
        (("plan", "m", "--stages", 2, "--min-throughput", "20 MB/s"), "unknown unit 'MB/s'"),
        (("split", "m", "--stages", 2, "-o", "b", "--max-latency", "1,5"), "cannot read '1,5'"),
        (("bench", "b", "--seconds", "1 ms"), "--seconds must be at least 0.1"),
        (("serve", "b", "--max-body", "1 GiBB"), "did you mean 'GiB'"),
        (("serve", "b", "--deadline", "0 s"), "deadline_s is 0.0, expected more than 0"),
        (("serve", "b", "--engine", "ray", "--replan-after", "0 s"), "must be above 0"),
    ],
)
def test_an_option_with_a_unit_that_is_not_one_is_wrong_usage(
    cutset: Cutset, arguments: tuple[object, ...], what: str
) -> None:
    outcome = cutset(*arguments)
    assert outcome.code == 2
    assert what in " ".join(outcome.err.replace("│", " ").split())


def test_limits_take_units_as_cluster_files_do(cutset: Cutset, small_model: str) -> None:
    asked = ("plan", small_model, "--cost", "flops", "--stages", 2, "--json")
    by_number = cutset(*asked, "--max-latency", "0.05", "--min-throughput", "2")
    by_unit = cutset(*asked, "--max-latency", "50 ms", "--min-throughput", "120 rows/min")
    assert by_unit.document == by_number.document
    assert by_unit.document["max_latency_s"] == 0.05
    assert by_unit.document["min_rows_per_s"] == 2.0


def test_a_value_that_means_nothing_is_not_taken_for_the_default(
    cutset: Cutset, small_model: str, small_bundle: Path, tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    profile = tmp_path / "p.json"
    for arguments, what in (
        (("serve", small_bundle, "--name", ""), "model name '' is empty"),
        (("run", small_bundle, "x.npy", "--engine", "ray", "--address", ""), "--address is empty"),
        (("profile", small_model, "--device", ""), "--device is empty"),
        (("report", small_bundle, "-o", page, "--max-tensors", 1), "a bundle knows"),
        (
            ("plan", small_model, "--stages", 2, "--cost", "flops", "--profile", profile),
            "give one of them",
        ),
    ):
        outcome = cutset(*arguments)
        assert outcome.code == 2, arguments
        assert what in " ".join(outcome.err.replace("│", " ").split())
