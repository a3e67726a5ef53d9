"""How this package starts processes of its own: their environment, import path, last words.

Their environment is made, not inherited: a variable that binds threads to cores would put every
worker on the same one, and one that changes Python or an allocator would change what was measured.
What passes is listed in `PASSING`, and why.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from cutset.errors import EngineError
from cutset.programs import PROGRAMS

PASSING: Mapping[str, tuple[str, ...]] = {
    "where things are": (
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME"),
        *("SYSTEMROOT", "TZ"),
    ),
    "language, and with it the bytes of file names": (
        *("LANG", "LANGUAGE", "LC_*", "PYTHONUTF8", "PYTHONCOERCECLOCALE"),
    ),
    "how the system finds libraries": ("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH"),
    "where Python is, and whether it writes bytecode": (
        *("PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
    ),
    "which kernels compute, so that answers are those of the caller's own torch": (
        *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE"),
        *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
        *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
        *("NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES"),
    ),
    "the compiler of `torch-compiled`, and where it keeps its kernels": (
        *("CC", "CXX", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    ),
    "glibc's settings, after Cutset's own": ("GLIBC_TUNABLES",),
    "Cutset's own": ("CUTSET_*",),
}
"""The variables that a process of ours gets from its caller's environment, by their purpose."""

_ONE_EACH = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MOST_LINE_BYTES = 4096
_MOST_LINES = 20
_LAUNCHER = Path(__file__).absolute().with_name("launch.py")


def made_environment(
    num_threads: int, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a process of ours.

    Args:
        num_threads: with which it computes; libraries read it when they are loaded, before
            `torch.set_num_threads` could reach threads that others make.
        environment: the caller's.
    """
    names = [name for group in PASSING.values() for name in group]
    exact = {name for name in names if not name.endswith("*")}
    beginnings = tuple(name[:-1] for name in names if name.endswith("*"))
    passing = {
        name: value
        for name, value in environment.items()
        if name in exact or name.startswith(beginnings)
    }
    return {
        **passing,
        **dict.fromkeys(_ONE_EACH, str(num_threads)),
        # Stages compute on the processor; none may take a share of an accelerator by accident.
        "CUDA_VISIBLE_DEVICES": "",
        # Its warnings (of addresses without a name, say) would pass for last words.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # A file torch.py in the caller's working directory must not shadow the real one.
        "PYTHONSAFEPATH": "1",
    }


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A block of a process of ours that imports large libraries, all of which is kept.

    Python would look through it for garbage again and again, which is a sixth of the time that
    importing torch takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def command_of(program: str, *, caller: int = 0, control: int = -1) -> tuple[str, ...]:
    """The command line that starts a program of this package, without its arguments.

    The process imports the very package that the caller has, and all else from where the caller
    does, except from the folder of the caller's script and its working directory.

    Args:
        program: its name in `cutset.programs.PROGRAMS`.
        caller: the process with which it ends, see `cutset.launch`; 0 where it does not.
        control: descriptor of its connection to that.

    Raises:
        EngineError: there is no such program, no interpreter or no file to start.
    """
    if program not in PROGRAMS:
        raise EngineError(f"there is no program {program!r}; known: {', '.join(PROGRAMS)}")
    if not _LAUNCHER.is_file():
        raise EngineError(
            f"processes are started with {_LAUNCHER}, which is no file; install cutset into a"
            " folder instead of an archive"
        )
    if not sys.executable:
        raise EngineError(
            "processes are started with this one's Python, and sys.executable does not say which"
            " that is; set it to the interpreter's path"
        )
    path = json.dumps(_import_path())
    return (sys.executable, str(_LAUNCHER), str(caller), str(control), path, PROGRAMS[program])


def _import_path() -> list[str]:
    """`sys.path` without what Python puts there for a script: its folder, or the working one."""
    unsafe = {""}
    if not getattr(sys.flags, "safe_path", False):
        main = sys.modules.get("__main__")
        file = getattr(main, "__file__", None)
        if file is None or getattr(main, "__spec__", None) is not None:
            unsafe.add(str(Path.cwd()))  # python -c, python -m
        else:
            unsafe.add(str(Path(file).parent))
    return [
        str(Path(entry).absolute())
        for entry in sys.path
        if entry not in unsafe and Path(entry).exists()
    ]


def encodable(value: object) -> object:
    """A message's builtins with text that can be encoded: a folder's name need not be text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(each) for each in value]
    return value


class LastWords:
    """Reads what a process writes to its standard error, always, and keeps the end of it.

    A pipe that nobody reads stops its writer after 64 KB.

    Args:
        stream: the reading end, which it closes in the end.
        name: of the process, for the thread that reads.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._lines: collections.deque[str] = collections.deque(maxlen=_MOST_LINES)
        self._thread = threading.Thread(
            target=self._read, name=f"cutset-stderr-{name}", daemon=True
        )
        self._thread.start()

    def add(self, line: str) -> None:
        """Takes something to say that did not come from the process."""
        self._lines.append(line)

    def last(self, timeout_s: float = 1.0) -> str:
        """The last line that says anything, or nothing, once the process has ended.

        Args:
            timeout_s: how long to wait for the rest where another process holds the pipe open.
        """
        return next((line for line in reversed(self.lines(timeout_s)) if line.strip()), "")

    def lines(self, timeout_s: float = 1.0) -> list[str]:
        """The last lines, oldest first, once the process has ended; see `last`."""
        self._thread.join(timeout_s)
        return list(self._lines)

    def _read(self) -> None:
        with self._stream as stream:
            while line := stream.readline(_MOST_LINE_BYTES):
                self._lines.append(line.decode(errors="replace").rstrip())
