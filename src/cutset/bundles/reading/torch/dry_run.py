"""Works out what a stage program does with memory, before it touches any.

Being on the list of operations is not enough: with the right arguments a listed one reads beyond a
tensor's end. So every call of a program is first made on tensors of torch's ``meta`` device, which
have a shape, a dtype and strides but no elements, and

* the call has to satisfy its operation's rule (`argument_rules`) before it is made,
* torch has to find it well formed, without a look at any element,
* what it returns has to have the dtype and the shape that the program itself declares,
* all that is alive at once has to fit into this machine's memory.

Shapes depend on the number of rows, so this holds for the shapes that it was done with; whoever
runs the program does it again for others (`cutset.bundles.reading.torch.loading.LoadedProgram`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cutset.bundles.reading.torch.argument_rules import check_arguments
from cutset.bundles.reading.torch.operators import ASSERTIONS, resolve_operator
from cutset.bundles.reading.torch.program import Call, OnDevice, Program, Result, results_in
from cutset.bundles.reading.torch.result_shapes import results_of
from cutset.errors import UnsafeBundle
from cutset.printable import first_line

_META = torch.device("meta")
_ENUMERATIONS = {
    "ScalarTypeType": torch.dtype,
    "LayoutType": torch.layout,
    "Layout": torch.layout,
    "MemoryFormatType": torch.memory_format,
    "MemoryFormat": torch.memory_format,
}
_MAX_NUMBER = 1 << 48
_MAX_ELEMENTS = 1 << 40
_MAX_DIMS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """A call, made ready to be repeated with other shapes."""

    call: Call
    function: Any
    fixed: Mapping[str, Any]
    """Arguments by name, those left out at their defaults."""
    varying: tuple[str, ...]
    """Names of those that hold results of other calls."""
    last_reads: tuple[str, ...]
    """Values that nothing reads after this call."""


class DryRun:
    """Repeats a program's calls on tensors without elements."""

    def __init__(self, program: Program, *, memory_bytes: int) -> None:
        """Prepares the calls.

        Args:
            program: checked by `cutset.bundles.reading.torch.decode.read_program`.
            memory_bytes: what its weights and results may take up at once.

        Raises:
            UnsafeBundle: an operation is not listed, or lacks an argument.
        """
        self._program = program
        self._memory_bytes = memory_bytes
        self._weights = {
            name: torch.empty_strided(w.sizes, w.strides, dtype=w.dtype, device=_META)
            for name, w in program.weights.items()
        }
        calls = [call for call in program.calls if call.target not in ASSERTIONS]
        last = {name: i for i, call in enumerate(calls) for name in results_in(call.arguments)}
        dead: list[list[str]] = [[] for _ in calls]
        for name, index in last.items():
            if name not in program.outputs and name not in program.weights:
                dead[index].append(name)
        self._steps = tuple(
            self._prepare(call, tuple(names)) for call, names in zip(calls, dead, strict=True)
        )

    def _refusal(self, what: str) -> UnsafeBundle:
        return UnsafeBundle(f"{self._program.path}: {what}", path=self._program.path)

    def _prepare(self, call: Call, dead: tuple[str, ...]) -> _Step:
        function = resolve_operator(call.target, path=self._program.path)
        values: dict[str, Any] = dict(call.arguments)
        if isinstance(function, torch._ops.OpOverload):
            known = {argument.name: argument for argument in function._schema.arguments}
            for name in values:
                if name not in known:
                    raise self._refusal(f"operation {call.target!r} has no argument {name!r}")
                self._check_enumeration(call.target, known[name], values[name])
            for name, argument in known.items():
                if name == "device":
                    values[name] = _META
                elif name not in values:
                    if not argument.has_default_value():
                        raise self._refusal(f"operation {call.target!r} lacks argument {name!r}")
                    values[name] = argument.default_value
            # In the order of the signature, as rules and messages have it.
            values = {name: values[name] for name in known}
        varying = tuple(name for name, value in values.items() if results_in([(name, value)]))
        return _Step(call=call, function=function, fixed=values, varying=varying, last_reads=dead)

    def _check_enumeration(self, target: str, argument: Any, value: Any) -> None:
        """A dtype or a layout is one: torch takes any number for it and looks it up in a table."""
        kind = argument.real_type
        while kind.kind() == "OptionalType":
            kind = kind.getElementType()
        wanted = _ENUMERATIONS.get(kind.kind())
        if wanted and not isinstance(value, (wanted, type(None))):
            raise self._refusal(
                f"operation {target!r}: argument {argument.name!r} is {str(value)[:40]}, expected "
                f"a {wanted.__name__}"
            )

    def run(self, inputs: Sequence[tuple[Sequence[int], torch.dtype]]) -> tuple[torch.Tensor, ...]:
        """The outputs' shapes and dtypes, as tensors of the ``meta`` device.

        Args:
            inputs: shape and dtype of each input, in the program's order.

        Raises:
            UnsafeBundle: a call breaks its operation's rule, cannot be made, depends on elements,
                returns what the program does not declare, or takes more memory than there is.
        """
        try:
            given = [torch.empty(shape, dtype=dtype, device=_META) for shape, dtype in inputs]
        except RuntimeError as error:
            raise self._refusal(f"an input cannot be made: {first_line(error)}") from error
        values: dict[str, Any] = dict(self._weights)
        for name, tensor in zip(self._program.inputs, given, strict=True):
            self._check_declared(name, tensor, f"input {name!r}")
            values[name] = tensor
        used_bytes = sum(tensor.untyped_storage().nbytes() for tensor in given)
        used_bytes += self._program.stored_bytes
        holders = {tensor.untyped_storage()._cdata: 1 for tensor in values.values()}
        with torch.inference_mode():
            for step in self._steps:
                made = self._make(step, values)
                for name, value in zip(step.call.results, made, strict=True):
                    values[name] = value
                    used_bytes += _held(value, holders)
                if used_bytes > self._memory_bytes:
                    raise self._refusal(
                        f"operation {step.call.target!r} brings what is held at once to "
                        f"{used_bytes} bytes; this machine has {self._memory_bytes}"
                    )
                for name in step.last_reads:
                    used_bytes -= _released(values.pop(name, None), holders)
        return tuple(values[name] for name in self._program.outputs)

    def _make(self, step: _Step, values: Mapping[str, Any]) -> Sequence[Any]:
        """What a call returns, one for each of its results."""
        call = step.call
        arguments = dict(step.fixed)
        for name in step.varying:
            arguments[name] = self._value(arguments[name], values)
        where = f"operation {call.target!r}"
        is_tensor_operation = isinstance(step.function, torch._ops.OpOverload)
        try:
            if is_tensor_operation:
                check_arguments(step.function, arguments, num_results=len(call.results))
                given = {n: self._placed(v) for n, v in arguments.items()}
                result = results_of(step.function, given)
                if result is None:
                    result = step.function(**given)
            else:
                result = step.function(*arguments.values())
        except Exception as error:  # torch's checks raise errors of many kinds
            raise self._refusal(
                f"{where} cannot be called like this: {first_line(error)}; nothing was computed"
            ) from error
        made = result if call.is_sequence else (result,) if call.results else ()
        if not isinstance(made, (tuple, list)) or len(made) != len(call.results):
            raise self._refusal(f"{where} does not return {len(call.results)} results")
        return [self._checked(name, value) for name, value in zip(call.results, made, strict=True)]

    def _value(self, value: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(value, Result):
            if value.name not in values:
                raise self._refusal(f"value {value.name!r} is used, but no call computes it")
            return values[value.name]
        if isinstance(value, list):
            return [self._value(item, values) for item in value]
        return value

    def _placed(self, value: Any) -> Any:
        return _META if isinstance(value, OnDevice) else value

    def _checked(self, name: str, value: Any) -> Any:
        """A result, once it is known to be what the program declares."""
        where = f"value {name!r}"
        if isinstance(value, torch.Tensor):
            if value.device != _META:  # lengths as a tensor are made from numbers alone
                value = value.to(_META)
            if value.layout != torch.strided or value.is_quantized:
                raise self._refusal(f"{where} is no plain tensor")
            if value.dim() > _MAX_DIMS or value.numel() > _MAX_ELEMENTS:
                raise self._refusal(
                    f"{where} has {value.numel()} elements in {value.dim()} dimensions, at most "
                    f"{_MAX_ELEMENTS} in {_MAX_DIMS} are permitted"
                )
            self._check_declared(name, value, where)
            return value
        if name in self._program.declared or not isinstance(value, (int, float)):
            raise self._refusal(f"{where} is no tensor, as declared, or no number")
        if not abs(value) < _MAX_NUMBER:
            raise self._refusal(f"{where} is {str(value)[:40]}, beyond {_MAX_NUMBER}")
        return value

    def _check_declared(self, name: str, tensor: torch.Tensor, where: str) -> None:
        declared = self._program.declared.get(name)
        if declared is None:
            raise self._refusal(f"{where} is a tensor, and the program declares none")
        is_same = declared.dtype == tensor.dtype and len(declared.sizes) == tensor.dim()
        if not is_same or any(
            length is not None and length != actual
            for length, actual in zip(declared.sizes, tensor.shape, strict=True)
        ):
            raise self._refusal(
                f"{where} is declared as {declared}, but is {tensor.dtype}{list(tensor.shape)}"
            )


def _held(value: Any, holders: dict[int, int]) -> int:
    """Bytes that a new value adds to what is held: none where it shares another's memory."""
    if not isinstance(value, torch.Tensor):
        return 0
    storage = value.untyped_storage()
    key = storage._cdata
    holders[key] = holders.get(key, 0) + 1
    return storage.nbytes() if holders[key] == 1 else 0


def _released(value: Any, holders: dict[int, int]) -> int:
    """Bytes that are free once a value is gone; those of inputs and weights stay."""
    if not isinstance(value, torch.Tensor):
        return 0
    storage = value.untyped_storage()
    key = storage._cdata
    if key not in holders:
        return 0
    holders[key] -= 1
    if holders[key]:
        return 0
    del holders[key]
    return storage.nbytes()
