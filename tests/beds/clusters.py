"""Cluster files that the tests of this folder build, and how those with Ray are built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cutset.cluster.cluster_file import cluster_from_toml
from testbed.build import down, up
from testbed.state import State

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
