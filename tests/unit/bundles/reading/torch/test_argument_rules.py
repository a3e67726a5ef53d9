"""Calls of listed operations that would read, write or keep what is not theirs, and their like."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision  # registers its operations
from torch import Tensor

from cutset.bundles.reading.torch.dry_run import DryRun
from cutset.bundles.reading.torch.program import Call, Declared, Program, Result
from cutset.errors import UnsafeBundle

assert torchvision.__version__

X = (2, 8, 6, 6)
GIB = 1 << 30


def program(
    target: str,
    tensors: dict[str, tuple[int, ...]],
    others: dict[str, Any],
    result: tuple[int | None, ...] | None,
    *,
    num_results: int = 0,
) -> tuple[Program, list[tuple[tuple[int, ...], torch.dtype]]]:
    """One call; `tensors` are its inputs by argument, a name with a dot is an item of a list."""
    arguments: dict[str, Any] = {}
    for name in tensors:
        key, dot, _ = name.partition(".")
        if dot:
            arguments.setdefault(key, []).append(Result(name.replace(".", "_")))
        else:
            arguments[key] = Result(name)
    names = tuple(name.replace(".", "_") for name in tensors)
    made = tuple(f"made_{k}" for k in range(num_results)) if num_results else ("made",)
    declared = {
        name: Declared(dtype=torch.float32, sizes=shape)
        for name, shape in zip(names, tensors.values(), strict=True)
    }
    declared |= {name: Declared(dtype=torch.float32, sizes=result or ()) for name in made}
    call = Call(
        target=f"torch.ops.{target}",
        arguments=tuple((arguments | others).items()),
        results=made,
        is_sequence=bool(num_results),
    )
    whole = Program(
        path="stage-0/program.pt2",
        inputs=names,
        weights={},
        calls=(call,),
        outputs=made,
        declared=declared,
        stored=frozenset(),
        stored_bytes=0,
    )
    return whole, [(shape, torch.float32) for shape in tensors.values()]


def refusal(*args: Any, **kwargs: Any) -> str:
    whole, inputs = program(*args, **kwargs)
    with pytest.raises(UnsafeBundle) as caught:
        DryRun(whole, memory_bytes=GIB).run(inputs)
    assert caught.value.path == "stage-0/program.pt2"
    return str(caught.value)


def accepted(*args: Any, **kwargs: Any) -> tuple[int, ...]:
    whole, inputs = program(*args, **kwargs)
    return tuple(DryRun(whole, memory_bytes=GIB).run(inputs)[0].shape)


NORM = {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}


def statistics(length: int) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {"input": X} | dict.fromkeys(names, (length,))


class TestNormalisation:
    def test_statistics_as_long_as_the_channels(self) -> None:
        assert accepted("aten.batch_norm.default", statistics(8), NORM, X) == X

    @pytest.mark.parametrize("length", [1, 7, 9])
    def test_statistics_of_another_length(self, length: int) -> None:
        text = refusal("aten.batch_norm.default", statistics(length), NORM, X)
        assert f"'weight' has shape [{length}], expected [8]" in text

    def test_training_would_change_the_statistics(self) -> None:
        text = refusal("aten.batch_norm.default", statistics(8), NORM | {"training": True}, X)
        assert "'running_mean' would be changed with each call" in text

    def test_statistics_of_the_input_itself_are_no_state(self) -> None:
        nothing = dict.fromkeys(("weight", "bias", "running_mean", "running_var"))
        others = NORM | nothing | {"training": True}
        assert accepted("aten.batch_norm.default", {"input": X}, others, X) == X

    def test_statistics_missing(self) -> None:
        nothing = dict.fromkeys(("weight", "bias", "running_mean", "running_var"))
        text = refusal("aten.batch_norm.default", {"input": X}, NORM | nothing, X)
        assert "'running_mean' is missing" in text

    def test_instance_norm_would_change_the_statistics(self) -> None:
        others = {"use_input_stats": True, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}
        text = refusal("aten.instance_norm.default", statistics(8), others, X)
        assert "would be changed with each call" in text

    def test_group_norm_with_other_sizes_than_its_input(self) -> None:
        others = {"N": 2, "C": 8, "HxW": 3600, "group": 2, "eps": 1e-5, "weight": None}
        text = refusal("aten.native_group_norm.default", {"input": X}, others | {"bias": None}, X)
        assert "N, C, HxW are [2, 8, 3600], expected [2, 8, 36]" in text

    def test_layer_norm_with_a_short_weight(self) -> None:
        tensors = {"input": X, "weight": (1,)}
        text = refusal("aten.layer_norm.default", tensors, {"normalized_shape": [6]}, X)
        assert "'weight' has shape [1], expected [6]" in text

    def test_weight_norm_with_a_short_length(self) -> None:
        tensors = {"v": (8, 4), "g": (1, 1)}
        assert "'g' has shape" in refusal("aten._weight_norm.default", tensors, {"dim": 0}, (8, 4))


CONV = {"input": X, "weight": (4, 8, 3, 3), "bias": (4,)}


class TestWindows:
    def test_convolution(self) -> None:
        others = {"stride": [2, 2], "padding": [1, 1]}
        assert accepted("aten.conv2d.default", CONV, others, (2, 4, 3, 3)) == (2, 4, 3, 3)

    @pytest.mark.parametrize(
        ("others", "words"),
        [
            ({"stride": [0, 1]}, "'stride' is 0"),
            ({"dilation": [1, 0]}, "'dilation' is 0"),
            ({"padding": [-1, 0]}, "'padding' is -1"),
            ({"padding": [1 << 62, 0]}, "'padding' is 4611686018427387904"),
            ({"groups": 0}, "'groups' is 0"),
            ({"groups": -1}, "'groups' is -1"),
            ({"groups": 2}, "'input' has 8 channels, 'weight' takes 16 in 2 groups"),
            ({"stride": [1, 1, 1]}, "'stride' has 3 numbers"),
            ({"dilation": [9, 9]}, "is larger than 6"),
        ],
    )
    def test_of_a_convolution(self, others: dict[str, Any], words: str) -> None:
        assert words in refusal("aten.conv2d.default", CONV, others, None)

    def test_bias_that_is_too_short(self) -> None:
        tensors = CONV | {"bias": (1,)}
        assert "'bias' is not of shape [4]" in refusal("aten.conv2d.default", tensors, {}, None)

    @pytest.mark.parametrize(
        ("name", "others", "words"),
        [
            ("max_pool2d", {"kernel_size": [0, 0]}, "'kernel_size' is 0"),
            ("max_pool2d", {"kernel_size": [2, 2], "stride": [0, 0]}, "'stride' is 0"),
            ("max_pool2d", {"kernel_size": [2, 2], "padding": [2, 2]}, "over half"),
            ("avg_pool2d", {"kernel_size": [2, 2], "divisor_override": 0}, "'divisor_override'"),
            ("max_pool3d", {"kernel_size": [1, 1, 1], "dilation": [0, 1, 1]}, "'dilation' is 0"),
            ("adaptive_avg_pool2d", {"output_size": [0, 1]}, "'output_size' is 0"),
            ("adaptive_avg_pool2d", {"output_size": [-1, 1]}, "'output_size' is -1"),
            ("im2col", {k: [0, 1] for k in ("kernel_size", "stride", "dilation")}, "is 0"),
            ("pixel_shuffle", {"upscale_factor": 0}, "is 0"),
            ("channel_shuffle", {"groups": 0}, "'groups' is 0"),
            ("constant_pad_nd", {"pad": [-7, 0]}, "expected -6 to 65536"),
            ("reflection_pad2d", {"padding": [7, 0, 0, 0]}, "expected 0 to 6"),
            ("reflection_pad2d", {"padding": [-1, 0, 0, 0]}, "expected 0 to 6"),
        ],
    )
    def test_of_others(self, name: str, others: dict[str, Any], words: str) -> None:
        others |= {"padding": [0, 0]} if name == "im2col" else {}
        assert words in refusal(f"aten.{name}.default", {"self": X}, others, None)

    @pytest.mark.parametrize("factor", [-1.0, 1e-300, float("nan"), float("inf"), 3.0])
    def test_factor_that_is_not_that_of_the_sizes(self, factor: float) -> None:
        others = {"output_size": [12, 12], "scales_h": factor, "scales_w": 2.0}
        refusal("aten.upsample_nearest2d.default", {"self": X}, others, None)

    def test_factor_that_is(self) -> None:
        others = {"output_size": [12, 12], "scales_h": 2.0, "scales_w": 2.0}
        shape = (2, 8, 12, 12)
        assert accepted("aten.upsample_nearest2d.default", {"self": X}, others, shape) == shape

    def test_offsets_of_a_deformed_convolution(self) -> None:
        tensors = CONV | {"offset": (2, 18, 4, 4), "mask": (2, 9, 4, 4)}
        names = [f"{name}_{side}" for name in ("stride", "pad", "dilation") for side in "hw"]
        others = dict(zip(names, (1, 1, 0, 0, 1, 1), strict=True))
        others |= {"groups": 1, "offset_groups": 1, "use_mask": True}
        target = "torchvision.deform_conv2d.default"
        assert accepted(target, tensors, others, (2, 4, 4, 4)) == (2, 4, 4, 4)
        for name, shape in (("offset", (2, 18, 1, 1)), ("mask", (2, 1, 4, 4)), ("bias", (1,))):
            assert name in refusal(target, tensors | {name: shape}, others, None)


class TestAttentionAndRecurrence:
    @pytest.mark.parametrize(
        ("key", "value"),
        [((2, 2, 5, 4), (2, 2, 3, 4)), ((2, 2, 5, 3), (2, 2, 5, 3)), ((1, 2, 5, 4), (2, 2, 5, 4))],
    )
    def test_keys_that_do_not_fit(self, key: tuple[int, ...], value: tuple[int, ...]) -> None:
        tensors = {"query": (2, 2, 5, 4), "key": key, "value": value}
        for name in (
            "scaled_dot_product_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
        ):
            assert "do not fit each other" in refusal(f"aten.{name}.default", tensors, {}, None)

    def test_mask_that_does_not_fit(self) -> None:
        tensors = dict.fromkeys(("query", "key", "value"), (2, 2, 5, 4)) | {"attn_mask": (4, 5)}
        text = refusal("aten.scaled_dot_product_attention.default", tensors, {}, None)
        assert "'attn_mask' has shape [4, 5]" in text

    def test_attention_that_drops_at_random(self) -> None:
        tensors = dict.fromkeys(("query", "key", "value"), (2, 2, 5, 4))
        text = refusal(
            "aten.scaled_dot_product_attention.default", tensors, {"dropout_p": 0.5}, None
        )
        assert "'dropout_p' is not 0" in text

    def test_recurrence_with_short_weights(self) -> None:
        tensors = {"input": (2, 5, 4), "hx.0": (1, 2, 3), "hx.1": (1, 2, 3)}
        good = {"params.0": (12, 4), "params.1": (12, 3), "params.2": (12,), "params.3": (12,)}
        others = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": False}
        others |= {"bidirectional": False, "batch_first": True}
        whole, inputs = program("aten.lstm.input", tensors | good, others, (2, 5, 3), num_results=3)
        for name in ("made_1", "made_2"):
            whole.declared[name] = Declared(dtype=torch.float32, sizes=(1, 2, 3))
        shapes = [tuple(t.shape) for t in DryRun(whole, memory_bytes=GIB).run(inputs)]
        assert shapes == [(2, 5, 3), (1, 2, 3), (1, 2, 3)]
        for name, shape in (("params.0", (12, 1)), ("params.3", (1,))):
            bad = tensors | good | {name: shape}
            text = refusal("aten.lstm.input", bad, others, (2, 5, 3), num_results=3)
            assert "the weights are not of the shapes" in text
        text = refusal(
            "aten.lstm.input", tensors | good, others | {"train": True}, None, num_results=3
        )
        assert "'train' is True" in text


class TestSizes:
    @pytest.mark.parametrize(
        ("target", "tensors", "others"),
        [
            ("aten.repeat.default", {"self": X}, {"repeats": [1 << 20, 1, 1, 1]}),
            ("aten.repeat.default", {"self": X}, {"repeats": [1 << 62, 1, 1, 1]}),
            ("aten.full.default", {}, {"size": [1 << 47, 1 << 47], "fill_value": 1.0}),
            ("aten.zeros.default", {}, {"size": [1 << 40]}),
            ("aten.linspace.default", {}, {"start": 0.0, "end": 1.0, "steps": 1 << 40}),
            ("aten.expand.default", {"self": (1,)}, {"size": [1 << 45]}),
            ("aten.constant_pad_nd.default", {"self": X}, {"pad": [0, 65536, 0, 65536]}),
            ("aten.adaptive_avg_pool2d.default", {"self": X}, {"output_size": [65536, 65536]}),
            ("aten.outer.default", {"self": (1 << 16,), "vec2": (1 << 16,)}, {}),
            ("aten.conv_transpose2d.input", CONV | {"weight": (8, 4, 3, 3)}, {"stride": [65536]}),
        ],
    )
    def test_results_larger_than_the_machine(
        self, target: str, tensors: dict[str, tuple[int, ...]], others: dict[str, Any]
    ) -> None:
        refusal(target, tensors, others, None)

    @pytest.mark.parametrize(
        ("target", "others"),
        [
            ("aten.split.Tensor", {"split_size": 0, "dim": 1}),
            ("aten.split.Tensor", {"split_size": 1, "dim": 1}),
            ("aten.chunk.default", {"chunks": 0, "dim": 1}),
            ("aten.unbind.int", {"dim": 1}),
            ("aten.tensor_split.sections", {"sections": 1 << 40, "dim": 1}),
        ],
    )
    def test_more_parts_than_the_program_names(self, target: str, others: dict[str, Any]) -> None:
        refusal(target, {"self": X}, others, X, num_results=2)

    def test_what_is_held_at_once_is_counted(self) -> None:
        whole, inputs = program("aten.relu.default", {"self": X}, {}, X)
        for memory_bytes, fits in ((2 * 4 * 2 * 8 * 36, True), (2 * 4 * 2 * 8 * 36 - 1, False)):
            run = DryRun(whole, memory_bytes=memory_bytes)
            if fits:
                run.run(inputs)
            else:
                with pytest.raises(UnsafeBundle, match="this machine has"):
                    run.run(inputs)

    def test_another_shape_than_the_program_declares(self) -> None:
        text = refusal("aten.relu.default", {"self": X}, {}, (2, 8, 6, 5))
        assert "declared as torch.float32[2, 8, 6, 5], but is torch.float32[2, 8, 6, 6]" in text

    def test_a_length_that_grows_is_left_open(self) -> None:
        assert accepted("aten.relu.default", {"self": X}, {}, (None, 8, 6, 6)) == X

    def test_a_tensor_that_is_not_declared(self) -> None:
        whole, inputs = program("aten.relu.default", {"self": X}, {}, X)
        declared = {name: d for name, d in whole.declared.items() if name != "made"}
        whole = dataclasses.replace(whole, declared=declared)
        with pytest.raises(UnsafeBundle, match="the program declares none"):
            DryRun(whole, memory_bytes=GIB).run(inputs)


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_dropout"])
def test_random_numbers(name: str) -> None:
    others = {"p": 0.5, "train": True}
    assert "'train' is True" in refusal(f"aten.{name}.default", {"input": X}, others, X)


@pytest.mark.parametrize(
    ("target", "name"),
    [("to.dtype", "dtype"), ("softmax.int", "dtype"), ("clone.default", "memory_format")],
)
@pytest.mark.parametrize("number", [-1, 99, 6])
def test_number_in_place_of_a_dtype(target: str, name: str, number: int) -> None:
    others = {name: number} | ({"dim": 1} if target == "softmax.int" else {})
    text = refusal(f"aten.{target}", {"self": X}, others, X)
    assert f"argument '{name}' is {number}, expected a " in text


def test_what_depends_on_values() -> None:
    whole, inputs = program("aten.one_hot.default", {"self": (4,)}, {}, (4, 3))
    with pytest.raises(UnsafeBundle, match="would depend on values"):
        DryRun(whole, memory_bytes=GIB).run(inputs)


def _kernels(operation: Callable[..., Tensor], *arguments: Any) -> Callable[[], Tensor]:
    return lambda: operation(*arguments)


@pytest.mark.parametrize(
    "call",
    [
        _kernels(torch.embedding, torch.ones(3, 2), torch.tensor([3])),
        _kernels(torch.index_select, torch.ones(3, 2), 0, torch.tensor([-1])),
        _kernels(torch.gather, torch.ones(3, 2), 0, torch.tensor([[5, 0]])),
        _kernels(torch.take, torch.ones(3, 2), torch.tensor([6])),
        _kernels(torch.scatter, torch.ones(3, 2), 0, torch.tensor([[5, 0]]), torch.ones(1, 2)),
        _kernels(torch.index_add, torch.ones(3, 2), 0, torch.tensor([3]), torch.ones(1, 2)),
        _kernels(torch.index_copy, torch.ones(3, 2), 0, torch.tensor([3]), torch.ones(1, 2)),
        _kernels(torch.index_fill, torch.ones(3, 2), 0, torch.tensor([3]), 1.0),
        _kernels(torch.index_put, torch.ones(3, 2), (torch.tensor([3]),), torch.ones(1, 2)),
        _kernels(lambda t, i: t[i], torch.ones(3, 2), torch.tensor([-4])),
        _kernels(
            lambda t, i: torch.nn.functional.max_unpool2d(t, i, 2),
            torch.ones(1, 1, 2, 2),
            torch.full((1, 1, 2, 2), 99),
        ),
        _kernels(
            lambda t: torch.repeat_interleave(t, torch.tensor([2, -1]), output_size=1),
            torch.ones(2, 2),
        ),
    ],
)
def test_kernels_check_indices_from_data_themselves(call: Callable[[], Tensor]) -> None:
    """What the rules leave to the kernels, since only they see the values."""
    with pytest.raises((IndexError, RuntimeError)):
        call()
