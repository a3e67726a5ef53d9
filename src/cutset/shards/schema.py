"""The parts of torch's schema that Cutset reads from ``models/model.json``, as it is on disk.

Source: ``torch/_export/serde/schema.py``, schema version 8, as in torch 2.15. A union is a JSON
object with one member, e.g. ``{"as_int": 3}``; it is decoded to a dict and checked by the reader.
Keys that are not named here are not read: a later minor version may add some.
"""

from __future__ import annotations

from typing import Any

import msgspec


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


class NamedArgument(msgspec.Struct, frozen=True):
    """One argument of a call."""

    name: str
    arg: dict[str, Any]


class Node(msgspec.Struct, frozen=True):
    """One call."""

    target: str
    inputs: list[NamedArgument]
    outputs: list[dict[str, Any]]


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


class ExportedProgram(msgspec.Struct, frozen=True):
    """The whole document."""

    graph_module: GraphModule
    schema_version: SchemaVersion
    range_constraints: dict[str, Any] = {}
    guards_code: list[str] = []


class Payload(msgspec.Struct, frozen=True):
    """Where one weight lies in the archive."""

    path_name: str
    use_pickle: bool
    tensor_meta: TensorMeta | None


class PayloadConfig(msgspec.Struct, frozen=True):
    """Where all weights lie."""

    config: dict[str, Payload]
