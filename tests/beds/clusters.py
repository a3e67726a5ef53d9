"""Cluster files that the tests of this folder build, and how those with Ray or sshd are built."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from testbed.build import down, require_machine, up
from testbed.errors import TestbedError
from testbed.state import State

_NUMBER = itertools.count()

THREE = """
[[device]]
name = "server"

[[device]]
name = "pi-1"
speed = 0.5
memory_bytes = "64 MiB"

[[device]]
name = "pi-2"
speed = 0.5

[link]
bandwidth = "100 Mbit/s"

[[link.between]]
devices = ["pi-1", "pi-2"]
bandwidth = "20 Mbit/s"

[[link.between]]
from = "server"
to = "pi-2"
bandwidth = "inf"
"""


@contextlib.contextmanager
def built_with_ray(cluster: str, name: str) -> Iterator[State]:
    """A testbed with Ray, whose head asks for a token."""
    try:
        yield up(cluster_from_toml(cluster), name=name, token=True)
    finally:
        down(name)


@contextlib.contextmanager
def built_with_ssh(cluster: str) -> Iterator[State]:
    """A testbed of nodes with nothing but an sshd; skips where there is none."""
    name = f"ssh{os.getpid() % 10**7}x{next(_NUMBER)}"
    try:
        require_machine(ray=False, ssh=True)
    except TestbedError as error:
        pytest.skip(str(error))
    try:
        yield up(cluster_from_toml(cluster), name=name, ray=False, ssh=True)
    finally:
        down(name)
