"""What `hosts install` says where pip, venv or the shell of a device fails, and what it packs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from cutset.cluster.devices import Device
from cutset.engines.ssh import install as module
from cutset.engines.ssh.client import Target
from cutset.engines.ssh.install import install_on_hosts
from cutset.engines.ssh.wheel import write_own_wheel
from cutset.errors import EngineError

KILLED = "pip was killed, as happens where memory does not suffice"


@pytest.mark.parametrize(
    ("status", "said", "text", "mend"),
    [
        (1, "/usr/bin/python3: No module named ensurepip", "ensurepip", "python3-venv"),
        (1, "ERROR: No matching distribution found for msgspec", "msgspec", "--wheels FOLDER"),
        (1, "ERROR: Package 'cutset' requires a different Python: 3.9", "3.9", "newer Python"),
        (127, "sh: 4: python3: not found", "not found", "install Python on it"),
        (127, "bash: line 4: python3: command not found", "not found", "install Python on it"),
        (1, "error: externally-managed-environment", "managed", "name an environment"),
        (1, "OSError: [Errno 28] No space left on device", "No space", "250 MB"),
        (1, "mkdir: cannot create '/opt/c': Permission denied", "denied", "its user may write"),
        (142, "Alarm clock", "Alarm clock", "another installation there does not end"),
        (137, "", KILLED, "free memory on it"),
        (1, "something else\n\n", "something else", "see what pip says there"),
        (2, "", "exit status 2", "see what pip says there"),
        (1, "bad \x1b[31mred", "bad \\x1b[31mred", "see what pip says there"),
    ],
)
def test_every_failure_has_its_remedy(status: int, said: str, text: str, mend: str) -> None:
    trouble = module._failed(status, said.splitlines())
    assert trouble.kind == "python"
    assert trouble.text.startswith("Cutset cannot be installed there (")
    assert text in trouble.text
    assert mend in trouble.mend


def test_the_wheel_that_was_named_is_sent_and_no_other_of_cutset(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    own = tmp_path / "cutset-1.0-py3-none-any.whl"
    files = [own]
    for name in ("cutset-0.9-py3-none-any.whl", own.name, "other-1-py3-none-any.whl"):
        file = tmp_path / "given" / name
        file.write_text("given")
        files.append(file)
    own.write_text("own")
    with tarfile.open(module._packed(tmp_path, files)) as packed:
        assert sorted(packed.getnames()) == [own.name, "other-1-py3-none-any.whl"]
        member = packed.extractfile(own.name)
        assert member is not None
        assert member.read() == b"own"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wheel": "other-1-py3-none-any.whl"}, "expected a wheel of Cutset"),
        ({"wheel": "cutset-1-py3-none-any.whl"}, "expected a wheel of Cutset"),
        ({"wheels": "."}, "there are no wheels in it"),
        ({"wheels": "nowhere"}, "there are no wheels in it"),
    ],
)
def test_what_is_no_wheel_is_refused_before_anyone_is_asked(
    tmp_path: Path, options: dict[str, str], said: str
) -> None:
    (tmp_path / "other-1-py3-none-any.whl").touch()
    folder = tmp_path / "empty"
    folder.mkdir()
    cluster = cluster_from_toml('caller = "here"\n[[device]]\nname = "here"\n')
    paths = {
        name: (folder if name == "wheels" else tmp_path) / each for name, each in options.items()
    }
    with pytest.raises(EngineError, match=said):
        install_on_hosts(cluster, **paths)  # type: ignore[arg-type]


_TOOLS = ("sh", "mkdir", "cat", "mktemp", "tar", "rm", "env")


def test_an_environment_that_is_there_needs_no_other_python(tmp_path: Path) -> None:
    """On a device where no `python3` is found, from a folder whose name has a space."""
    (tmp_path / "tools").mkdir()
    for tool in _TOOLS:
        (tmp_path / "tools" / tool).symlink_to(shutil.which(tool) or "")
    environment = tmp_path / "an env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    packages = next(environment.glob("lib/python3*/site-packages"))
    (packages / "others.pth").write_text(f"{Path(msgspec.__file__).parents[1]}\n")
    sent = module._packed(tmp_path, [write_own_wheel(tmp_path)])
    script = module._Script(sent=sent, made="mark", options="--no-index")
    device = Device(
        name="here",
        python=str(environment / "bin" / "python"),
        env=(("PATH", str(tmp_path / "tools")), ("PIP_LOG", str(tmp_path / "log"))),
    )
    target = Target(device=device, address=None)
    assert module._run(target, script) is None
    assert module._run(target, script) is None  # as for another device with the same folder
    assert (tmp_path / "log").read_text().count("Successfully installed cutset-") == 1
    assert (packages / "cutset" / "version.py").exists()
    assert {path.name for path in environment.glob(".*")} == {".cutset-lock", ".cutset-made"}


def test_a_device_without_any_python_is_told(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for tool in _TOOLS:
        (tmp_path / "tools" / tool).symlink_to(shutil.which(tool) or "")
    script = module._Script(sent=Path("/dev/null"), made="mark", options="")
    path = ("PATH", str(tmp_path / "tools"))
    device = Device(name="here", python=str(tmp_path / "new/bin/python"), env=(path,))
    trouble = module._run(Target(device=device, address=None), script)
    assert trouble is not None
    assert "python3: not found" in trouble.text
    assert trouble.mend == "install Python on it (Debian: sudo apt install python3-venv)"
