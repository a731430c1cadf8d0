"""Measures all rows, each side by side with a peer or a limit in one run, and writes table, JSON and picture.

`python -m benchmarks [ROW ...] [--quick] [--json FILE] [--svg FILE]`. Each row runs in a process of its own. The exit
code is 1 if a figure is not what it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from benchmarks import machine, picture, slower_disk, table
from benchmarks.figure import Figure
from benchmarks.stores import quiet

CACHE = Path(".cache").absolute()
ROW_TIMEOUT_S = 900
"""How long one row may take: several times what it takes on a slow machine."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: its number, what measures it (a module and its function), and whether on a slower disk."""

    number: str
    module: str
    function: str = "measure"
    on_slower_disk: bool = False


ROWS = (
    Row("1", "append"),
    Row("1", "append", on_slower_disk=True),
    Row("2", "turns"),
    Row("2", "turns", "measure_in_one_log", on_slower_disk=True),
    Row("3", "scanning"),
    Row("4", "pycrdt_store"),
    Row("4", "pycrdt_store", "measure_writing", on_slower_disk=True),
    Row("5", "footprint"),
    Row("6", "round_trip"),
    Row("6", "model_call"),
    Row("7", "under_load"),
    Row("7", "under_load", on_slower_disk=True),
    Row("8", "starting"),
)


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", help="numbers of rows; all if none are given")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer samples")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--svg", type=Path, help="where to draw them")
    parser.add_argument("--folder", type=Path, default=None, help="on which disk to measure (default: .cache)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        return _measure(asked.measure, asked.folder, asked.quick)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.folder or CACHE, prefix="benchmarks-") as folder:
        facts = machine.facts(Path(folder))
        print(table.facts(facts), table.head(), sep="\n\n", flush=True)
        figures: list[Figure] = []
        broken: list[str] = []
        started = time.monotonic()
        for place, row in enumerate(row for row in ROWS if not asked.rows or row.number in asked.rows):
            try:
                found = _in_a_process(row, Path(folder) / f"row-{place}", asked.quick)
            except (subprocess.SubprocessError, ValueError) as error:  # the other rows are measured all the same
                reason = f"row {row.number} ({row.module}) broke off: {error}; what it said is above"
                print(reason, flush=True)
                broken.append(reason)
                continue
            figures += found
            for figure in found:
                print(table.line(figure), flush=True)
        seconds = time.monotonic() - started
    if asked.json:
        document: dict[str, object] = {"machine": facts, "seconds": round(seconds), "broken": broken}
        document["figures"] = [_plain(figure) for figure in figures]
        asked.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if asked.svg:
        asked.svg.write_text(picture.draw(facts, figures))
    missed = sum(not figure.holds for figure in figures)
    print(f"\n{len(figures)} figures in {seconds:.0f} s, {missed} not as they must be, {len(broken)} rows broken off")
    return 1 if missed or broken else 0


def _plain(figure: Figure) -> dict[str, object]:
    plain = dataclasses.asdict(figure) | {"holds": figure.holds}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in plain.items()}


def _in_a_process(row: Row, folder: Path, quick: bool) -> Sequence[Figure]:
    folder.mkdir()
    if not row.on_slower_disk:
        return _figures(row, folder, quick, {})
    environment = slower_disk.environment(folder)
    if environment is None:
        print(f"row {row.number} on a slower disk is left out: it needs Linux and a C compiler", flush=True)
        return []
    with tempfile.TemporaryDirectory(dir=slower_disk.IN_MEMORY, prefix="benchmarks-") as in_memory:
        figures = _figures(row, Path(in_memory), quick, environment)
    where = f"sync of {slower_disk.SYNC_US / 1000:g} ms: "
    return [dataclasses.replace(figure, what=where + figure.what) for figure in figures]


def _figures(row: Row, folder: Path, quick: bool, environment: Mapping[str, str]) -> list[Figure]:
    command = [sys.executable, "-m", "benchmarks", "--measure", f"{row.module}:{row.function}", "--folder", str(folder)]
    # With it, each process that a row starts would compile every module anew.
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    child = subprocess.run(
        command + ["--quick"] * quick,
        env={**compiled, **environment},
        stdout=subprocess.PIPE,
        check=True,
        timeout=ROW_TIMEOUT_S,
    )
    return [Figure(**fields) for fields in json.loads(child.stdout)]


def _measure(row: str, folder: Path, quick: bool) -> int:
    quiet()
    figures = asyncio.run(resolve_name(f"benchmarks.{row}")(folder, quick))
    print(json.dumps([dataclasses.asdict(figure) for figure in figures]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
