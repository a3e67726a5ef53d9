"""What measures on a node of a Ray cluster: its facts, and the measuring programs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from cutset.engines.stage_host import StageHost
from cutset.errors import EngineError

PROGRAMS = {
    "alone": ("-m", "cutset.runtime.alone"),
    "profile": ("-m", "cutset.cli"),
    "overhead": ("-m", "cutset.overhead"),
    "link": ("-m", "cutset.runtime.linkprobe"),
}

_LAST_WORDS_CHARS = 2000


class ProbeHost(StageHost):
    """Runs a program of `PROGRAMS`, one at a time; ends like a `StageHost`."""

    def __init__(self, lease_s: float, linger_s: float) -> None:
        super().__init__(lease_s, linger_s)
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="cutset-probe-")

    def facts(self) -> dict[str, int]:
        """Free memory in bytes, and the number of cores, as this process may use them."""
        return {"memory_bytes": free_memory_bytes(), "num_cores": len(os.sched_getaffinity(0))}

    def keep_model(self, sha256: str, suffix: str) -> str:
        """The path of a model's file, which was received before, with the suffix it needs.

        Raises:
            EngineError: the suffix is none of a model's file.
        """
        if suffix not in (".pt2", ".onnx", ".py"):
            raise EngineError(f"{suffix!r} is no model's file")
        path = Path(self._folder.name) / f"model{suffix}"
        path.unlink(missing_ok=True)
        path.write_bytes(self._cache.object_path(sha256).read_bytes())
        return str(path)

    def start_program(self, name: str, arguments: list[str], num_threads: int) -> None:
        """Starts one of the programs; its answer is fetched with `program_result`."""
        self._touch()
        # Programs of this package alone, with this interpreter.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, *PROGRAMS[name], *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder.name,
            env={**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONSAFEPATH": "1"},
        )

    def program_result(self) -> str | None:
        """What the program printed, or None while it runs.

        Raises:
            EngineError: it failed; with its last words.
        """
        self._touch()
        if self._process is None:
            raise EngineError("no program was started")
        try:
            out, err = self._process.communicate(timeout=self._linger_s)
        except subprocess.TimeoutExpired:
            return None
        if self._process.returncode != 0:
            words = err.strip()[-_LAST_WORDS_CHARS:]
            raise EngineError(f"the measurement failed: {' '.join(words.split())}")
        return out

    def _leave(self) -> None:
        if self._process is not None:
            self._process.kill()
        with contextlib.suppress(OSError):
            self._folder.cleanup()
        super()._leave()


def free_memory_bytes() -> int:
    """Memory that programs may still take here: the machine's, or less where a group limits it."""
    free = psutil.virtual_memory().available
    for limit, use in _group_memory():
        free = min(free, max(0, limit - use))
    return free


def _group_memory() -> list[tuple[int, int]]:
    """Limit and use, in bytes, of the control groups that this process is in, outer ones too."""
    found = []
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers == "":
            root, limit_name, use_name = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = "/sys/fs/cgroup/memory"
            limit_name, use_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = Path(root) / inside.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError):  # "max": no limit; or not mounted here
                limit = int((folder / limit_name).read_text(encoding="ascii"))
                found.append((limit, int((folder / use_name).read_text(encoding="ascii"))))
    return found
