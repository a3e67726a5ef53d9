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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from cutset.backends.base import Computation, ProgramBackend
from cutset.dtypes import Arrays
from cutset.errors import EngineError

if TYPE_CHECKING:
    import torch

    from cutset.bundles.open import Bundle

_Tensors: TypeAlias = "tuple[torch.Tensor, ...]"

_COMPILERS = ("g++", "clang++", "c++")


class CompiledBackend(ProgramBackend):
    """Kernels that inductor compiles."""

    name = "torch-compiled"
    is_quick = False

    def missing(self) -> str:
        """What this machine lacks for it; ``""`` if nothing."""
        named = os.environ.get("CXX", "")
        if not any(shutil.which(name) for name in ((named,) if named else _COMPILERS)):
            return "torch-compiled needs a C++ compiler, and there is none here; install g++"
        return super().missing()

    def load(
        self, bundle: Bundle, stage: int, *, num_threads: int, micro_batch: int
    ) -> Computation:
        """Compiles the stage's ``program.pt2`` for a micro-batch, after all its safety checks.

        This process computes with the bundle's settings of torch from here on.

        Raises:
            BundleError: the file is missing, changed or unsafe.
            EngineError: it cannot be compiled here.
        """
        import torch

        from cutset.bundles.reading.torch.loading import load_program
        from cutset.capture.torch_settings import apply_settings

        apply_settings(bundle.manifest.torch_settings)
        torch.set_num_threads(num_threads)
        examples = tuple(
            torch.zeros(spec.concrete_shape(micro_batch), dtype=getattr(torch, spec.dtype))
            for spec in bundle.manifest.stages[stage].inputs
        )
        program = load_program(bundle, stage)
        program.check(examples)
        return self.load_module(program.module, examples, program.check)

    def load_module(
        self,
        module: Callable[..., _Tensors],
        examples: _Tensors,
        check: Callable[[_Tensors], None] = lambda _inputs: None,
    ) -> Computation:
        """Compiles a function for the number of rows of `examples`.

        Args:
            module: takes tensors one by one, gives a tuple of them.
            examples: inputs with the number of rows to compile for.
            check: called with inputs of other shapes before they are computed; raises where the
                module may not be run with them.

        Raises:
            EngineError: it cannot be compiled here.
        """
        reason = self.missing()
        if reason:
            raise EngineError(reason)
        import torch

        from cutset.capture.torch_arrays import as_array, as_tensor

        shapes = tuple(tensor.shape for tensor in examples)
        compiled = _compiled(module, examples)

        def compute(inputs: Arrays) -> Arrays:
            tensors = tuple(as_tensor(array) for array in inputs)
            if tuple(tensor.shape for tensor in tensors) == shapes:
                outputs = compiled(tensors)
            else:
                check(tensors)
                with torch.inference_mode():
                    outputs = module(*tensors)
            return tuple(as_array(tensor) for tensor in outputs)

        return compute


def _compiled(
    module: Callable[..., _Tensors], examples: _Tensors
) -> Callable[[_Tensors], _Tensors]:
    """Compiles a function for inputs like `examples`, and runs it once on them.

    Raises:
        EngineError: inductor cannot do it; with its words.
    """
    import torch
    import torch._inductor.config as inductor

    def run(inputs: _Tensors) -> _Tensors:
        # _Tensors of one kind and one order in memory, or it would be compiled again for each.
        with torch.inference_mode(mode=False), torch.no_grad():
            plain = [t.clone() if t.is_inference() else t.contiguous() for t in inputs]
            outputs: _Tensors = compiled(*plain)
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
