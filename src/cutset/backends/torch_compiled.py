"""The ``torch-compiled`` backend: the stage's torch program, compiled by inductor with freezing.

For stages that have no ONNX form. Measured on the two-core virtual machine where this was written,
a whole ResNet50 ran 1.4 times as fast as in eager torch and a MobileNetV2 1.5 times, and neither as
fast as in ONNX Runtime; compiling took 12 to 36 s. So it is never tried unasked: a session takes it
where it is named, or where a plan names it because a profile measured it as the fastest.

It needs a C++ compiler, which writes and loads machine code of its own making; nothing of a bundle
is run for that but the operations that the loader has checked. A kernel is compiled for one
number of rows, the micro-batch's; a shorter one runs in eager torch.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import torch

from cutset.backends import torch_eager
from cutset.bundles.open import load_program
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutset.backends.base import Arrays
    from cutset.bundles.manifest import StageEntry
    from cutset.bundles.open import Bundle
    from cutset.tensors import TensorSpec

Tensors = tuple[torch.Tensor, ...]

_COMPILERS = ("g++", "clang++", "c++")


class CompiledProgram:
    """A stage compiled for one number of rows; see `cutset.backends.base.StageProgram`.

    Args:
        module: a function of tensors that gives a tuple of them.
        examples: inputs with the number of rows to compile for.
        check: called with inputs of other shapes before they are computed; raises where the
            module may not be run with them.

    Raises:
        EngineError: it cannot be compiled here.
    """

    backend = "torch-compiled"

    def __init__(
        self,
        module: Callable[..., Tensors],
        examples: Tensors,
        check: Callable[[Tensors], None] = lambda _inputs: None,
    ) -> None:
        self._module = module
        self._check = check
        self._shapes = tuple(tensor.shape for tensor in examples)
        self._compiled = compile_module(module, examples)

    def __call__(self, inputs: Arrays) -> Arrays:
        """Computes the outputs; other shapes than it was compiled for in eager torch."""
        tensors = tuple(as_tensor(array) for array in inputs)
        if tuple(tensor.shape for tensor in tensors) == self._shapes:
            outputs = self._compiled(tensors)
        else:
            self._check(tensors)
            with torch.inference_mode():
                outputs = self._module(*tensors)
        return tuple(as_array(tensor) for tensor in outputs)


def compile_module(
    module: Callable[..., Tensors], examples: Tensors
) -> Callable[[Tensors], Tensors]:
    """Compiles a function for inputs like `examples`, and runs it once on them.

    Args:
        module: takes tensors one by one, gives a tuple.
        examples: what it is compiled for: number, shapes and dtypes.

    Raises:
        EngineError: no compiler, or inductor cannot do it; with its words.
    """
    reason = missing()
    if reason:
        raise EngineError(reason)
    import torch._inductor.config as inductor

    def run(inputs: Tensors) -> Tensors:
        # Tensors of one kind and one order in memory, or it would be compiled again for each.
        with torch.inference_mode(mode=False), torch.no_grad():
            plain = [t.clone() if t.is_inference() else t.contiguous() for t in inputs]
            outputs: Tensors = compiled(*plain)
        return outputs

    # One thread compiles, in this process: a pool of processes would outlive a killed worker.
    settings: Any = inductor.patch(freezing=True, compile_threads=1)
    try:
        with settings:
            compiled = torch.compile(module, dynamic=False, fullgraph=True)
            run(examples)
    except Exception as error:
        # Dynamo, inductor and the compiler raise errors of many kinds.
        words = str(error).strip().splitlines()
        raise EngineError(
            f"the stage cannot be compiled ({words[0] if words else type(error).__name__});"
            " use --backend torch"
        ) from error
    return run


def load(bundle: Bundle, stage: int, *, num_threads: int, micro_batch: int) -> CompiledProgram:
    """Compiles the stage's ``program.pt2`` after all its safety checks.

    Args:
        bundle: opened and checked.
        stage: index of the stage.
        num_threads: for torch's operators, in this whole process.
        micro_batch: rows to compile for.

    Raises:
        BundleError: the file is missing, changed or unsafe.
        EngineError: it cannot be compiled here.
    """
    torch.set_num_threads(num_threads)
    specs = bundle.manifest.stages[stage].inputs
    examples = tuple(_zeros(spec, micro_batch) for spec in specs)
    program = load_program(bundle, stage)
    program.check(examples)
    return CompiledProgram(program.module, examples, program.check)


def _zeros(spec: TensorSpec, num_rows: int) -> torch.Tensor:
    return torch.zeros(spec.concrete_shape(num_rows), dtype=getattr(torch, spec.dtype))


def start() -> None:
    """Computes one small convolution, in eager torch: compiling it would take half a minute."""
    torch_eager.start()


def missing() -> str:
    """What this machine lacks for it; ``""`` if nothing."""
    named = os.environ.get("CXX", "")
    if not any(shutil.which(name) for name in ((named,) if named else _COMPILERS)):
        return "torch-compiled needs a C++ compiler, and there is none here; install g++"
    return ""


def why_not(entry: StageEntry) -> str:
    """Why the stage cannot be compiled here; ``""`` if it can."""
    return torch_eager.why_not(entry) or missing()
