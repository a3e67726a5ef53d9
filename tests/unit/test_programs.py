"""Programs start by their names, and no module is named in words anywhere else."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import cutset
from cutset.engines.node_service import NodeService
from cutset.errors import EngineError
from cutset.processes import command_of, made_environment
from cutset.programs import NOTEBOOK_DRAWINGS, PROGRAMS

SOURCE = Path(cutset.__file__).parent
# Arguments with which each ends at once, and the exit code.
AT_ONCE = {
    "board": ([], 0),  # whoever started it is gone
    "bystander": (["0"], 0),
    "command": (["--version"], 0),
    "flows": (["--help"], 0),
    "idle-worker": (["torch"], 0),
    "link-speed": (["--help"], 0),
    "overhead": (["--help"], 0),
    "stages-alone": (["--help"], 0),
    "verification": ([], 1),  # nobody asks it anything
    "worker": (["--help"], 0),
}


def test_every_program_is_started_here() -> None:
    assert AT_ONCE.keys() == PROGRAMS.keys()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_starts_by_its_name(name: str, tmp_path: Path) -> None:
    arguments, code = AT_ONCE[name]
    with (tmp_path / "out").open("w+b") as out, (tmp_path / "err").open("w+b") as err:
        out.truncate(8)  # what a bystander counts in
        done = subprocess.run(
            [*command_of(name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=tmp_path,
            env=made_environment(1),
            timeout=120,
            check=False,
        )
        err.seek(0)
        words = err.read().decode()
    assert done.returncode == code, words
    assert "Traceback" not in words


def test_a_program_that_is_not_in_the_table_is_none() -> None:
    with pytest.raises(EngineError, match=r"no program 'os'; known: board, bystander, command"):
        command_of("os")
    with pytest.raises(EngineError, match=r"no program 'cutset\.cli'"):
        NodeService(linger_s=1.0).start_program("cutset.cli", [], 1)


def _named_modules(path: Path) -> Iterator[str]:
    """The strings in a file that name a module; loggers and groups of entry points do not."""
    tree = ast.parse(path.read_text())
    allowed = {
        id(argument)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).endswith(("getLogger", "get_tracer"))
        for argument in call.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GROUP":
            allowed.add(id(node.value))  # of entry points
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if node.value.startswith("cutset.") and id(node) not in allowed:
            place = SOURCE.joinpath(*node.value.split(".")[1:])
            if place.is_dir() or place.with_suffix(".py").is_file():
                yield node.value


def test_no_module_is_named_in_words_but_in_the_tables() -> None:
    found = {
        str(path.relative_to(SOURCE)): names
        for path in sorted(SOURCE.rglob("*.py"))
        if (names := set(_named_modules(path)))
    }
    assert found.pop("programs.py") == {*PROGRAMS.values(), NOTEBOOK_DRAWINGS}
    found.pop("backends/base.py", None)  # the table of backends
    assert found == {}


def test_the_look_for_names_finds_them(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import logging\nlogging.getLogger('cutset.serve')\nx = 'cutset.measure.stages'\n"
        "y = 'cutset.request_id'\nz = 'cutset.graph'\nGROUP = 'cutset.models'\n"
    )
    assert set(_named_modules(tmp_path / "a.py")) == {"cutset.measure.stages", "cutset.graph"}
