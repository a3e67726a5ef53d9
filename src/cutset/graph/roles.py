"""What kinds of operation there are, by the names of the ATen operations and of the ONNX operators.

These are names of *operations*, fixed by the operator sets, not names of layers or models: ATen's
begin with a small letter, ONNX's (and ONNX Runtime's own) with a capital one.
"""

from __future__ import annotations

NORMALISATIONS = frozenset(
    {
        "batch_norm",
        "cudnn_batch_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "layer_norm",
        "native_layer_norm",
        "group_norm",
        "native_group_norm",
        "instance_norm",
        "rms_norm",
        "_fused_rms_norm",
        "BatchNormalization",
        "GroupNorm",
        "GroupNormalization",
        "InstanceNormalization",
        "LRN",
        "LayerNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
    }
)
"""Operations that shift and scale their input by statistics."""

ACTIVATIONS = frozenset(
    {
        "celu",
        "clamp",
        "clamp_max",
        "clamp_min",
        "elu",
        "gelu",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "log_sigmoid",
        "log_softmax",
        "mish",
        "prelu",
        "relu",
        "relu6",
        "rrelu",
        "selu",
        "sigmoid",
        "silu",
        "softmax",
        "softplus",
        "softshrink",
        "square",
        "tanh",
        "threshold",
        "BiasGelu",
        "Celu",
        "Clip",
        "Elu",
        "FastGelu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "LogSoftmax",
        "Mish",
        "PRelu",
        "QLinearLeakyRelu",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QuickGelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "Softsign",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    }
)
"""Operations that apply a fixed nonlinear function and keep the shape."""

POOLINGS_BY_WINDOW = frozenset(
    {
        *(
            f"{kind}_pool{dims}d{suffix}"
            for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "fractional_max", "lp")
            for dims in (1, 2, 3)
            for suffix in ("", "_with_indices")
        ),
        *(f"_adaptive_avg_pool{dims}d" for dims in (2, 3)),
        "AveragePool",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "LpPool",
        "MaxPool",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
    }
)
"""Operations that reduce each window of neighbouring positions to one."""

POOLINGS = POOLINGS_BY_WINDOW | {"amax", "mean", "QLinearReduceMean", "ReduceMax", "ReduceMean"}
"""All operations that reduce many positions to fewer, the global ones included."""

LAYOUTS = frozenset(
    {
        "alias",
        "alpha_dropout",
        "clone",
        "contiguous",
        "detach",
        "dropout",
        "feature_alpha_dropout",
        "feature_dropout",
        "flatten",
        "movedim",
        "native_dropout",
        "permute",
        "reshape",
        "squeeze",
        "swapaxes",
        "t",
        "transpose",
        "unflatten",
        "unsqueeze",
        "view",
        "_unsafe_view",
        "Dropout",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operations that leave the numbers as they are in inference: dropout, changes of layout, and the
rounding of a result to the bytes in which it is handed on."""

DECODINGS = frozenset({"DequantizeLinear"})
"""Operations that only turn the bytes of a quantised tensor into numbers for who reads them."""
