from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cutset
from cutset.errors import EngineError
from cutset.processes import PASSING, LastWords, command_of, made_environment
from cutset.programs import PROGRAMS

_STRANGE = {
    "OMP_PROC_BIND": "close",
    "OMP_PLACES": "cores",
    "OMP_WAIT_POLICY": "active",
    "GOMP_CPU_AFFINITY": "0",
    "KMP_AFFINITY": "compact",
    "KMP_BLOCKTIME": "infinite",
    "MKL_DYNAMIC": "TRUE",
    "OPENBLAS_MAIN_FREE": "1",
    "MALLOC_PERTURB_": "165",
    "PYTHONPATH": "/nowhere",
    "PYTHONSTARTUP": "/nowhere/start.py",
    "PYTHONWARNINGS": "error",
    "PYTHONINSPECT": "1",
    "PYTHONOPTIMIZE": "2",
    "PYTHONMALLOC": "debug",
    "TORCH_LOGS": "+dynamo",
    "TORCH_HOME": "/nowhere",
    "CUDA_HOME": "/nowhere",
    "LD_DEBUG": "all",
    "RAY_ADDRESS": "10.0.0.1:6379",
    "SECRET_TOKEN": "s",
}


def test_the_environment_of_a_process_is_made_and_not_inherited() -> None:
    made = made_environment(2, {**_STRANGE, "OMP_NUM_THREADS": "64", "CUDA_VISIBLE_DEVICES": "1"})
    assert made == {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONSAFEPATH": "1",
    }


@pytest.mark.parametrize(
    "name",
    ["PATH", "HOME", "LD_LIBRARY_PATH", "LC_ALL", "MKL_CBWR", "CXX", "CUTSET_CACHE_DIR", "TZ"],
)
def test_what_a_process_needs_passes(name: str) -> None:
    assert made_environment(1, {name: "value"})[name] == "value"


def test_a_process_imports_what_its_caller_does_but_nothing_beside_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendored = tmp_path / "vendored"
    vendored.mkdir()
    monkeypatch.setattr(sys, "path", ["", str(vendored), str(tmp_path / "gone"), *sys.path])
    path = json.loads(command_of("worker")[4])
    assert path[0] == str(vendored)
    assert "" not in path
    assert str(tmp_path / "gone") not in path


def test_a_process_has_the_very_package_of_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another of the same name comes first on the path.
    other = tmp_path / "cutset"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the other one')")
    (tmp_path / "told.py").write_text(
        "def main():\n    import cutset, sys\n    print(cutset.__file__, *sys.argv)\n"
    )
    monkeypatch.setitem(PROGRAMS, "tell", "told")
    command = list(command_of("tell"))
    command[4] = json.dumps([str(tmp_path), *json.loads(command[4])])
    done = subprocess.run(
        [*command, "--flag"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [str(cutset.__file__), "told", "--flag"]


def test_without_an_interpreter_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(EngineError, match=r"sys\.executable does not say"):
        command_of("worker")


def test_a_process_whose_caller_is_gone_already_leaves_before_it_imports_anything() -> None:
    command = [*command_of("worker", caller=1, control=0)[:-1], "no.such.module"]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def _talker(code: str) -> tuple[subprocess.Popen[bytes], LastWords]:
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    assert process.stderr is not None
    return process, LastWords(process.stderr, "talker")


def test_a_process_that_says_much_is_read_and_never_stops() -> None:
    process, words = _talker(
        "import sys\n"
        "for n in range(20000): print('word', n, file=sys.stderr)\n"
        "print(file=sys.stderr)"
    )
    assert process.wait(60) == 0
    assert words.last() == "word 19999"


def test_a_line_without_an_end_takes_no_memory() -> None:
    process, words = _talker("import sys\nsys.stderr.write('x' * 10_000_000)")
    assert process.wait(60) == 0
    assert len(words.last(60)) <= 4096


def test_the_documentation_lists_what_passes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text(encoding="utf-8")
    for purpose, names in PASSING.items():
        row = f"| {', '.join(f'`{name}`' for name in names)} | {purpose} |"
        assert row in page
