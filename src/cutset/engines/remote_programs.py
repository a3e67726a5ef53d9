"""Runs measuring programs where a bundle's stages are, on hosts of whatever engine.

One device after the other: those that share something do not disturb each other. The shards that a
program needs stay there, for the session that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cutset.bundles.manifest import manifest_file
from cutset.bundles.open import Bundle
from cutset.engines.remote_host import HostAwayError, RemoteHost
from cutset.errors import EngineError
from cutset.progress import Progress

_JOIN_S = 5.0


class RemotePrograms:
    """See `cutset.engines.registry.StagePrograms`.

    Args:
        bundle: whose stages; their plan names the devices.
        connect: makes a process on a device.
        progress: told of every step.
    """

    def __init__(
        self, bundle: Bundle, connect: Callable[[str], RemoteHost], progress: Progress
    ) -> None:
        self._bundle = bundle
        self._connect = connect
        self._progress = progress

    def run(
        self, stage: int, program: str, arguments: list[str], *, num_threads: int, limit_s: float
    ) -> str:
        """Runs a program on the device of a stage, and returns what it printed.

        Raises:
            EngineError: it failed, or the device does not answer.
            BundleError: the device cannot keep the stage's shard.
        """
        device = self._bundle.manifest.plan.stages[stage].device
        host: RemoteHost | None = None
        try:
            self._progress(f"bringing stage {stage} to {device}")
            host = self._connect(device)
            folder = Path(self._bundle.directory)
            files = {entry.path: entry for entry in self._bundle.manifest.files}
            there = host.deliver(folder, manifest_file(folder), files, stage)
            self._progress(f"timing stage {stage} on {device}")
            host.ask("start_program", program, [there, *arguments], num_threads)
            return host.program_result(limit_s)
        except HostAwayError as error:
            raise EngineError(str(error)) from error
        finally:
            if host is not None:
                host.kill().join(_JOIN_S)
