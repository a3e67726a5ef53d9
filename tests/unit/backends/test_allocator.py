from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cutset.backends import allocator
from cutset.backends.allocator import (
    give_back_code,
    give_back_mapping,
    give_back_memory,
    keep_freed_memory,
    malloc_environment,
    map_large_blocks,
)


def test_glibc_takes_the_settings() -> None:
    assert map_large_blocks() is (platform.libc_ver()[0] == "glibc")
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")


_BLOCKS = """
import ctypes
from cutset.backends.allocator import keep_freed_memory, map_large_blocks
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
class Numbers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks a b c d e f".split()]
libc.mallinfo.restype = Numbers
def is_mapped():
    before = libc.mallinfo().hblks
    assert libc.malloc(ctypes.c_size_t(4 << 20))
    return libc.mallinfo().hblks > before
map_large_blocks()
print(is_mapped())
keep_freed_memory()
print(is_mapped())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallinfo(3) is glibc's")
def test_a_large_block_is_mapped_at_first_and_from_the_heap_later() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "False"]


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert map_large_blocks() is False
    assert keep_freed_memory() is False
    give_back_memory()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "glibc.malloc.tcache_count=0"),
        ({"GLIBC_TUNABLES": ""}, "glibc.malloc.tcache_count=0"),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"},
            "glibc.malloc.tcache_count=0:glibc.malloc.tcache_count=7",
        ),
    ],
)
def test_a_users_own_settings_come_last_and_win(environment: dict[str, str], expected: str) -> None:
    assert malloc_environment(environment) == {"GLIBC_TUNABLES": expected}


def test_freed_memory_can_be_given_back() -> None:
    give_back_memory()


def _resident_kib(file: Path) -> int:
    """Of a mapped file, from /proc/self/smaps."""
    with Path("/proc/self/smaps").open(encoding="utf-8") as lines:
        for line in lines:
            if line.rstrip().endswith(str(file)):
                return next(int(rest.split()[1]) for rest in lines if rest.startswith("Rss:"))
    raise AssertionError(f"{file} is not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="madvise(2) and /proc are Linux's")
def test_a_mapped_file_is_given_back_and_still_readable(tmp_path: Path) -> None:
    file = tmp_path / "weights with a space"
    file.write_bytes(b"weights!" * (1 << 17))
    with file.open("rb") as stream:
        os.fsync(stream.fileno())  # what waits to be written cannot be given back
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    assert mapping[:] == file.read_bytes()
    assert _resident_kib(file) == 1024
    assert give_back_mapping(file)
    assert _resident_kib(file) < 1024
    assert mapping[:] == file.read_bytes()
    mapping.close()
    assert not give_back_mapping(file)


def test_where_the_system_cannot_nothing_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not give_back_mapping(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="madvise(2) and /proc are Linux's")
def test_what_was_written_to_a_private_mapping_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 16))
    with file.open("rb") as stream:
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    mapping[:7] = b"changed"
    give_back_mapping(file)
    assert mapping[:7] == b"changed"
    mapping.close()


_CODE = """
import psutil
from cutset.backends.allocator import give_back_code
from cutset.backends.base import one_convolution
from cutset.capture.onnx.inference import make_session
import numpy as np
session = make_session(one_convolution(), 1)
rows = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)
def computed():
    return session.run(None, {"x": rows})[0].tobytes() + np.linalg.inv(np.eye(9) + 1).tobytes()
before = computed()
held_bytes = psutil.Process().memory_info().rss
given_bytes = give_back_code()
less_bytes = held_bytes - psutil.Process().memory_info().rss
print(given_bytes > 8e6, less_bytes > given_bytes / 4, computed() == before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="smaps and madvise are Linux's")
def test_code_that_is_given_back_runs_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "True", "True"]


def test_code_stays_where_the_system_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert give_back_code() == 0
