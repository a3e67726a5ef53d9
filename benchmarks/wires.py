"""What codecs, ports and the choice of rows gain: six models on testbeds, beside the code before.

Needs root on Linux, iproute2 and OpenSSH. Beds of four half cores, and of 1, 1/2, 1/2; every node,
and the caller's own machine where it is apart, has a port of 50 or 10 Mbit/s: to half a core what
100 and 20 are to a whole one. Each model is planned by the code before (``--before WORKTREE``, of
the commit before codecs and ports: ``git worktree add /tmp/before 40656cd~1``) and by this one,
with lossless codecs, with ``--allow fp16`` and with ``--allow int8``; all four run by ssh with this
commit's runtime, side by side, round by round. Results lie in ``build/wires`` and are not measured
again; ``docs/wires.md`` is written anew after each, with what was not run by name::

    make bench-wires BEFORE=/tmp/before            # everything: hours
    make bench-wires BEFORE=/tmp/before QUICK=1    # four nodes at the faster wires
    python benchmarks/wires.py --before /tmp/before --quick --models resnet18
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import wires_page
from cluster_bed import (
    finish,
    measure_link,
    measure_overhead,
    progress,
    start_on,
    testbed,
)
from cutset.bundles.open import open_bundle
from cutset.cluster.devices import CallerMachine, Cluster, Device, Link, LinkOverride
from cutset.cluster.file_writer import cluster_to_toml
from cutset.cluster.wires import Port
from cutset.measure.link_speed import links_of
from cutset.measure.overhead import Overhead
from testbed.state import State, cluster_file, node_folder

FOLDER = Path("build/wires")
SIX = ("mobilenet_v2", "resnet18", "resnet50", "vgg16", "alexnet", "inception_v3")
BEDS = {"four": (0.5, 0.5, 0.5, 0.5), "three": (1.0, 0.5, 0.5)}
MBITS = (50, 10)
CALLERS = ("device", "apart")
VARIANTS = {"before": (), "default": (), "fp16": ("fp16",), "int8": ("int8",)}

_SOURCE = Path(__file__).parents[1] / "src"
_CALLER = "laptop"
_LIMIT_S = 3600.0


class Case(NamedTuple):
    """A bed, its wires, and where the caller is."""

    bed: str
    mbit: int
    caller: str

    @property
    def folder(self) -> Path:
        """Where its cluster files and bundles lie."""
        return FOLDER / f"{self.bed}-{self.mbit}-{self.caller}"


_UNEQUAL = Case("three", MBITS[0], "device")
_KIND_NODES = {"1.0": "n0", "0.5": "n1"}
"""Nodes of the unequal bed, by their share of a core."""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What messages take, by the kind of node: ``"0.5"`` and ``"1.0"`` of a core.

    Attributes:
        overheads: from computing.
        links: from the first kind to the second, ``"0.5 1.0"``: latency, and what bytes take.
    """

    overheads: dict[str, Overhead]
    links: dict[str, Link]


# --- clusters


def _plain(case: Case) -> Cluster:
    """The bed: shares and ports."""
    port = _port(case)
    devices = tuple(
        Device(name=f"n{index}", speed=share, port=port)
        for index, share in enumerate(BEDS[case.bed])
    )
    if case.caller == "device":
        return Cluster(devices=devices, caller="n0")
    machine = CallerMachine(name=_CALLER, port=port)
    return Cluster(devices=devices, caller=_CALLER, caller_machine=machine)


def _port(case: Case) -> Port:
    rate = case.mbit * 1e6 / 8
    return Port(out_bytes_per_s=rate, in_bytes_per_s=rate)


def _as_measured(case: Case, costs: Costs, model: str, *, before: bool) -> Cluster:
    """The bed with what messages cost, as a probe of this commit or of the one before says it.

    The one before knew links alone, each as fast as one transfer is, and no caller but on a device.
    """
    kinds = [str(share) for share in BEDS[case.bed]]
    rate = case.mbit * 1e6 / 8
    devices = tuple(
        msgspec.structs.replace(
            device,
            port=Port() if before else device.port,
            speed=1.0,
            profile=_profile_name(model, kind, before=before),
            overhead_s=costs.overheads[kind].stage_s,
        )
        for device, kind in zip(_plain(case).devices, kinds, strict=True)
    )

    def link(source: str, target: str) -> Link:
        found = costs.links[f"{source} {target}"]
        return msgspec.structs.replace(
            found, bandwidth_bytes_per_s=rate if before else float("inf")
        )

    overrides = tuple(
        LinkOverride(source=devices[a].name, target=devices[b].name, link=link(kinds[a], kinds[b]))
        for a, b in itertools.permutations(range(len(devices)), 2)
    )
    plain = _plain(case)
    on_device = case.caller == "device"
    return Cluster(
        devices=devices,
        link=link("0.5", "0.5"),
        overrides=overrides,
        caller="n0" if on_device else None if before else _CALLER,
        caller_overhead_s=costs.overheads[kinds[0]].caller_s if on_device else 0.0,
        caller_machine=None if before else plain.caller_machine,
    )


# --- what is measured of nodes


def _costs() -> Costs:
    """What messages take on nodes of both kinds, and between them; measured once."""
    file = FOLDER / "costs.json"
    if file.exists():
        return msgspec.json.decode(file.read_bytes(), type=Costs)
    with testbed(_plain(_UNEQUAL), ray=False, ssh=False, name="wires") as state:
        overheads = {kind: measure_overhead(state, node) for kind, node in _KIND_NODES.items()}
        links = {}
        for source, target in (("n0", "n1"), ("n1", "n2")):
            progress(f"what bytes take between {source} and {target}")
            kinds = ["1.0" if node == "n0" else "0.5" for node in (source, target)]
            there, back = links_of(*measure_link(state, source, target))
            links |= {" ".join(kinds): there, " ".join(reversed(kinds)): back}
    costs = Costs(overheads=overheads, links=links)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(costs)))
    return costs


def _profile_name(model: str, kind: str, *, before: bool) -> str:
    return f"{'before' if before else 'now'}.{model}.{kind}.json"


def _profile(model: str, cases: Sequence[Case], before: Path | None) -> None:
    """Measures the model's pieces on a node of each kind, with both commits' code."""
    sources = {False: _SOURCE} | ({} if before is None else {True: before / "src"})
    kinds = dict.fromkeys(str(share) for case in cases for share in BEDS[case.bed])
    todo = [
        (kind, is_before)
        for kind, is_before in itertools.product(kinds, sources)
        if not (FOLDER / _profile_name(model, kind, before=is_before)).exists()
    ]
    if not todo:
        return
    with testbed(_plain(_UNEQUAL), ray=False, ssh=False, name="wires") as state:
        for kind, is_before in todo:
            file = FOLDER / _profile_name(model, kind, before=is_before)
            progress(f"profiling {model} on {kind} of a core ({file.name})")
            node = _KIND_NODES[kind]
            words = ["-m", "cutset.cli", "profile", model, "--weights", "random:0"]
            words += ["--device", node, "-o", str(file.resolve())]
            finish(start_on(state, node, words, PYTHONPATH=str(sources[is_before].resolve())))


# --- bundles


def _made(case: Case, model: str) -> Path:
    return case.folder / f"{model}.made.json"


def _prepare(case: Case, model: str, before: Path | None) -> None:
    """Plans the model for a case and writes its bundles, with both commits' code."""
    costs, made = _costs(), {}
    case.folder.mkdir(exist_ok=True)
    for is_before in (False,) if before is None else (True, False):
        source = _SOURCE if before is None or not is_before else before / "src"
        cluster = case.folder / f"{model}.{'before' if is_before else 'now'}.toml"
        cluster.write_text(cluster_to_toml(_as_measured(case, costs, model, before=is_before)))
        bundles = {
            name: case.folder / f"{model}.{name}.cutset"
            for name in VARIANTS
            if (name == "before") == is_before
        }
        for bundle in bundles.values():
            shutil.rmtree(bundle, ignore_errors=True)
        jobs = [
            {"cluster": str(cluster), "allow": VARIANTS[name], "bundle": str(bundle)}
            for name, bundle in bundles.items()
        ]
        progress(f"{_told(case)}: planning and splitting {model} with {source}")
        found = _make({"model": model, "profiles": str(FOLDER), "jobs": jobs}, source)
        made |= dict(zip(bundles, found, strict=True))
    _made(case, model).write_text(json.dumps(made, indent=1))


def _told(case: Case) -> str:
    return f"{case.bed} nodes, {case.mbit} Mbit/s, caller {case.caller}"


def _make(wanted: dict[str, Any], source: Path) -> list[dict[str, Any]]:
    file = FOLDER / "jobs.json"
    file.write_text(json.dumps(wanted))
    script = str(Path(__file__).with_name("wires_make.py"))
    done = subprocess.run(
        [sys.executable, script, str(file)],
        env=os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_LIMIT_S,
        check=True,
    )
    return [json.loads(found) for found in _results(done.stdout)]


def _results(text: str) -> Iterator[str]:
    return (
        line.removeprefix("result ") for line in text.splitlines() if line.startswith("result ")
    )


# --- measure


def _measure(case: Case, model: str, seconds: float, rounds: int) -> None:
    """Runs the bundles of a case and removes them."""
    made = json.loads(_made(case, model).read_text())
    bundles = list(dict.fromkeys(each["bundle"] for each in made.values()))
    with testbed(_plain(case), ray=False, ssh=True, name="wires") as state:
        progress(f"{_told(case)}: running {model}")
        for bundle in bundles:
            _put_shards(state, Path(bundle), made)
        script = str(Path(__file__).with_name("wires_caller.py"))
        words = [script, str(cluster_file(state.layout.name)), str(seconds), str(rounds)]
        found = finish(start_on(state, state.layout.head.name, [*words, *bundles]))
    measured = dict(zip(bundles, map(json.loads, _results(found)), strict=True))
    variants = {name: {**each, **measured[each["bundle"]]} for name, each in made.items()}
    document = {**case._asdict(), "model": model, "variants": variants}
    _result(case, model).write_text(json.dumps(document, indent=1))
    for bundle in bundles:
        shutil.rmtree(bundle)
    _made(case, model).unlink()


def _put_shards(state: State, bundle: Path, made: dict[str, Any]) -> None:
    """Puts each stage's files where its node keeps them: over these wires they would take hours."""
    stages = next(each["stages"] for each in made.values() if each["bundle"] == str(bundle))
    for entry in open_bundle(bundle).manifest.files:
        place, _, rest = entry.path.partition("/")
        if not rest or not place.startswith("stage-"):
            continue
        node = state.layout.node(stages[int(place.removeprefix("stage-"))]["device"])
        folder = node_folder(state.layout, node) / "cache" / "cutset" / "objects"
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / entry.sha256
        if not kept.exists():
            shutil.copyfile(bundle / entry.path, kept)


def _result(case: Case, model: str) -> Path:
    return FOLDER / f"{case.bed}-{case.mbit}-{case.caller}.{model}.json"


# --- all of it


def _run(model: str, cases: Sequence[Case], arguments: argparse.Namespace) -> None:
    """Makes and runs what is missing of a model's cases."""
    _profile(model, cases, arguments.before)
    left = [case for case in cases if not _result(case, model).exists()]
    for case in left:
        if not _made(case, model).exists():
            _prepare(case, model, arguments.before)
        _measure(case, model, arguments.seconds, arguments.rounds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="worktree of the commit before; none without")
    parser.add_argument("--models", help="names of models, separated by commas")
    parser.add_argument("--quick", action="store_true", help="only four nodes at the faster wires")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round; 3")
    parser.add_argument("--rounds", type=int, help="5, or 3 with --quick")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page")
    found = parser.parse_args()
    found.models = found.models.split(",") if found.models else SIX
    if unknown := sorted({*found.models} - {*SIX}):
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(SIX)}")
    found.rounds = found.rounds or (3 if found.quick else 5)
    return found


def main() -> None:
    """Runs what is missing, one model and bed after the other, and writes the page after each."""
    arguments = _arguments()
    beds = [(bed, mbit) for mbit in MBITS for bed in BEDS]
    every = [(Case(bed, mbit, c), model) for bed, mbit in beds for c in CALLERS for model in SIX]
    FOLDER.mkdir(parents=True, exist_ok=True)
    progress(f"{platform.machine()}, Python {platform.python_version()}")
    wanted = [(*case, model) for case, model in every]
    if arguments.report:
        wires_page.write(FOLDER, wanted)
        return
    for (bed, mbit), model in itertools.product(
        beds[:1] if arguments.quick else beds, arguments.models
    ):
        _run(model, [Case(bed, mbit, caller) for caller in CALLERS], arguments)
        wires_page.write(FOLDER, wanted)


if __name__ == "__main__":
    main()
