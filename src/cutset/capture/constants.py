"""Numbers that a model takes out of its own constants: they are known when it is captured.

While `torch.export` follows a model, no tensor has values, so that ``int(t)`` or ``if t:`` fails
for any `t`, also for one that stands on weights alone. Here what stands on weights, constants and
plain numbers is computed beside the trace, and where a number of it is asked for, it is given.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

_MOST_ELEMENTS = 1 << 20
"""Of a tensor that is put into the program in the place of operations without a fixed shape."""

_NUMBERS = (bool, int, float, complex, str, np.ndarray)
_PLAIN = (
    *_NUMBERS,
    *(type(None), slice, type(...)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator),
)
_READ_MEMORY = frozenset({"tolist", "numpy", "__array__", "__repr__"})
"""Functions that read values without an operation."""

_NEED_NUMBER = {f"__{kind}__": f"{kind}()" for kind in ("int", "bool", "float", "index", "complex")}
_READ_VALUES = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
_MASKS = (torch.bool, torch.uint8)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_TAKE_A_NUMBER = frozenset({"narrow"})
"""Functions that ask a tensor, which they take as well, for its number."""

_GET_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_ITEM_ACCESS = frozenset({"__getitem__", "__setitem__"})
_ON_INPUT = (
    "that depends on the values of its input. A capture holds one way through the model: keep such "
    "a step outside of the model that is split, or compute with the tensor itself (torch.where)"
)
_ON_ROWS = (
    "that depends on the number of rows. Take the number from the shape itself (x.shape[0]), which "
    "stays free"
)
_ON_CHANCE = (
    "that depends on random numbers, so that no two runs agree and nothing can be verified. Take "
    "the noise as an input, or switch it off in evaluation mode"
)
_ON_STATE = (
    "that depends on {}, which it changes in forward, in evaluation mode too; the stages of a "
    "pipeline keep no state. Leave it as it is, or hand its value in as an input and out as a "
    "result"
)


_leaves = pytree.tree_leaves


class NumberError(Exception):
    """The model asks for the number of a tensor that is no constant; says on what it stands."""


@contextlib.contextmanager
def known_constants(model: torch.nn.Module) -> Iterator[None]:
    """Within the context a call of the model that is followed gets the numbers of its constants.

    Raises:
        NumberError: within: the model asks for a number that is none of its constants'.
    """

    def tensors() -> dict[str, torch.Tensor]:
        kinds = {"parameter": model.named_parameters, "buffer": model.named_buffers}
        return {
            f"its {kind} {name!r}": tensor
            for kind, named in kinds.items()
            for name, tensor in named(remove_duplicate=False)
        }

    held = tensors()
    modes: list[_KnownConstants] = []

    def begin(_: object, args: Any, kwargs: Any) -> None:
        now = tensors()
        mode = _KnownConstants([(name, now[name], held[name]) for name in held if name in now])
        mode.note_reason((args, kwargs), _ON_INPUT)
        modes.append(mode)
        mode.__enter__()  # type: ignore[no-untyped-call]

    def end(*_: object) -> None:
        modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    hooks = (
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_forward_hook(end, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _KnownConstants(TorchFunctionMode):
    """Computes beside the trace what stands on constants alone."""

    def __init__(self, held: list[tuple[str, torch.Tensor, torch.Tensor]]) -> None:
        """Knows some tensors to begin with.

        Args:
            held: name, the tensor in the trace, and the one with values, which is not written to.
        """
        super().__init__()
        self._values: Any = WeakIdKeyDictionary()
        self._reasons: Any = WeakIdKeyDictionary()
        self._held: dict[int, str] = {}
        # By storage; the tensors are kept so that no other storage takes the place in memory.
        self._changed: dict[int, tuple[torch.Tensor, str]] = {}
        for name, traced, value in held:
            self._values[traced] = value
            self._held.setdefault(_storage(value), name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, or gives its result where only values could tell it."""
        kwargs = kwargs or {}
        # The same tensor, in a way that torch.export can follow.
        func = torch.Tensor.detach if func == _GET_DATA else func
        name = getattr(func, "__name__", "")
        reasons = map(self._why_unknown, _leaves((args, kwargs)))
        reason = next((why for why in reasons if why is not None), None)
        if reason is not None:
            if reason and name in _NEED_NUMBER:
                raise NumberError(
                    f"{_NEED_NUMBER[name]} asks a tensor for its number, and {reason}"
                )
            return self._call(func, *self._with_numbers(name, args, kwargs), reason)
        watch = _Watch(self._held)
        try:
            real_args, real_kwargs = pytree.tree_map(self._value, (args, kwargs))
            with _disable_current_modes(), torch.no_grad(), watch:
                value = func(*real_args, **real_kwargs)
        except Exception:  # noqa: BLE001 - whatever fails here is left to torch.export
            for tensor in watch.written:
                self._change(tensor, "")
            reasons = map(self._why_unknown, _leaves(args))
            return self._call(func, args, kwargs, watch.reason or next(filter(None, reasons), ""))
        if (watch.reads_values or name in _READ_MEMORY) and all(map(_is_given, _leaves(value))):
            value = pytree.tree_map_only(np.ndarray, np.copy, value)
            return pytree.tree_map_only(torch.Tensor, self._constant, value)
        args, kwargs = self._with_numbers(name, args, kwargs)
        result = func(*args, **kwargs)
        pairs = zip(_leaves(result), _leaves(value), strict=False)
        for traced, real in pairs:
            if isinstance(traced, FakeTensor) and isinstance(real, torch.Tensor):
                self._values[traced] = real
        return result

    def note_reason(self, values: Any, reason: str) -> None:
        """Notes why the tensors in some values are unknown; ``""`` where that is not clear."""
        for leaf in _leaves(values):
            if isinstance(leaf, torch.Tensor):
                self._reasons[leaf] = reason

    def _why_unknown(self, leaf: object) -> str | None:
        """None for what is known."""
        if isinstance(leaf, slice):
            parts = map(self._why_unknown, (leaf.start, leaf.stop, leaf.step))
            return next((why for why in parts if why is not None), None)
        if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return _ON_ROWS
        if not isinstance(leaf, torch.Tensor):
            return None if isinstance(leaf, _PLAIN) else ""
        if leaf not in self._values:
            if leaf in self._reasons or isinstance(leaf, FakeTensor):
                reason: str = self._reasons.get(leaf, "")
                return reason
            self._values[leaf] = leaf  # an attribute of the model that is no buffer
            self._held.setdefault(_storage(leaf), "a tensor that it keeps")
        changed = self._changed.get(_storage(self._values[leaf]))
        return changed[1] if changed else None

    def _value(self, leaf: Any) -> Any:
        if isinstance(leaf, slice):
            return slice(*map(self._value, (leaf.start, leaf.stop, leaf.step)))
        return self._values[leaf] if isinstance(leaf, torch.Tensor) else leaf

    def _change(self, value: torch.Tensor, reason: str) -> None:
        where = self._held.get(_storage(value))
        reason = _ON_STATE.format(where) if where else reason
        self._changed.setdefault(_storage(value), (value, reason))

    def _call(self, func: Any, args: Any, kwargs: Any, reason: str) -> Any:
        """Calls the function in the trace, and notes which known tensors it changed."""
        given = [t for t in _leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        known = [(t, t._version) for t in given if t in self._values]
        result = func(*args, **kwargs)
        for tensor, version in known:
            if tensor._version != version or result is tensor:
                self._change(self._values[tensor], reason)
        self.note_reason(result, reason)
        return result

    def _constant(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor in the trace with these values."""
        made = torch.tensor(value.tolist(), dtype=value.dtype).reshape(value.shape)
        self._values[made] = value
        return made

    def _with_numbers(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments with Python's numbers where torch would ask a known tensor for its own."""

        # tolist() reads memory: no operation, of which the trace would know.
        def number(value: Any) -> Any:
            if isinstance(value, slice):
                return slice(*map(number, (value.start, value.stop, value.step)))
            if isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype in _WHOLE:
                return self._value(value).tolist() if self._why_unknown(value) is None else value
            return value

        def places(index: Any) -> tuple[Any, ...]:
            """What takes the place of an index; several where a mask has several dimensions."""
            is_mask = isinstance(index, torch.Tensor) and index.dtype is torch.bool and index.dim()
            if not is_mask or self._why_unknown(index) is not None:
                return (number(index),)
            found = np.nonzero(self._value(index).tolist())
            return tuple(torch.tensor(each.tolist(), dtype=torch.int64) for each in found)

        if name in _ITEM_ACCESS:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            found = tuple(itertools.chain(*map(places, indices)))
            return (args[0], found if len(found) > 1 else found[0], *args[2:]), kwargs
        if name in _TAKE_A_NUMBER or _takes_one_tensor(name):
            return (*args[:1], *pytree.tree_map(number, args[1:])), pytree.tree_map(number, kwargs)
        return args, kwargs


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at the operations that are computed beside the trace."""

    def __init__(self, held: Container[int]) -> None:
        """Refuses to write.

        Args:
            held: storages that no operation may write to.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads_values = False
        self.reason = ""
        self.written: list[torch.Tensor] = []
        self._held = held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes the operation, if every run would compute the same and nothing held changes."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.reason = _ON_CHANCE
            raise _UnknownError
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[index] if index < len(args) else kwargs.get(argument.name)
                self.written += [t for t in _leaves(given) if t is not None]
        if any(_storage(tensor) in self._held for tensor in self.written):
            raise _UnknownError
        if func is torch.ops.aten.index.Tensor:
            self.reads_values |= any(t is not None and t.dtype in _MASKS for t in args[1])
        else:
            self.reads_values |= not _READ_VALUES.isdisjoint(func.tags)
        return func(*args, **kwargs)


class _UnknownError(Exception):
    """What was computed beside the trace has no value that every run has."""


def _storage(tensor: torch.Tensor) -> int:
    place: int = tensor.untyped_storage()._cdata
    return place


def _is_given(value: object) -> bool:
    """Whether a result takes the place of the operations that made it."""
    if isinstance(value, torch.Tensor):
        return value.numel() <= _MOST_ELEMENTS
    return isinstance(value, _NUMBERS)


@functools.cache
def _takes_one_tensor(name: str) -> bool:
    """Whether a function's operation takes but one tensor, so that another stands for a number."""
    packet = getattr(torch.ops.aten, name, None)
    overloads: list[str] = getattr(packet, "overloads", list)()
    schemas = [getattr(packet, overload)._schema for overload in overloads if "out" not in overload]
    rest = [argument for schema in schemas for argument in schema.arguments[1:]]
    return bool(schemas) and not any("Tensor" in str(argument.type) for argument in rest)
