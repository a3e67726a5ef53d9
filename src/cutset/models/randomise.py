"""Random weights under which every error shows: reproducible, and alive through any depth.

Weights of two dimensions or more are uniform with He's variance for rectifiers, 2 / fan-in (He et
al., 2015, "Delving Deep into Rectifiers"), so that plain chains neither explode nor vanish.
Scales, shifts and running statistics are drawn too: left at one and zero they would hide a
swapped or forgotten layer. Running statistics must fit what reaches the layer, or a sum over many
residual blocks would grow without bound; so the model is run once and the statistics of each
normalisation are scaled by a power of two near the deviation of its input. A power of two,
because then the last bits of the run, which differ between machines, do not show in the weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from cutset.capture.arguments import ExampleInputs, call_model, untouched
from cutset.errors import ModelError

_SCALE_RANGE = (0.5, 1.5)
_SHIFT_RANGE = (-0.25, 0.25)
_MEAN_RANGE = (-0.25, 0.25)
_VARIANCE_RANGE = (0.5, 1.5)


def randomise(model: nn.Module, example_inputs: ExampleInputs, seed: int) -> None:
    """Fills parameters and running statistics with random numbers, in place.

    Every parameter is drawn but for scalars; of the buffers, running means and variances only
    (masks and tables are part of the architecture). Parameters of one dimension are shifts where
    they are called ``bias`` (or ``..._bias``) by the module that holds them, scales otherwise.
    The same seed gives the same numbers on every machine.

    Args:
        model: put into evaluation mode.
        example_inputs: inputs on which the model can be run.
        seed: 0 to 2**63 - 1.

    Raises:
        ModelError: the model cannot be run on the example inputs.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in drawn:
                    drawn.add(id(parameter))
                    _draw_parameter(name, parameter, generator)
            if _has_running_statistics(module):
                _fill(module.running_mean, *_MEAN_RANGE, generator)
                _fill(module.running_var, *_VARIANCE_RANGE, generator)
        _fit_running_statistics(model, example_inputs)


def _has_running_statistics(module: nn.Module) -> bool:
    statistics = (getattr(module, "running_mean", None), getattr(module, "running_var", None))
    return all(isinstance(value, torch.Tensor) for value in statistics)


def _draw_parameter(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if parameter.dim() >= 2:
        fan_in = max(1, math.prod(parameter.shape[1:]))
        bound = math.sqrt(3 * 2 / fan_in)  # uniform on [-b, b] has variance b**2 / 3
        _fill(parameter, -bound, bound, generator)
    elif parameter.dim() == 1:
        shift = name == "bias" or name.endswith("_bias")
        _fill(parameter, *(_SHIFT_RANGE if shift else _SCALE_RANGE), generator)


def _fill(tensor: Any, low: float, high: float, generator: torch.Generator) -> None:
    """Fills with uniform numbers, drawn as float32 whatever the dtype and device."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_floating_point():
        drawn = torch.rand(tensor.shape, generator=generator)
        tensor.copy_(drawn.mul_(high - low).add_(low))


def _fit_running_statistics(model: nn.Module, example_inputs: ExampleInputs) -> None:
    """Scales each layer's running statistics to its input, in the order of execution."""
    fitted: set[int] = set()

    def fit(module: nn.Module, args: tuple[Any, ...]) -> None:
        # A layer that is called twice is fitted to its first call.
        if id(module) not in fitted and args and isinstance(args[0], torch.Tensor):
            fitted.add(id(module))
            deviation = float(args[0].double().std())
            if 0 < deviation < math.inf:
                exponent = round(math.log2(deviation))
                module.running_mean.mul_(2.0**exponent)  # type: ignore[operator]
                module.running_var.mul_(4.0**exponent)  # type: ignore[operator]

    hooks = [
        module.register_forward_pre_hook(fit)
        for module in model.modules()
        if _has_running_statistics(module)
    ]
    if not hooks:
        return
    try:
        with untouched(model, with_buffers=False):
            call_model(model, example_inputs)
    except Exception as error:
        raise ModelError(
            f"the model cannot be run on its example inputs, so its batch-norm statistics cannot "
            f"be made: {type(error).__name__}: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
