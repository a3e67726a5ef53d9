"""Which lines of code count as the user's own, and which one made an operation."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.fx import Node

_TORCH_FOLDER = Path(torch.__file__).parent


def is_library_file(filename: str) -> bool:
    """Whether a file belongs to torch itself or to this package, or is code made at run time."""
    path = Path(filename)
    own = Path(__file__).parent.parent
    return (
        path.is_relative_to(_TORCH_FOLDER) or path.is_relative_to(own) or filename.startswith("<")
    )


def source_line(node: Node) -> str:
    """File name and line of the innermost code outside torch that made the call."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if not is_library_file(file)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
