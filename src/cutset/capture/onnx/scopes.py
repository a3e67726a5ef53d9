"""Where an ONNX node comes from: the modules that its exporter wrote down, or structure alone.

Three sources, the first that the model has:

* the names and classes of the enclosing modules in the node's metadata (torch's exporter since
  2.6, https://docs.pytorch.org/docs/stable/onnx_export.html);
* the node's name, a path of scopes (``/stem/stem.0/conv/Conv``: torch's older exporter;
  ``model/stem/conv/Conv2D``: converters from TensorFlow). Classes are not written there. Two
  scopes whose insides are built alike count as one class, and a scope that holds nothing but
  numbered children as a plain container;
* structure: operations between two places where a single tensor is alive, with several alive at
  every place between, form a module of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from cutset.graph.calls import SEQUENTIAL
from cutset.graph.ir import ModuleCall, Operation

_Path: TypeAlias = tuple[str, ...]
"""Dotted paths of the modules around a node, outermost first, without the root."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_WORD = r"'([^'\\]*)'|\"([^\"\\]*)\""
_LIST = re.compile(rf"\[(?:(?:{_WORD})(?:, (?=['\"]))?)*\]")
_MAX_TEXT = 1 << 16

_ROOT = ModuleCall(path="", call=0, class_name="onnx.Graph")
BRANCHES_CLASS = "onnx.Branches"
"""Class of the modules that are made from structure alone."""


def with_modules(
    operations: Sequence[Operation], nodes: Mapping[str, Any]
) -> tuple[Operation, ...]:
    """The operations with the module calls inside which they happen.

    Args:
        operations: in execution order.
        nodes: by name of an operation, the ONNX node that computes it.
    """
    written = [_written_scopes(nodes[operation.name]) for operation in operations]
    named = [_named_scopes(nodes[operation.name].name) for operation in operations]
    if any(scopes and scopes[0] for scopes in written):
        calls = _calls_from_metadata(written)
    elif any(named):
        calls = _calls_from_names(named, [operation.base_name for operation in operations])
    else:
        calls = _calls_from_structure(operations)
    return tuple(
        Operation(
            name=operation.name,
            target=operation.target,
            inputs=operation.inputs,
            outputs=operation.outputs,
            parameters=operation.parameters,
            modules=(_ROOT, *modules),
            flops=operation.flops,
        )
        for operation, modules in zip(operations, calls, strict=True)
    )


def _written_scopes(node: Any) -> tuple[_Path, _Path] | None:
    """Paths and classes of the modules around a node, from its metadata; None where it has none.

    The last entry of both lists is the call itself, the first path is the root's.
    """
    texts = {entry.key: entry.value for entry in node.metadata_props}
    paths, classes = _words(texts.get(_SCOPES, "")), _words(texts.get(_CLASSES, ""))
    if not paths or len(paths) != len(classes):
        return None
    start = 1 if paths[0] == "" else 0
    return tuple(paths[start:-1]), tuple(classes[start:-1])


def _words(text: str) -> list[str]:
    """The strings of a list as Python prints it; none where it is anything else."""
    if len(text) > _MAX_TEXT or not _LIST.fullmatch(text):
        return []
    return [single or double for single, double in re.findall(_WORD, text)]


def _calls_from_metadata(
    written: Sequence[tuple[_Path, _Path] | None],
) -> list[tuple[ModuleCall, ...]]:
    """Module calls from paths and classes; a module that is entered anew is called again.

    A node without metadata, which a rewriting of the graph put there, is where its forerunner is.
    """
    calls: list[tuple[ModuleCall, ...]] = []
    num_calls: dict[str, int] = {}
    open_calls: tuple[ModuleCall, ...] = ()
    for scopes in written:
        if scopes is not None:
            entered: list[ModuleCall] = []
            for depth, (path, class_name) in enumerate(zip(*scopes, strict=True)):
                still = open_calls[depth : depth + 1]
                if still and still[0].path == path and tuple(entered) == open_calls[:depth]:
                    entered.append(still[0])
                    continue
                call = num_calls.get(path, 0)
                num_calls[path] = call + 1
                entered.append(ModuleCall(path=path, call=call, class_name=class_name))
            open_calls = tuple(entered)
        calls.append(open_calls)
    return calls


def _named_scopes(name: str) -> _Path | None:
    """Paths of the scopes in a node's name; None where the name holds no path.

    A scope may repeat the name of the one around it, with an index: the child ``0`` of ``stem`` is
    written as ``stem.0``.
    """
    if "/" not in name:
        return None
    paths: list[str] = []
    last = ""
    for scope in name.strip("/").split("/")[:-1]:
        index = scope.removeprefix(f"{last}.") if last else ""
        is_indexed = last and index != scope and index.isdecimal()
        prefix = f"{paths[-1]}." if paths else ""
        paths.append(prefix + (index if is_indexed else scope))
        last = scope
    return tuple(paths)


def _calls_from_names(
    named: Sequence[_Path | None], kinds: Sequence[str]
) -> list[tuple[ModuleCall, ...]]:
    """Module calls from scopes alone; a node without a path is where its forerunner is."""
    placed: list[_Path] = []
    for scopes in named:
        placed.append(scopes if scopes is not None else (placed[-1] if placed else ()))
    classes = _classes_by_likeness(placed, kinds)
    return [
        tuple(ModuleCall(path=path, call=0, class_name=classes[path]) for path in scopes)
        for scopes in placed
    ]


def _classes_by_likeness(placed: Sequence[_Path], kinds: Sequence[str]) -> dict[str, str]:
    """A class for every scope: the same one for scopes whose children are built alike.

    What a scope does between its children does not count: one of two alike blocks may add its
    input to its result and the other not.
    """
    own: dict[str, list[str]] = {}
    below: dict[str, list[tuple[str, str]]] = {}
    children: dict[str, set[str]] = {}
    for scopes, kind in zip(placed, kinds, strict=True):
        for outer, inner in pairwise(scopes):
            children.setdefault(outer, set()).add(inner)
        for path in scopes[:-1]:
            below.setdefault(path, []).append((scopes[-1].removeprefix(path), kind))
        if scopes:
            own.setdefault(scopes[-1], []).append(kind)
    first: dict[tuple[tuple[str, str], ...], str] = {}
    classes: dict[str, str] = {}
    for path in dict.fromkeys(path for scopes in placed for path in scopes):
        inside = children.get(path, set())
        indexed = [child.removeprefix(f"{path}.").isdecimal() for child in inside]
        if inside and path not in own and all(indexed):
            classes[path] = SEQUENTIAL
            continue
        signature = tuple(below.get(path, ())) or tuple(("", kind) for kind in own[path])
        classes[path] = f"like {first.setdefault(signature, path).replace('.', '/')}"
    return classes


def _calls_from_structure(operations: Sequence[Operation]) -> list[tuple[ModuleCall, ...]]:
    """A module for every fork with its join, and in it one for each operation."""
    alive = _num_alive(operations)
    single = [0, *(p for p in range(1, len(operations)) if alive[p] <= 1), len(operations)]
    calls: list[tuple[ModuleCall, ...]] = [()] * len(operations)
    regions = [(start, stop) for start, stop in pairwise(single) if stop - start > 1]
    for number, (start, stop) in enumerate(regions):
        path = f"branches{number}"
        whole = ModuleCall(path=path, call=0, class_name=BRANCHES_CLASS)
        for index in range(start, stop):
            target = operations[index].target
            leaf = ModuleCall(path=f"{path}.{index - start}", call=0, class_name=target)
            calls[index] = (whole, leaf)
    return calls


def _num_alive(operations: Sequence[Operation]) -> list[int]:
    """For each position, how many results of operations are read after it.

    Neither the model's inputs count nor its outputs: one that is handed out early does not make
    all that follows a branch.
    """
    made = {operation.name: index for index, operation in enumerate(operations)}
    last_use: dict[str, int] = {}
    for index, operation in enumerate(operations):
        for name in operation.inputs:
            if name in made:
                last_use[name] = index
    changes = [0] * (len(operations) + 1)
    for name, last in last_use.items():
        changes[made[name] + 1] += 1
        changes[last + 1] -= 1
    alive, total = [], 0
    for change in changes:
        total += change
        alive.append(total)
    return alive
