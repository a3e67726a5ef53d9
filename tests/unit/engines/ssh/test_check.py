"""What `hosts check` makes of what a device has, and of links without keys."""

from __future__ import annotations

import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from cutset.cluster.devices import Device
from cutset.engines.ssh import check
from cutset.engines.ssh.check import pairs_without_keys

DEVICES = '[[device]]\nname = "a"\n[[device]]\nname = "b"\n[[device]]\nname = "c"\n'


@pytest.mark.parametrize(
    ("declared", "there", "said"),
    [
        (None, ["onnxruntime"], ""),
        (("onnxruntime",), ["torch", "onnxruntime"], ""),
        (None, [], "no backend there can compute a stage"),
        (("torch",), ["onnxruntime"], "it has onnxruntime, and not torch of the cluster file"),
        (("onnxruntime:XNNPACK",), ["onnxruntime"], "and not onnxruntime:XNNPACK of"),
    ],
)
def test_backends_that_the_file_names_must_be_there(
    declared: tuple[str, ...] | None, there: list[str], said: str
) -> None:
    trouble = check._trouble_with(Device(name="pi", backends=declared), there)
    assert (trouble is None) == (said == "")
    if trouble is not None:
        assert said in trouble.text
        assert trouble.mend
        assert not trouble.passes


@pytest.mark.parametrize(
    ("head", "link", "pairs"),
    [
        ("", "", ()),
        ("", '[link]\nsecurity = "curve"\n', ()),
        (
            'caller = "a"\n',
            '[link]\nsecurity = "none"\n',
            (("a", "b"), ("a", "c"), ("b", "c")),
        ),
        (
            "",
            '[[link.between]]\nfrom = "c"\nto = "b"\nsecurity = "none"\n',
            (("b", "c"),),
        ),
        (
            "",
            '[link]\nsecurity = "none"\n',
            (*(("the caller", each) for each in "abc"), ("a", "b"), ("a", "c"), ("b", "c")),
        ),
    ],
)
def test_every_pair_without_keys_is_found(
    head: str, link: str, pairs: tuple[tuple[str, str], ...]
) -> None:
    assert pairs_without_keys(cluster_from_toml(head + DEVICES + link)) == pairs
