"""The version of this package: the one place that says it.

The build reads it from this file, and everything that names a version takes it from here. What is
installed may say another one: an editable installation keeps the version that it was made with.
"""

from __future__ import annotations

__version__ = "0.1.0"
