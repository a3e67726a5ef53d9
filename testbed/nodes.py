"""Running things on a node: in its network, within its limits, as a member of its group."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed.cgroups import Cgroups, end_processes, members, set_frozen
from testbed.commands import run_tool
from testbed.errors import TestbedError
from testbed.layout import Layout, Node
from testbed.network import NAMESPACES
from testbed.state import State, node_folder, ssh_config, token_file

RAY_PORT = 6379
RAY_START_TIMEOUT_S = 120.0

_OBJECT_STORE_BYTES = 80_000_000  # close to the least that Ray takes; tensors never go there
_JOIN = 'until [ "$1" = -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"'


def group_of(layout: Layout, node: Node | None) -> str:
    """The control group of `node`; of what has no limits where None."""
    return f"{layout.prefix}/{'free' if node is None else node.index}"


def command_on(
    state: State, cgroups: Cgroups, node: Node, command: Sequence[str], *, limited: bool = True
) -> list[str]:
    """The command line that runs `command` on `node`.

    It joins the node's group before anything else, so that whatever comes of it ends with the
    testbed.

    Args:
        state: the testbed.
        cgroups: the machine's interface.
        node: where to run it.
        command: what to run, and its arguments.
        limited: with False it has the node's network but not its limits.
    """
    group = group_of(state.layout, node if limited else None)
    files = [str(file) for file in cgroups.member_files(group)]
    pin = ["taskset", "--cpu-list", ",".join(map(str, node.cpus))] if limited else []
    enter = ["nsenter", f"--net={NAMESPACES / node.namespace}", "--"]
    return ["/bin/sh", "-c", _JOIN, "sh", *files, "--", *pin, *enter, *command]


def environment_on(state: State, node: Node) -> dict[str, str]:
    """This process's environment with what differs on `node`.

    A node has a cache folder of its own, as a machine would; Ray is found where it is; programs of
    this Python installation come first.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "XDG_CACHE_HOME": str(node_folder(state.layout, node) / "cache"),
        "RAY_ADDRESS": f"{state.layout.head.address}:{RAY_PORT}",
        "RAY_AUTH_MODE": "token" if state.token else "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if state.ssh:
        environment["CUTSET_SSH_CONFIG"] = str(ssh_config(state.layout.name))
    if state.token:
        environment["RAY_AUTH_TOKEN_PATH"] = str(token_file(state.layout.name))
    return environment


def start_raylet(state: State, cgroups: Cgroups, node: Node) -> None:
    """Starts Ray on `node`; the first node's is the head.

    Raises:
        TestbedError: it does not come up within two minutes.
    """
    folder = node_folder(state.layout, node)
    folder.mkdir(exist_ok=True)
    if node is state.layout.head or node == state.layout.head:
        role = ["--head", "--port", str(RAY_PORT), "--include-dashboard", "false"]
    else:
        role = ["--address", f"{state.layout.head.address}:{RAY_PORT}"]
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start"),
        *role,
        *("--node-ip-address", node.address),
        *("--node-name", node.name),
        *("--num-cpus", str(node.num_threads)),
        *("--num-gpus", "0"),
        *("--resources", json.dumps({f"device:{node.name}": 1})),
        *("--object-store-memory", str(_OBJECT_STORE_BYTES)),
        *("--temp-dir", str(folder)),
        "--disable-usage-stats",
    ]
    environment = environment_on(state, node)
    environment.pop("RAY_ADDRESS")
    try:
        run_tool(
            command_on(state, cgroups, node, command),
            timeout_s=RAY_START_TIMEOUT_S,
            environment=environment,
        )
    except TestbedError as error:
        raise TestbedError(f"Ray does not start on {node.name}: {error}") from error


def end_node(state: State, cgroups: Cgroups, node: Node) -> None:
    """Kills every process of `node`."""
    end_processes(cgroups, group_of(state.layout, node))


def freeze_node(state: State, cgroups: Cgroups, node: Node, frozen: bool) -> None:
    """Stops all processes of `node`, or lets them go on."""
    set_frozen(cgroups, group_of(state.layout, node), frozen)


def processes_on(state: State, cgroups: Cgroups, node: Node) -> dict[int, str]:
    """The processes of `node` by id, each with its command line, or its name where it has none."""
    found = {}
    for pid in sorted(members(cgroups, group_of(state.layout, node))):
        process = Path("/proc") / str(pid)
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[pid] = line.strip() or (process / "comm").read_text(encoding="utf-8").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return found
