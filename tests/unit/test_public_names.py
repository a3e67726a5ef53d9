"""What docs, examples and the command line use is public, and is on the page that says so."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cutset

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def _sources() -> Iterator[tuple[str, str, bool]]:
    """Where, the source, and whether a reader learns from it what to import."""
    for path in sorted((ROOT / "src/cutset/cli").glob("*.py")):
        yield path.name, path.read_text(), False
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path.name, path.read_text(), True
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for match in BLOCK.finditer(path.read_text()):
            lines = match[2].splitlines()
            line = path.read_text()[: match.start()].count("\n") + 1
            yield f"{path.name}:{line}", "\n".join(x[len(match[1]) :] for x in lines), True


SOURCES = list(_sources())


def _imports(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import from Cutset."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cutset":
            for alias in node.names:
                yield node.module or "", alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("cutset."):
                    yield alias.name, ""


def test_there_is_something_to_read() -> None:
    assert sum(not teaches for _, _, teaches in SOURCES) > 5
    assert sum(bool(list(_imports(source))) for _, source, _ in SOURCES) > 10


@pytest.mark.parametrize(("where", "source", "teaches"), SOURCES, ids=[each[0] for each in SOURCES])
def test_nothing_private_is_imported(where: str, source: str, teaches: bool) -> None:
    for module, name in _imports(source):
        parts = [*module.split("."), name]
        assert not any(part.startswith("_") and part != "__version__" for part in parts), where
        if teaches and module != "cutset":
            assert name, f"{where}: import names from cutset, not {module}"
            assert name not in cutset.__all__, f"{where}: {name} is imported as cutset.{name}"
            public = getattr(importlib.import_module(module), "__all__", None)
            assert public is None or name in public, where


@pytest.mark.parametrize(
    ("where", "source"), [each[:2] for each in SOURCES if each[2]], ids=lambda each: each[:20]
)
def test_what_is_taken_from_the_package_is_there(where: str, source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        is_ours = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if is_ours and node.value.id == "cutset" and "import cutset" in source:
            assert hasattr(cutset, node.attr), f"{where}: cutset.{node.attr}"


def test_the_page_of_the_api_has_every_public_name_and_nothing_else_is_shown_there() -> None:
    page = re.findall(r"^::: (cutset\.[\w.]+)\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(name for _, name in page) == sorted(set(cutset.__all__) - {"__version__"})
    for module, name in page:
        assert getattr(importlib.import_module(module), name) is getattr(cutset, name)


def test_type_checkers_are_told_of_the_same_names() -> None:
    tree = ast.parse(Path(cutset.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(told) == set(cutset.__all__) - {"__version__"}
    for name, module in told.items():
        assert module is not None
        assert getattr(importlib.import_module(module), name) is getattr(cutset, name)
