"""Talks with a measuring program, as `cutset.measure.link_speed.Conversation` wants it."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Mapping, Sequence


class Talk:
    """With a process of its own, over its input and output.

    Args:
        command: what to start.
        environment: of the process; this one's if None.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def hear(self) -> list[str]:
        """The lines that came, after waiting for some a little."""
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], 0.05)[0]
        return os.read(ready[0].fileno(), 1 << 20).decode().splitlines() if ready else []

    def tell(self, line: str) -> None:
        """Writes a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
