"""Building and removing a testbed, whatever happens in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from testbed import state as stored
from testbed.build import down, up
from testbed.cgroups import find_cgroups, members
from testbed.errors import TestbedError
from testbed.network import namespaces

from .clusters import THREE
from .conftest import traces
from .on_nodes import end, send, start_receiver

CLUSTER = cluster_from_toml(THREE)


def test_up_and_down_leave_nothing(name: str) -> None:
    state = up(CLUSTER, name=name, ray=False)
    assert namespaces(f"cutset-{name}-") == [
        f"cutset-{name}-0",
        f"cutset-{name}-1",
        f"cutset-{name}-2",
        f"cutset-{name}-switch",
    ]
    assert stored.load(name) == state
    receiver = start_receiver(state, "pi-1")
    assert members(find_cgroups(), f"cutset-{name}-/1") == {receiver.pid}
    assert down(name)
    end([receiver])
    assert receiver.returncode == -signal.SIGKILL
    assert traces(name) == []
    # Whatever ran for it names its folder or its control groups; a neighbour's testbed is another.
    assert [line for each in psutil.pids() if name in (line := _line(each))] == []
    assert psutil.Process().children(recursive=True) == []
    assert not down(name)


def _line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_a_second_testbed_of_a_name_is_refused_and_the_first_stays(name: str) -> None:
    up(CLUSTER, name=name, ray=False)
    with pytest.raises(TestbedError, match=f"there is a testbed '{name}'"):
        up(CLUSTER, name=name, ray=False)
    assert stored.load(name).ready
    down(name)


def test_two_testbeds_do_not_meet(name: str) -> None:
    other = f"{name}b"
    first, second = up(CLUSTER, name=name, ray=False), up(CLUSTER, name=other, ray=False)
    receivers = [start_receiver(first, "pi-1"), start_receiver(second, "pi-1")]
    try:
        assert send(first, "server", "pi-1", 1000) is not None
        down(other)
        assert traces(other) == []
        assert receivers[1].wait(10) == -signal.SIGKILL
        assert send(first, "server", "pi-1", 1000) is not None
    finally:
        down(other)
        down(name)
        end(receivers)


# A background job, as tests may be, begins with Ctrl-C ignored, and so do its children.
_TESTBED = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("testbed", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_up_that_is_cut_short(
    name: str, repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "cluster.toml").write_text(THREE)
    process = subprocess.Popen(
        [sys.executable, "-c", _TESTBED, "up", str(tmp_path / "cluster.toml"), "--name", name],
        cwd=repository,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "a network of 3 nodes\n"
    assert process.stderr.readline() == "Ray's head on server\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(TestbedError, match="was not built to its end; take it down"):
            stored.load(name)
        with pytest.raises(TestbedError, match="or what is left of one; take it down"):
            up(CLUSTER, name=name, ray=False)
        assert down(name)
    else:
        assert process.returncode == 130
    assert traces(name) == []


def test_a_step_that_fails_undoes_the_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(layout: object) -> None:
        assert len(traces(name)) > 1
        raise TestbedError("no bridges today")

    monkeypatch.setattr("testbed.network.build_network", refuse)
    with pytest.raises(TestbedError, match="no bridges today"):
        up(CLUSTER, name=name, ray=False)
    assert traces(name) == []


def test_the_command_line(name: str, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(THREE)

    def testbed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command, *rest = arguments
        return subprocess.run(
            [sys.executable, "-m", "testbed", command, "--name", name, *rest],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=60,
        )

    missing = testbed("status")
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"error: there is no testbed '{name}'")
    made = testbed("up", str(tmp_path / "cluster.toml"), "--no-ray")
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[1].split(", ") == [
        "pi-1         10.77.0.2         50% of a core",
        "0 of 64 MiB",
        "0 processes",
        "no raylet",
    ]
    assert "10.77.0.2/32" in testbed("exec", "pi-1", "ip", "-brief", "address").stdout
    assert testbed("exec", "pi-1", "sh", "-c", "exit 7").returncode == 7
    assert testbed("fault", "cut", "pi-2").returncode == 0
    assert testbed("status").stdout.splitlines()[2].endswith("cut off from all")
    wrong = testbed("fault", "freeze", "pi-2", "pi-1")
    assert wrong.stderr == "error: freeze is done to one node, not between two\n"
    assert testbed("down").returncode == 0
    again = testbed("down")
    assert (again.returncode, again.stderr) == (0, f"there is no testbed '{name}'\n")


def test_a_claim_is_waited_for_but_not_for_ever(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_CLAIM_TIMEOUT_S", 0.2)
    with (
        stored.claimed(name),
        pytest.raises(TestbedError, match=f"another command builds or removes testbed '{name}'"),
    ):
        up(CLUSTER, name=name, ray=False)
    down(name)
