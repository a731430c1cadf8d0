"""Installs matrix-js-sdk, the independent client of the encryption tests, into `.cache/`, which git ignores.

`python -m tests.fetch.matrix_js_sdk` needs Node.js and npm. The tests skip without it, so that nothing but Python is
needed to run them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

PERSON: Final = Path(__file__).parents[1] / "servers" / "js_person"
CACHED: Final = Path(__file__).parents[2] / ".cache" / "js-person-43.0.0"
_READY: Final = CACHED / ".ready"


def missing() -> str | None:
    """Why the client can't be run here, and what to do about it; `None` if it can."""
    if shutil.which("node") is None:
        return "Node.js is not installed"
    if not _READY.exists():
        return "matrix-js-sdk is not there: run `python -m tests.fetch.matrix_js_sdk` once"
    return None


def fetch() -> Path:
    """Put the client into the cache, unless it is there; give its folder.

    Raises:
        FileNotFoundError: there is no npm.
        subprocess.CalledProcessError: npm could not install the package.
    """
    if _READY.exists():
        return CACHED
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed: install Node.js, or leave these tests out")
    CACHED.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PERSON / name, CACHED)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(command, cwd=CACHED, check=True, stdout=subprocess.DEVNULL)
    _READY.touch()
    return CACHED


if __name__ == "__main__":
    sys.stdout.write(f"{fetch()}\n")
