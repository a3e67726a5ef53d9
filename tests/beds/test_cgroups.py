"""Both versions of the control groups' interface; version 2's limits against plain files."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.cgroups import (
    Cgroups,
    CgroupsV1,
    CgroupsV2,
    end_processes,
    find_cgroups,
    kill_member,
    members,
    quota_and_period_us,
    remove_group,
    set_frozen,
)
from testbed.errors import TestbedError


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1.0, (4000, 4000)), (0.5, (2000, 4000)), (0.1, (1000, 10000)), (2.0, (8000, 4000))],
)
def test_a_share_is_a_quota_of_a_short_period(cores: float, expected: tuple[int, int]) -> None:
    assert quota_and_period_us(cores) == expected


def _mounts(folder: Path, *lines: str) -> Path:
    path = folder / "mounts"
    path.write_text("".join(f"{line} 0 0\n" for line in lines))
    return path


def test_version_1_is_found_by_its_controllers(tmp_path: Path) -> None:
    mounts = _mounts(
        tmp_path,
        "cgroup /c/cpu,cpuacct cgroup rw,cpu,cpuacct",
        "cgroup /c/memory cgroup rw,memory",
        "cgroup /c/freezer cgroup rw,freezer",
        f"cgroup2 {tmp_path} cgroup2 rw",
    )
    found = find_cgroups(mounts)
    assert isinstance(found, CgroupsV1)
    assert {str(folder) for folder in found.folders("g")} == {
        "/c/cpu,cpuacct/g",
        "/c/memory/g",
        "/c/freezer/g",
    }


def test_version_2_is_found_by_its_controllers(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = find_cgroups(_mounts(tmp_path, f"cgroup2 {tmp_path} cgroup2 rw"))
    assert found.folders("g") == [tmp_path / "g"]


def test_neither_version_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("pids\n")
    with pytest.raises(TestbedError, match="cannot limit processor and memory"):
        find_cgroups(_mounts(tmp_path, f"cgroup2 {tmp_path} cgroup2 rw"))


def test_version_2_writes_its_limits(tmp_path: Path) -> None:
    cgroups = CgroupsV2(tmp_path)
    cgroups.make("all/one")
    folder = tmp_path / "all" / "one"
    (folder / "memory.swap.max").write_text("max")
    (folder / "memory.current").write_text("4096\n")
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    cgroups.limit_processor("all/one", 0.5)
    cgroups.limit_memory("all/one", 1000)
    cgroups.freeze("all/one", True)
    written = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    assert written == {
        "cpu.max": "2000 4000",
        "memory.max": "1000",
        "memory.swap.max": "0",
        "memory.current": "4096\n",
        "cgroup.events": "populated 1\nfrozen 1\n",
        "cgroup.freeze": "1",
    }
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (tmp_path / "all" / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert cgroups.is_frozen("all/one")
    assert cgroups.memory_use_bytes("all/one") == 4096


def test_a_refused_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match=r"memory.max does not take '5'"):
        CgroupsV2(tmp_path).limit_memory("missing", 5)


@pytest.fixture
def cgroups(machine: None) -> Cgroups:
    return find_cgroups()


def test_a_group_ends_its_members_and_nobody_else(cgroups: Cgroups, name: str) -> None:
    group = f"cutset-{name}-/0"
    cgroups.make(group)
    files = [str(file) for file in cgroups.member_files(group)]
    join = 'for f; do echo $$ > "$f"; done; sleep 60 & echo up; wait'
    inside = subprocess.Popen(["sh", "-c", join, "sh", *files], stdout=subprocess.PIPE, text=True)
    outside = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert inside.stdout is not None
        assert inside.stdout.readline() == "up\n"
        assert inside.pid in members(cgroups, group)
        assert len(members(cgroups, group)) == 2
        assert not kill_member(cgroups, group, outside.pid, signal.SIGKILL)
        set_frozen(cgroups, group, True)
        assert cgroups.is_frozen(group)
        end_processes(cgroups, group)
        assert inside.wait(10) == -signal.SIGKILL
        assert members(cgroups, group) == set()
        assert outside.poll() is None
    finally:
        inside.kill()
        inside.communicate(timeout=10)
        outside.communicate(timeout=10)
        remove_group(cgroups, f"cutset-{name}-")
    assert outside.returncode in (0, 1)
