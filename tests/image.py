"""Builds the image of a Dockerfile without a container engine: its steps run one by one in a folder of their own.

What stands in for what: the folder `root` is the image's file system, and the image's own absolute paths (below `OWN`)
are rewritten to lie in it; this machine's Python and system stand in for the base image. Where the kernel allows it,
each command runs as user 10001 without any capability, with everything read-only but the folders named for it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

OWN: Final = ("/data", "/etc/musher", "/opt", "/src")
"""Where an image may have files of its own; all other absolute paths are the base image's."""
_OWN_PATH: Final = re.compile(rf"(?<![\w./-])(?={'|'.join(OWN)})(?:{'|'.join(OWN)})(?![\w-])")
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_PASSED_ON: Final = re.compile(r"(?:PIP|UV|SSL_CERT)_.*|(?:https?|no|all)_proxy", re.IGNORECASE)
"""Variables that lead to the package index of this machine, whatever it is."""

_CONFINE: Final = """
set -e
mount --make-rprivate /
for folder in $WRITABLE; do mount --bind "$folder" "$folder"; done
for point in $(awk '{print $5}' /proc/self/mountinfo | sort -u); do
    case " $WRITABLE " in *" $point "*) continue ;; esac
    # The kernel's own file systems refuse, or don't matter: their files are the kernel's to guard.
    case "$point" in /proc*|/sys*|/dev/pts*) continue ;; esac
    flags=$(awk -v point="$point" '$5 == point {print $6}' /proc/self/mountinfo | tail -n 1)
    case "$flags" in rw*) mount -o "remount,bind,ro${flags#rw}" "$point" ;; esac
done
unset WRITABLE
exec unshare --user --map-user=10001 --map-group=10001 -- setpriv --no-new-privs -- "$@"
"""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `COPY --from=build /a /b` has the flag `from` and two words."""

    name: str
    flags: Mapping[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments: of the JSON form if it is one, otherwise as a shell would split them."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


def parse_dockerfile(text: str) -> list[Instruction]:
    """Read a Dockerfile without here-documents; a backslash at a line's end goes on with the next."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [_instruction(line) for line in joined.splitlines() if line.strip()]


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().partition(" ")
    flags = {}
    while found := re.match(r"--(\w[\w-]*)=(\S+)\s+", rest):
        flags[found[1]] = found[2]
        rest = rest[found.end() :]
    return Instruction(name.upper(), flags, rest.strip())


def reaches_build(path: str, patterns: Sequence[str]) -> bool:
    """Whether a file of the build context passes .dockerignore: the last pattern that fits it or a parent decides."""
    ignored = False
    candidates = [path, *(str(parent) for parent in PurePosixPath(path).parents if str(parent) != ".")]
    for pattern in patterns:
        exception = pattern.startswith("!")
        if any(_pattern(pattern.removeprefix("!").strip("/")).fullmatch(each) for each in candidates):
            ignored = not exception
    return not ignored


@functools.cache
def _pattern(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
    return re.compile(escaped.replace(r"\*", "[^/]*").replace(r"\?", "[^/]"))


def ignore_patterns(text: str) -> list[str]:
    """The patterns of a .dockerignore."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@functools.cache
def confinement_problem() -> str | None:
    """Why commands can't be confined here, or `None` where they can."""
    for program in ("unshare", "setpriv", "mount", "awk"):
        if shutil.which(program) is None:
            return f"there is no {program} here"
    with tempfile.TemporaryDirectory() as folder:
        writable, outside = Path(folder) / "writable", Path(folder) / "outside"
        writable.mkdir()
        check = 'test "$(id -u)" = 10001 && touch "$1" && ! touch "$2" 2>/dev/null'
        argv, environ = confine(["sh", "-c", check, "sh", str(writable / "file"), str(outside)], [writable])
        tried = subprocess.run(argv, env=os.environ | environ, capture_output=True, text=True, check=False)
    return (
        None if tried.returncode == 0 else f"namespaces are refused here: {tried.stderr.strip() or 'no reason given'}"
    )


def confine(command: Sequence[str], writable: Iterable[Path]) -> tuple[list[str], dict[str, str]]:
    """The command that runs `command` confined, in the same process, and the variables that it needs on top."""
    script = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _CONFINE, "confine", *command]
    return script, {"WRITABLE": " ".join(str(folder) for folder in writable)}


@dataclass
class Image:
    """An image as far as its Dockerfile was followed; `config` holds the last word of each setting instruction."""

    context: Path
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    config: dict[str, Instruction] = field(default_factory=dict)
    working_directory: str = "/"

    @property
    def root(self) -> Path:
        """The file system of the stage that is being built, at the same place for every stage."""
        return self.folder / "root"

    def build(self, instructions: Iterable[Instruction]) -> None:
        """Follow the instructions to the end; the last stage stays."""
        stage = ""
        for instruction in instructions:
            if instruction.name == "FROM":
                if stage:
                    self.root.rename(self.folder / stage)
                stage = re.split(r"\s+AS\s+", instruction.text, flags=re.IGNORECASE)[-1].replace("/", "_")
                self.root.mkdir(parents=True)
                self.environ, self.config, self.working_directory = {"PATH": self._base_path()}, {}, "/"
            else:
                self._follow(instruction)

    def inside(self, text: str) -> str:
        """Rewrite the image's own paths in a text to where they lie here."""
        return _OWN_PATH.sub(lambda found: f"{self.root}{found[0]}", text)

    def start(
        self, command: Sequence[str], *, environ: Mapping[str, str] | None = None, writable: Iterable[str] = ()
    ) -> subprocess.Popen[str]:
        """Start a command as the container would, with these folders of the image writable; the output is piped."""
        argv = [self.inside(word) for word in command]
        variables = self.environ | dict(environ or {}) | {"HOME": "/"}
        if confinement_problem() is None:
            argv, extra = confine(argv, [Path(self.inside(path)) for path in writable])
            variables |= extra
        return subprocess.Popen(
            argv,
            cwd=self.inside(self.working_directory),
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _follow(self, instruction: Instruction) -> None:
        match instruction.name:
            case "ENV":
                self._set(instruction)
            case "WORKDIR":
                self.working_directory = instruction.text
                Path(self.inside(instruction.text)).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(instruction)
            case "RUN":
                self._run(instruction.text)
            case _:
                self.config[instruction.name] = instruction

    def _base_path(self) -> str:
        """A PATH with this Python as `python`, and the system's programs."""
        programs = self.folder / "base"
        programs.mkdir(parents=True, exist_ok=True)
        if not (programs / "python").exists():
            executable = getattr(sys, "_base_executable", sys.executable)
            (programs / "python").symlink_to(Path(executable).resolve())
        return f"{programs}:/usr/local/bin:/usr/bin:/bin"

    def _set(self, instruction: Instruction) -> None:
        before = dict(self.environ)
        for word in instruction.words:
            name, _, value = word.partition("=")
            expanded = _VARIABLE.sub(lambda found: before[found[1] or found[2]], value)
            self.environ[name] = self.inside(expanded)

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = instruction.words
        stage = instruction.flags.get("from")
        into = Path(self.inside(str(PurePosixPath(self.working_directory) / target)))
        for source in sources:
            found = self.folder / stage / source.lstrip("/") if stage else self.context / source
            if stage:
                # Links: the stage is not used again, and a third of a gigabyte need not lie here twice.
                shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
            elif found.is_dir():
                shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True, ignore=self._ignored)
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, into)

    def _ignored(self, folder: str, names: list[str]) -> set[str]:
        patterns = ignore_patterns((self.context / ".dockerignore").read_text())
        below = Path(folder).relative_to(self.context)
        return {name for name in names if not reaches_build((below / name).as_posix(), patterns)}

    def _run(self, text: str) -> None:
        passed_on = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        caches = _caches()
        for name, folder in caches.items():
            folder.mkdir(parents=True, exist_ok=True)
            passed_on[name] = str(folder)
        home, scratch = self.folder / "home", self.folder / "tmp"
        for folder in (home, scratch):
            folder.mkdir(exist_ok=True)
        places = {"HOME": str(home), "TMPDIR": str(scratch), "XDG_CONFIG_HOME": str(_config_home())}
        argv = ["sh", "-c", self.inside(text)]
        environ = _certificates() | passed_on | self.environ | places
        if confinement_problem() is None:
            argv, extra = confine(argv, [self.folder, *caches.values()])
            environ |= extra
        done = subprocess.run(
            argv,
            cwd=self.inside(self.working_directory),
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {text}\n{done.stdout}{done.stderr}"


def _caches() -> dict[str, Path]:
    """The package clients' caches of this machine: they save the downloads, and change nothing that is installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return {
        "UV_CACHE_DIR": Path(os.environ.get("UV_CACHE_DIR") or cache / "uv"),
        "PIP_CACHE_DIR": Path(os.environ.get("PIP_CACHE_DIR") or cache / "pip"),
    }


def _certificates() -> dict[str, str]:
    """Have uv trust what this machine trusts: a company's own certificates are known to the system, not to uv."""
    known = ssl.get_default_verify_paths()
    found = known.cafile is not None or (known.capath is not None and any(Path(known.capath).iterdir()))
    return {"UV_SYSTEM_CERTS": "1"} if found else {}


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
