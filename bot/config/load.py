"""Brings the TOML file and the environment together into one `Config`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from bot.config.environment import read_environment
from bot.config.problems import Place, describe, unknown_key, write_key
from bot.config.secret_files import put_in_secrets
from bot.config.sections import Config, StoreConfig
from bot.errors import ConfigError
from bot.reading import read_whole

DEFAULT_PATH: Final = Path("config.toml")
_NO_FILE: Final = "no such file; copy config.example.toml to {path} and fill it in"


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Everything that was said, before it is checked."""

    source: str
    values: dict[str, Any]
    origins: Mapping[Place, str]
    of_environment: tuple[str, ...]
    folder: Path
    """From which the relative paths of secrets are taken."""


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_whole(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), ["is not UTF-8 text; save it as UTF-8"]) from error
    except ValueError as error:  # also of a number with too many digits
        raise ConfigError(str(path), [f"is not TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigError(str(path), ["can't be read: it is nested too deep"]) from error
    except FileNotFoundError as error:
        raise ConfigError(str(path), [_NO_FILE.format(path=path)]) from error
    except OSError as error:
        problem = f"can't be read ({error.strerror}); check the path and its permissions"
        raise ConfigError(str(path), [problem]) from error


def _is_missing(path: Path) -> bool:
    """Tell whether there is no such file; what can't be looked at is there, and told by whoever reads it."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _merge(below.get(key), value) for key, value in above.items()}}
    return above


def _gather(path: Path | None, environ: Mapping[str, str]) -> _Gathered:
    environment = read_environment(environ, Config)
    if path is None and _is_missing(DEFAULT_PATH) and (environment.values or environment.problems):
        file_values, source, folder = {}, "the environment", Path.cwd()
    else:
        path = path or DEFAULT_PATH
        file_values, source, folder = _read_toml(path), str(path), path.parent
    values = _merge({"matrix": {}, "llm": {}}, _merge(file_values, environment.values))
    return _Gathered(source, values, environment.origins, tuple(environment.problems), folder)


def _complaints(error: ValidationError, gathered: _Gathered, *above: str) -> list[str]:
    found = error.errors(include_url=False, include_context=False)
    return [describe({**each, "loc": (*above, *each["loc"])}, Config, gathered.origins) for each in found]


def load_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read `path` (default: `config.toml`) with the environment over it.

    Without a `path`, the environment alone is enough. Relative paths: `store.path` and whatever the environment names
    are taken from the current directory, a `<secret>_file` in the TOML file from that file's folder.
    Raises `ConfigError` with every problem there is.
    """
    gathered = _gather(path, os.environ if environ is None else environ)
    problems = [*gathered.of_environment, *put_in_secrets(Config, gathered.values, gathered.folder)]
    config: Config | None = None
    try:
        config = Config.model_validate(gathered.values)
    except ValidationError as error:
        problems += _complaints(error, gathered)
    if config is None or problems:
        if gathered.source != str(path or DEFAULT_PATH):
            problems.append(f"{DEFAULT_PATH}: {_NO_FILE.format(path=DEFAULT_PATH)}, or set all in the environment")
        raise ConfigError(gathered.source, problems)
    return config


def load_store_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> StoreConfig:
    """Read only where the store is, for commands that look into it: they need no password, nor its file.

    Raises `ConfigError` if the file can't be read, `[store]` is wrong, or what was meant for it may stand under a name
    that nobody reads.
    """
    gathered = _gather(path, os.environ if environ is None else environ)
    unknown = [key for key in gathered.values if key not in Config.model_fields]
    problems = list(gathered.of_environment)
    problems += [f"{write_key((key,))}: {unknown_key(key, Config)}" for key in unknown]
    store: StoreConfig | None = None
    try:
        store = StoreConfig.model_validate(gathered.values.get("store", {}))
    except ValidationError as error:
        problems += _complaints(error, gathered, "store")
    if store is None or problems:
        raise ConfigError(gathered.source, problems)
    return store
