"""Fetches the payload examples that GitHub's community keeps, for the tests that go through all of them.

`python -m tests.fetch.github_examples` packs npm's `@octokit/webhooks-examples` into `.cache/`, which git ignores. The
tests skip without it, so that nothing but Python is needed to run them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

VERSION: Final = "7.6.1"
CACHED: Final = Path(__file__).parents[2] / ".cache" / f"webhooks-examples-{VERSION}.json"

_PACKAGE: Final = f"@octokit/webhooks-examples@{VERSION}"
_MEMBER: Final = "package/api.github.com/index.json"


def fetch() -> Path:
    """Put the examples into the cache, unless they are there; give their path.

    Raises:
        FileNotFoundError: there is no npm.
        subprocess.CalledProcessError: npm could not fetch the package.
    """
    if CACHED.exists():
        return CACHED
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed: install Node.js, or leave these examples out")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([npm, "pack", "--silent", _PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (packed,) = Path(folder).glob("*.tgz")
        with tarfile.open(packed) as archive:
            member = archive.extractfile(_MEMBER)
            assert member is not None, f"{_PACKAGE} has no {_MEMBER}"
            content = member.read()
    CACHED.parent.mkdir(exist_ok=True)
    partial = CACHED.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(CACHED)
    return CACHED


if __name__ == "__main__":
    sys.stdout.write(f"{fetch()}\n")
