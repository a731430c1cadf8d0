"""The facts of the machine that every figure depends on."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.commits import RawCommits
from benchmarks.figure import microseconds

PACKAGES = ("pycrdt", "aiosqlite", "matrix-nio", "pydantic-ai-slim", "matrix-synapse", "pycrdt-store")
_BLOCK = b"x" * 4096


def facts(folder: Path) -> dict[str, str]:
    """What a reader must know to compare: processor, load, file system, what a sync and a raw commit take here."""
    with RawCommits.into(folder / "facts.db") as raw:
        commits = [raw.one() for _ in range(300)]
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.release()}, {_file_system(folder)}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "fsync of 4 KiB, p50": microseconds(_sync(folder / "facts.bin")),
        "raw commit, p50": microseconds(statistics.median(commits)),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # the rows that need it say so
        return "not installed"


def _sync(file: Path) -> float:
    """Median seconds of an fsync after an append of one block."""
    took = []
    with file.open("wb", buffering=0) as output:
        for _ in range(100):
            output.write(_BLOCK)
            started = time.perf_counter()
            os.fsync(output.fileno())
            took.append(time.perf_counter() - started)
    return statistics.median(took)


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, where the system tells."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "file system unknown"
    found = max(
        (
            fields
            for line in mounts.read_text().splitlines()
            if str(folder.resolve()).startswith((fields := line.split())[1])
        ),
        key=lambda fields: len(fields[1]),
    )
    return found[2]
