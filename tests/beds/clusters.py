"""Cluster files that the tests of this folder build."""

from __future__ import annotations

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
