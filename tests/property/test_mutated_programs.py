"""Mutants of real stage programs: none dies by a signal, changes its input, or keeps state."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutations import SOURCES, try_mutants, write_source

HARMLESS = {"refused", "failed", "computed"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


def check(source: Path, seeds: range) -> None:
    found = try_mutants(source, seeds)
    assert {outcome: words for outcome, words in found.items() if outcome not in HARMLESS} == {}
    # Were all refused, this would test nothing.
    assert found["computed"]
    assert found["refused"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_thousand_mutants(name: str, folder: Path) -> None:
    check(write_source(name, folder), range(1000))
