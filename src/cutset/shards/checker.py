"""Entry of the process that checks bundles, ``python -m cutset.shards.checker``.

Nothing heavy is imported before it is made sure that the process ends with the one that started it.
"""

from __future__ import annotations

import os
import sys

from cutset.child import end_with
from cutset.launch import die_with_parent

LENGTH_BYTES = 4


def main() -> None:
    """Answers one request; see `cutset.shards.checking`."""
    die_with_parent()
    # What libraries print must not come between the messages.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    source = sys.stdin.buffer
    request = source.read(int.from_bytes(source.read(LENGTH_BYTES), "little"))
    end_with(source)
    from cutset.shards.checking import answer

    answer(request, answers)
    # Libraries of backends may still have threads; nothing is left to be written.
    os._exit(0)


if __name__ == "__main__":
    main()
