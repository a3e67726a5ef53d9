"""Which engines there are, what each needs, and how one is opened for a bundle.

An engine is a subclass of `EngineSettings`: what may be said about it as its fields, and
`EngineSettings.engine_for`, which makes the running `cutset.engines.protocol.Engine`. Cutset's own
are listed here; another package adds one by an entry point of the group ``cutset.engines``.
"""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from typing_extensions import Self

from cutset.engines.protocol import Engine
from cutset.engines.remote_host import MeasuringHosts
from cutset.errors import EngineError
from cutset.extensions import extension_names, find_extension
from cutset.progress import Progress

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle

GROUP = "cutset.engines"
"""The entry points by which other packages add engines."""


class StagePrograms(Protocol):
    """Runs programs of `cutset.programs` where the stages of a bundle are."""

    def run(
        self, stage: int, program: str, arguments: list[str], *, num_threads: int, limit_s: float
    ) -> str:
        """Runs a program on the device of a stage, beside the stage's files.

        Args:
            stage: its index.
            program: a name in `cutset.programs.PROGRAMS`.
            arguments: of the program, after the bundle's folder there.
            num_threads: threads that it computes with.
            limit_s: how long it may take.

        Returns:
            What it printed.

        Raises:
            EngineError: it failed, or the device does not answer.
        """


class EngineSettings(abc.ABC):
    """An engine, and what was said about how it is to run.

    Attributes:
        name: what ``--engine`` and ``open_session(engine=...)`` call it.
        package: the package that it imports and Cutset does not need, or ``""``.
        install: what to give to ``pip install`` for that.
        options: names of the options of the command line that it takes, of ``"address"``,
            ``"replan_after_s"`` and ``"cluster"``; as keyword arguments of the class.
        start_timeout_s: how long a worker may take to start, or None where the usual limit will
            do.
        runs_groups: whether it starts all replicas of a stage; where not, a plan that has some is
            refused.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""
    install: ClassVar[str] = ""
    options: ClassVar[frozenset[str]] = frozenset()
    start_timeout_s: ClassVar[float | None] = None
    runs_groups: ClassVar[bool] = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The engine as the command line says it.

        Args:
            options: what was given, by name; none that is not in `options`. ``"cluster"`` is a
                `cutset.cluster.devices.Cluster`, read from a cluster file.
        """
        return cls(**options)

    @abc.abstractmethod
    def engine_for(self, bundle: Bundle, *, num_threads: int) -> Engine:
        """Prepares to run a bundle.

        Args:
            bundle: whose stages will run.
            num_threads: threads that each worker computes with.

        Raises:
            EngineError: it cannot be run here; says why.
        """

    def stage_programs(
        self,
        bundle: Bundle,  # noqa: ARG002  # those that run elsewhere need it
        progress: Progress,  # noqa: ARG002
    ) -> AbstractContextManager[StagePrograms] | None:
        """What runs programs where the stages will be; None where that is this machine.

        Args:
            bundle: whose stages.
            progress: told of every step.
        """
        return None

    def measuring_hosts(self) -> AbstractContextManager[MeasuringHosts]:
        """All hosts of the engine's cluster, to be measured one after the other.

        Raises:
            EngineError: it has none, or one cannot be used.
        """
        raise EngineError(f"the engine {self.name!r} has no hosts that could be measured")


def _local() -> type[EngineSettings]:
    from cutset.engines.local import LocalMachine

    return LocalMachine


def _ray() -> type[EngineSettings]:
    from cutset.engines.ray.engine import RayCluster

    return RayCluster


def _ssh() -> type[EngineSettings]:
    from cutset.engines.ssh.ssh_engine import SshHosts

    return SshHosts


_OWN: Mapping[str, Callable[[], type[EngineSettings]]] = {
    "local": _local,
    "ssh": _ssh,
    "ray": _ray,
}


def find_engine(name: str) -> type[EngineSettings]:
    """The engine called `name`, which is imported now.

    Raises:
        EngineError: there is none, or what another package names is no engine or cannot be
            imported.
    """
    if name in _OWN:
        return _OWN[name]()
    found = find_extension(GROUP, name, EngineError)
    if found is None:
        added = ", ".join(extension_names(GROUP))
        raise EngineError(
            f"there is no engine {name!r}; this version has: {', '.join(_OWN)}"
            + (f"; packages add: {added}" if added else "")
        )
    if not (isinstance(found, type) and issubclass(found, EngineSettings)):
        raise EngineError(
            f"the engine {name!r} (entry points {GROUP!r}) is {found!r}; expected a class that is"
            f" an {EngineSettings.__name__}"
        )
    require_package(name, found.package, found.install)
    return found


def engines_that_take(option: str) -> tuple[str, ...]:
    """Which of Cutset's own engines take an option of the command line."""
    return tuple(name for name, find in _OWN.items() if option in find().options)


def require_package(name: str, package: str, install: str) -> None:
    """Checks that what an engine needs is installed.

    Raises:
        EngineError: it is not; says how to install it.
    """
    if package and importlib.util.find_spec(package) is None:
        raise EngineError(
            f"the engine {name!r} needs the package {package}, which is not installed: pip install"
            f" {install!r}"
        )


def opened_engine(
    engine: str | EngineSettings | Engine, bundle: Bundle, *, num_threads: int
) -> tuple[Engine, float | None]:
    """The engine that was asked for, prepared to run a bundle.

    Args:
        engine: its name, what was said about it, or one that runs already.
        bundle: whose stages will run.
        num_threads: threads that each worker computes with.

    Returns:
        The engine, and how long a worker may take to start if the engine says that.

    Raises:
        EngineError: there is no such engine, or it cannot run the bundle.
        TypeError: `engine` is something else.
    """
    settings = find_engine(engine)() if isinstance(engine, str) else engine
    if not isinstance(settings, EngineSettings) and not hasattr(settings, "start"):
        raise TypeError(f"an engine is a name, an EngineSettings or an Engine, got {engine!r}")
    _require_groups(settings, bundle)
    if isinstance(settings, EngineSettings):
        return settings.engine_for(bundle, num_threads=num_threads), settings.start_timeout_s
    return settings, None


def _require_groups(engine: EngineSettings | Engine, bundle: Bundle) -> None:
    """Checks that an engine starts all replicas of the plan's stages.

    Raises:
        EngineError: it does not.
    """
    group = next((stage for stage in bundle.manifest.plan.stages if len(stage.group) > 1), None)
    if group is None or getattr(engine, "runs_groups", False):
        return
    devices = ", ".join(replica.device for replica in group.group)
    raise EngineError(
        f"stage {group.index} is planned on {len(group.group)} devices ({devices}), and the engine"
        f" {engine.name!r} runs each stage on one; use --engine local, or plan again with"
        " --no-replicas"
    )
