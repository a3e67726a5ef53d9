"""Which lines of code are the user's own, which one made an operation, how a place is said."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node


def is_library_file(filename: str) -> bool:
    """Whether a file belongs to torch itself or to this package, or is code made at run time."""
    path = Path(filename)
    own = Path(__file__).parent.parent
    torch = Path(sys.modules["torch"].__file__ or "").parent  # which ran the file
    return path.is_relative_to(torch) or path.is_relative_to(own) or filename.startswith("<")


def source_line(node: Node) -> str:
    """File name and line of the innermost code outside torch that made the call."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if not is_library_file(file)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def place_in_words(module_path: str | None, source: str | None, operation: str | None) -> str:
    """Module, source line and operation, as far as they are known; begins with a space."""
    return "".join(
        (
            f" in module {module_path!r}" if module_path else "",
            f" at {source}" if source else "",
            f", operation {operation}" if operation else "",
        )
    )
