"""What the commands print and how they end, on a small model of the user's own."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.table import Table
from safetensors.torch import load_file, save_file

from cutset.cli.screen import stdout
from cutset.costs.profile import load_profile
from cutset.planning import watch
from cutset.planning.deadline import Deadline, OutOfTime

from .conftest import Cutset

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster.toml"


def test_help_names_every_command(cutset: Cutset) -> None:
    outcome = cutset("--help")
    assert outcome.code == 0
    for command in ("inspect", "profile", "plan", "split", "verify", "run", "bench"):
        assert command in outcome.out


@pytest.mark.parametrize(
    "module", ["cutset", "cutset.cli", "cutset.planning", "cutset.report.text"]
)
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_every_public_name_is_there() -> None:
    import cutset

    assert set(dir(cutset)) == set(cutset.__all__)
    assert all(getattr(cutset, name) is not None for name in cutset.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cutset.nothing


def test_inspect_shows_cut_points_at_80_columns(cutset: Cutset, small_model: str) -> None:
    outcome = cutset("inspect", small_model, "--refused")
    assert outcome.code == 0
    assert "inside 2 (Block): 2 tensors live" in " ".join(outcome.out.split())
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "\x1b" not in outcome.out


def test_inspect_json(cutset: Cutset, small_model: str) -> None:
    document = cutset("inspect", small_model, "--json").document
    assert list(document) == [
        *("model", "part", "flops", "parameters", "units", "cut_points", "refused"),
    ]
    assert [unit["path"] for unit in document["units"]] == ["2", "3", "4"]
    assert document["units"][0]["class"].endswith(".Block")
    assert [point["after"] for point in document["cut_points"]] == ["1", "2", "3", "4"]
    assert document["cut_points"][0] == {
        "after": "1",
        "kind": "activation",
        "bytes_per_sample": 64,
        "tensors": [
            {
                "name": document["cut_points"][0]["tensors"][0]["name"],
                "shape": ["batch", 16],
                "dtype": "float32",
            }
        ],
        "cumulative_flops": 8 * 16,
        "cumulative_parameters": 8 * 16 + 16,
    }
    assert set(document["refused"][0]) == {"after", "reason"}


def test_plan_json(cutset: Cutset, small_model: str) -> None:
    document = cutset("plan", small_model, "--stages", 2, "--cost", "flops", "--json").document
    wanted = {
        "index",
        "first",
        "last",
        "units",
        "device",
        "compute_s",
        "weight_bytes",
        "output_bytes_per_sample",
    }
    assert all(wanted <= set(stage) for stage in document["stages"])
    assert {"period_s", "latency_s", "bound_s", "gap"} <= set(document)
    # 128, three blocks of 512, 64 multiply-adds: 640 + 1088 beats 1152 + 576.
    assert sorted(round(stage["compute_s"] * 1e9) for stage in document["stages"]) == [640, 1088]
    assert document["gap"] == 0


def test_a_profile_is_planned_with(cutset: Cutset, small_model: str, tmp_path: Path) -> None:
    profile = tmp_path / "here.json"
    assert cutset("profile", small_model, "--runs", 5, "-o", profile).code == 0
    measured = json.loads(profile.read_text())
    assert [piece["last"] for piece in measured["pieces"]] == ["1", "2", "3", "4", "output"]
    assert set(measured["whole"]) == {"torch", "onnxruntime", "openvino"}
    planned = ("plan", small_model, "--stages", 2, "--profile", profile)
    chosen = cutset(*planned, "--json").document
    paces = {each["micro_batch"]: each["rows_per_s"] for each in chosen["sizes"]}
    assert list(paces) == list(load_profile(profile).micro_batches)
    assert paces[chosen["micro_batch"]] == max(paces.values())
    assert f"({max(paces.values()):.4g} rows/s)" in cutset(*planned).out
    outcome = cutset(*planned, "--batch-size", 1, "--json")
    first, second = outcome.document["stages"]
    cut = 1 + [piece["last"] for piece in measured["pieces"]].index(first["last"])
    for stage, pieces in (
        (first, measured["pieces"][:cut]),
        (second, measured["pieces"][cut:]),
    ):
        sums = {
            backend: sum(piece["timings"][backend]["median_s"] for piece in pieces)
            for backend in measured["whole"]
        }
        assert stage["backend"] == min(sums, key=sums.__getitem__)
        assert stage["compute_s"] == pytest.approx(min(sums.values()))


def test_a_plan_for_one_backend(cutset: Cutset, small_model: str, tmp_path: Path) -> None:
    outcome = cutset(
        *("plan", small_model, "--stages", 2, "--backend", "torch", "--batch-size", 1, "--json")
    )
    assert outcome.code == 0, outcome.err
    assert [stage["backend"] for stage in outcome.document["stages"]] == ["torch", "torch"]
    assert outcome.document["expected"]["where"] == "this machine"
    short = ("--runs", 5, "--batch-size", 1)
    assert cutset("profile", small_model, *short, "-o", tmp_path / "here.json").code == 0
    options = ("--stages", 2, "--profile", tmp_path / "here.json", "--backend", "onnxruntime")
    stages = cutset("plan", small_model, *options, "--json").document["stages"]
    assert {stage["backend"] for stage in stages} == {"onnxruntime"}
    unknown = cutset("plan", small_model, "--stages", 2, "--backend", "tensorrt")
    assert "choose one of auto, torch" in unknown.err
    idle = cutset("plan", small_model, "--stages", 2, "--cost", "flops", "--backend", "torch")
    assert idle.code == 2
    assert "--backend is for measured costs" in idle.err


def test_the_front_holds_the_plan_of_least_period(cutset: Cutset, small_model: str) -> None:
    options = ("--cluster", CLUSTER, "--cost", "flops", "--json")
    plans = cutset("plan", small_model, "--objective", "pareto", *options).document["plans"]
    best = cutset("plan", small_model, *options).document
    assert plans[0]["period_s"] == pytest.approx(best["period_s"])
    assert [p["latency_s"] for p in plans] == sorted((p["latency_s"] for p in plans), reverse=True)


def test_a_plan_for_a_cluster_can_be_read(cutset: Cutset) -> None:
    outcome = cutset("plan", "resnet50", "--cluster", CLUSTER, "--cost", "flops")
    assert outcome.code == 0, outcome.err
    text = " ".join(outcome.out.split())
    assert "server" in text
    assert "bound: " in text
    assert "do not split on server" in text
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_what_messages_take_from_computing_is_shown_and_counted(
    cutset: Cutset, tmp_path: Path
) -> None:
    costs = 'send_cost = "100 ns/B"\nreceive_cost = "200 ns/B"\n'
    text = CLUSTER.read_text().replace('latency = "1 ms"\n', f'latency = "1 ms"\n{costs}')
    text = text.replace("[[device]]\n", '[[device]]\noverhead = "50 ms"\n')
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    command = ("plan", "squeezenet1_1", "--cluster", file, "--cost", "flops")
    plain = cutset(
        "plan", "squeezenet1_1", "--cluster", CLUSTER, "--cost", "flops", "--json"
    ).document
    outcome = cutset(*command)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert "overhead" in lines[0].split()
    assert max(map(len, lines)) <= 80
    document = cutset(*command, "--json").document
    bytes_out = [stage["output_bytes_per_sample"] for stage in document["stages"][:-1]]
    expected = [
        0.050 + 100e-9 * sent + 200e-9 * received
        for sent, received in zip([*bytes_out, 0], [0, *bytes_out], strict=True)
    ]
    assert [stage["overhead_s"] for stage in document["stages"]] == pytest.approx(expected)
    assert document["period_s"] >= plain["period_s"] + 0.050
    assert document["expected"] is None


def test_planning_takes_a_time_limit(cutset: Cutset, small_model: str) -> None:
    command = ("plan", small_model, "--stages", 2, "--cost", "flops", "--json")
    found = [
        cutset(*command, "--time-limit", limit).document["period_s"] for limit in ("20 s", "30", 9)
    ]
    assert len(set(found)) == 1
    for limit, words in (("20 x", "unknown unit 'x'"), ("0", "must be above 0")):
        outcome = cutset(*command, "--time-limit", limit)
        assert outcome.code == 2
        assert words in " ".join(outcome.err.replace("│", " ").split())


def test_nodes_time_stages_for_a_plan_of_a_cluster_only(
    cutset: Cutset, small_model: str, tmp_path: Path
) -> None:
    outcome = cutset(
        *("split", small_model, "--stages", 2, "--address", "auto", "-o", tmp_path / "b.cutset")
    )
    assert outcome.code == 2
    assert "--address is for a plan with --cluster" in outcome.err
    assert not (tmp_path / "b.cutset").exists()


def test_a_cost_graph_is_planned(cutset: Cutset) -> None:
    graph = CLUSTER.with_name("cost-graph.json")
    document = cutset("plan", "--cost-graph", graph, "--stages", 2, "--json").document
    assert len(document["stages"]) == 2
    # 80 ms of work in all, the largest node takes 30: halves of 50 and 30 and some transfers.
    assert sum(stage["compute_s"] for stage in document["stages"]) == pytest.approx(0.080)


def test_limits_and_objectives_of_a_cost_graph_are_kept(cutset: Cutset) -> None:
    asked = ("plan", "--cost-graph", CLUSTER.with_name("cost-graph.json"), "--stages", 2)
    front = cutset(*asked, "--objective", "pareto", "--json").document
    assert {len(each["stages"]) for each in front["plans"]} == {2}
    outcome = cutset(*asked, "--objective", "pareto", "--max-latency", "1 us")
    assert outcome.code == 3
    assert "no plan takes at most 1e-06 s for one micro-batch" in outcome.err
    assert cutset(*asked, "--max-tensors", 1, "--json").document["period_s"] >= 0.04
    assert cutset(*asked, "--objective", "latency", "--json").document["objective"] == "latency"


def test_planning_says_how_it_stands_on_stderr(
    cutset: Cutset, small_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "EVERY_S", 0.0)  # else every few seconds
    graph = CLUSTER.with_name("cost-graph.json")
    asked = ("--stages", 2, "--json")
    outcome = cutset("plan", "--cost-graph", graph, *asked)
    assert outcome.document["period_s"] > 0
    assert re.search(r"^planning for 0 s: [0-9.]+ s for a micro-batch, at most ", outcome.err, re.M)
    outcome = cutset("plan", "--cost-graph", graph, *asked, "--objective", "latency")
    assert "planning for 0 s: no plan yet" in outcome.err  # the first one is the last
    outcome = cutset("plan", "--cost-graph", graph, *asked, "--objective", "pareto")
    assert set(outcome.err.splitlines()) == {"planning for 0 s"}
    outcome = cutset("plan", small_model, "--cost", "flops", *asked)
    assert outcome.document["period_s"] > 0
    assert re.search(r"^planning for 0 s: .* for a micro-batch", outcome.err, re.M)


def test_what_a_latency_s_search_had_when_its_time_was_over_is_printed(
    cutset: Cutset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = tmp_path / "two.toml"
    devices = "".join(f'[[device]]\nname = "{name}"\n' for name in "ab")
    cluster.write_text(f'{devices}[link]\nlatency = "4 ms"\n')
    looks = itertools.count()

    def check(_deadline: Deadline) -> None:
        if next(looks) > 6:
            raise OutOfTime("over")

    monkeypatch.setattr(Deadline, "check", check)
    graph = CLUSTER.with_name("cost-graph.json")
    asked = ("--cluster", cluster, "--stages", 2, "--objective", "latency")
    outcome = cutset("plan", "--cost-graph", graph, *asked)
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert "the time limit of 60 s was reached: more time may give a better plan or bound" in text
    # 80 ms of work, and a link of 4 ms between two stages, which the bound does not count.
    assert "bound: 80 ms (volume); at most 5.00% above the best possible" in text


@pytest.mark.parametrize(
    "option",
    [
        ("--cut", "conv1"), ("--backend", "torch"), ("--backend", "auto"), ("--batch-size", 1),
        ("--threads", 1), ("--profile", "p.json"), ("--weights", "random:0"), ("--keep", "Block"),
        ("--divide", "Block"), ("--cost", "measured"), ("--granularity", "unit"),
    ],
)  # fmt: skip
def test_what_a_cost_graph_has_no_use_for_is_refused(
    cutset: Cutset, option: tuple[object, ...]
) -> None:
    graph = CLUSTER.with_name("cost-graph.json")
    outcome = cutset("plan", "--cost-graph", graph, "--stages", 2, *option)
    assert outcome.code == 2
    assert f"{option[0]} is not for a --cost-graph: it" in outcome.err.replace("│", " ")


def test_what_cuts_inside_units_would_gain(cutset: Cutset, small_model: str) -> None:
    document = cutset(
        "plan", small_model, "--stages", 2, "--cost", "flops", "--granularity", "op", "--json"
    ).document
    # 640 + 1088 with whole blocks; 896 + 832 if the second block may be cut in its middle.
    assert document["gain_inside_units"] == pytest.approx(1 - 896 / 1088)


def test_split_at_given_places(cutset: Cutset, small_model: str, tmp_path: Path) -> None:
    outcome = cutset(
        "split", small_model, "--cut", "1", "--cut", "3", "--cost", "flops",
        "-o", tmp_path / "b", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert [stage["last"] for stage in outcome.document["stages"]] == ["1", "3", "output"]
    assert outcome.document["bundle"] == str(tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "manifest.json",
        "reference.safetensors",
        "stage-0",
        "stage-1",
        "stage-2",
    ]


def test_verify_json(cutset: Cutset, small_bundle: Path, small_model: str) -> None:
    alone = cutset("verify", small_bundle, "--json").document
    assert [check["name"] for check in alone["checks"]] == [
        "contracts",
        "completeness",
        "units",
        "numerics",
        "integrity",
    ]
    assert alone["ok"] is True
    assert alone["bit_exact"] is True
    assert alone["max_abs_error"] == 0.0
    with_model = cutset("verify", small_bundle, "--model", small_model, "--json").document
    assert with_model["ok"] is True


def test_run_json_and_outputs(cutset: Cutset, small_bundle: Path, tmp_path: Path) -> None:
    rows = torch.randn(7, 8)
    np.save(tmp_path / "rows.npy", rows.numpy())
    outcome = cutset(
        "run", small_bundle, tmp_path / "rows.npy", "--backend", "torch", "--batch-size", 3,
        "--json", "-o", tmp_path / "out.safetensors",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document["num_rows"] == 7
    assert document["rows"][6]["input"].endswith("rows.npy[6]")
    assert [top["label"] for top in document["rows"][0]["top"]] != []
    assert sum(top["score"] for top in document["rows"][0]["top"]) == pytest.approx(1.0)
    (outputs,) = load_file(tmp_path / "out.safetensors").values()
    assert outputs.shape == (7, 4)


def test_run_takes_safetensors_and_writes_lines(
    cutset: Cutset, small_bundle: Path, tmp_path: Path
) -> None:
    save_file({"anything": torch.randn(4, 8)}, tmp_path / "rows.safetensors")
    outcome = cutset(
        *("run", small_bundle, tmp_path / "rows.safetensors", "--backend", "onnxruntime"),
        *("-o", tmp_path / "r.jsonl"),
    )
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert set(json.loads(lines[0])) == {"input", "top"}


def test_bench_json(cutset: Cutset, small_bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    outcome = cutset("bench", small_bundle, "--seconds", 1, "--trace", trace, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert {
        "period_s",
        "rows_per_s",
        "latency_s",
        "predicted_period_s",
        "slowest_stage_alone_s",
        "whole_model_period_s",
        "stages",
    } <= set(document)
    assert set(document["latency_s"]) == {"p50", "p95", "p99"}
    assert all({"busy", "waiting", "sending", "backend"} <= set(s) for s in document["stages"])
    assert json.loads(trace.read_text())["traceEvents"]


def test_in_a_pipe_nothing_is_folded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = ".".join(["encoder_block"] * 30)
    table = Table("cut after", "because")
    table.add_row(name, "it lies within a unit " * 20)
    monkeypatch.delenv("COLUMNS", raising=False)
    stdout().print(table)
    assert f"{name} " in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    stdout().print(table)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 80


SLOW_CLUSTER = """
[link]
bandwidth = "0.1 Mbit/s"
latency = "0 ms"

[[device]]
name = "a"

[[device]]
name = "b"
"""


def test_split_with_a_codec_says_what_it_does(
    cutset: Cutset, small_model: str, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(SLOW_CLUSTER)
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32))
    asked = (small_model, "--cluster", tmp_path / "c.toml", "--stages", 2, "--cost", "flops")
    bundle = tmp_path / "b.cutset"
    outcome = cutset(
        *("split", *asked, "--allow", "fp16", "--calibration", tmp_path / "rows.npy"),
        *("-o", bundle, "--batch-size", 64),
    )
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "stage 0 writes 4 KiB as 2.06 KiB fp16 in 0 µs, read in 0 µs" in said
    assert "codecs: the top label is the exact model's on 5 of 5 rows given for it" in said
    assert "at least 54.9% with 95% confidence" in said
    outcome = cutset("verify", bundle)
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "which is the whole model with fp16 after stage 0" in said
    assert "codecs, when it was split: the top label" in said
    rows = np.random.default_rng(1).normal(size=(9, 8)).astype(np.float32)
    np.save(tmp_path / "others.npy", rows)
    asked_again = ("verify", bundle, "--calibration", tmp_path / "others.npy")
    document = cutset(*asked_again, "--model", small_model, "--json").document
    assert document["agreement"]["num_rows"] == 9
    assert document["agreement"]["calibrated"]
    assert cutset(*asked_again).code == 2
    plan = cutset("plan", *asked, "--allow", "int8", "--batch-size", 64, "--json").document
    assert [stage["codec"] for stage in plan["stages"]] == ["int8", "none"]
    assert [message["num_bytes"] for message in plan["messages"]] == [1408]
    assert plan["stages"][0]["sent_bytes_per_sample"] == 22
