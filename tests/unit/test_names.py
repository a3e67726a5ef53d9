"""A name means one thing: no two types and no two modules under src/cutset share one."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cutset

SOURCE = Path(cutset.__file__).parent
# Its options are called as what they choose.
OF_THE_COMMAND_LINE = SOURCE / "cli"
WITH_TORCH = "torch"  # a folder for what needs torch, within a room that does not


def types_in(path: Path) -> Iterator[str]:
    """The public classes and aliases of types at the top of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
            name = ast.unparse(node.target)
        else:
            continue
        if not name.startswith("_"):
            yield name


def modules_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every module and package, by its own name."""
    for path in sorted(folder.rglob("*.py")):
        if path.name == "__init__.py":
            yield path.parent.name, path.parent
        elif path.name != "__main__.py":
            yield path.stem, path


def shared(pairs: Iterator[tuple[str, Path]]) -> dict[str, list[str]]:
    """The names that several places have, with the places."""
    places = defaultdict(list)
    for name, path in pairs:
        places[name].append(str(path))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_types_share_a_name() -> None:
    files = [path for path in SOURCE.rglob("*.py") if OF_THE_COMMAND_LINE not in path.parents]
    found = shared((name, path) for path in files for name in types_in(path))
    found.pop("StageProgram", None)  # bundles/open.py's goes with the registry of backends
    assert found == {}


def test_no_two_modules_share_a_name() -> None:
    assert shared((name, path) for name, path in modules_in(SOURCE) if name != WITH_TORCH) == {}


def test_what_shares_a_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "__init__.py").write_text("")
    (tmp_path / "one" / "two.py").write_text("class A: ...\nclass _B: ...\nC: TypeAlias = int\n")
    (tmp_path / "two.py").write_text("class C: ...\nclass _B: ...\n")
    assert shared(modules_in(tmp_path)).keys() == {"two"}
    files = sorted(tmp_path.rglob("*.py"))
    assert shared((name, path) for path in files for name in types_in(path)).keys() == {"C"}
