"""``python -m testbed``: parse, call, print, exit code (0, 1 for an error, 2 for wrong usage)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import testbed
from cutset.cluster.cluster_file import load_cluster
from cutset.errors import CutsetError
from testbed import faults
from testbed.build import down, require_machine, up
from testbed.cgroups import find_cgroups
from testbed.emulated import make_board
from testbed.errors import TestbedError
from testbed.nodes import command_on, environment_on
from testbed.state import cluster_file, load, names, ssh_config
from testbed.status import describe, status_of

_FAULTS = {
    "kill-worker": "kill the processes on NODE that compute a stage",
    "kill-raylet": "kill Ray's daemon on NODE",
    "kill-node": "NODE loses its power",
    "start": "NODE is switched on again",
    "cut": "lose what NODE sends and gets, or only what it and OTHER send each other",
    "mend": "undo cut",
    "freeze": "stop every process of NODE",
    "thaw": "undo freeze",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (TestbedError, CutsetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _up(options: argparse.Namespace) -> int:
    cluster = load_cluster(options.cluster)
    state = up(
        cluster,
        name=options.name,
        token=options.token,
        ray=not (options.no_ray or options.ssh),
        ssh=options.ssh,
        progress=lambda text: print(text, file=sys.stderr),
    )
    for notice in state.layout.notices:
        print(f"notice: {notice}", file=sys.stderr)
    code = _show(options.name)
    if options.ssh:
        print(f"cluster file: {cluster_file(options.name)}")
        print(f"ssh's settings: {ssh_config(options.name)}")
    return code


def _status(options: argparse.Namespace) -> int:
    if options.json:
        state, cgroups = load(options.name), find_cgroups()
        nodes = [status_of(state, cgroups, node) for node in state.layout.nodes]
        document = {"testbed": state, "nodes": nodes}
        print(msgspec.json.format(msgspec.json.encode(document)).decode())
        return 0
    return _show(options.name)


def _show(name: str) -> int:
    state, cgroups = load(name), find_cgroups()
    for node in state.layout.nodes:
        print(describe(status_of(state, cgroups, node)))
    for rate in state.layout.rates:
        print(f"{rate.source} -> {rate.target}: {rate.bytes_per_s * 8e-6:g} Mbit/s")
    for wire in state.layout.shared:
        on = f" of {', '.join(wire.nodes)}" if wire.kind == "medium" else ""
        print(f"{wire.name}{on}: {wire.bytes_per_s * 8e-6:g} Mbit/s")
    return 0


def _exec(options: argparse.Namespace) -> int:
    require_machine(ray=False)
    state = load(options.name)
    node = state.layout.node(options.node)
    if options.command[:1] == ["--"]:
        del options.command[0]
    line = command_on(state, find_cgroups(), node, options.command, limited=not options.unlimited)
    sys.stdout.flush()
    os.execve(line[0], line, environment_on(state, node))  # noqa: S606 (the user's own command)


def _down(options: argparse.Namespace) -> int:
    if not down(options.name):
        print(f"there is no testbed {options.name!r}", file=sys.stderr)
    return 0


def _board(options: argparse.Namespace) -> int:
    python = make_board(options.root, lambda text: print(text, file=sys.stderr))
    print(f'python = "{python}"')
    return 0


def _list(options: argparse.Namespace) -> int:
    del options
    for name in names():
        print(name)
    return 0


def _fault(options: argparse.Namespace) -> int:
    require_machine(ray=False)
    state, cgroups = load(options.name), find_cgroups()
    node = state.layout.node(options.node)
    other = None if options.other is None else state.layout.node(options.other)
    if other is not None and options.fault not in ("cut", "mend"):
        raise TestbedError(f"{options.fault} is done to one node, not between two")
    if options.fault in ("cut", "mend"):
        (faults.cut if options.fault == "cut" else faults.mend)(state, node, other)
        return 0
    actions = {
        "kill-worker": faults.kill_worker,
        "kill-raylet": faults.kill_raylet,
        "kill-node": faults.kill_node,
        "start": faults.start_node,
        "freeze": faults.freeze,
        "thaw": faults.thaw,
    }
    actions[options.fault](state, cgroups, node)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m testbed",
        description=testbed.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--name", default="main", help="which testbed (default: main)")
        sub.set_defaults(run=run)
        return sub

    sub = command("up", _up, "build what a cluster file describes")
    sub.add_argument("cluster", help="the cluster file")
    sub.add_argument("--token", action="store_true", help="Ray asks every client for a token")
    sub.add_argument("--ssh", action="store_true", help="an ssh server on every node, and no Ray")
    sub.add_argument("--no-ray", action="store_true", help="networks and limits only")
    sub = command("status", _status, "show nodes and links")
    sub.add_argument("--json", action="store_true", help="as one JSON document")
    sub = command("exec", _exec, "run a command on a node, within its limits")
    sub.add_argument("--unlimited", action="store_true", help="the node's network, not its limits")
    sub.add_argument("node")
    sub.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND ...",
        help="a shell where there is none",
    )
    command("down", _down, "remove everything")
    sub = command("board", _board, "make a folder an aarch64 board that qemu runs (Debian)")
    sub.add_argument("root", type=Path, metavar="ROOT")
    command("list", _list, "names of the testbeds on this machine")
    sub = command("fault", _fault, "break something")
    sub.add_argument(
        "fault", choices=_FAULTS, help="; ".join(f"{k}: {v}" for k, v in _FAULTS.items())
    )
    sub.add_argument("node", metavar="NODE")
    sub.add_argument("other", nargs="?", metavar="OTHER")
    return parser


if __name__ == "__main__":
    sys.exit(main())
