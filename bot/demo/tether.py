"""Becomes a Python module that can't outlive the process that started it: `tether.py PARENT_PID MODULE [ARGUMENT...]`.

Run as a script in the child, not as a hook between fork and exec: a hook runs Python code in a process that has lost
all its threads but one, and can wait for ever on a lock that a lost one held.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when the thread that started it ends; it survives exec."""


def tie_to(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies in whatever way. Only Linux can; elsewhere: nothing."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before prctl was called sends no signal any more.
    if os.getppid() != parent:
        sys.exit(f"process {parent}, which was to own this one, is gone")


def main() -> None:
    parent, module, *arguments = sys.argv[1:]
    tie_to(int(parent))
    # -P: nothing that lies in the current folder may pass itself off as a module.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


if __name__ == "__main__":
    main()
