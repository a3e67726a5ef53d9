"""A stage's torch program, loaded after all checks and ready to run."""

from __future__ import annotations

import torch

from cutset.bundles.open import Bundle, stage_entry
from cutset.bundles.reading.torch.archive import ProgramArchive
from cutset.bundles.reading.torch.decode import read_program
from cutset.bundles.reading.torch.dry_run import DryRun
from cutset.bundles.reading.torch.functions import build_module
from cutset.bundles.reading.torch.program import Program
from cutset.bundles.strict_json import contradiction
from cutset.capture.torch_settings import using_settings
from cutset.errors import BundleError
from cutset.host import memory_bytes

_MAX_SHAPES = 4096
"""Most shapes that are remembered as checked."""


class LoadedProgram:
    """A stage in torch, ready to run; see `load_program`.

    Attributes:
        module: the stage as a torch.fx module that takes the tensors one by one and returns a
            tuple; for those who compile or inspect it. Call `check` before it.
        program: what the module was built from.
    """

    def __init__(self, module: torch.fx.GraphModule, program: Program, dry_run: DryRun) -> None:
        self.module = module
        self.program = program
        self._dry_run = dry_run
        self._checked: set[tuple[tuple[torch.Size, torch.dtype], ...]] = set()

    def check(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Works the program out on shapes alone, once for each set of shapes.

        What a program does depends on the number of rows; one that was well with two may read
        beyond a tensor's end with seven.

        Raises:
            UnsafeBundle: with tensors of these shapes a call breaks its operation's rule.
        """
        shapes = tuple([(tensor.shape, tensor.dtype) for tensor in inputs])
        if shapes not in self._checked:
            self._dry_run.run(shapes)
            if len(self._checked) < _MAX_SHAPES:
                self._checked.add(shapes)

    def __call__(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The stage's outputs for `inputs`, with any number of rows from 1.

        Raises:
            UnsafeBundle: see `check`.
        """
        self.check(inputs)
        with torch.inference_mode():
            outputs: tuple[torch.Tensor, ...] = self.module.forward(*inputs)
        return outputs


def load_program(bundle: Bundle, stage_index: int, *, device: str = "cpu") -> LoadedProgram:
    """Loads a stage's torch program, after checking every entry of its file.

    The program takes any number of rows from 1 and never changes its inputs. Its answers equal
    the captured model's bit for bit at the same number of rows and threads.

    Args:
        bundle: opened with at least this stage.
        stage_index: index of the stage.
        device: where the weights are put.

    Raises:
        UnsafeBundle: the file could run code, is not what torch.export writes, or a call in it
            could read or write memory that is not its own or keep a state.
        UnsupportedVersion: it is of a schema that this Cutset does not know.
        ManifestError: it takes or returns another number of tensors than the manifest says.
        BundleError: the stage does not exist, was not opened, or has no torch program.
    """
    entry = stage_entry(bundle, stage_index)
    if entry.program is None:
        raise BundleError(
            f"{bundle.directory}: stage {stage_index} holds no torch program, since the model was "
            "an ONNX file; use the onnxruntime backend",
            path=str(bundle.directory),
        )
    with ProgramArchive(bundle.path(entry.program), path=entry.program) as archive:
        program = read_program(archive)
        for key, names, specs in (
            ("inputs", program.inputs, entry.inputs),
            ("outputs", program.outputs, entry.outputs),
        ):
            if len(names) != len(specs):
                raise contradiction(
                    f"$.stages[{stage_index}].{key}",
                    f"has {len(specs)} tensors, but {entry.program} has {len(names)}",
                )
        module = build_module(program, archive, device=device)
        dry_run = DryRun(program, memory_bytes=memory_bytes())
        num_rows = bundle.manifest.micro_batch_only or bundle.manifest.plan.micro_batch
        shapes = [spec.concrete_shape(num_rows) for spec in entry.inputs]
        dtypes = [getattr(torch, spec.dtype) for spec in entry.inputs]
        with using_settings(bundle.manifest.torch_settings):  # the default dtype decides on some
            dry_run.run(list(zip(shapes, dtypes, strict=True)))
    return LoadedProgram(module, program, dry_run)
