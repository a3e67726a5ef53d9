from __future__ import annotations

import pytest

from cutset.cluster.devices import Device
from cutset.cluster.ssh_address import read_ssh_address
from cutset.engines.ssh.client import Target
from cutset.engines.ssh.troubles import trouble_of

_DEVICE = Device(name="a", address="pi@host:2222", python="~/c/bin/python", folder="~/w")
_TARGET = Target(device=_DEVICE, address=read_ssh_address("pi@host:2222"))
_LOGIN = "`ssh -p 2222 pi@host`"


@pytest.mark.parametrize(
    ("status", "said", "kind", "text", "mend"),
    [
        (
            255,
            "ssh: Could not resolve hostname host: Name or service not known",
            *("name", "no host is called host", "write its address into the cluster file"),
        ),
        (255, "Host key verification failed.", "key", "its key is not known here", _LOGIN),
        (
            255,
            "No ED25519 host key is known for host and you have requested strict checking.",
            *("key", "its key is not known here", _LOGIN),
        ),
        (
            255,
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            *("key", "it shows another key than before", "ssh-keygen -R '[host]:2222'"),
        ),
        (
            255,
            "pi@host: Permission denied (publickey,password).",
            *("login", "would ask for a password, which Cutset never does"),
            "`ssh-copy-id -p 2222 pi@host`",
        ),
        (
            255,
            "pi@host: Permission denied (publickey).",
            *("login", "accepts none of this machine's keys", "authorized_keys"),
        ),
        (
            255,
            "ssh: connect to host host port 2222: Connection refused",
            *("away", "it does not answer", "start its ssh server"),
        ),
        (
            255,
            "ssh: connect to host host port 2222: No route to host",
            *("away", "No route to host", "see that it is switched on"),
        ),
        (
            255,
            "Connection timed out during banner exchange",
            *("away", "it does not answer", "switched on"),
        ),
        (
            255,
            "Timeout, server host not responding.",
            *("away", "Timeout, server host not responding", "switched on"),
        ),
        (
            127,
            "env: '/home/pi/c/bin/python': No such file or directory",
            *("python", "there is no Python at ~/c/bin/python", "cutset hosts install"),
        ),
        (
            1,
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'cutset'",
            *("cutset", "~/c/bin/python has no Cutset", "cutset hosts install"),
        ),
        (
            1,
            "ModuleNotFoundError: No module named 'cutset.engines.ssh'",
            *("version", "~/c/bin/python has an older Cutset", "cutset hosts install"),
        ),
        (
            1,
            "ImportError: cannot import name 'keep' from 'cutset.launch' (/x/launch.py)",
            *("version", "~/c/bin/python has an older Cutset", "cutset hosts install"),
        ),
        (
            1,
            "ModuleNotFoundError: No module named 'msgspec'",
            *("cutset", "lacks the package msgspec", "cutset hosts install"),
        ),
        (
            93,
            "mkdir: cannot create directory '/x': Permission denied",
            *("folder", "its working folder ~/w cannot be used", "name another folder"),
        ),
        (None, "", "away", "it does not answer in time", "busy or frozen"),
        (3, "what is this\x1b[2J", "other", "ended with status 3: what is this\\x1b[2J", ""),
    ],
)
def test_every_trouble_has_a_name_and_a_way_out(
    status: int | None, said: str, kind: str, text: str, mend: str
) -> None:
    trouble = trouble_of(_TARGET, status, said.split("\n"))
    assert trouble.kind == kind
    assert text in trouble.text
    assert mend in trouble.mend
    assert "\n" not in str(trouble)
    assert trouble.passes == (kind in ("name", "away", "other"))
