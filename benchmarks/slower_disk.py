"""Runs a row as on a disk whose sync takes longer: the fsync of fast or virtual disks hides what others wait for.

A few lines of C, put before the C library by LD_PRELOAD, sleep before each fsync and fdatasync of the process, and the
files lie in memory, so that no other program's writes disturb. Both sides of a comparison pay alike. Needs Linux and a
C compiler; without them the rows are left out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SYNC_US = 300
"""Microseconds: a raw commit then takes 0.3 ms, the lower end of SSDs without a protected cache."""

IN_MEMORY = Path("/dev/shm")

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
static void wait_for_the_disk(void) {
    long ns = atol(getenv("BENCHMARK_SYNC_US")) * 1000;
    struct timespec wait = {ns / 1000000000, ns % 1000000000};
    prctl(PR_SET_TIMERSLACK, 1L, 0L, 0L, 0L);
    nanosleep(&wait, NULL);
}
int fdatasync(int fd) { int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync"); wait_for_the_disk(); return real(fd); }
int fsync(int fd) { int (*real)(int) = dlsym(RTLD_NEXT, "fsync"); wait_for_the_disk(); return real(fd); }
"""


def environment(folder: Path) -> dict[str, str] | None:
    """What makes a child process meet the slower disk; `None` where that can't be done."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    source, library = folder / "slower_disk.c", folder / "slower_disk.so"
    source.write_text(_SOURCE)
    built = subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=False)
    if built.returncode:
        return None
    return {"LD_PRELOAD": str(library), "BENCHMARK_SYNC_US": str(SYNC_US)}
