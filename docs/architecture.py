"""Draws what imports what: the picture of the page "How it works", made while the site is built.

Rooms are the folders and files directly under ``src/cutset``, in the layers of import-linter's
contract in ``pyproject.toml``. Arrows are imports between rooms; one that others say together is
left out. ``python docs/architecture.py FILE.svg`` writes the picture alone.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import grimp
from mkdocs.structure.files import File, Files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = "cutset"
PICTURE = "images/architecture.svg"
HEAVY = "torch"
"""The package whose users are marked: what runs should need it as little as can be."""

WIDTH, LANE, MARGIN = 880, 14, 20
BOX_WIDTH, BOX_HEIGHT, BETWEEN = 440, 58, 18
LETTER = 6.4  # width of a letter of the descriptions, a little more than it is
STYLE = """
.back{fill:#fff}.box{fill:#f4f6f9;stroke:#5b6b7b}.heavy{fill:#fff1e3;stroke:#b25a00}
text{font:12px system-ui,sans-serif;fill:#3a4754}
.name{font:bold 14px ui-monospace,monospace;fill:#111a22}
path{fill:none;stroke:#7b8a99;stroke-width:1.4}.tip{fill:#7b8a99;stroke:none}
@media(prefers-color-scheme:dark){.back{fill:#1b222a}.box{fill:#27313b;stroke:#8fa1b3}
.heavy{fill:#43301c;stroke:#f0a04b}text{fill:#c9d3dc}.name{fill:#fff}path{stroke:#8394a5}
.tip{fill:#8394a5;stroke:none}}
"""

Edge = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """A folder or a file directly under the package.

    Attributes:
        name: as imports say it.
        is_folder: whether it is a folder.
        num_modules: files in it.
        about: the first sentence of its docstring.
        is_heavy: whether something in it imports torch.
    """

    name: str
    is_folder: bool
    num_modules: int
    about: str
    is_heavy: bool

    @property
    def title(self) -> str:
        """Its name as a person sees it in the tree."""
        return f"{self.name}/" if self.is_folder else f"{self.name}.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is drawn.

    Attributes:
        rows: names of rooms by layer, the highest first.
        common: the files under the lowest folder, which everything may use.
        rooms: every room by its name.
        imports: pairs of rooms of `rows` whose first imports the second.
    """

    rows: tuple[tuple[str, ...], ...]
    common: tuple[str, ...]
    rooms: Mapping[str, Room]
    imports: frozenset[Edge]


def layers(root: Path = ROOT) -> list[tuple[str, ...]]:
    """The layers that import-linter holds, the highest first."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (found,) = [each["layers"] for each in contracts if each["type"] == "layers"]
    return [tuple(name.strip() for name in row.replace(":", "|").split("|")) for row in found]


def read(root: Path = ROOT) -> Architecture:
    """Reads layers, rooms and imports."""
    graph = grimp.build_graph(
        PACKAGE, include_external_packages=True, exclude_type_checking_imports=True
    )
    rows = layers(root)
    names = {name for row in rows for name in row}
    rooms = {name: room(root, name, graph) for name in names}
    lowest = max(number for number, row in enumerate(rows) if any(rooms[n].is_folder for n in row))
    common = tuple(name for row in rows[lowest + 1 :] for name in row)
    pairs = {
        (room_of(module), room_of(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    drawn = names - set(common)
    return Architecture(
        rows=tuple(rows[: lowest + 1]),
        common=common,
        rooms=rooms,
        imports=frozenset((a, b) for a, b in pairs if a != b and {a, b} <= drawn),
    )


def room_of(module: str) -> str:
    """The room of a module of the package; ``""`` for the package itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else ""


def room(root: Path, name: str, graph: grimp.ImportGraph) -> Room:
    """A room as it stands in the tree."""
    folder = root / "src" / PACKAGE / name
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    words = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    inside = {module for module in graph.modules if room_of(module) == name}
    return Room(
        name=name,
        is_folder=folder.is_dir(),
        num_modules=len(inside),
        about=" ".join(words.partition("\n\n")[0].replace("`", "").split()).removesuffix("."),
        is_heavy=HEAVY in graph.modules
        and bool(inside & graph.find_modules_that_directly_import(HEAVY)),
    )


def without_detours(imports: frozenset[Edge]) -> list[Edge]:
    """The arrows that no others say together: a direct one goes where there is a longer way."""
    below: dict[str, set[str]] = {}
    for above, under in imports:
        below.setdefault(above, set()).add(under)

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for each in below.get(waiting.pop(), ()):
                if each not in found:
                    found.add(each)
                    waiting.append(each)
        return found

    ways = {name: reached(name) for name in below}
    return sorted(
        (above, under)
        for above, under in imports
        if not any(under in ways.get(other, ()) for other in below[above] - {under})
    )


def lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """A lane for each span of rows, the same for spans that do not meet; shorter ones inside."""
    taken: list[list[tuple[int, int]]] = []
    chosen = [0] * len(spans)
    for index in sorted(range(len(spans)), key=lambda i: (spans[i][1] - spans[i][0], spans[i])):
        first, last = spans[index]
        free = [all(last <= a or b <= first for a, b in held) for held in taken]
        chosen[index] = free.index(True) if True in free else len(taken)
        taken += [[]] if True not in free else []
        taken[chosen[index]].append(spans[index])
    return chosen


def draw(what: Architecture) -> str:
    """The picture as SVG."""
    arrows = without_detours(what.imports)
    level = {name: number for number, row in enumerate(what.rows) for name in row}
    long = [(a, b) for a, b in arrows if level[b] - level[a] > 1]
    lane = dict(zip(long, lanes([(level[a], level[b]) for a, b in long]), strict=True))
    side = (max(lane.values(), default=0) + 2) * LANE
    leaving, coming = ends(arrows, level, lane)
    gaps = [
        26 + 7 * sum(level[a] == number or level[b] == number + 1 for a, b in long)
        for number in range(len(what.rows))
    ]
    tops = [MARGIN + sum(gaps[:number]) + number * BOX_HEIGHT for number in range(len(what.rows))]
    place = {}
    for number, row in enumerate(what.rows):
        wide = min(BOX_WIDTH, (WIDTH - 2 * MARGIN - side - BETWEEN * (len(row) - 1)) / len(row))
        start = (
            MARGIN + (WIDTH - 2 * MARGIN - side - wide * len(row) - BETWEEN * (len(row) - 1)) / 2
        )
        for index, name in enumerate(row):
            place[name] = (start + index * (wide + BETWEEN), tops[number], wide)

    def port(name: str, arrow: Edge, order: Mapping[str, list[Edge]]) -> float:
        left, _, wide = place[name]
        # Two long ways never go down at one place: one that leaves is aside of one that comes.
        aside = 0 if arrow not in lane else -9 if order is leaving else 9
        return left + aside + wide * (order[name].index(arrow) + 1) / (len(order[name]) + 1)

    used: dict[int, int] = {}

    def height(gap: int) -> float:
        used[gap] = used.get(gap, 0) + 1
        return tops[gap] + BOX_HEIGHT + 8 + 7 * used[gap]

    body = []
    for arrow in sorted(arrows, key=lambda each: -lane.get(each, -1)):
        a, b = arrow
        x, y = port(a, arrow, leaving), tops[level[a]] + BOX_HEIGHT
        to_x, to_y = port(b, arrow, coming), tops[level[b]] - 7
        if arrow in lane:
            out = WIDTH - MARGIN - side + (lane[arrow] + 1.5) * LANE
            turn, back = height(level[a]), height(level[b] - 1)
            way = f"M{x:.1f} {y}V{turn}H{out}V{back}H{to_x:.1f}V{to_y}"
        else:
            middle = (y + to_y) / 2
            way = f"M{x:.1f} {y}C{x:.1f} {middle} {to_x:.1f} {middle} {to_x:.1f} {to_y}"
        words = f"{what.rooms[a].title} imports {what.rooms[b].title}"
        tip = f"M{to_x:.1f} {to_y + 7}l-4 -8h8z"
        body.append(f'<g><title>{words}</title><path d="{way}"/><path class="tip" d="{tip}"/></g>')
    body += [box(what.rooms[name], *place[name]) for name in place]
    bottom = tops[-1] + BOX_HEIGHT + 36
    body += foundation(what, bottom)
    return page(body, bottom + 132)


def ends(
    arrows: Sequence[Edge], level: Mapping[str, int], lane: Mapping[Edge, int]
) -> tuple[dict[str, list[Edge]], dict[str, list[Edge]]]:
    """The arrows that leave each room and that come to it, from left to right: long ones last."""
    leaving: dict[str, list[Edge]] = {}
    coming: dict[str, list[Edge]] = {}
    for arrow in sorted(arrows, key=lambda each: (lane.get(each, -1), level[each[1]], each)):
        leaving.setdefault(arrow[0], []).append(arrow)
        coming.setdefault(arrow[1], []).append(arrow)
    return leaving, coming


def box(of: Room, left: float, top: float, wide: float) -> str:
    """A room: its name, how much is in it, what it is about."""
    kind = "box heavy" if of.is_heavy else "box"
    count = f"{of.num_modules} modules" if of.is_folder else ""
    lines = textwrap.wrap(of.about, int((wide - 20) / LETTER), max_lines=2, placeholder=" …")
    text = "".join(
        f'<text x="{left + 10:.1f}" y="{top + 35 + 15 * number:.1f}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{top}" width="{wide:.1f}" height="{BOX_HEIGHT}"'
        f' rx="6"/><text class="name" x="{left + 10:.1f}" y="{top + 18}">{escape(of.title)}</text>'
        f'<text x="{left + wide - 10:.1f}" y="{top + 18}" text-anchor="end">{count}</text>{text}'
    )


def foundation(what: Architecture, top: float) -> Iterator[str]:
    """The files that everything may use, without arrows, and what the colours mean."""
    inside = textwrap.wrap("   ".join(what.rooms[name].title for name in what.common), 92)
    wide = WIDTH - 2 * MARGIN
    yield f'<rect class="box" x="{MARGIN}" y="{top}" width="{wide}" height="72" rx="6"/>'
    yield f'<text x="{MARGIN + 10}" y="{top + 18}">what all of them may use</text>'
    for number, line in enumerate(inside[:3]):
        yield (
            f'<text class="name" x="{MARGIN + 10}" y="{top + 38 + 18 * number}"'
            f' xml:space="preserve">{escape(line)}</text>'
        )
    yield f'<rect class="box heavy" x="{MARGIN}" y="{top + 88}" width="18" height="14" rx="3"/>'
    yield (
        f'<text x="{MARGIN + 26}" y="{top + 99}">imports {HEAVY}; an arrow: the upper imports the'
        " lower, and no other arrows say so together</text>"
    )


def page(body: Sequence[str], height: float) -> str:
    """An SVG document with its colours, for light and dark."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
        f' aria-label="What imports what in {PACKAGE}"><style>{STYLE}</style>'
        f'<rect class="back" width="100%" height="100%"/>{"".join(body)}</svg>\n'
    )


def on_files(files: Files, *, config: Any) -> Files:
    """Has MkDocs take the picture among the site's files."""
    files.append(File.generated(config, PICTURE, content=draw(read())))
    return files


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(read()), encoding="utf-8")
