"""The process of a bystander: works, and counts what it gets done.

Does what a stage does, about half of the time each: multiplies matrices that fill a core's cache,
and goes through more weights than any cache holds. So it also feels what others do to caches and
memory. It counts in the file that is its standard output, eight bytes of shared memory, and ends by
itself when the process that started it is gone.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import time

import numpy as np


def main() -> None:
    """Works until its time is over or its caller gone."""
    parser = argparse.ArgumentParser(description="Works, and counts in its standard output.")
    parser.add_argument("seconds", type=float, help="for how long at most")
    until_s = time.monotonic() + parser.parse_args().seconds
    parent = os.getppid()
    count = memoryview(mmap.mmap(sys.stdout.fileno(), 8)).cast("q")
    a, b, c = np.ones((3, 256, 256), np.float32)
    weights, row = np.ones((8, 512, 2048), np.float32), np.ones(2048, np.float32)
    while os.getppid() == parent and time.monotonic() < until_s:
        for block in weights:
            np.matmul(a, b, out=c)
            np.matmul(block, row)
            count[0] += 1
