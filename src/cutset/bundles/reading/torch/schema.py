"""The parts of torch's schema that Cutset reads from ``models/model.json``, as it is on disk.

Source: ``torch/_export/serde/schema.py``, schema version 8, as in torch 2.15. A union is a JSON
object with one member, e.g. ``{"as_int": 3}``; it is decoded to a dict and checked by the reader.
What is of type `Unread` is there and never looked at. A later minor version may add keys.
"""

from __future__ import annotations

import functools
import typing
from typing import Any, TypeAlias

import msgspec

Unread: TypeAlias = Any


class SchemaVersion(msgspec.Struct, frozen=True):
    """Version of the schema; another major is another format."""

    major: int
    minor: int


class TensorMeta(msgspec.Struct, frozen=True):
    """Dtype, sizes and strides of a tensor."""

    dtype: int
    sizes: list[dict[str, Any]]
    strides: list[dict[str, Any]]
    storage_offset: dict[str, Any]
    layout: int
    requires_grad: bool = False
    device: Unread = None


class NamedArgument(msgspec.Struct, frozen=True):
    """One argument of a call."""

    name: str
    arg: dict[str, Any]
    kind: Unread = None


class Node(msgspec.Struct, frozen=True):
    """One call."""

    target: str
    inputs: list[NamedArgument]
    outputs: list[dict[str, Any]]
    metadata: Unread = None
    is_hop_single_tensor_return: Unread = None
    name: Unread = None


class SchemaGraph(msgspec.Struct, frozen=True):
    """Inputs, calls, outputs, and the shapes that the author saw."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]
    sym_int_values: dict[str, dict[str, Any]] = {}
    sym_bool_values: dict[str, dict[str, Any]] = {}
    sym_float_values: dict[str, dict[str, Any]] = {}
    custom_obj_values: dict[str, Any] = {}
    is_single_tensor_return: Unread = None


class Signature(msgspec.Struct, frozen=True):
    """What each input and output is: weight, user's tensor, ..."""

    input_specs: list[dict[str, dict[str, Any]]]
    output_specs: list[dict[str, dict[str, Any]]]


class ModuleCallEntry(msgspec.Struct, frozen=True):
    """A module of the author's model; names of container types only."""

    fqn: str
    signature: dict[str, Any] | None = None


class GraphModule(msgspec.Struct, frozen=True):
    """The graph and its signature."""

    graph: SchemaGraph
    signature: Signature
    module_call_graph: list[ModuleCallEntry]
    metadata: Unread = None
    treespec_namedtuple_fields: Unread = None


class ExportedProgram(msgspec.Struct, frozen=True):
    """The whole document."""

    graph_module: GraphModule
    schema_version: SchemaVersion
    range_constraints: dict[str, Any] = {}
    guards_code: list[str] = []
    opset_version: Unread = None
    verifiers: Unread = None
    torch_version: Unread = None


class Payload(msgspec.Struct, frozen=True):
    """Where one weight lies in the archive."""

    path_name: str
    use_pickle: bool
    tensor_meta: TensorMeta | None
    is_param: Unread = None


class PayloadConfig(msgspec.Struct, frozen=True):
    """Where all weights lie."""

    config: dict[str, Payload]


@functools.cache
def _kinds_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def unknown_key(value: Any, kind: Any) -> str | None:
    """The path of a key that its object does not have in this schema, or None.

    Args:
        value: what was read from JSON, of which a `kind` could be decoded.
        kind: a type of this module, or one made of them.
    """
    below: list[tuple[str, Any, Any]] = []
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        kinds = _kinds_of(kind)
        for key, item in value.items():
            if key not in kinds:
                return f".{key[:120]}"
            below.append((f".{key}", item, kinds[key]))
    elif value is None or kind is Any:
        return None
    elif typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        below = [(f"[{index}]", item, inner) for index, item in enumerate(value)]
    elif typing.get_origin(kind) is dict:
        _, inner = typing.get_args(kind)
        below = [(f".{key[:120]}", item, inner) for key, item in value.items()]
    elif kinds_of := typing.get_args(kind):  # something, or None
        below = [("", value, kinds_of[0])]
    found = ((place, unknown_key(item, each)) for place, item, each in below)
    return next((f"{place}{path}" for place, path in found if path is not None), None)
