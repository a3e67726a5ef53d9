"""``models/model.json`` of a stage program as plain, checked data.

This is the whole of what Cutset reads of a program: names of listed operations, their arguments
(numbers, names of other results, short words), which weight goes where, and the shapes of weights.
Anything else that `torch.export.load` would act upon is refused: operations that are not listed,
custom objects, subgraphs, formulas outside the grammar, guards that are no comparison, container
types that would have to be imported, programs that change their own weights.

Source: ``torch/_export/serde/schema.py`` (schema version 8) and ``serialize.py``, as in torch 2.15.
A key that is given twice, or that no minor version up to `program_text.SCHEMA_MINOR` has, is
refused; what a later one adds is not read.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from cutset.bundles.reading.torch.archive import (
    MODEL,
    ProgramArchive,
)
from cutset.bundles.reading.torch.expressions import is_safe_expression, is_safe_guard
from cutset.bundles.reading.torch.operators import fault_of
from cutset.bundles.reading.torch.program import Call, Declared, OnDevice, Program, Result, Weight
from cutset.bundles.reading.torch.program_text import DTYPES, MAX_DIMS, NAME, STRIDED, ProgramText
from cutset.bundles.reading.torch.schema import (
    ExportedProgram,
    GraphModule,
    ModuleCallEntry,
    Node,
    TensorMeta,
)
from cutset.bundles.reading.torch.stored_weights import stored_weights
from cutset.errors import UnsupportedVersion

_SCHEMA_MAJOR = 8
_MAX_ITEMS = 4096
"""Longest list of numbers or tensors; the longest known cuts a tensor into a few dozen parts."""

_MAX_NUMBER = 1 << 63
_WORD = re.compile(r"[A-Za-z0-9_.,<> \-]{0,256}")
_CONTAINERS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})

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


class _Reader(ProgramText):
    """Reads one program; a class only so that errors know the file and the entry."""

    def __init__(self, archive: ProgramArchive) -> None:
        super().__init__(archive)
        self._defined: set[str] = set()

    def read(self) -> Program:
        exported = self.decode(MODEL, ExportedProgram)
        if exported.schema_version.major != _SCHEMA_MAJOR:
            raise UnsupportedVersion(
                f"{self.path}: torch.export schema {exported.schema_version.major}, this Cutset "
                f"reads {_SCHEMA_MAJOR}; export the bundle again or update Cutset",
                path=self.path,
                expected=str(_SCHEMA_MAJOR),
                actual=str(exported.schema_version.major),
            )
        module = exported.graph_module
        self._check_formulas(exported)
        self._check_containers(module.module_call_graph)
        stored = stored_weights(self)
        inputs, weights = self._inputs(module, stored)
        calls = tuple(self._call(node) for node in module.graph.nodes)
        return Program(
            path=self.path,
            inputs=inputs,
            weights=weights,
            calls=calls,
            outputs=self._outputs(module),
            declared={
                name: self._declared(name, meta)
                for name, meta in module.graph.tensor_values.items()
            },
            stored=frozenset(stored),
            stored_bytes=sum(map(self.archive.num_bytes, self.archive.tensor_members)),
        )

    def _define(self, name: str) -> str:
        if name in self._defined:
            raise self.refusal(f"value {name!r}", "is defined twice")
        self._defined.add(name)
        return name

    def _use(self, name: str) -> Result:
        if name not in self._defined:
            raise self.refusal(f"value {name!r}", "is used before it is defined")
        return Result(name)

    # -- what is checked though Cutset does not use it -------------------------------------------

    def _check_formulas(self, exported: ExportedProgram) -> None:
        graph = exported.graph_module.graph
        if graph.custom_obj_values:
            raise self.refusal(f"custom object {next(iter(graph.custom_obj_values))!r}", "is there")
        for name, meta in graph.tensor_values.items():
            for length in (*meta.sizes, *meta.strides, meta.storage_offset):
                self._check_length(length, f"the shape of {name!r}")
        for values in (graph.sym_int_values, graph.sym_bool_values, graph.sym_float_values):
            for name, value in values.items():
                self._check_length(value, f"the value of {name!r}")
        for symbol in exported.range_constraints:
            if not is_safe_expression(symbol):
                raise self.refusal(f"range of {symbol!r}", "is of no symbol")
        for guard in exported.guards_code:
            if not is_safe_guard(guard):
                raise self.refusal(f"guard {guard!r}", "is no comparison of lengths")

    def _check_length(self, union: dict[str, Any], where: str) -> None:
        kind, value = self.one(union, where)
        if kind == "as_expr":
            text = value.get("expr_str") if isinstance(value, dict) else None
            if not isinstance(text, str) or not is_safe_expression(text):
                raise self.refusal(where, f"has the formula {str(text)[:120]!r}, which is none")
        elif kind == "as_int":
            if type(value) is not int or not abs(value) < _MAX_NUMBER:
                raise self.refusal(where, f"has the length {str(value)[:40]!r}")
        elif kind not in ("as_bool", "as_float") or type(value) not in (bool, int, float):
            raise self.refusal(where, f"has a length of kind {kind!r}")

    def _declared(self, name: str, meta: TensorMeta) -> Declared:
        """What the program says of a tensor; lengths that are formulas are left open."""
        dtype = DTYPES.get(meta.dtype)
        if dtype is None or meta.layout != STRIDED or len(meta.sizes) > MAX_DIMS:
            raise self.refusal(
                f"the shape of {name!r}", f"is of dtype {meta.dtype} and layout {meta.layout}"
            )
        sizes = [self.one(union, f"the shape of {name!r}") for union in meta.sizes]
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
                    raise self.refusal(where, "is no text")
                try:
                    pending = [json.loads(text)]
                except (ValueError, RecursionError) as error:
                    raise self.refusal(where, "is no JSON") from error
                while pending:
                    item = pending.pop()
                    if isinstance(item, list):
                        pending.extend(item)
                    elif isinstance(item, dict):
                        kind = item.get("type", "missing")
                        if kind is not None and kind not in _CONTAINERS:
                            raise self.refusal(where, f"has a container of type {kind!r}")
                        pending.extend(item.get("children_spec") or ())

    # -- what the program is made of -------------------------------------------------------------

    def _inputs(
        self, module: GraphModule, stored: dict[str, Weight]
    ) -> tuple[tuple[str, ...], dict[str, Weight]]:
        specs = module.signature.input_specs
        if len(specs) != len(module.graph.inputs):
            raise self.refusal("the signature", "has another number of inputs than the graph")
        inputs: list[str] = []
        weights: dict[str, Weight] = {}
        for spec, graph_input in zip(specs, module.graph.inputs, strict=True):
            kind, value = self.one(spec, "an input")
            tensor_kind, tensor = self.one(graph_input, "an input")
            if tensor_kind != "as_tensor":
                raise self.refusal(f"an input of kind {tensor_kind!r}", "is not permitted")
            name = self._define(self.name_in(tensor, "an input"))
            arg = value.get("arg")
            if kind == "user_input" and isinstance(arg, dict):
                arg = arg.get("as_tensor")
            if self.name_in(arg, f"input {name!r}") != name:
                raise self.refusal(f"input {name!r}", "has another name in the signature")
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
                raise self.refusal(f"input {name!r} of kind {kind!r}", "is no stored weight")
            weights[name] = stored[original]
        return tuple(inputs), weights

    def _outputs(self, module: GraphModule) -> tuple[str, ...]:
        specs = module.signature.output_specs
        if len(specs) != len(module.graph.outputs):
            raise self.refusal("the signature", "has another number of outputs than the graph")
        outputs: list[str] = []
        for spec, output in zip(specs, module.graph.outputs, strict=True):
            kind, value = self.one(spec, "an output")
            if kind != "user_output":
                raise self.refusal(f"an output of kind {kind!r}", "changes the program's weights")
            tensor_kind, tensor = self.one(output, "an output")
            if tensor_kind != "as_tensor" or value.get("arg") != output:
                raise self.refusal(f"an output of kind {tensor_kind!r}", "is no tensor")
            outputs.append(self._use(self.name_in(tensor, "an output")).name)
        return tuple(outputs)

    def _call(self, node: Node) -> Call:
        where = f"operation {node.target!r}"
        fault = fault_of(node.target)
        if fault:
            raise self.refusal(where, fault)
        arguments = []
        for argument in node.inputs:
            if argument.name and not NAME.fullmatch(argument.name):
                raise self.refusal(where, f"has an argument named {argument.name[:80]!r}")
            arguments.append((argument.name, self._argument(argument.arg, where)))
        results: list[str] = []
        is_sequence = len(node.outputs) > 1
        for output in node.outputs:
            kind, value = self.one(output, where)
            if kind == "as_tensors" and len(node.outputs) == 1 and isinstance(value, list):
                is_sequence = True
                results.extend(self._define(self.name_in(item, where)) for item in value)
            elif kind == "as_tensor":
                results.append(self._define(self.name_in(value, where)))
            elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float") and not is_sequence:
                results.append(self._define(self.name_in(value, where, key="as_name")))
            elif kind != "as_none" or is_sequence:
                raise self.refusal(where, f"returns a value of kind {kind!r}")
        return Call(
            target=node.target,
            arguments=tuple(arguments),
            results=tuple(results),
            is_sequence=is_sequence,
        )

    def _argument(self, union: Any, where: str) -> Any:
        if not isinstance(union, dict):
            raise self.refusal(where, "has an argument that is no union")
        kind, value = self.one(union, where)
        if kind == "as_none":
            return None
        if kind == "as_optional_tensor":
            return self._tensor(union, where)
        if kind == "as_device":
            return OnDevice()
        if kind in _TABLES:
            if type(value) is not int or value not in _TABLES[kind]:
                raise self.refusal(where, f"has an argument {kind} {value!r}")
            return _TABLES[kind][value]
        if not kind.endswith("s"):
            return self._item(f"{kind}s", value, where)
        if not isinstance(value, list):
            raise self.refusal(where, f"has an argument of kind {kind!r} that is no list")
        if len(value) > _MAX_ITEMS:
            raise self.refusal(
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
            return self._use(self.name_in(value, where))
        if kind == "as_optional_tensors":
            return self._tensor(value, where)
        if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return self._number_or_name(value, where)
        raise self.refusal(where, f"has an argument {kind.removesuffix('s')} {str(value)[:80]!r}")

    def _tensor(self, union: Any, where: str) -> Result | None:
        if not isinstance(union, dict):
            raise self.refusal(where, "has an argument that is no union")
        kind, value = self.one(union, where)
        if kind == "as_optional_tensor" and isinstance(value, dict):
            kind, value = self.one(value, where)
        if kind == "as_none":
            return None
        if kind != "as_tensor":
            raise self.refusal(where, f"has an argument of kind {kind!r}")
        return self._use(self.name_in(value, where))

    def _number_or_name(self, union: Any, where: str) -> Any:
        if not isinstance(union, dict):
            raise self.refusal(where, "has an argument that is no union")
        kind, value = self.one(union, where)
        if kind == "as_name":
            return self._use(self.name_in(union, where, key="as_name"))
        if kind == "as_int" and type(value) is int and -_MAX_NUMBER <= value < _MAX_NUMBER:
            return value
        if kind in ("as_float", "as_bool") and type(value) in (int, float, bool):
            return value
        raise self.refusal(where, f"has an argument of kind {kind!r}")


_TABLES: dict[str, dict[int, Any]] = {
    "as_scalar_type": dict(DTYPES),
    "as_memory_format": dict(_MEMORY_FORMATS),
    "as_layout": {STRIDED: torch.strided},
}
_SPECIAL_FLOATS = ("Infinity", "-Infinity", "NaN")
