"""The table of `cutset hosts check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cutset.report.text import format_bytes, format_seconds

if TYPE_CHECKING:
    from cutset.engines.ssh.check import HostState, WireState


def print_hosts(console: Console, states: Sequence[HostState]) -> None:
    """Prints a row for each device, and below it what to mend between them."""
    table = Table(box=None, pad_edge=False)
    for name in ("device", "Python", "cores", "free", "backends", "to the others"):
        table.add_column(name, overflow="fold")
    for state in states:
        if state.trouble is not None:
            table.add_row(state.name, "-", "-", "-", "-", state.trouble.text)
            continue
        first, *others = [_in_words(wire) for wire in state.wires] or [""]
        table.add_row(
            state.name,
            state.python,
            str(state.num_cores),
            format_bytes(state.memory_bytes or 0),
            ", ".join(state.backends),
            first,
        )
        for other in others:
            table.add_row("", "", "", "", "", other)
    console.print(table)
    for state in states:
        for wire in state.wires:
            if wire.problem:
                console.print(f"{state.name} -> {wire.target}: {wire.problem}")


def _in_words(wire: WireState) -> str:
    if wire.bytes_per_s is None or wire.latency_s is None:
        return f"{wire.target}: not reached"
    rate = wire.bytes_per_s * 8e-6
    return f"{wire.target}: {rate:.3g} Mbit/s, {format_seconds(wire.latency_s)}"
