"""Begins a process of ours: bound to its caller's life first, then on its caller's import path.

Run as a file, by its path, with nothing imported but what Python has loaded anyway::

    python .../cutset/launch.py CALLER CONTROL PATH MODULE [ARGUMENT ...]

CALLER is the process that started it, 0 where its end is none of ours; CONTROL the descriptor of
the connection to it, or -1; PATH the caller's import path as JSON; MODULE has a ``main``.

Importing what a worker needs takes seconds, in which a caller may be killed. So the first thing is
to be killed with it.
"""

from __future__ import annotations

import os
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks Linux to kill this process, stopped or not, when the *thread* that started it ends."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_with_caller(caller: int, control: int) -> None:
    """From now on this process ends when the one that started it ends.

    Where the system does not kill it, a thread sees the connection end.

    Args:
        caller: its process id.
        control: descriptor of the connection to it, or -1.
    """
    die_with_parent()
    if os.getppid() != caller:
        os._exit(1)  # it ended before
    if control >= 0:
        watch(control)


def keep() -> None:
    """Forks: the child goes on, and its parent, a keeper, kills it when standard input closes.

    So the child ends with its connection even while it is stopped. The keeper ends when the child
    does, with its exit status; 128 and the number where a signal ended it.
    """
    import select
    import signal

    alive, held = os.pipe()  # closed by the child's end, in whatever way
    child = os.fork()
    if child == 0:
        os.close(alive)
        os.set_inheritable(held, True)  # also where it replaces itself by another program
        die_with_parent()
        return
    os.close(held)
    os.close(1)
    poller = select.poll()
    poller.register(0, getattr(select, "POLLRDHUP", 0))
    poller.register(alive, 0)
    if any(descriptor == 0 for descriptor, _ in poller.poll()):
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else 128 - status)


def watch(control: int) -> None:
    """Ends this process when the other end of the connection is closed, in whatever way."""
    import select
    import threading

    hung_up = select.poll()
    # POLLHUP alone: what comes is for others to read. A socket that is closed in one direction only
    # says it another way, where the system has it.
    hung_up.register(control, getattr(select, "POLLRDHUP", 0))

    def wait() -> None:
        hung_up.poll()
        os._exit(1)

    threading.Thread(target=wait, name="cutset-watch", daemon=True).start()


def _import_from(path: list[str], package: str) -> None:
    """Takes the caller's import path, and this very package whatever lies on it."""
    import importlib.util

    sys.path[:] = list(dict.fromkeys([*path, *sys.path]))
    spec = importlib.util.spec_from_file_location(
        "cutset", f"{package}/__init__.py", submodule_search_locations=[package]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cutset"] = module
    spec.loader.exec_module(module)


def main() -> None:
    """Runs ``main`` of the module that the command line names."""
    caller, control, path, module = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    package = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # no pathlib yet
    if sys.path and sys.path[0] == package:
        del sys.path[0]  # where Python puts a script's folder
    if caller:
        end_with_caller(caller, control)
    import importlib
    import json

    _import_from(json.loads(path), package)
    sys.argv[:] = [module, *sys.argv[5:]]
    importlib.import_module(module).main()


if __name__ == "__main__":
    main()
