"""Programs of stages on a disk that is full, wherever in the file that shows."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
import torch
from torch import nn
from typing_extensions import Buffer

from cutset.capture import piece_files

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("width", [1, 1 << 6, 1 << 10])
def test_a_full_disk_is_an_error_and_no_end_of_the_process(width: int) -> None:
    exported = torch.export.export(nn.Linear(width, width).eval(), (torch.zeros(2, width),))
    with pytest.raises(OSError, match="No space left") as caught:
        piece_files._write_program(exported, FULL)
    assert caught.value.errno == errno.ENOSPC


class _Disk(io.BytesIO):
    """Takes so many bytes."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self._num_bytes = num_bytes

    def write(self, data: Buffer) -> int:
        if self.tell() + memoryview(data).nbytes > self._num_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("num_bytes", range(0, 4000, 500))
def test_whatever_is_written_when_it_is_full(num_bytes: int) -> None:
    exported = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(2, 2),))
    patient = piece_files._PatientFile(_Disk(num_bytes))
    torch.export.save(exported, patient)
    assert patient.error is not None
    assert patient.error.errno == errno.ENOSPC
