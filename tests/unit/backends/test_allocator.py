from __future__ import annotations

import platform

import pytest

from cutset.backends import allocator
from cutset.backends.allocator import give_back_memory, keep_freed_memory


def test_glibc_takes_the_settings() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
    give_back_memory()


def test_freed_memory_can_be_given_back() -> None:
    give_back_memory()
