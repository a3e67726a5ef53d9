"""What measures on a node of a Ray cluster: its facts, and the measuring programs."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

from cutset.engines.ray.stage_host import StageHost
from cutset.errors import EngineError
from cutset.host import free_memory_bytes, num_usable_cores
from cutset.processes import command_of, made_environment

_LAST_WORDS_CHARS = 2000


class ProbeHost(StageHost):
    """Runs programs of `cutset.programs`, one at a time; ends like a `StageHost`."""

    def __init__(self, lease_s: float, linger_s: float) -> None:
        super().__init__(lease_s, linger_s)
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="cutset-probe-")

    def facts(self) -> dict[str, int]:
        """Free memory in bytes, and how many threads may compute at once."""
        return {"memory_bytes": free_memory_bytes(), "num_cores": num_usable_cores()}

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
        """Starts a program of `cutset.programs`; its answer is fetched with `program_result`.

        Raises:
            EngineError: there is none of that name.
        """
        self._touch()
        # Programs of this package alone, with this interpreter.
        self._process = subprocess.Popen(  # noqa: S603
            [*command_of(name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder.name,
            env=made_environment(num_threads),
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
