"""Building a testbed, removing it, and saying how it is."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from cutset.cluster.devices import Cluster
from testbed import network
from testbed import state as stored
from testbed.cgroups import Cgroups, end_processes, find_cgroups, remove_group
from testbed.commands import require_tools
from testbed.errors import TestbedError
from testbed.layout import RAY_BYTES, layout_of, prefix_of
from testbed.nodes import group_of, start_raylet
from testbed.ssh import SSHD, prepare_ssh, start_sshd
from testbed.state import State, node_folder

_LOG = logging.getLogger(__name__)


def up(
    cluster: Cluster,
    *,
    name: str,
    token: bool = False,
    ray: bool = True,
    ssh: bool = False,
    progress: Callable[[str], None] = _LOG.info,
) -> State:
    """Builds testbed `name` of `cluster`. Whatever ends it early, also Ctrl-C, leaves nothing.

    Args:
        cluster: what to build.
        name: 1 to 12 small letters and digits.
        token: Ray refuses a client that does not show the testbed's token.
        ray: whether to start Ray; without it there are only networks and limits.
        ssh: whether to start an ssh server on every node.
        progress: called with what is done next.

    Raises:
        TestbedError: this machine cannot, there is a testbed of that name, or a step failed.
    """
    require_machine(ray=ray, ssh=ssh)
    layout = layout_of(
        cluster,
        name=name,
        machine_cpus=sorted(os.sched_getaffinity(0)),
        spare_bytes=RAY_BYTES if ray else 0,
    )
    with stored.claimed(name):
        if _remains(name):
            raise TestbedError(f"there is a testbed {name!r}, or what is left of one; take it down")
        state = State(layout=layout, ray=ray, ssh=ssh, token=token, ready=False)
        try:
            stored.save(state)
            _build(state, cluster, progress)
            state = msgspec.structs.replace(state, ready=True)
            stored.save(state)
        except BaseException:
            progress("it did not come up; removing what was made")
            _remove(name)
            raise
    return state


def _build(state: State, cluster: Cluster, progress: Callable[[str], None]) -> None:
    layout, cgroups = state.layout, find_cgroups()
    if state.token:
        path = stored.token_file(layout.name)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="ascii")
    progress(f"a network of {len(layout.nodes)} nodes")
    cgroups.make(group_of(layout, None))
    for node in layout.nodes:
        node_folder(layout, node).mkdir()
        cgroups.make(group_of(layout, node))
        if node.memory_bytes is not None:
            cgroups.limit_memory(group_of(layout, node), node.memory_bytes)
    network.build_network(layout)
    if state.ssh:
        progress("an ssh server on every node")
        prepare_ssh(layout, cluster)
        for node in layout.nodes:
            start_sshd(state, cgroups, node)
    if state.ray:
        progress(f"Ray's head on {layout.head.name}")
        start_raylet(state, cgroups, layout.head)
        others = layout.nodes[1:]
        if others:
            progress(f"Ray on {', '.join(node.name for node in others)}")
            with ThreadPoolExecutor(len(others)) as pool:
                for result in [pool.submit(start_raylet, state, cgroups, n) for n in others]:
                    result.result()
    # Last, so that the start does not take longer on a node with a small share.
    for node in layout.nodes:
        cgroups.limit_processor(group_of(layout, node), node.cores)


def down(name: str) -> bool:
    """Removes testbed `name`, whatever became of it; False where there was nothing to remove.

    Raises:
        TestbedError: something cannot be removed, or the name is none.
    """
    require_machine(ray=False)
    if not _remains(name) and not stored.folder_of(name).exists():
        return False
    with stored.claimed(name):
        _remove(name)
    return True


def _remove(name: str) -> None:
    prefix, cgroups = prefix_of(name), find_cgroups()
    for group in _groups(cgroups, prefix):
        end_processes(cgroups, group)
    remove_group(cgroups, prefix)
    network.remove_network(prefix)
    stored.forget(name)


def _groups(cgroups: Cgroups, prefix: str) -> list[str]:
    inner = {
        f"{prefix}/{path.name}"
        for root in cgroups.folders(prefix)
        if root.is_dir()
        for path in root.iterdir()
        if path.is_dir()
    }
    return sorted(inner)


def _remains(name: str) -> bool:
    """Whether anything of testbed `name` is there, but for an empty folder."""
    prefix = prefix_of(name)
    folder = stored.folder_of(name)
    return bool(
        network.namespaces(prefix)
        or any(path.exists() for path in find_cgroups().folders(prefix))
        or (folder.is_dir() and any(folder.iterdir()))
    )


def require_machine(*, ray: bool, ssh: bool = False) -> None:
    """Says what is missing here, if anything is.

    Raises:
        TestbedError: no Linux, no root, a tool or Ray missing, or no fitting control groups.
    """
    if sys.platform != "linux":
        raise TestbedError(f"a testbed is made of Linux's namespaces; this is {sys.platform}")
    if os.geteuid() != 0:
        raise TestbedError("a testbed needs root: it makes network namespaces; use sudo")
    require_tools("ip", "tc", "nsenter", "taskset")
    find_cgroups()
    if ssh:
        require_tools("ssh", "ssh-keygen", str(SSHD))
    if ray and importlib.util.find_spec("ray") is None:
        raise TestbedError("Ray is missing: install cutset[ray], or use --no-ray")
