"""What Cutset needs on a board: size of an installation, memory of its processes, time to start.

``make bench-boards``; writes the tables of docs/boards.md. Steps that can be repeated alone; what
they found lies in ``build/boards``::

    python benchmarks/boards.py sizes     # pip's wheels for both processors; needs internet
    python benchmarks/boards.py memory    # six models in two stages each, with onnxruntime
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from packaging.requirements import Requirement

from cutset import Bundle, Cluster, Device, PlanRequest, SshHosts, open_bundle, open_session
from cutset.engines.ssh.client import targets_of
from cutset.engines.ssh.connection import SshHost
from cutset.engines.ssh.wheel import write_own_wheel
from cutset.measure.idle_memory import measure_worker_base
from cutset.workflow import plan_stages, prepare_model, split_model

sys.path.insert(0, str(Path(__file__).parent.parent))

from testbed.emulated import PLATFORMS

FOLDER = Path("build/boards")
SIX = ("mobilenet_v2", "resnet18", "resnet50", "vgg16", "alexnet", "inception_v3")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LIMITS_MB = {"aarch64": 160, "x86_64": 200}
"""For what lies in site-packages."""

_DOWNLOAD_LIMIT_MB = 60
_MOBILENET_LIMIT_MB = 120
_START_LIMIT_S = 1.0
_PAGE = Path(__file__).parents[1] / "docs" / "boards.md"
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_HERE = Cluster(devices=(Device(name="here"),), caller="here")
_NUM_STARTS = 7
_NUM_ROWS = 6
_LARGEST = 8
_WAIT_S = 60.0
_PIP_ENVIRONMENT = {
    **os.environ,
    "PIP_CONSTRAINT": os.devnull,
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


# --- sizes


def sizes() -> None:
    """Fetches the wheels for each processor and Python, and installs those of this Python."""
    own_python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = write_own_wheel(folder)
        for processor in LIMITS_MB:
            for python in PYTHONS:
                print(f"wheels for {processor}, Python {python}", file=sys.stderr)
                wheels = _fetched(wheel, folder / f"{processor}-{python}", processor, python)
                found[f"{processor} {python}"] = {
                    "packages": {each.name: _sizes_of(each) for each in [wheel, *wheels]},
                    "installed": _installed([wheel, *wheels], folder / "target", processor, python)
                    if python == own_python
                    else None,
                }
    _keep("sizes", found)


def _fetched(wheel: Path, folder: Path, processor: str, python: str) -> list[Path]:
    """The wheels of all that Cutset needs there; ends the program where one is missing."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    needs = [Requirement(line.split(": ", 1)[1]) for line in lines if "Requires-Dist" in line]
    # pip itself takes markers for those of the Python that runs it.
    there = {"python_version": python, "platform_machine": processor, "extra": ""}
    wanted = [f"{n.name}{n.specifier}" for n in needs if not n.marker or n.marker.evaluate(there)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:"]
    for platform_tag in PLATFORMS:
        command += ["--platform", f"{platform_tag}_{processor}"]
    command += ["--python-version", python, "--implementation", "cp", "-d", str(folder), *wanted]
    subprocess.run(command, check=True, env=_PIP_ENVIRONMENT)
    return sorted(folder.glob("*.whl"))


def _sizes_of(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    return {"packed": wheel.stat().st_size, "unpacked": unpacked}


def _installed(wheels: list[Path], target: Path, processor: str, python: str) -> dict[str, int]:
    """What pip puts into site-packages: all bytes, and those of byte code among them."""
    target = target / processor
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
    for platform_tag in PLATFORMS:
        command += ["--platform", f"{platform_tag}_{processor}"]
    command += ["--python-version", python, "--target", str(target), "--compile"]
    subprocess.run([*command, *map(str, wheels)], check=True, env=_PIP_ENVIRONMENT)
    files = [path for path in target.rglob("*") if path.is_file()]
    code = sum(path.stat().st_size for path in files if path.suffix == ".pyc")
    return {"all": sum(path.stat().st_size for path in files), "byte_code": code}


# --- memory and start


def memory() -> None:
    """Memory of workers of the six models, of what waits on a device, and the time to start."""
    models = {name: _of_workers(_bundle(name, 2)) for name in SIX}
    found = {
        "models": models,
        "starts": _starts(_bundle("mobilenet_v2", 2)),
        "idle": measure_worker_base("onnxruntime"),
        "by_ssh": _by_ssh(_bundle("mobilenet_v2", 1)),
    }
    _keep("memory", found)


def _bundle(model: str, num_stages: int) -> Bundle:
    """The model in so many stages, planned by multiply-adds; written once."""
    folder = FOLDER / f"{model}-{num_stages}.cutset"
    if not folder.exists():
        print(f"splitting {model}", file=sys.stderr)
        prepared = prepare_model(model, weights="random:0")
        request = PlanRequest(cluster=_HERE) if num_stages == 1 else None
        number = None if request else num_stages
        split_model(prepared, plan_stages(prepared, request, num_stages=number), folder)
    return open_bundle(folder)


def _rows_of(bundle: Bundle) -> np.ndarray:
    (spec,) = bundle.manifest.stages[0].inputs
    shape = (_NUM_ROWS, *(int(length) for length in spec.shape[1:]))
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _of_workers(bundle: Bundle) -> list[dict[str, Any]]:
    """What the worker of each stage holds after some micro-batches, and what it may."""
    rows = bundle.manifest.plan.micro_batch
    with open_session(bundle, backend="onnxruntime") as session:
        session.run(_rows_of(bundle))
        return [
            {
                **_process(pid),
                "weights": entry.weight_bytes,
                "peak": rows * entry.peak_activation_bytes,
            }
            for pid, entry in zip(session.worker_pids, bundle.manifest.stages, strict=True)
        ]


def _process(pid: int) -> dict[str, Any]:
    held = psutil.Process(pid).memory_full_info()
    return {
        "resident": held.rss,
        "own": held.uss,
        "torch": "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8"),
    }


def _starts(bundle: Bundle) -> list[dict[str, float]]:
    """Seconds until a session is ready, and of processors' time that its workers took for it."""
    found = []
    for _ in range(_NUM_STARTS):
        begun_s = time.perf_counter()
        with open_session(bundle, backend="onnxruntime") as session:
            ready_s = time.perf_counter() - begun_s
            used = [psutil.Process(pid).cpu_times() for pid in session.worker_pids]
        found.append({"ready_s": ready_s, "used_s": max(each.user + each.system for each in used)})
    return found[1:]  # the first imports what this process itself needs


def _by_ssh(bundle: Bundle) -> dict[str, Any]:
    """What stands on a device of the engine ssh; a device without an address needs no sshd."""
    host = SshHost(targets_of(_HERE)["here"], threading.Event(), timeout_s=_WAIT_S)
    try:
        host.ask("facts")
        board = psutil.Process(int(host.about["pid"]))
        found = {"board": _process(board.pid)}
    finally:
        host.kill().join(_WAIT_S)
    with open_session(bundle, engine=SshHosts(cluster=_HERE), backend="onnxruntime") as session:
        session.run(_rows_of(bundle))
        return {**found, "worker": _process(session.worker_pids[0])}


# --- what is written


def _keep(name: str, found: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    about = {
        "command": f"python benchmarks/boards.py {name}",
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end",
    }
    document = json.dumps({"about": about, **found}, indent=1)
    (FOLDER / f"{name}.json").write_text(document, encoding="utf-8")


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.1f}"


def _sizes_text(found: dict[str, Any]) -> Iterator[str]:
    yield from (
        _head(found),
        "",
        "| processor | Python | packages | downloaded | unpacked |",
        "| --- | --- | ---: | ---: | ---: |",
    )
    for key, entry in found.items():
        if key == "about":
            continue
        packages = entry["packages"].values()
        packed, unpacked = (_mb(sum(p[k] for p in packages)) for k in ("packed", "unpacked"))
        processor, python = key.split()
        yield f"| {processor} | {python} | {len(packages)} | {packed} MB | {unpacked} MB |"
    yield ""
    for key, entry in found.items():
        if key != "about" and entry["installed"] is not None:
            processor, python = key.split()
            whole, code = entry["installed"]["all"], entry["installed"]["byte_code"]
            largest = sorted(entry["packages"].items(), key=lambda item: -item[1]["unpacked"])
            names = ", ".join(
                f"{n.split('-')[0]} {_mb(s['unpacked'])}" for n, s in largest[:_LARGEST]
            )
            yield (
                f"Installed for {processor} and Python {python}: {_mb(whole - code)} MB as `hosts"
                f" install` leaves it, {_mb(whole)} MB with the byte code of everything, as pip"
                f" does (goal: {LIMITS_MB[processor]} MB). The largest, unpacked, in MB: {names}."
            )
            yield ""
    yield f"The goal for what is downloaded is {_DOWNLOAD_LIMIT_MB} MB."


def _memory_text(found: dict[str, Any]) -> Iterator[str]:
    yield from (
        _head(found),
        "",
        "| model | stage | weights + peak | resident | its own | at most | torch |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    )
    for model, stages in found["models"].items():
        for index, stage in enumerate(stages):
            needed = stage["weights"] + stage["peak"]
            most = _MOBILENET_LIMIT_MB * 1e6 if model == SIX[0] else 1.5 * needed + 64e6
            yield (
                f"| {model} | {index} | {_mb(needed)} MB | {_mb(stage['resident'])} MB |"
                f" {_mb(stage['own'])} MB | {_mb(most)} MB | {'yes' if stage['torch'] else 'no'} |"
            )
    by_ssh, starts_s = found["by_ssh"], [start["ready_s"] for start in found["starts"]]
    used_s = min(start["used_s"] for start in found["starts"])
    yield ""
    yield (
        "Resident counts the files of libraries, which workers of a host share; its own does not."
        f" An idle worker with onnxruntime holds {_mb(found['idle'])} MB. Of the engine ssh, what"
        " waits on a device before it becomes a worker holds"
        f" {_mb(by_ssh['board']['resident'])} MB, and a worker with all of MobileNetV2"
        f" {_mb(by_ssh['worker']['resident'])} MB."
    )
    yield ""
    yield (
        "A local session of two workers with onnxruntime is ready"
        f" {statistics.median(starts_s):.2f} s after it was asked for, imports included (median of"
        f" {len(starts_s)}; {min(starts_s):.2f} to {max(starts_s):.2f}; goal: {_START_LIMIT_S:g})."
        f" The worker that took more used {used_s:.2f} s of a processor for it."
    )


def _head(found: dict[str, Any]) -> str:
    about = found["about"]
    return f"`{about['command']}`, {about['date']}, {about['machine']}."


def _write_page() -> None:
    """Prints what was measured, and puts it into the page."""
    parts = []
    for name, text_of in (("sizes", _sizes_text), ("memory", _memory_text)):
        file = FOLDER / f"{name}.json"
        if file.exists():
            parts += [*text_of(json.loads(file.read_text(encoding="utf-8"))), ""]
    text = "\n".join(parts)
    print(text)
    before, _, rest = _PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    _PAGE.write_text(f"{before}{_BEGIN}\n{text}{_END}{after}", encoding="utf-8")


def main() -> None:
    """Runs the steps that are named, or both, and writes the page anew."""
    steps = {"sizes": sizes, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="sizes, memory; both by default")
    chosen = parser.parse_args().steps or list(steps)
    if unknown := set(chosen) - set(steps):
        parser.error(f"there is no step {', '.join(sorted(unknown))}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for step in chosen:
        steps[step]()
    _write_page()


if __name__ == "__main__":
    main()
