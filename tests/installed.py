"""Makes a file of the tests an installed package that adds something to Cutset."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, name: str, group: str, entry: str) -> Path:
    """Writes what pip would: a folder ``NAME-1.0.dist-info`` with its entry points.

    Args:
        folder: on the import path.
        name: of the package.
        group: of the entry points.
        entry: ``"NAME = MODULE:OBJECT"``.
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    return folder
