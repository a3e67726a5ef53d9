"""What `cutset doctor` finds, on machines that lack one thing or another."""

from __future__ import annotations

import getpass
import importlib.metadata
import importlib.util
import platform
import sys
from pathlib import Path

import pytest

import cutset
from cutset import doctor
from cutset.doctor import Ability, Package, describe, examine_machine
from cutset.engines.registry import GROUP
from installed import install


def ability(name: str) -> Ability:
    (found,) = [each for each in examine_machine().abilities if each.name == name]
    return found


def pretend_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Has some packages seem to be installed in another version, or not at all."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        wanted = versions.get(name, real(name))
        if wanted is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return wanted

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_here_everything_works() -> None:
    examination = examine_machine()
    assert examination.ok
    assert examination.cutset == cutset.__version__
    assert [
        each.name for each in examination.abilities if not each.ok and not each.is_optional
    ] == []
    packages = {package.name: package for package in examination.packages}
    assert packages["onnxruntime"].extra == ""
    assert packages["torch"].extra == "torch"
    assert packages["timm"].extra == "timm"  # which brings torch too
    assert len(packages) == len(examination.packages)
    assert packages["torch"].fits
    assert packages["starlette"].extra == "serve"
    assert examination.machine.num_cores >= examination.machine.num_usable_cores > 0
    assert examination.machine.memory_bytes > examination.machine.free_memory_bytes > 0


@pytest.mark.parametrize(
    ("version", "fits"),
    [("2.9", True), ("2.9.0+cpu", True), ("3.0a1", True), ("2.8.4", False), (None, False)],
)
def test_versions_that_fit(version: str | None, fits: bool) -> None:
    package = Package(name="torch", version=version, wanted=">=2.9", extra="")
    assert package.fits is fits


def test_a_package_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, onnx="0.1")
    examination = examine_machine()
    assert not examination.ok
    assert ability("use the packages it needs").detail.startswith(
        "missing or of another version: pip install 'onnx>="
    )
    assert "  onnx 0.1, wanted >=" in describe(examination)


def test_a_missing_extra_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, starlette=None)
    assert examine_machine().ok
    found = ability("use the extra serve")
    assert not found.ok
    assert found.detail == "starlette missing or too old: pip install 'cutset[serve]'"
    assert "  starlette not installed (for serve)" in describe(examine_machine())


def test_a_backend_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = ability("run stages with onnxruntime")
    assert (found.ok, found.is_optional) == (False, False)
    assert found.detail == "onnxruntime is not installed; pip install onnxruntime"


def test_without_torch_what_runs_bundles_works(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, torch=None, torchvision=None)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    examination = examine_machine(trial=True)
    abilities = {each.name: each for each in examination.abilities}
    found = abilities["run stages with torch"]
    assert (found.ok, found.is_optional) == (False, True)
    assert found.detail == "torch is not installed; pip install 'cutset[torch]'"
    trial = abilities["split, prove and run a small model"]
    assert (trial.ok, trial.is_optional) == (False, True)
    assert trial.detail.endswith("not installed: pip install 'cutset[torch]'")
    text = describe(examination)
    assert "GPUs that torch sees: torch is not installed" in text
    assert "  torch not installed (for torch)" in text


def test_memory_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(slot_bytes: int, num_slots: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cutset.links.arena.create_file", refuse)
    found = ability("share memory between workers")
    assert not found.ok
    assert "No space left" in found.detail
    assert not examine_machine().ok


def test_the_limits_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.host, "usable_cores", lambda: 0.5)
    monkeypatch.setattr(doctor.host, "memory_bytes", lambda: 1 << 30)
    monkeypatch.setattr(doctor.host, "free_memory_bytes", lambda: 1 << 29)
    text = describe(examine_machine())
    assert "0.5 of them for this process" in text
    assert "1.0 GiB, 0.5 GiB free" in text


def test_nothing_private_is_told() -> None:
    text = describe(examine_machine())
    assert str(Path.home()) not in text
    assert platform.node() not in text
    assert f"/{getpass.getuser()}" not in text
    assert str(Path(sys.prefix)) not in text


def test_the_trial_splits_and_runs() -> None:
    *_, trial = examine_machine(trial=True).abilities
    assert trial.name == "split, prove and run a small model"
    assert trial.ok, trial.detail
    assert trial.detail.startswith("with torch and onnxruntime")


def test_engines_of_other_packages_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "good", GROUP, "plain = toy_engine:Plain"))
    install(tmp_path, "bad", GROUP, "odd = no_such_module:Odd")
    plain, odd = ability("start workers (engine plain)"), ability("start workers (engine odd)")
    assert (plain.ok, plain.is_optional, plain.detail) == (True, True, "toy_engine.Plain")
    assert (odd.ok, odd.is_optional) == (False, True)
    assert "of the package bad cannot be loaded" in odd.detail
