from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutset.cluster.cluster_file import cluster_from_toml
from cutset.cluster.file_writer import cluster_to_toml
from cutset.cluster.ssh_address import SshAddress, read_ssh_address
from cutset.errors import PlanError


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("pi@192.168.1.11", "pi", "192.168.1.11", None),
        ("pi@host:2222", "pi", "host", 2222),
        ("kitchen-pi", None, "kitchen-pi", None),
        ("pi-1.local:22", None, "pi-1.local", 22),
        ("pi@[fd00::1]:2222", "pi", "fd00::1", 2222),
        ("[fe80::1%eth0]", None, "fe80::1%eth0", None),
        ("fd00::1", None, "fd00::1", None),
        ("user@example.org@host", "user@example.org", "host", None),
        ("DOMAIN\\ann@host", "DOMAIN\\ann", "host", None),
    ],
)
def test_what_people_write(text: str, user: str | None, host: str, port: int | None) -> None:
    assert read_ssh_address(text) == SshAddress(user=user, host=host, port=port)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-oProxyCommand=reboot", "is no host"),
        ("pi@-oProxyCommand=reboot", "is no host"),
        ("-lroot@host", "is no user's name"),
        ("a b@host", "is no user's name"),
        ("pi@ho st", "is no host"),
        ("pi@host;reboot", "is no host"),
        ("pi@$(reboot)", "is no host"),
        ("pi@`reboot`", "is no host"),
        ("pi@host\n-oX", "is no host"),
        ("pi@höst", "is no host"),
        ("@host", "is no user's name"),
        ("", "is no host"),
        ("pi@", "is no host"),
        ("pi@host:", "is no port"),
        ("pi@host:0", "is no port"),
        ("pi@host:65536", "is no port"),
        ("pi@host:22 -v", "is no port"),
        ("pi@host:²", "is no port"),
        ("ssh://pi@host", "is no user's name"),
        ("pi@[host]:22", "is no host"),
        ("x" * 256, "at most 255 characters"),
    ],
)
def test_what_is_no_address(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_ssh_address(text)


@given(st.text(max_size=40))
def test_nothing_that_is_taken_is_an_option_or_steers_a_shell(text: str) -> None:
    try:
        address = read_ssh_address(text)
    except ValueError:
        return
    for word in (address.host, *([address.user] if address.user else [])):
        assert not word.startswith("-")
        assert not set(word) & set(" \t\n\"'`;&|<>(){}*?!#")
    assert read_ssh_address(str(address)) == address


_FILE = """
engine = "ssh"
ssh_config = "settings"
[[device]]
name = "a"
address = "pi@10.0.0.1"
listen = "10.1.0.1"
python = "~/cutset/bin/python"
folder = "~/work"
env = { OPENBLAS_CORETYPE = "ARMV8", NAME = "a 'b' \\"c\\"" }
[[device]]
name = "b"
address = "b-pi"
"""


def test_a_cluster_file_for_ssh_is_written_as_it_was_read() -> None:
    cluster = cluster_from_toml(_FILE)
    assert (cluster.engine, cluster.ssh_config) == ("ssh", "settings")
    first = cluster.devices[0]
    assert first.env == (("OPENBLAS_CORETYPE", "ARMV8"), ("NAME", "a 'b' \"c\""))
    assert (first.listen, first.python) == ("10.1.0.1", "~/cutset/bin/python")
    assert first.folder == "~/work"
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster
    assert cluster.without("b").engine == "ssh"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"pi@10.0.0.1"', '"-oX=y"', "c:6: device[0].address: '-oX=y' is no host"),
        ('address = "b-pi"', "", 'device[1]: engine = "ssh" needs the address of each device'),
        ('"10.1.0.1"', '"here"', "c:7: device[0].listen: expected an IP address, got 'here'"),
        ('"~/cutset/bin/python"', '"bin/python"', "expected a path that begins with / or ~/"),
        ('"~/cutset/bin/python"', '"python -c x"', "expected a path that begins with / or ~/"),
        ('"~/work"', '"~pi/work"', "c:9: device[0].folder: expected a path that begins"),
        ('"~/work"', '"/a\\u001bb"', "characters that cannot be seen"),
        ("{ OPENBLAS_CORETYPE", '{ "A B" = "x", O', "is no name of a variable"),
        ('"ARMV8"', "8", "OPENBLAS_CORETYPE: expected text of one line, got 8"),
        ('"ssh"', "7", "c:2: engine: expected text, got int 7"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(old: str, new: str, words: str) -> None:
    assert old in _FILE
    with pytest.raises(PlanError) as caught:
        cluster_from_toml(_FILE.replace(old, new), source="c")
    assert words in str(caught.value)
