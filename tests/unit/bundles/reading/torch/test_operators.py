from __future__ import annotations

import contextlib
import functools
import math
import operator
import re

import pytest
import torch

from cutset.bundles.reading.torch.argument_rules import RULES
from cutset.bundles.reading.torch.operators import (
    _ATEN,
    _NUMBER_FUNCTIONS,
    _TORCHVISION,
    is_allowed,
    is_number_function,
    is_truth_function,
    resolve_operator,
)
from cutset.errors import UnsafeBundle


def test_resolves_to_the_very_operation() -> None:
    assert (
        resolve_operator("torch.ops.aten.conv2d.default", path="p") is torch.ops.aten.conv2d.default
    )
    assert resolve_operator("_operator.mul", path="p") is operator.mul
    assert resolve_operator("math.ceil", path="p") is math.ceil


@pytest.mark.parametrize("name", ["relu_.default", "add_.Tensor", "batch_norm_.default"])
def test_refuses_what_changes_a_tensor(name: str) -> None:
    with pytest.raises(UnsafeBundle, match="changes a tensor in place"):
        resolve_operator(f"torch.ops.aten.{name}", path="p")


def test_no_listed_operation_changes_a_tensor_by_its_signature() -> None:
    assert [str(schema) for schema in schemas() if schema.is_mutable] == []


def test_operations_of_torchvision() -> None:
    assert resolve_operator("torch.ops.torchvision.deform_conv2d.default", path="p") is (
        torch.ops.torchvision.deform_conv2d.default
    )
    for name in ("nms", "roi_align", "roi_pool", "ps_roi_align", "_cuda_version"):
        assert not is_allowed(f"torch.ops.torchvision.{name}.default")


@pytest.mark.parametrize(
    "name", ["as_strided", "as_strided_", "set_", "resize_", "item", "nonzero"]
)
def test_raw_memory_and_what_depends_on_values_is_refused(name: str) -> None:
    assert not is_allowed(f"torch.ops.aten.{name}.default")


def test_every_rule_is_for_a_listed_operation() -> None:
    assert set(RULES) - _ATEN - _TORCHVISION == set()


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.ops.aten._assert_scalar.default", "torch.ops.aten.x.y"]
)
def test_refuses_by_name(target: str) -> None:
    with pytest.raises(UnsafeBundle) as caught:
        resolve_operator(target, path="stage-0/program.pt2")
    assert caught.value.path == "stage-0/program.pt2"


def test_numbers_and_truths() -> None:
    assert is_number_function("_operator.floordiv")
    assert not is_number_function("torch.ops.aten.add.Tensor")
    assert is_truth_function("_operator.eq")
    assert not is_truth_function("_operator.add")


def test_every_listed_name_is_an_operation_of_torch() -> None:
    unknown = {name for name in _ATEN if getattr(torch.ops.aten, name, None) is None}
    assert unknown == set()


@functools.cache
def schemas() -> list[torch.FunctionSchema]:
    """Of every overload that can be resolved."""
    found = []
    for name in _ATEN:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            with contextlib.suppress(UnsafeBundle):
                function = resolve_operator(f"torch.ops.aten.{name}.{overload}", path="p")
                found.append(function._schema)
    return found


def test_no_operation_takes_raw_memory_or_objects() -> None:
    taken = {
        str(argument.type)
        for schema in schemas()
        for argument in (*schema.arguments, *schema.returns)
    }
    plain = re.compile(
        r"(Optional\[|List\[)*(Tensor|number|int|float|bool|complex|str|Device|Generator)\]*"
    )
    assert [text for text in sorted(taken) if not plain.fullmatch(text)] == []
    assert "Tensor" in taken


def test_no_operation_takes_a_file_name() -> None:
    words = {
        argument.name
        for schema in schemas()
        for argument in schema.arguments
        if "str" in str(argument.type)
    }
    # torch 2.9 calls the name of a dimension a string too; later ones give it a type of its own,
    # which is refused.
    words -= {"dim", "dim0", "dim1", "dim2", "dims", "names"}
    words -= {"start_dim", "end_dim", "out_dim", "outdim"}
    assert words == {
        *("approximate", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord"),
        *("pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side", "UPLO"),
    }


@pytest.mark.parametrize(
    "target",
    ["torch.ops.aten.copy.Dict_str", "torch.ops.aten.add.int", "torch.ops.aten.index.str"],
)
def test_torchscripts_functions_on_other_things_are_refused(target: str) -> None:
    with pytest.raises(UnsafeBundle, match="no operation on tensors"):
        resolve_operator(target, path="p")


def test_number_functions_are_quick_on_any_lengths() -> None:
    assert not {"_operator.pow", "_operator.lshift", "math.factorial"} & _NUMBER_FUNCTIONS.keys()
