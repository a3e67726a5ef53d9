"""The memory that the links of one session share, where all its processes are on one host."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from cutset.errors import EngineError
from cutset.runtime.arena import Arena, create_file
from cutset.runtime.channel import LinkContract


class LinkMemory:
    """A file for every link, and the caller's views of two of them.

    Args:
        links: of the session, in order.
        num_slots: slots of each link; 0 where nothing is shared.

    Attributes:
        files: descriptors of the files, one a link; empty where nothing is shared.
        arenas: the caller's ends: of the link from the last stage, and of that to the first.

    Raises:
        EngineError: the system has no room.
    """

    def __init__(self, links: Sequence[LinkContract], num_slots: int) -> None:
        self.files: tuple[int, ...] = ()
        self.arenas: tuple[Arena, ...] = ()
        if not num_slots:
            return
        link = links[0]
        try:
            for link in links:
                self.files = (*self.files, create_file(link.slot_bytes, num_slots))
            # Made in a caller's inference mode, the memory could not be written outside of it.
            with torch.inference_mode(mode=False):
                for link in (links[-1], links[0]):
                    arena = Arena(self.files[link.index], link.slot_bytes, num_slots)
                    self.arenas = (*self.arenas, arena)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError | OverflowError | ValueError | MemoryError):
                raise
            raise EngineError(
                f"link {link.name}: {num_slots} slots of {link.slot_bytes} bytes, for micro-batches"
                f" of {link.max_rows} rows, find no room in shared memory ({error}); choose a"
                " smaller micro_batch or window"
            ) from error

    def close(self) -> None:
        """Closes the files; the memory is given back with the last view. Safe to call twice."""
        self.arenas = ()
        while self.files:
            os.close(self.files[-1])
            self.files = self.files[:-1]
