"""What a node does for an engine besides computing: it keeps shards and runs measuring programs.

The same for every engine; how calls arrive is the engine's own matter. Everything crosses as
numbers, text and bytes, and no call imports torch.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from cutset.bundles.cache import Incoming, ShardCache, default_cache_folder, stage_files
from cutset.bundles.file_entries import FileEntry
from cutset.errors import EngineError
from cutset.host import free_memory_bytes, num_usable_cores
from cutset.processes import command_of, made_environment
from cutset.version import __version__

_LAST_WORDS_CHARS = 2000
_GLANCE_S = 0.05


class NodeService:
    """Keeps the shards of a node and runs programs of `cutset.programs` on it, one at a time.

    Args:
        linger_s: how long a call that waits for something waits.
        owner: the process with which programs end, where the system can see to that; 0 where
            calls are made on threads that come and go.
        environment: variables that its processes get besides their usual ones.
    """

    def __init__(
        self, linger_s: float, *, owner: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        self._environment = dict(environment or {})
        self._linger_s = linger_s
        self._owner = owner
        self._cache = ShardCache(default_cache_folder())
        self._incoming: Incoming | None = None
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._heard_s = time.monotonic()

    def _touch(self) -> None:
        self._heard_s = time.monotonic()

    def _own_folder(self) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="cutset-probe-")
        return self._folder.name

    # --- facts

    def hello(self) -> dict[str, str]:
        """What is installed here."""
        self._touch()
        return {
            "cutset": __version__,
            "python": platform.python_version(),
            "pid": str(os.getpid()),
        }

    def clock(self) -> float:
        """This host's monotonic clock."""
        self._touch()
        return time.monotonic()

    def facts(self) -> dict[str, int]:
        """Free memory in bytes, and how many threads may compute at once."""
        self._touch()
        return {"memory_bytes": free_memory_bytes(), "num_cores": num_usable_cores()}

    def backends(self) -> list[str]:
        """Full names of what computes stages here."""
        from cutset.backends.selection import usable_backends  # much, for what is seldom asked

        self._touch()
        return [backend.full_name for backend in usable_backends()]

    # --- files

    def missing_manifest(self, entry: tuple[str, int, str]) -> bool:
        """Whether the manifest (path, bytes, sha256) is not here."""
        self._touch()
        return bool(self._cache.missing([entry_of(entry)]))

    def missing_files(self, manifest_sha256: str, stage: int) -> list[str]:
        """Paths of the files of `stage` that are not here."""
        self._touch()
        files = stage_files(self._cache.manifest(manifest_sha256), stage)
        return [entry.path for entry in self._cache.missing(files)]

    def begin_file(self, entry: tuple[str, int, str]) -> None:
        """Begins to take a file (path, bytes, sha256)."""
        self._touch()
        if self._incoming is not None:
            self._incoming.abandon()
        self._incoming = self._cache.receive(entry_of(entry))

    def append(self, data: bytes) -> None:
        """Takes the next piece of the file."""
        self._touch()
        if self._incoming is None:
            raise EngineError("a piece of a file came, but no file was begun")
        try:
            self._incoming.append(data)
        except BaseException:
            self._incoming.abandon()
            self._incoming = None
            raise

    def finish_file(self) -> None:
        """Checks the file and keeps it."""
        self._touch()
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            raise EngineError("a file was ended, but none was begun")
        try:
            incoming.finish()
        except BaseException:
            incoming.abandon()
            raise

    def stage_folder(self, manifest_sha256: str, stage: int) -> str:
        """The folder with a bundle's manifest and the files of `stage`, all of them here."""
        self._touch()
        return str(self._cache.stage_folder(manifest_sha256, stage))

    def keep_model(self, sha256: str, suffix: str) -> str:
        """The path of a model's file, which was received before, with the suffix it needs.

        Raises:
            EngineError: the suffix is none of a model's file.
        """
        self._touch()
        if suffix not in (".pt2", ".onnx", ".py"):
            raise EngineError(f"{suffix!r} is no model's file")
        path = Path(self._own_folder()) / f"model{suffix}"
        path.unlink(missing_ok=True)
        path.write_bytes(self._cache.object_path(sha256).read_bytes())
        return str(path)

    # --- programs

    def start_program(self, name: str, arguments: list[str], num_threads: int) -> None:
        """Starts a program of `cutset.programs`; its answer is fetched with `program_result`.

        It may also be talked with, line by line: `hear_program`, `tell_program`.

        Raises:
            EngineError: there is none of that name.
        """
        self._touch()
        command = command_of(name, caller=self._owner)
        # Files, not pipes: nobody need read them for the program to go on.
        with self._output("out").open("wb") as out, self._output("err").open("wb") as err:
            # Programs of this package alone, with this interpreter.
            self._process = subprocess.Popen(  # noqa: S603
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                cwd=self._own_folder(),
                env=made_environment(num_threads) | self._environment,
            )

    def hear_program(self, start: int) -> str:
        """What the program printed from place `start` on; waits a little where that is nothing.

        Raises:
            EngineError: it failed; with its last words.
        """
        deadline_s = time.monotonic() + self._linger_s
        while not (text := self._printed("out")[start:]) and time.monotonic() < deadline_s:
            self._touch()
            if self._has_ended(_GLANCE_S):
                return self._printed("out")[start:]
        return text

    def tell_program(self, line: str) -> None:
        """Gives the program a line to read."""
        self._touch()
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it is gone; who hears it is told why
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def program_result(self) -> str | None:
        """What the program printed, or None while it runs.

        Raises:
            EngineError: it failed; with its last words.
        """
        self._touch()
        return self._printed("out") if self._has_ended(self._linger_s) else None

    def _has_ended(self, timeout_s: float) -> bool:
        if self._process is None:
            raise EngineError("no program was started")
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.returncode != 0:
            words = self._printed("err").strip()[-_LAST_WORDS_CHARS:]
            raise EngineError(f"the measurement failed: {' '.join(words.split())}")
        return True

    def _output(self, what: str) -> Path:
        return Path(self._own_folder()) / f"program.{what}"

    def _printed(self, what: str) -> str:
        return self._output(what).read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """Ends the program that runs, and removes its files."""
        if self._process is not None:
            self._process.kill()
        if self._incoming is not None:
            self._incoming.abandon()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()


def entry_of(fields: tuple[str, int, str]) -> FileEntry:
    """A file as calls name it: path, bytes, sha256."""
    path, num_bytes, sha256 = fields
    return FileEntry(path=path, num_bytes=num_bytes, sha256=sha256)
