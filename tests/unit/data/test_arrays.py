from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from cutset.data.arrays import to_array
from cutset.errors import ContractViolation


def test_arrays_are_taken_as_they_are() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen = array.copy()
    frozen.flags.writeable = False
    for given in (array, array.T, array[:, ::2], array[::-1], frozen, np.array(1.0)):
        assert to_array(given) is given


def test_a_class_of_its_own_becomes_numpys() -> None:
    named = np.arange(3.0).view(type("_Named", (np.ndarray,), {}))
    plain = to_array(named)
    assert type(plain) is np.ndarray
    assert np.shares_memory(plain, named)


@pytest.mark.parametrize("dtype", ["f4", "i8", "c16", "u2"])
def test_foreign_byte_order_is_turned_and_dimensions_keep_their_order(dtype: str) -> None:
    meant = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1).astype(dtype, order="K")
    array = to_array(meant.astype(meant.dtype.newbyteorder(">"), order="K"))
    assert array.dtype == meant.dtype
    assert array.strides == meant.strides
    assert np.array_equal(array, meant)


def test_bfloat16_is_an_array_of_numbers_and_bare_bytes_are_not() -> None:
    halves = np.ones(2, ml_dtypes.bfloat16)
    assert to_array(halves) is halves
    with pytest.raises(ContractViolation, match=r"dtype \|V2; give an array of numbers"):
        to_array(halves.view("V2"))


def test_tensors_are_taken_over_their_memory() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    array = to_array(tensor)
    tensor[0, 1] = 7
    assert array.tolist() == [[0, 7, 2], [3, 4, 5]]


def test_what_was_promised_and_what_came_are_attributes() -> None:
    with pytest.raises(ContractViolation) as caught:
        to_array(torch.ones(2).to_sparse(), boundary="into stage 0", expected="x: float32[2]")
    assert str(caught.value) == (
        "into stage 0: x: float32[2] expected, but what came is a tensor of layout"
        " torch.sparse_coo; give to_dense()"
    )
    assert caught.value.boundary == "into stage 0"
    assert caught.value.expected == "x: float32[2]"
    assert caught.value.actual == "a tensor of layout torch.sparse_coo"


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="a list came; give a torch"):
        to_array([1.0])


def test_arrays_are_taken_where_nobody_has_imported_torch() -> None:
    code = (
        "import sys, types, numpy as np\n"
        "from cutset.data.arrays import to_array\n"
        "assert to_array(np.ones(2)).tolist() == [1.0, 1.0]\n"
        "try: to_array('ones')\n"
        "except TypeError: pass\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = types.ModuleType('torch')  # as while it is imported\n"
        "try: to_array('ones')\n"
        "except TypeError: pass\n"
        "else: raise SystemExit('taken')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
