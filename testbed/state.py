"""What is kept of a testbed between commands: one folder with one file, and the nodes' own files.

Names are derived from the testbed's name alone, so `down` finds what is to be removed even where
the file was never written to its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from testbed.errors import TestbedError
from testbed.layout import Layout, Node, prefix_of

ROOT = Path("/var/lib/cutset-testbed")
"""Short, because Ray keeps sockets below it and their paths may have 107 characters."""

_FORMAT = "cutset-testbed/1"
_CLAIM_TIMEOUT_S = 5.0
_CLAIM_PAUSE_S = 0.05


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A testbed as later commands need to know it.

    Attributes:
        format: ``"cutset-testbed/1"``.
        layout: what it is made of.
        ray: whether the nodes run Ray.
        ssh: whether the nodes run an ssh server.
        token: whether Ray asks every client for the token in `token_file`.
        ready: False while it is being built, and for ever where that was cut short.
    """

    format: str = _FORMAT
    layout: Layout
    ray: bool
    ssh: bool = False
    token: bool
    ready: bool


def folder_of(name: str) -> Path:
    """Where testbed `name` keeps its files."""
    prefix_of(name)  # a name that is none must not become a path
    return ROOT / name


def node_folder(layout: Layout, node: Node) -> Path:
    """Where `node` keeps its files: Ray's session, and its cache of shards."""
    return folder_of(layout.name) / str(node.index)


def token_file(name: str) -> Path:
    """The token of testbed `name`."""
    return folder_of(name) / "token"


def ssh_key(name: str) -> Path:
    """The key with which the caller logs in to the nodes of testbed `name`."""
    return folder_of(name) / "key"


def ssh_config(name: str) -> Path:
    """The caller's settings for ssh in testbed `name`."""
    return folder_of(name) / "ssh_config"


def cluster_file(name: str) -> Path:
    """The cluster file with which the engine `ssh` runs on testbed `name`."""
    return folder_of(name) / "cluster.toml"


def names() -> list[str]:
    """Names of the testbeds that have a folder."""
    return sorted(path.name for path in ROOT.iterdir()) if ROOT.is_dir() else []


def save(state: State) -> None:
    """Writes the state; a reader sees the old one or the new one."""
    path = folder_of(state.layout.name) / "testbed.json"
    draft = path.with_suffix(".draft")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
    draft.replace(path)


def load(name: str) -> State:
    """Reads the state of testbed `name`, which must stand.

    Raises:
        TestbedError: there is no such testbed, it was not built to its end, or the file is spoilt.
    """
    path = folder_of(name) / "testbed.json"
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        known = ", ".join(names())
        raise TestbedError(
            f"there is no testbed {name!r}; " + (f"there is {known}" if known else "none is up")
        ) from None
    except msgspec.DecodeError as error:
        raise TestbedError(f"{path} cannot be read: {error}; take the testbed down") from error
    if not state.ready:
        raise TestbedError(f"testbed {name!r} was not built to its end; take it down")
    return state


@contextlib.contextmanager
def claimed(name: str) -> Iterator[None]:
    """Keeps other commands from building or removing testbed `name` at the same time.

    Raises:
        TestbedError: one is at it.
    """
    folder = folder_of(name)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _locked(handle):
            raise TestbedError(
                f"another command builds or removes testbed {name!r}; waited for it for"
                f" {_CLAIM_TIMEOUT_S:g} s"
            )
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Locks a folder for this process, within the time limit.

    The lock of a command that was killed may stay for a moment: a child that it had just forked
    holds the folder open until it has become the tool that was to be run.
    """
    deadline_s = time.monotonic() + _CLAIM_TIMEOUT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # noqa: PERF203  # some times a second
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_CLAIM_PAUSE_S)
        else:
            return True


def forget(name: str) -> None:
    """Removes the files of testbed `name`, and the common folder with the last one."""
    shutil.rmtree(folder_of(name), ignore_errors=False)
    with contextlib.suppress(OSError):  # another testbed has files there
        ROOT.rmdir()
