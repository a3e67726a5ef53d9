"""Ranges of the numbers in documents, checked by msgspec where one is read.

A value that this program makes is in its range by how it is made; what comes from a file is
refused beyond it, with its place. The upper ends are far above what anything real needs, and low
enough that sums and products of a few of them stay ordinary numbers.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

MAX_ROWS = 1 << 24
MAX_THREADS = 1024

Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 60)]
"""A count, an index, a size in bytes, multiply-adds."""

PositiveCount: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 60)]
"""A count of what there is at least one of."""

Rows: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_ROWS)]
"""Rows of a micro-batch."""

Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e300)]
"""A duration."""

NotNegative: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e300)]
"""A rate, or a ratio of two amounts."""

Gap: TypeAlias = Annotated[float, Meta(ge=-1e-6, le=1e300)]
"""How far a value lies above a bound, relative to it; rounding may put it a little below."""

Threads: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_THREADS)]
"""Threads of a process."""
