"""The code blocks of a Markdown page, and the remarks that stand above them.

A remark is a comment in the page, which no reader sees:

``<!-- skip: next "reason" -->``
    the block is not run;
``<!-- output varies: reason -->``
    it is run, its output is not compared;
``<!-- ends with: 3 -->``
    its last command has this exit code instead of 0;
``<!-- on: pi-1, pi-2 -->``
    it is typed on these hosts; ``tests/beds/test_tutorial.py`` has them;
``<!-- serves: reason -->``
    its last command, or all of it where it is Python, is a server. It runs on a port that the
    system chooses until the page ends, and in what follows its address stands for the page's.

A line ``...`` in an output stands for any lines, also none. A block with ``title="NAME"`` is
written to that file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

_FENCE = re.compile(r"^```(\w*) *(.*)$")
_REMARK = re.compile(r"^<!-- (skip|output varies|ends with|on|serves): (.*) -->$")
_REMARKS = ("<!-- skip", "<!-- output", "<!-- ends", "<!-- on", "<!-- serves")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its fence, from 1.
        language: such as ``"console"``.
        lines: what is in it.
        title: the file that it is, or ``""``.
        skip: why it is not run, or ``""``.
        output_varies: whether its output is not compared.
        code: exit code of the last command.
        hosts: where it is typed; here where there are none.
        serves: whether it starts a server, which runs until the page ends.
    """

    line: int
    language: str
    lines: tuple[str, ...]
    title: str = ""
    skip: str = ""
    output_varies: bool = False
    code: int = 0
    hosts: tuple[str, ...] = ()
    serves: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A line behind ``$``, the ``>`` lines that go on with it, and what it is said to print."""

    text: str
    output: tuple[str, ...]


def blocks_of(path: Path) -> list[Block]:
    """All blocks of a page, in order; a remark that nothing understands is an error."""
    found: list[Block] = []
    remarks: dict[str, str] = {}
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        remark = _REMARK.match(line)
        fence = _FENCE.match(line)
        if remark:
            remarks[remark[1]] = remark[2]
        elif line.startswith(_REMARKS):
            raise ValueError(f"{path}:{number}: a remark that is none: {line}")
        elif fence:
            inside: list[str] = []
            for _, text in lines:
                if text == "```":
                    break
                inside.append(text)
            title = re.search(r'title="([^"]+)"', fence[2])
            found.append(
                Block(
                    line=number,
                    language=fence[1],
                    lines=tuple(inside),
                    title=title[1] if title else "",
                    skip=remarks.get("skip", ""),
                    output_varies="output varies" in remarks,
                    code=int(remarks.get("ends with", "0")),
                    hosts=tuple(remarks["on"].split(", ")) if "on" in remarks else (),
                    serves="serves" in remarks,
                )
            )
            remarks = {}
        elif line and remarks:
            raise ValueError(f"{path}:{number}: a remark stands above no block: {remarks}")
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block and the output of each."""
    commands: list[tuple[list[str], list[str]]] = []
    for line in block.lines:
        if line.startswith("$ "):
            commands.append(([line[2:]], []))
        elif line.startswith("> ") and not commands[-1][1]:
            commands[-1][0].append(line[2:])
        else:
            commands[-1][1].append(line)
    return [
        Command(text="\n".join(text).replace("\\\n", ""), output=tuple(out))
        for text, out in commands
    ]


def agrees(expected: Sequence[str], actual: str) -> bool:
    """Whether an output is as the page says, with ``...`` for any lines."""
    runs: list[list[str]] = [[]]
    for line in expected:
        if line.strip() == "...":
            runs.append([])
        else:
            runs[-1].append(line.rstrip())
    lines = [line.rstrip() for line in actual.strip("\n").splitlines()]
    if len(runs) == 1:
        return lines == runs[0]
    if lines[: len(runs[0])] != runs[0]:
        return False
    at = len(runs[0])
    for run in runs[1:-1]:
        starts = range(at, len(lines) - len(run) + 1)
        start = next((k for k in starts if lines[k : k + len(run)] == run), None)
        if start is None:
            return False
        at = start + len(run)
    last = runs[-1]
    return len(lines) - len(last) >= at and lines[len(lines) - len(last) :] == last
