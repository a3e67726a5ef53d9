"""Turns a good bundle into a bad one, one broken rule at a time.

Every change is followed by `relist`, unless it is the listing itself that is broken: a hostile
author can compute hashes too, so hashes must not be what saves the reader.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

PROGRAM = "stage-1/program.pt2"
MODEL = "stage-1/model.onnx"
MODEL_JSON = "models/model.json"


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def bomb(marker: Path) -> bytes:
    """A pickle that creates `marker` when it is loaded."""
    return pickle.dumps(Bomb(marker))


def copy_of(bundle: Path, target: Path) -> Path:
    """A copy to break."""
    shutil.copytree(bundle, target)
    return target


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes manifest.json as JSON."""
    file = bundle / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def relist(bundle: Path) -> None:
    """Makes sizes and hashes in the manifest those of the files."""

    def change(document: dict[str, Any]) -> None:
        for entry in document["files"]:
            data = (bundle / entry["path"]).read_bytes()
            entry["num_bytes"] = len(data)
            entry["sha256"] = hashlib.sha256(data).hexdigest()

    edit_manifest(bundle, change)


def add_to_list(bundle: Path, path: str) -> None:
    """Lists a file that was added."""
    edit_manifest(
        bundle,
        lambda document: document["files"].append({"path": path, "num_bytes": 0, "sha256": ""}),
    )
    relist(bundle)


def members_of(file: Path) -> dict[str, bytes]:
    """Members of a zip archive, by name."""
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(
    file: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED
) -> None:
    """Writes a zip archive."""
    with zipfile.ZipFile(file, "w", compression=compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def root_of(members: dict[str, bytes]) -> str:
    """The archive's folder."""
    return next(iter(members)).partition("/")[0]


def edit_members(
    bundle: Path,
    change: Callable[[dict[str, bytes], str], None],
    *,
    program: str = PROGRAM,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Changes the members of a program's archive; `change` gets them and the folder's name."""
    members = members_of(bundle / program)
    change(members, root_of(members))
    write_zip(bundle / program, members, compression=compression)
    relist(bundle)


def edit_model_json(
    bundle: Path, change: Callable[[dict[str, Any]], None], *, program: str = PROGRAM
) -> None:
    """Changes a program's model.json."""

    def edit(members: dict[str, bytes], root: str) -> None:
        document = json.loads(members[f"{root}/{MODEL_JSON}"])
        change(document)
        members[f"{root}/{MODEL_JSON}"] = json.dumps(document).encode()

    edit_members(bundle, edit, program=program)


def edit_weights_config(
    bundle: Path, change: Callable[[dict[str, Any]], None], *, program: str = PROGRAM
) -> None:
    """Changes the list of a program's weights."""

    def edit(members: dict[str, bytes], root: str) -> None:
        name = f"{root}/data/weights/model_weights_config.json"
        document = json.loads(members[name])
        change(document["config"])
        members[name] = json.dumps(document).encode()

    edit_members(bundle, edit, program=program)


def nodes_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls in a model.json."""
    nodes: list[dict[str, Any]] = document["graph_module"]["graph"]["nodes"]
    return nodes


def edit_onnx(bundle: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Changes a stage's ONNX model."""
    model = onnx.load(bundle / MODEL, load_external_data=False)
    change(model)
    (bundle / MODEL).write_bytes(model.SerializeToString())
    relist(bundle)
