"""What goes wrong in a cluster, on demand."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

from testbed import network
from testbed.cgroups import Cgroups, kill_member
from testbed.errors import TestbedError
from testbed.layout import Node
from testbed.nodes import end_node, freeze_node, group_of, processes_on, start_raylet
from testbed.ssh import start_sshd
from testbed.state import State

_RAYLET = re.compile(r"\S*/raylet/raylet ")
_WORKER = re.compile(
    r"\S*python\S* \S*/launch\.py .* cutset\.runtime\.worker "
    r"|ray::(?!IDLE|DashboardAgent|RuntimeEnv)"
)


def kill_worker(state: State, cgroups: Cgroups, node: Node) -> int:
    """Kills the processes on `node` that compute a stage; returns how many.

    Raises:
        TestbedError: there is none.
    """
    return _kill(state, cgroups, node, _WORKER, "process that computes a stage")


def kill_raylet(state: State, cgroups: Cgroups, node: Node) -> int:
    """Kills Ray's daemon on `node`; returns 1.

    Raises:
        TestbedError: there is none.
    """
    return _kill(state, cgroups, node, _RAYLET, "raylet")


def kill_node(state: State, cgroups: Cgroups, node: Node) -> None:
    """Loses `node` as if its power had gone: nothing says goodbye."""
    network.cut_node(state.layout, node)
    end_node(state, cgroups, node)


def start_node(state: State, cgroups: Cgroups, node: Node) -> None:
    """Brings `node` back as a machine that was switched on again: nothing of it ran on.

    Raises:
        TestbedError: Ray or sshd does not start.
    """
    end_node(state, cgroups, node)
    network.mend_node(state.layout, node)
    if state.ssh:
        start_sshd(state, cgroups, node)
    if state.ray:
        start_raylet(state, cgroups, node)


def cut(state: State, node: Node, other: Node | None) -> None:
    """Loses all that `node` and `other` send each other; all of `node`'s where `other` is None."""
    if other is None:
        network.cut_node(state.layout, node)
    else:
        network.cut_pair(node, other)


def mend(state: State, node: Node, other: Node | None) -> None:
    """Undoes `cut`."""
    if other is None:
        network.mend_node(state.layout, node)
    else:
        network.mend_pair(node, other)


def freeze(state: State, cgroups: Cgroups, node: Node) -> None:
    """Stops every process of `node`; its network card still answers, as a hung machine's does."""
    freeze_node(state, cgroups, node, True)


def thaw(state: State, cgroups: Cgroups, node: Node) -> None:
    """Lets a frozen node go on."""
    freeze_node(state, cgroups, node, False)


def has_raylet(lines: Iterable[str]) -> bool:
    """Whether one of these command lines is that of Ray's daemon."""
    return any(_RAYLET.match(line) for line in lines)


def _kill(state: State, cgroups: Cgroups, node: Node, pattern: re.Pattern[str], what: str) -> int:
    group = group_of(state.layout, node)
    victims = [p for p, line in processes_on(state, cgroups, node).items() if pattern.match(line)]
    killed = sum(kill_member(cgroups, group, pid, signal.SIGKILL) for pid in victims)
    if not killed:
        raise TestbedError(f"there is no {what} on {node.name}")
    return killed
