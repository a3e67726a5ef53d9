"""A cluster on one machine, to test on: what a cluster file describes, out of Linux's own parts.

A development tool; it needs root on Linux, the package iproute2, and for the raylets Ray::

    python -m testbed up cluster.toml        # builds it and starts Ray on every node
    python -m testbed up cluster.toml --ssh  # or: an ssh server on every node, and files to log in
    python -m testbed status
    python -m testbed exec pi-1 cutset run model.cutset photographs/ --engine ray --address auto
    python -m testbed fault cut pi-1 pi-2    # and mend, freeze, thaw, kill-worker, kill-raylet ...
    python -m testbed board build/board      # a folder that is an aarch64 board, run by qemu
    python -m testbed down                   # leaves nothing

A device becomes a network namespace with one interface. The interfaces meet on a bridge that lies
in a namespace of its own, so nothing of the testbed is in the machine's own network, and nothing
in the testbed can reach it. Every directed pair of nodes has a token bucket, or shares that of a
port or a medium; every node has a control group with its share of the processor and its memory.
"""
