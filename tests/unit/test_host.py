from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cutset import host

V2 = "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_CPU = "31 1 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "32 1 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
OTHERS = "22 1 0:5 / /proc rw - proc proc rw\n29 1 8:1 / / rw - ext4 /dev/sda1 rw"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, four of which this process may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 2, 1, 0}, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 8)


def test_without_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.usable_cores(tmp_path) == 4.0
    assert host.core_numbers() == (0, 1, 2, 3)
    assert host.num_cores() == 8
    assert host.memory_bytes(tmp_path) == psutil.virtual_memory().total
    assert 0 < host.free_memory_bytes(tmp_path) <= psutil.virtual_memory().total
    monkeypatch.delattr(os, "sched_getaffinity")
    assert host.core_numbers() == ()
    assert host.usable_cores(tmp_path) == 8.0


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 4.0),
        ("50000 100000", 0.5),
        ("100000 100000", 1.0),
        ("250000 100000", 2.5),
        ("900000 100000", 4.0),
        ("50000", 4.0),
        ("", 4.0),
        ("nonsense 1", 4.0),
        ("0 0", 4.0),
    ],
)
def test_quota_of_version_2(tmp_path: Path, quota: str, cores: float) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job",
            "proc/self/mountinfo": f"{OTHERS}\n{V2}",
            "sys/fs/cgroup/user.slice/job/cpu.max": quota,
        },
    )
    assert host.usable_cores(tmp_path) == cores


@pytest.mark.parametrize("outer", ["-1", "150000"])
@pytest.mark.parametrize(("quota", "cores"), [("-1", 4.0), ("100000", 1.0), ("5000", 0.05)])
def test_quota_of_version_1(tmp_path: Path, outer: str, quota: str, cores: float) -> None:
    group = "sys/fs/cgroup/cpu,cpuacct"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/job/inner\n4:memory:/job\n0::/",
            "proc/self/mountinfo": f"{OTHERS}\n{V1_CPU}\n{V1_MEMORY}",
            f"{group}/job/cpu.cfs_quota_us": outer,
            f"{group}/job/cpu.cfs_period_us": "100000",
            f"{group}/job/inner/cpu.cfs_quota_us": quota,
            f"{group}/job/inner/cpu.cfs_period_us": "100000",
        },
    )
    assert host.usable_cores(tmp_path) == min(cores, 1.5 if outer != "-1" else 4.0)


@pytest.mark.parametrize(
    ("path", "begin"),
    [
        ("/docker/abc", "/docker/abc"),  # the mount begins at the container's group
        ("/", "/"),  # so does the hierarchy (a namespace)
        ("/../job", "/"),  # outside of the namespace: what is mounted is all there is to see
        ("/docker/abc/inner", "/docker/abc"),
    ],
)
def test_container(tmp_path: Path, path: str, begin: str) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{path}",
            "proc/self/mountinfo": V2.replace(" / /sys/fs/cgroup ", f" {begin} /my\\040groups "),
            "my groups/cpu.max": "200000 100000",
            "my groups/memory.max": "1000000",
            "my groups/memory.current": "400000",
            "my groups/memory.stat": "anon 1\ninactive_file 100000",
        },
    )
    assert host.usable_cores(tmp_path) == 2.0
    assert host.memory_bytes(tmp_path) == 1_000_000
    assert host.free_memory_bytes(tmp_path) == 700_000


def test_memory_of_version_1(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu:/",
            "proc/self/mountinfo": V1_MEMORY,
            f"{group}/memory.limit_in_bytes": "9223372036854771712",
            f"{group}/memory.usage_in_bytes": "123456789",
            f"{group}/job/memory.limit_in_bytes": "1000000",
            f"{group}/job/memory.usage_in_bytes": "1400000",
        },
    )
    assert host.memory_bytes(tmp_path) == 1_000_000
    assert host.free_memory_bytes(tmp_path) == 0


@pytest.mark.parametrize(
    ("cores", "threads"), [(0.05, 1), (0.5, 1), (1.0, 1), (1.99, 1), (2.0, 2), (7.5, 7)]
)
def test_threads_at_full_speed(monkeypatch: pytest.MonkeyPatch, cores: float, threads: int) -> None:
    monkeypatch.setattr(host, "usable_cores", lambda: cores)
    assert host.num_usable_cores() == threads


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_memory_beyond_the_limit_is_refused() -> None:
    program = """
from cutset.host import data_memory, limit_memory
assert data_memory() is None
limit_memory(64 << 20)
before, limit = data_memory()
kept = bytearray(32 << 20)
after, _ = data_memory()
assert after - before >= 32 << 20
assert before < limit <= before + (64 << 20)
try:
    bytearray(64 << 20)
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("refused\n", 0)
