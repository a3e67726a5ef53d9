"""Testbeds for tests, and a check that no test leaves any of one behind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import state as stored
from testbed.build import down, require_machine
from testbed.cgroups import find_cgroups
from testbed.errors import TestbedError
from testbed.layout import prefix_of
from testbed.network import namespaces

_COUNTER = itertools.count()


def traces(name: str) -> list[str]:
    """What there is of testbed `name` on this machine."""
    prefix = prefix_of(name)
    folders = [*find_cgroups().folders(prefix), stored.folder_of(name)]
    return [*namespaces(prefix), *(str(path) for path in folders if path.exists())]


@pytest.fixture(scope="session")
def machine() -> None:
    """Skips where a testbed cannot be built, with the reason."""
    try:
        require_machine(ray=False)
    except TestbedError as error:
        pytest.skip(str(error))


@pytest.fixture
def name(machine: None) -> Iterator[str]:
    """A name for one testbed, of which nothing may be left."""
    name = f"t{os.getpid() % 10**7}x{next(_COUNTER)}"
    yield name
    left = traces(name)
    down(name)
    assert left == []


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder in which ``python -m testbed`` is run."""
    return Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for the nodes of `beds.streams`."""
    from beds.streams import write_three_stages  # which imports torch

    return write_three_stages(tmp_path_factory.mktemp("bundles") / "three.cutset")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of rows, and what the whole model makes of each."""
    from beds.streams import write_rows

    return write_rows(tmp_path_factory.mktemp("rows") / "rows.safetensors")
