"""What this machine is and what Cutset can do on it, in words to paste into a bug report.

Every answer comes from looking: packages are imported, memory is shared, a port is opened. Nothing
here names a path, a user or a host.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import mmap
import os
import platform
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
from packaging.requirements import Requirement

from cutset import host
from cutset.engines.registry import GROUP as ENGINES
from cutset.engines.registry import find_engine
from cutset.errors import CutsetError
from cutset.extensions import extension_names
from cutset.extras import naming_extras
from cutset.printable import printable
from cutset.version import __version__

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # only its size is looked at
_CORE_BACKEND = "onnxruntime"
"""The one whose library Cutset itself requires."""

_TRIAL_BYTES = 1 << 20
_TRIAL_ROWS = 3
_TRIAL_TOLERANCE = 1e-4
_TRIAL_MODEL = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*layers), (torch.randn(2, 3, 8, 8),)
"""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine is.

    Attributes:
        python: version and implementation.
        system: operating system, its release, the architecture and the C library.
        processor: the processor's own name.
        num_cores: logical cores of the machine.
        num_usable_cores: cores' worth of time that this process may use; a container may limit it
            to a fraction.
        memory_bytes: memory that this process may use, a container's limit included.
        free_memory_bytes: what this process may still take of it.
        shared_memory_bytes: size of /dev/shm, or None where there is none.
        gpus: names of the GPUs that torch sees; empty where torch is not installed.
    """

    python: str
    system: str
    processor: str
    num_cores: int
    num_usable_cores: float
    memory_bytes: int
    free_memory_bytes: int
    shared_memory_bytes: int | None
    gpus: tuple[str, ...]


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A package that Cutset uses.

    Attributes:
        name: its name.
        version: the installed version, or None.
        wanted: the versions that Cutset allows, such as ``">=2.9"``.
        extra: the extra of Cutset that needs it; ``""`` for one that is always needed.
    """

    name: str
    version: str | None
    wanted: str
    extra: str

    @property
    def fits(self) -> bool:
        """Whether it is installed in a version that Cutset allows."""
        return self.version is not None and Requirement(self.name + self.wanted).specifier.contains(
            self.version, prereleases=True
        )


class Ability(msgspec.Struct, frozen=True, kw_only=True):
    """Something that Cutset can do here, or cannot.

    Attributes:
        name: what.
        ok: whether it can.
        is_optional: whether Cutset is whole without it.
        detail: what was seen; where it cannot, what to do.
    """

    name: str
    ok: bool
    is_optional: bool
    detail: str


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `examine_machine`; its fields are the keys of ``cutset doctor --json``.

    Attributes:
        cutset: the version of Cutset.
        machine: what the machine is.
        packages: what Cutset uses, what it always needs first.
        abilities: what can be done here.
    """

    cutset: str
    machine: Machine
    packages: tuple[Package, ...]
    abilities: tuple[Ability, ...]

    @property
    def ok(self) -> bool:
        """Whether everything works that must."""
        return all(ability.ok or ability.is_optional for ability in self.abilities)


def examine_machine(*, trial: bool = False) -> Examination:
    """Looks at the machine and at what is installed.

    Args:
        trial: also split a small model, prove it, and run it with every backend that is installed;
            takes some seconds, and needs torch.
    """
    packages = _packages()
    abilities = [
        _ability("use the packages it needs", lambda: _requirements(packages)),
        *_backend_abilities(),
        _ability("start workers (engine local)", _local_engine),
        _ability("share memory between workers", _shared_memory),
        *_extras(packages),
        *_added_engines(),
    ]
    if trial:
        # Where torch is not installed, nobody means to split here.
        optional = importlib.util.find_spec("torch") is None
        name = "split, prove and run a small model"
        abilities.append(_ability(name, _run_trial, is_optional=optional))
    return Examination(
        cutset=__version__,
        machine=_machine(),
        packages=packages,
        abilities=tuple(abilities),
    )


def describe(examination: Examination) -> str:
    """The examination in plain words, a fact a line."""
    machine = examination.machine
    shared = machine.shared_memory_bytes
    cores = f"{machine.num_cores} cores, {machine.num_usable_cores:g} of them for this process"
    memory = f"{_gib(machine.memory_bytes)}, {_gib(machine.free_memory_bytes)} free"
    lines = [
        f"cutset {examination.cutset}, {machine.python}, {machine.system}",
        f"processor: {machine.processor}, {cores}",
        f"memory: {memory}; shared memory: {'none' if shared is None else _gib(shared)}",
        f"GPUs that torch sees: {', '.join(machine.gpus) or _why_no_gpus(examination.packages)}",
        "packages:",
    ]
    for package in examination.packages:
        version = package.version or "not installed"
        remark = "" if package.fits or package.version is None else f", wanted {package.wanted}"
        extra = f" (for {package.extra})" if package.extra else ""
        lines.append(f"  {package.name} {version}{remark}{extra}")
    lines.append("what Cutset can do here:")
    lines += [
        f"  {'yes' if ability.ok else 'no ':<3}  {ability.name}: {ability.detail}"
        for ability in examination.abilities
    ]
    return "\n".join(map(printable, lines))


def _why_no_gpus(packages: tuple[Package, ...]) -> str:
    has_torch = any(package.name == "torch" and package.version for package in packages)
    return "none" if has_torch else "torch is not installed"


def _gib(num_bytes: int) -> str:
    """GiB to a tenth, never more than there is."""
    return f"{num_bytes * 10 // 2**30 / 10:.1f} GiB"


# --- the machine


def _machine() -> Machine:
    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=" ".join(
            (platform.system(), platform.release(), platform.machine(), *platform.libc_ver())
        ).strip(),
        processor=_processor(),
        num_cores=host.num_cores(),
        num_usable_cores=host.usable_cores(),
        memory_bytes=host.memory_bytes(),
        free_memory_bytes=host.free_memory_bytes(),
        shared_memory_bytes=(
            psutil.disk_usage(str(_SHARED_MEMORY)).total if _SHARED_MEMORY.is_dir() else None
        ),
        gpus=_gpus(),
    )


def _processor() -> str:
    """The name that Linux knows; elsewhere what Python knows, which may be the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    try:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a driver that does not fit is no GPU
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            return tuple(torch.cuda.get_device_name(index) for index in range(count))
    except (ImportError, RuntimeError):
        return ()


# --- packages


def _packages() -> tuple[Package, ...]:
    """What Cutset's own metadata says that it needs, here, with the installed versions.

    Some extras bring others: a package is told of under the smallest extra that brings it.
    """
    wanted: dict[str, list[Requirement]] = {}
    for text in importlib.metadata.requires("cutset") or ():
        requirement = Requirement(text)
        extra = _extra_of(requirement)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue  # for another Python or system
        wanted.setdefault(extra, []).append(requirement)
    found: dict[str, Package] = {}
    for extra in sorted(wanted, key=lambda extra: (extra != "", len(wanted[extra]))):
        for requirement in wanted[extra]:
            try:
                version = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                version = None
            package = Package(
                name=requirement.name,
                version=version,
                wanted=str(requirement.specifier),
                extra=extra,
            )
            found.setdefault(package.name, package)
    return tuple(found.values())


def _extra_of(requirement: Requirement) -> str:
    """The extra that a requirement belongs to; ``""`` where it belongs to none."""
    if requirement.marker is None:
        return ""
    names = importlib.metadata.metadata("cutset").get_all("Provides-Extra") or []
    plain = requirement.marker.evaluate({"extra": ""})
    for name in names:
        if not plain and requirement.marker.evaluate({"extra": name}):
            return str(name)
    return ""


def _requirements(packages: tuple[Package, ...]) -> str:
    wrong = [
        f"{package.name}{package.wanted}"
        for package in packages
        if not package.extra and not package.fits
    ]
    if wrong:
        raise CutsetError(f"missing or of another version: pip install {_quoted(wrong)}")
    return "all installed, in versions that fit"


def _extras(packages: tuple[Package, ...]) -> list[Ability]:
    abilities = []
    for extra in dict.fromkeys(package.extra for package in packages if package.extra):
        missing = [p.name for p in packages if p.extra == extra and not p.fits]
        detail = "installed"
        if missing:
            detail = f"{', '.join(missing)} missing or too old: pip install 'cutset[{extra}]'"
        name = f"use the extra {extra}"
        abilities.append(Ability(name=name, ok=not missing, is_optional=True, detail=detail))
    return abilities


def _added_engines() -> list[Ability]:
    """The engines that other packages add; each is imported."""
    return [
        _ability(
            f"start workers (engine {name})", functools.partial(_engine, name), is_optional=True
        )
        for name in extension_names(ENGINES)
    ]


def _engine(name: str) -> str:
    kind = find_engine(name)
    return f"{kind.__module__}.{kind.__qualname__}"


def _quoted(names: list[str]) -> str:
    return " ".join(f"'{name}'" for name in names)


# --- what works


def _ability(name: str, check: Callable[[], str], *, is_optional: bool = False) -> Ability:
    """What `check` says, or why it failed."""
    try:
        return Ability(name=name, ok=True, is_optional=is_optional, detail=check())
    except (CutsetError, ImportError, OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Ability(name=name, ok=False, is_optional=is_optional, detail=text)


def _backend_abilities() -> list[Ability]:
    """What every backend can do here, and what other packages offer in vain."""
    try:
        from cutset.backends.selection import backend_names, broken_backends
    except (ImportError, OSError) as error:
        return [Ability(name="run stages", ok=False, is_optional=False, detail=str(error))]
    abilities = [
        _ability(
            f"run stages with {name}",
            functools.partial(_start_backend, name),
            is_optional=name != _CORE_BACKEND,
        )
        for name in backend_names()
    ]
    return abilities + [
        Ability(
            name=f"run stages with {broken.name}",
            ok=False,
            is_optional=True,
            detail=f"a package offers it: {broken.reason}",
        )
        for broken in broken_backends()
    ]


def _start_backend(name: str) -> str:
    """Makes a backend compute something small."""
    from cutset.backends.selection import get_backend

    backend = get_backend(name)
    reason = backend.missing()
    if reason:
        raise CutsetError(reason)
    try:
        backend.start()
        return f"version {backend.version()}"
    except Exception as error:
        # What libraries and other packages' backends raise has no common class but this.
        raise CutsetError(f"{type(error).__name__}: {error}") from error


def _local_engine() -> str:
    """Opens what a worker needs: a control connection, and a port on this host for its links."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)):
        pass
    return f"{host.usable_cores():g} cores: that many compute at full speed at once"


def _shared_memory() -> str:
    """Makes a nameless file of memory as two neighbours share it, writes it, and reads it back."""
    from cutset.links.arena import create_file

    file = create_file(_TRIAL_BYTES, 1)
    try:
        with mmap.mmap(file, _TRIAL_BYTES) as mapping:
            mapping[-1] = 1
            if mapping[-1] != 1:
                raise CutsetError("what was written there was not read back")
            return "neighbours put tensors down instead of sending them"
    finally:
        os.close(file)


def _run_trial() -> str:
    """Splits a small model in two, proves it, and runs it with every backend that is installed."""
    with naming_extras():
        import torch

    from cutset.backends.selection import usable_backends
    from cutset.runtime.session import open_session
    from cutset.workflow import plan_stages, prepare_model, split_model

    started = time.monotonic()
    names = [backend.full_name for backend in usable_backends() if backend.is_quick]
    with tempfile.TemporaryDirectory(prefix="cutset-doctor-") as folder:
        file = Path(folder) / "trial_model.py"
        file.write_text(_TRIAL_MODEL, encoding="utf-8")
        prepared = prepare_model(f"{file}:make")
        plan = plan_stages(prepared, num_stages=2)
        bundle = split_model(prepared, plan, Path(folder) / "trial.cutset")
        rows = torch.randn(_TRIAL_ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            whole = prepared.found.model(rows)
        for name in names:
            with open_session(bundle, backend=name) as session:
                answers = torch.as_tensor(session.run(rows))
                if not torch.allclose(answers, whole, rtol=0, atol=_TRIAL_TOLERANCE):
                    raise CutsetError(f"{name} gave other numbers; please report this")
    return f"with {' and '.join(names)}, in {time.monotonic() - started:.1f} s"
