"""Cut links, frozen and dead nodes, without Ray."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from testbed import faults
from testbed.build import down, up
from testbed.cgroups import Cgroups, find_cgroups
from testbed.errors import TestbedError
from testbed.state import State
from testbed.status import status_of

from .clusters import THREE
from .on_nodes import end, send, start_receiver

_SOON_S = 0.5


@pytest.fixture
def testbed(name: str) -> Iterator[State]:
    yield up(cluster_from_toml(THREE), name=name, ray=False)
    down(name)


@pytest.fixture
def cgroups() -> Cgroups:
    return find_cgroups()


def test_cut_and_mended(testbed: State, cgroups: Cgroups) -> None:
    server, one, two = testbed.layout.nodes
    receiver = start_receiver(testbed, "pi-1")
    faults.cut(testbed, one, two)
    assert send(testbed, "pi-2", "pi-1", 10, _SOON_S) is None
    assert send(testbed, "server", "pi-1", 10) is not None
    assert status_of(testbed, cgroups, one).cut_from == ("pi-2",)
    faults.mend(testbed, one, two)
    assert send(testbed, "pi-2", "pi-1", 10) is not None
    faults.cut(testbed, one, None)
    assert send(testbed, "server", "pi-1", 10, _SOON_S) is None
    assert status_of(testbed, cgroups, one).cut_from == ("all",)
    assert status_of(testbed, cgroups, server).cut_from == ()
    faults.mend(testbed, one, None)
    faults.mend(testbed, one, two)  # nothing is cut: harmless
    assert send(testbed, "server", "pi-1", 10) is not None
    receiver.kill()
    end([receiver])


def test_frozen_and_thawed(testbed: State, cgroups: Cgroups) -> None:
    one = testbed.layout.node("pi-1")
    receiver = start_receiver(testbed, "pi-1")
    faults.freeze(testbed, cgroups, one)
    assert status_of(testbed, cgroups, one).frozen
    # The system of the node takes the connection, as a hung machine's card would; nobody answers.
    assert send(testbed, "server", "pi-1", 10, _SOON_S) is None
    faults.thaw(testbed, cgroups, one)
    assert send(testbed, "server", "pi-1", 10) is not None
    receiver.kill()
    end([receiver])


def test_a_node_without_power_comes_back_empty(testbed: State, cgroups: Cgroups) -> None:
    one = testbed.layout.node("pi-1")
    receiver = start_receiver(testbed, "pi-1")
    faults.kill_node(testbed, cgroups, one)
    end([receiver])
    assert receiver.returncode == -signal.SIGKILL
    assert status_of(testbed, cgroups, one).cut_from == ("all",)
    faults.start_node(testbed, cgroups, one)
    assert status_of(testbed, cgroups, one).cut_from == ()
    receiver = start_receiver(testbed, "pi-1")
    assert send(testbed, "server", "pi-1", 10) is not None
    receiver.kill()
    end([receiver])


def test_what_is_not_there_cannot_be_killed(testbed: State, cgroups: Cgroups) -> None:
    one = testbed.layout.node("pi-1")
    with pytest.raises(TestbedError, match="there is no raylet on pi-1"):
        faults.kill_raylet(testbed, cgroups, one)
    with pytest.raises(TestbedError, match="no process that computes a stage on pi-1"):
        faults.kill_worker(testbed, cgroups, one)
