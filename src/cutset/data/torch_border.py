"""Where a caller's torch tensors become arrays, and arrays become tensors again.

Torch is never imported here: who gives a tensor has imported it. What is sent is a stretch of
memory, with dtype, shape and strides. Whatever else a tensor is made of (a layout, a lazy
conjugation, a class with memory of its own kind) is resolved here or refused.
"""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from cutset.errors import ContractViolation

_BY_BITS: dict[str, np.dtype] = {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
}
"""Dtypes that torch's own way to NumPy lacks, by their names."""


def is_tensor(value: object) -> bool:
    """Whether a value is a torch tensor; where nobody has imported torch, none is."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)  # none yet while it is imported
    return kind is not None and isinstance(value, kind)


def array_over(tensor: Any, *, boundary: str, expected: str) -> np.ndarray:
    """A tensor's numbers as an array, over its memory where they stand there as they are.

    Lazy conjugation (``x.conj()``, ``x.mH``) and negation (``x.conj().imag``) are bits beside the
    memory: whoever reads the memory alone reads other numbers. Those are resolved in a copy.

    Args:
        tensor: of torch's own class or of another.
        boundary: where it comes in, for the message.
        expected: what was promised there, for the message.

    Raises:
        ContractViolation: its numbers cannot be read from the CPU's memory, or no array has such a
            dtype; says why.
    """
    torch = sys.modules["torch"]
    # Neither a subclass nor a mode of the caller's thread has a say in what these calls return.
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        if _has_own_dispatch(torch, tensor) or tensor.layout is not torch.strided:
            odd = oddity(tensor)
        else:
            # Another view of the memory: this one keeps it, whatever the caller's is set to.
            tensor = tensor.detach()
            if not tensor.is_cpu and not tensor.is_meta:
                tensor = tensor.cpu()
            odd = oddity(tensor)
        if odd is None:
            if tensor.is_conj() or tensor.is_neg():
                tensor = tensor.resolve_conj().resolve_neg()
            try:
                return plain_array(tensor)
            except TypeError:
                odd = f"a tensor of dtype {tensor.dtype}, which no array has; convert it"
    raise ContractViolation(
        f"{boundary}: {expected} expected, but what came is {odd}",
        boundary=boundary,
        expected=expected,
        actual=odd.partition(";")[0],
    )


def plain_array(tensor: Any) -> np.ndarray:
    """An array over the memory of a tensor on the CPU, with nothing lazy.

    Raises:
        TypeError: no array has such a dtype or layout.
    """
    dtype = _BY_BITS.get(str(tensor.dtype))
    if dtype is None:
        array: np.ndarray = tensor.numpy()
        return array
    torch = sys.modules["torch"]
    bits: np.ndarray = tensor.view(torch.int16 if dtype.itemsize == 2 else torch.uint8).numpy()
    return bits.view(dtype)


def tensor_over(array: np.ndarray) -> Any:
    """An answer as a tensor over the same memory.

    Args:
        array: writable, in this machine's byte order, of a dtype that torch has.
    """
    torch = sys.modules["torch"]
    dtype = f"torch.{array.dtype.name}"
    if dtype not in _BY_BITS:
        return torch.from_numpy(array)
    bits = torch.from_numpy(array.view(np.int16 if array.itemsize == 2 else np.uint8))
    return bits.view(getattr(torch, array.dtype.name))


def oddity(tensor: Any) -> str | None:
    """What keeps a tensor's numbers from being read from the CPU's memory; None where nothing does.

    Returns:
        What it is and what to give instead, e.g. ``"a tensor of layout torch.sparse_coo; give
        to_dense()"``.
    """
    torch = sys.modules["torch"]
    if _has_own_dispatch(torch, tensor):
        return (
            f"a {type(tensor).__name__}, which is no plain tensor in memory; give the tensor in it"
        )
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


def _has_own_dispatch(torch: Any, tensor: Any) -> bool:
    kind = type(tensor)
    return kind is not torch.Tensor and (
        kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    )


def _extent_bytes(tensor: Any) -> int:
    """From the beginning of its storage to the end of a tensor's last element; it has one."""
    if tensor.is_contiguous():
        reach = tensor.numel() - 1
    else:
        reach = sum(
            (length - 1) * stride
            for length, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    return int(tensor.storage_offset() + reach + 1) * int(tensor.element_size())
