"""``models/model.json`` of a stage program as plain, checked data.

This is the whole of what Cutset reads of a program: names of listed operations, their arguments
(numbers, names of other results, short words), which weight goes where, and the shapes of weights.
Anything else that `torch.export.load` would act upon is refused: operations that are not listed,
custom objects, subgraphs, formulas outside the grammar, guards that are no comparison, container
types that would have to be imported, programs that change their own weights.

Source: ``torch/_export/serde/schema.py`` (schema version 8) and ``serialize.py``, as in torch 2.15.
A key that is given twice, or that no minor version up to `_SCHEMA_MINOR` has, is refused; what a
later one adds is not read.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from typing import Any

import msgspec
import torch

from cutset.bundles.reading.torch.archive import (
    CONSTANTS_CONFIG,
    MODEL,
    WEIGHTS_CONFIG,
    ProgramArchive,
)
from cutset.bundles.reading.torch.expressions import is_safe_expression, is_safe_guard
from cutset.bundles.reading.torch.operators import fault_of
from cutset.bundles.reading.torch.program import Call, Declared, OnDevice, Program, Result, Weight
from cutset.bundles.reading.torch.schema import (
    ExportedProgram,
    GraphModule,
    ModuleCallEntry,
    Node,
    PayloadConfig,
    SchemaVersion,
    TensorMeta,
    unknown_key,
)
from cutset.bundles.strict_json import repeated_key
from cutset.errors import UnsafeBundle, UnsupportedVersion

_SCHEMA_MAJOR = 8
_SCHEMA_MINOR = 20
"""The latest whose keys are all in `schema`; a later one may have added some."""

_MAX_DIMS = 64
_MAX_ITEMS = 4096
"""Longest list of numbers or tensors; the longest known cuts a tensor into a few dozen parts."""

_MAX_MARKS = 1 << 20
"""Most brackets and commas of a document. As Python's objects each takes some 60 bytes; the largest
program of some hundred models has 110,000."""

_MAX_WEIGHT_BYTES = 1 << 47
_MAX_NUMBER = 1 << 63
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_WEIGHT_NAME = re.compile(r"[A-Za-z_0-9][A-Za-z0-9_.\-]{0,511}")
_WORD = re.compile(r"[A-Za-z0-9_.,<> \-]{0,256}")
_MEMBER = re.compile(r"(weight|tensor)_[0-9]{1,7}")
_STRIDED = 7
_CONTAINERS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})

DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
"""torch's dtypes by the numbers of the schema (``ScalarType``)."""

_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}


def read_program(archive: ProgramArchive) -> Program:
    """Reads and checks the program in `archive`; nothing is run and no weight is read.

    Raises:
        UnsafeBundle: it holds something that is not permitted; the message names the entry.
        UnsupportedVersion: it was written in another major version of torch's schema.
    """
    return _Reader(archive).read()


class _Version(msgspec.Struct, frozen=True):
    schema_version: SchemaVersion


class _Reader:
    """Reads one program; a class only so that errors know the file and the entry."""

    def __init__(self, archive: ProgramArchive) -> None:
        self._archive = archive
        self._path = archive.path
        self._defined: set[str] = set()
        self._knows_all_keys = self._minor_version() <= _SCHEMA_MINOR

    def _refusal(self, where: str, why: str) -> UnsafeBundle:
        return UnsafeBundle(
            f"{self._path}: {MODEL}: {where[:300]} {why}; nothing in the file was run",
            path=self._path,
        )

    def read(self) -> Program:
        exported = self._decode(MODEL, ExportedProgram)
        if exported.schema_version.major != _SCHEMA_MAJOR:
            raise UnsupportedVersion(
                f"{self._path}: torch.export schema {exported.schema_version.major}, this Cutset "
                f"reads {_SCHEMA_MAJOR}; export the bundle again or update Cutset",
                path=self._path,
                expected=str(_SCHEMA_MAJOR),
                actual=str(exported.schema_version.major),
            )
        module = exported.graph_module
        self._check_formulas(exported)
        self._check_containers(module.module_call_graph)
        stored = self._payloads()
        inputs, weights = self._inputs(module, stored)
        calls = tuple(self._call(node) for node in module.graph.nodes)
        return Program(
            path=self._path,
            inputs=inputs,
            weights=weights,
            calls=calls,
            outputs=self._outputs(module),
            declared={
                name: self._declared(name, meta)
                for name, meta in module.graph.tensor_values.items()
            },
            stored=frozenset(stored),
            stored_bytes=sum(map(self._archive.num_bytes, self._archive.tensor_members)),
        )

    def _minor_version(self) -> int:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            head = msgspec.json.decode(self._archive.read(MODEL), type=_Version)
            return head.schema_version.minor
        return 0

    def _decode(self, member: str, kind: type[Any]) -> Any:
        text = self._archive.read(member)
        if sum(map(text.count, (b"{", b"[", b","))) > _MAX_MARKS:
            raise UnsafeBundle(
                f"{self._path}: {member} has more than {_MAX_MARKS} entries", path=self._path
            )
        try:
            decoded = msgspec.json.decode(text, type=kind)
            twice = repeated_key(text)
            odd = unknown_key(json.loads(text), kind) if self._knows_all_keys else None
        except (ValueError, UnicodeDecodeError, RecursionError) as error:
            raise UnsafeBundle(
                f"{self._path}: {member} is not what torch.export writes: {error}", path=self._path
            ) from error
        for place, fault in ((twice, "is there twice"), (odd and f"${odd}", "is no key of it")):
            if place is not None:
                raise UnsafeBundle(
                    f"{self._path}: {member} is not what torch.export writes: {place} {fault}",
                    path=self._path,
                )
        return decoded

    def _one(self, union: dict[str, Any], where: str) -> tuple[str, Any]:
        """The single member of a union of the schema: ``{"as_int": 3}``."""
        if len(union) != 1:
            raise self._refusal(where, "is no union with one member")
        return next(iter(union.items()))

    def _name(self, holder: Any, where: str, key: str = "name") -> str:
        name = holder.get(key) if isinstance(holder, dict) and len(holder) == 1 else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self._refusal(where, f"has the name {str(name)[:80]!r}")
        return name

    def _define(self, name: str) -> str:
        if name in self._defined:
            raise self._refusal(f"value {name!r}", "is defined twice")
        self._defined.add(name)
        return name

    def _use(self, name: str) -> Result:
        if name not in self._defined:
            raise self._refusal(f"value {name!r}", "is used before it is defined")
        return Result(name)

    # -- what is checked though Cutset does not use it -------------------------------------------

    def _check_formulas(self, exported: ExportedProgram) -> None:
        graph = exported.graph_module.graph
        if graph.custom_obj_values:
            raise self._refusal(
                f"custom object {next(iter(graph.custom_obj_values))!r}", "is there"
            )
        for name, meta in graph.tensor_values.items():
            for length in (*meta.sizes, *meta.strides, meta.storage_offset):
                self._check_length(length, f"the shape of {name!r}")
        for values in (graph.sym_int_values, graph.sym_bool_values, graph.sym_float_values):
            for name, value in values.items():
                self._check_length(value, f"the value of {name!r}")
        for symbol in exported.range_constraints:
            if not is_safe_expression(symbol):
                raise self._refusal(f"range of {symbol!r}", "is of no symbol")
        for guard in exported.guards_code:
            if not is_safe_guard(guard):
                raise self._refusal(f"guard {guard!r}", "is no comparison of lengths")

    def _check_length(self, union: dict[str, Any], where: str) -> None:
        kind, value = self._one(union, where)
        if kind == "as_expr":
            text = value.get("expr_str") if isinstance(value, dict) else None
            if not isinstance(text, str) or not is_safe_expression(text):
                raise self._refusal(where, f"has the formula {str(text)[:120]!r}, which is none")
        elif kind == "as_int":
            if type(value) is not int or not abs(value) < _MAX_NUMBER:
                raise self._refusal(where, f"has the length {str(value)[:40]!r}")
        elif kind not in ("as_bool", "as_float") or type(value) not in (bool, int, float):
            raise self._refusal(where, f"has a length of kind {kind!r}")

    def _declared(self, name: str, meta: TensorMeta) -> Declared:
        """What the program says of a tensor; lengths that are formulas are left open."""
        dtype = DTYPES.get(meta.dtype)
        if dtype is None or meta.layout != _STRIDED or len(meta.sizes) > _MAX_DIMS:
            raise self._refusal(
                f"the shape of {name!r}", f"is of dtype {meta.dtype} and layout {meta.layout}"
            )
        sizes = [self._one(union, f"the shape of {name!r}") for union in meta.sizes]
        return Declared(
            dtype=dtype,
            sizes=tuple(int(value) if kind == "as_int" else None for kind, value in sizes),
        )

    def _check_containers(self, calls: list[ModuleCallEntry]) -> None:
        """Only tuples, lists and dicts: any other type would be looked up by name."""
        for call in calls:
            for key in ("in_spec", "out_spec") if call.signature else ():
                text = (call.signature or {}).get(key)
                where = f"{key} of module {call.fqn!r}"
                if not isinstance(text, str):
                    raise self._refusal(where, "is no text")
                try:
                    pending = [json.loads(text)]
                except (ValueError, RecursionError) as error:
                    raise self._refusal(where, "is no JSON") from error
                while pending:
                    item = pending.pop()
                    if isinstance(item, list):
                        pending.extend(item)
                    elif isinstance(item, dict):
                        kind = item.get("type", "missing")
                        if kind is not None and kind not in _CONTAINERS:
                            raise self._refusal(where, f"has a container of type {kind!r}")
                        pending.extend(item.get("children_spec") or ())

    # -- what the program is made of -------------------------------------------------------------

    def _payloads(self) -> dict[str, Weight]:
        """Every weight that the archive holds, by original name."""
        stored: dict[str, Weight] = {}
        for config, folder in (
            (WEIGHTS_CONFIG, "data/weights"),
            (CONSTANTS_CONFIG, "data/constants"),
        ):
            for name, payload in self._decode(config, PayloadConfig).config.items():
                where = f"{config}: weight {name!r}"
                if payload.use_pickle or payload.tensor_meta is None:
                    raise self._refusal(where, "is pickled")
                if not _WEIGHT_NAME.fullmatch(name) or name in stored:
                    raise self._refusal(where, "is no name, or is there twice")
                if not _MEMBER.fullmatch(payload.path_name):
                    raise self._refusal(where, f"lies in {payload.path_name!r}")
                stored[name] = self._weight(
                    name, f"{folder}/{payload.path_name}", payload.tensor_meta, where
                )
        return stored

    def _weight(self, name: str, member: str, meta: TensorMeta, where: str) -> Weight:
        dtype = DTYPES.get(meta.dtype)
        if dtype is None or meta.layout != _STRIDED:
            raise self._refusal(where, f"has dtype {meta.dtype} and layout {meta.layout}")
        lengths = []
        for union in (*meta.sizes, *meta.strides, meta.storage_offset):
            kind, value = self._one(union, where)
            if kind != "as_int" or type(value) is not int or not 0 <= value < 1 << 48:
                raise self._refusal(where, f"has the length {value!r}")
            lengths.append(value)
        num_dims = len(meta.sizes)
        if len(meta.strides) != num_dims or num_dims > _MAX_DIMS:
            raise self._refusal(where, "has other numbers of sizes and strides")
        sizes, strides, offset = lengths[:num_dims], lengths[num_dims:-1], lengths[-1]
        if math.prod(sizes) * dtype.itemsize > _MAX_WEIGHT_BYTES:
            raise self._refusal(where, f"claims the shape {sizes}, larger than any memory")
        # The last element that the view touches must lie within the member.
        end = (
            0
            if 0 in sizes
            else offset + 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        )
        if end * dtype.itemsize > self._archive.num_bytes(member):
            raise self._refusal(
                where,
                f"claims {end * dtype.itemsize} bytes of {member}, which has "
                f"{self._archive.num_bytes(member)}",
            )
        return Weight(
            name=name,
            member=member,
            dtype=dtype,
            sizes=tuple(sizes),
            strides=tuple(strides),
            offset=offset,
            requires_grad=meta.requires_grad and (dtype.is_floating_point or dtype.is_complex),
        )

    def _inputs(
        self, module: GraphModule, stored: dict[str, Weight]
    ) -> tuple[tuple[str, ...], dict[str, Weight]]:
        specs = module.signature.input_specs
        if len(specs) != len(module.graph.inputs):
            raise self._refusal("the signature", "has another number of inputs than the graph")
        inputs: list[str] = []
        weights: dict[str, Weight] = {}
        for spec, graph_input in zip(specs, module.graph.inputs, strict=True):
            kind, value = self._one(spec, "an input")
            tensor_kind, tensor = self._one(graph_input, "an input")
            if tensor_kind != "as_tensor":
                raise self._refusal(f"an input of kind {tensor_kind!r}", "is not permitted")
            name = self._define(self._name(tensor, "an input"))
            arg = value.get("arg")
            if kind == "user_input" and isinstance(arg, dict):
                arg = arg.get("as_tensor")
            if self._name(arg, f"input {name!r}") != name:
                raise self._refusal(f"input {name!r}", "has another name in the signature")
            if kind == "user_input":
                inputs.append(name)
                continue
            key = {
                "parameter": "parameter_name",
                "buffer": "buffer_name",
                "tensor_constant": "tensor_constant_name",
            }.get(kind)
            original = value.get(key) if key else None
            if not isinstance(original, str) or original not in stored:
                raise self._refusal(f"input {name!r} of kind {kind!r}", "is no stored weight")
            weights[name] = stored[original]
        return tuple(inputs), weights

    def _outputs(self, module: GraphModule) -> tuple[str, ...]:
        specs = module.signature.output_specs
        if len(specs) != len(module.graph.outputs):
            raise self._refusal("the signature", "has another number of outputs than the graph")
        outputs: list[str] = []
        for spec, output in zip(specs, module.graph.outputs, strict=True):
            kind, value = self._one(spec, "an output")
            if kind != "user_output":
                raise self._refusal(f"an output of kind {kind!r}", "changes the program's weights")
            tensor_kind, tensor = self._one(output, "an output")
            if tensor_kind != "as_tensor" or value.get("arg") != output:
                raise self._refusal(f"an output of kind {tensor_kind!r}", "is no tensor")
            outputs.append(self._use(self._name(tensor, "an output")).name)
        return tuple(outputs)

    def _call(self, node: Node) -> Call:
        where = f"operation {node.target!r}"
        fault = fault_of(node.target)
        if fault:
            raise self._refusal(where, fault)
        arguments = []
        for argument in node.inputs:
            if argument.name and not _NAME.fullmatch(argument.name):
                raise self._refusal(where, f"has an argument named {argument.name[:80]!r}")
            arguments.append((argument.name, self._argument(argument.arg, where)))
        results: list[str] = []
        is_sequence = len(node.outputs) > 1
        for output in node.outputs:
            kind, value = self._one(output, where)
            if kind == "as_tensors" and len(node.outputs) == 1 and isinstance(value, list):
                is_sequence = True
                results.extend(self._define(self._name(item, where)) for item in value)
            elif kind == "as_tensor":
                results.append(self._define(self._name(value, where)))
            elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float") and not is_sequence:
                results.append(self._define(self._name(value, where, key="as_name")))
            elif kind != "as_none" or is_sequence:
                raise self._refusal(where, f"returns a value of kind {kind!r}")
        return Call(
            target=node.target,
            arguments=tuple(arguments),
            results=tuple(results),
            is_sequence=is_sequence,
        )

    def _argument(self, union: Any, where: str) -> Any:
        if not isinstance(union, dict):
            raise self._refusal(where, "has an argument that is no union")
        kind, value = self._one(union, where)
        if kind == "as_none":
            return None
        if kind == "as_optional_tensor":
            return self._tensor(union, where)
        if kind == "as_device":
            return OnDevice()
        if kind in _TABLES:
            if type(value) is not int or value not in _TABLES[kind]:
                raise self._refusal(where, f"has an argument {kind} {value!r}")
            return _TABLES[kind][value]
        if not kind.endswith("s"):
            return self._item(f"{kind}s", value, where)
        if not isinstance(value, list):
            raise self._refusal(where, f"has an argument of kind {kind!r} that is no list")
        if len(value) > _MAX_ITEMS:
            raise self._refusal(
                where, f"has a list of {len(value)} entries; at most {_MAX_ITEMS} are read"
            )
        return [self._item(kind, item, where) for item in value]

    def _item(self, kind: str, value: Any, where: str) -> Any:
        """A plain number or word, or one element of a list of kind `kind`."""
        if kind == "as_ints" and type(value) is int and -_MAX_NUMBER <= value < _MAX_NUMBER:
            return value
        if kind == "as_floats" and (type(value) in (int, float) or value in _SPECIAL_FLOATS):
            return float(value)
        if kind == "as_bools" and type(value) is bool:
            return value
        if kind == "as_strings" and isinstance(value, str) and _WORD.fullmatch(value):
            return value
        if kind == "as_tensors":
            return self._use(self._name(value, where))
        if kind == "as_optional_tensors":
            return self._tensor(value, where)
        if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return self._number_or_name(value, where)
        raise self._refusal(where, f"has an argument {kind.removesuffix('s')} {str(value)[:80]!r}")

    def _tensor(self, union: Any, where: str) -> Result | None:
        if not isinstance(union, dict):
            raise self._refusal(where, "has an argument that is no union")
        kind, value = self._one(union, where)
        if kind == "as_optional_tensor" and isinstance(value, dict):
            kind, value = self._one(value, where)
        if kind == "as_none":
            return None
        if kind != "as_tensor":
            raise self._refusal(where, f"has an argument of kind {kind!r}")
        return self._use(self._name(value, where))

    def _number_or_name(self, union: Any, where: str) -> Any:
        if not isinstance(union, dict):
            raise self._refusal(where, "has an argument that is no union")
        kind, value = self._one(union, where)
        if kind == "as_name":
            return self._use(self._name(union, where, key="as_name"))
        if kind == "as_int" and type(value) is int and -_MAX_NUMBER <= value < _MAX_NUMBER:
            return value
        if kind in ("as_float", "as_bool") and type(value) in (int, float, bool):
            return value
        raise self._refusal(where, f"has an argument of kind {kind!r}")


_TABLES: dict[str, dict[int, Any]] = {
    "as_scalar_type": dict(DTYPES),
    "as_memory_format": dict(_MEMORY_FORMATS),
    "as_layout": {_STRIDED: torch.strided},
}
_SPECIAL_FLOATS = ("Infinity", "-Infinity", "NaN")
