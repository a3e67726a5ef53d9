"""The picture of what imports what: it holds every room, and its arrows are true."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
try:
    from architecture import (
        PICTURE,
        Architecture,
        Room,
        draw,
        lanes,
        layers,
        read,
        without_detours,
    )
finally:
    sys.path.remove(str(ROOT / "docs"))

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def here() -> Architecture:
    return read()


def _made(rows: tuple[tuple[str, ...], ...], imports: set[tuple[str, str]]) -> Architecture:
    rooms = {
        name: Room(name=name, is_folder=True, num_modules=2, about="Says & does", is_heavy=False)
        for row in (*rows, ("base",))
        for name in row
    }
    return Architecture(rows=rows, common=("base",), rooms=rooms, imports=frozenset(imports))


def test_every_room_of_the_tree_is_in_the_picture_once(here: Architecture) -> None:
    there = {
        path.name.removesuffix(".py")
        for path in (ROOT / "src/cutset").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").is_file()) and path.name[0] != "_"
    }
    drawn = [name for row in here.rows for name in row] + list(here.common)
    assert sorted(drawn) == sorted(there)
    root = ET.fromstring(draw(here))
    names = [each.text for each in root.iter(f"{SVG}text") if each.get("class") == "name"]
    text = " ".join(filter(None, names))
    assert [name for name in there if not re.search(rf"\b{name}(/|\.py)", text)] == []


def test_all_arrows_point_down_and_are_imports(here: Architecture) -> None:
    level = {name: number for number, row in enumerate(here.rows) for name in row}
    assert len(here.imports) > 30
    assert [(a, b) for a, b in here.imports if level[a] >= level[b]] == []
    titles = [title.text for title in ET.fromstring(draw(here)).iter(f"{SVG}title")]
    assert len(titles) == len(without_detours(here.imports))
    for above, under in without_detours(here.imports):
        folder = ROOT / "src/cutset" / above
        files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
        wanted = re.compile(rf"(from|import) cutset(\.| import .*\b){under}\b")
        assert any(wanted.search(file.read_text("utf-8")) for file in files), (above, under)


def test_rooms_that_import_torch_are_marked(here: Architecture) -> None:
    assert here.rooms["capture"].is_heavy
    assert not here.rooms["planning"].is_heavy
    assert not here.rooms["graph"].is_heavy
    boxes = [each.get("class") for each in ET.fromstring(draw(here)).iter(f"{SVG}rect")]
    heavy = sum(room.is_heavy for name, room in here.rooms.items() if name not in here.common)
    assert boxes.count("box heavy") == heavy + 1  # and the one that says what the colour means


def test_only_the_longest_ways_are_drawn() -> None:
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d"), ("e", "d")}
    assert without_detours(frozenset(edges)) == [("a", "b"), ("b", "c"), ("c", "d"), ("e", "d")]


def test_ways_beside_each_other_never_share_a_lane() -> None:
    spans = [(0, 4), (1, 3), (3, 5), (4, 6), (0, 6)]
    chosen = lanes(spans)
    for one in range(len(spans)):
        for other in range(one):
            meet = spans[one][0] < spans[other][1] and spans[other][0] < spans[one][1]
            assert not meet or chosen[one] != chosen[other]
    assert chosen[1] == 0  # the shortest lies nearest


def test_words_are_words_and_a_long_way_goes_around() -> None:
    made = _made((("a",), ("b", "x"), ("c",)), {("a", "b"), ("a", "x"), ("x", "c"), ("a", "c")})
    assert "Says &amp; does" in draw(made)
    assert "a/ imports c/" not in draw(made)
    around = _made((("a",), ("b",), ("c",)), {("a", "c")})
    (way,) = [
        each for each in ET.fromstring(draw(around)).iter(f"{SVG}path") if not each.get("class")
    ]
    assert re.fullmatch(r"M[\d.]+ [\d.]+V[\d.]+H[\d.]+V[\d.]+H[\d.]+V[\d.]+", way.get("d") or "")


def test_layers_come_from_the_contract(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.importlinter.contracts]]\ntype = "forbidden"\n'
        '[[tool.importlinter.contracts]]\ntype = "layers"\nlayers = ["a", "b | c : d"]\n'
    )
    assert layers(tmp_path) == [("a",), ("b", "c", "d")]


def test_the_page_names_rooms_that_there_are(here: Architecture) -> None:
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)(?:/|\.py)`", text))
    assert len(named) > 10
    assert named - set(here.rooms) == set()
    assert f"({PICTURE})" in text
