"""Packages on the import path that offer backends, as pip would have installed them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    offers: Mapping[str, str],
    *,
    package: str = "added",
) -> None:
    """Writes what an installed package leaves behind, and puts it on the import path.

    Args:
        folder: an empty folder.
        monkeypatch: which undoes it.
        offers: what each entry point names, by its own name.
        package: the package's name.
    """
    record = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in offers.items()]
    (record / "entry_points.txt").write_text("[cutset.backends]\n" + "".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
