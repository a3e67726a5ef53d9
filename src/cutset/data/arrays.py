"""What a caller gives as rows, as tensors that can be sent; and answers as arrays.

What is sent is a stretch of memory, with dtype, shape and strides. Whatever else a tensor is made
of (a layout, a lazy conjugation, a class with memory of its own kind) is resolved here or refused.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

from cutset.errors import ContractViolation

Array: TypeAlias = torch.Tensor | np.ndarray

_NUMBERS = "biufc"
"""NumPy's kinds of numbers: bool, signed, unsigned, floating, complex."""

_NO_DISPATCH = torch.Tensor.__torch_dispatch__


def to_tensor(
    array: object, *, boundary: str = "an array", expected: str = "an array of numbers"
) -> torch.Tensor:
    """An input as a tensor on the CPU, sharing the caller's memory where it can.

    Args:
        array: a tensor or an array.
        boundary: where it comes in, for the message.
        expected: what was promised there, for the message.

    Returns:
        A tensor without gradient, of torch's own class. It may still be lazily conjugated or
        negated, or lie in memory with gaps: `readable` resolves that, a micro-batch at a time.

    Raises:
        TypeError: it is neither a tensor nor an array.
        ContractViolation: its numbers cannot be read from memory, or torch has no such dtype.
    """
    if isinstance(array, torch.Tensor):
        if type(array) is torch.Tensor and not array.requires_grad and oddity(array) is None:
            return array  # in few steps: this is done for every request
        return _own(array, boundary, expected)
    if isinstance(array, np.ndarray):
        return _from_numpy(array, boundary, expected)
    raise TypeError(
        f"{boundary}: {expected} expected, a {type(array).__name__} came; give a torch.Tensor or a"
        " numpy.ndarray"
    )


def to_numpy(tensor: torch.Tensor, name: str) -> np.ndarray:
    """A tensor as an array over the same memory.

    Args:
        tensor: an answer.
        name: the output's name, for the message.

    Raises:
        TypeError: NumPy has no such dtype (bfloat16).
    """
    try:
        result: np.ndarray = tensor.numpy()
    except TypeError as error:
        raise TypeError(
            f"output {name!r} is {str(tensor.dtype).removeprefix('torch.')}, which NumPy lacks;"
            " give the inputs as tensors, and the outputs come as tensors"
        ) from error
    return result


def oddity(tensor: torch.Tensor) -> str | None:
    """What keeps a tensor's numbers from being read from the CPU's memory; None where nothing does.

    Returns:
        What it is and what to give instead, e.g. ``"a tensor of layout torch.sparse_coo; give
        to_dense()"``.
    """
    kind = type(tensor)
    if kind is not torch.Tensor and kind.__torch_dispatch__ is not _NO_DISPATCH:
        return f"a {kind.__name__}, which is no plain tensor in memory; give the tensor in it"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return (
            "a tensor inside of torch.func (vmap, grad), which has no numbers yet; call it outside"
        )
    if tensor.is_nested:
        return "a nested tensor; give a tensor of one shape, padded"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout}; give to_dense()"
    if tensor.is_quantized:
        return f"a quantised tensor ({tensor.dtype}); give dequantize() or int_repr()"
    if not tensor.is_cpu:
        if tensor.is_meta:
            return "a tensor on the device meta, which has no numbers; give one with numbers"
        return f"a tensor on the device {tensor.device}; give cpu()"
    if tensor.numel() and _extent_bytes(tensor) > tensor.untyped_storage().nbytes():
        return "a tensor whose memory was given back or made smaller; give a copy made before"
    return None


def readable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose numbers stand in memory as they are: itself, or a resolved copy.

    Lazy conjugation (``x.conj()``, ``x.mH``) and negation (``x.conj().imag``) are bits beside the
    memory: whoever reads the memory alone reads other numbers.

    Raises:
        ValueError: its numbers cannot be read from memory; says why.
    """
    odd = oddity(tensor)
    if odd is not None:
        raise ValueError(odd)
    if tensor.is_conj() or tensor.is_neg():
        return tensor.resolve_conj().resolve_neg()
    return tensor


def _extent_bytes(tensor: torch.Tensor) -> int:
    """From the beginning of its storage to the end of a tensor's last element; it has one."""
    if tensor.is_contiguous():
        reach = tensor.numel() - 1
    else:
        reach = sum(
            (length - 1) * stride
            for length, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    return int(tensor.storage_offset() + reach + 1) * tensor.element_size()


def _own(tensor: torch.Tensor, boundary: str, expected: str) -> torch.Tensor:
    """A tensor of torch's own class on the CPU, without gradient."""
    # A subclass may have its own idea of what these calls return.
    with torch._C.DisableTorchFunctionSubclass():
        plain = tensor
        if type(tensor).__torch_dispatch__ is _NO_DISPATCH and tensor.layout is torch.strided:
            plain = tensor.detach()
            if type(tensor) is not torch.Tensor:
                plain = plain.as_subclass(torch.Tensor)
            if not plain.is_cpu and not plain.is_meta:
                plain = plain.cpu()
        odd = oddity(plain)
    if odd is not None:
        raise ContractViolation(
            f"{boundary}: {expected} expected, but what came is {odd}",
            boundary=boundary,
            expected=expected,
            actual=odd.partition(";")[0],
        )
    return plain


def _from_numpy(array: np.ndarray, boundary: str, expected: str) -> torch.Tensor:
    """An array as a tensor, over the same memory where torch can use it as it is."""
    odd = None
    if isinstance(array, np.ma.MaskedArray):
        odd = "a masked array, which has no value where it is masked; give filled(value)"
    elif array.dtype.kind not in _NUMBERS:
        odd = f"an array of dtype {array.dtype}; give an array of numbers"
    if odd is None:
        try:
            return torch.from_numpy(_native(np.asarray(array)))
        except TypeError:
            odd = f"an array of dtype {array.dtype}, which torch lacks; convert it"
    raise ContractViolation(
        f"{boundary}: {expected} expected, but what came is {odd}",
        boundary=boundary,
        expected=expected,
        actual=odd.partition(";")[0],
    )


def _native(array: np.ndarray) -> np.ndarray:
    """An array that torch takes: itself, or a copy with its dimensions in the same order."""
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="), order="K")
    # torch warns of memory that it must not write; it never writes here, but a copy is cheap next
    # to a computation. The strides of an array of one row count too.
    usable = (
        array.flags.writeable
        and array.flags.aligned
        and all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    )
    return array if usable else np.array(array, order="K")
