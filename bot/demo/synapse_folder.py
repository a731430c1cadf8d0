"""What lies in the folder of an embedded Synapse.

`identity.json` (server name, port, secrets), `signing.key`, `homeserver.db` and `media/` are enough to come back as the
same server. `homeserver.yaml` and `log.yaml` are written anew at each start. What Synapse says is in `homeserver.log`.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from bot.errors import MusherError

_LAST_LINES = 15

_UNLIMITED = {"per_second": 100_000, "burst_count": 100_000}
_RATE_LIMITS: dict[str, Any] = {
    "rc_message": _UNLIMITED,
    "rc_registration": _UNLIMITED,
    "rc_registration_token_validity": _UNLIMITED,
    "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
    "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
    "rc_joins_per_room": _UNLIMITED,
    "rc_key_requests": _UNLIMITED,
    "rc_3pid_validation": _UNLIMITED,
    "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
    "rc_third_party_invite": _UNLIMITED,
    "rc_media_create": _UNLIMITED,
    "rc_presence": {"per_user": _UNLIMITED},
    "rc_delayed_event_mgmt": _UNLIMITED,
    "rc_room_creation": _UNLIMITED,
    "rc_reports": _UNLIMITED,
    "rc_user_directory": _UNLIMITED,
    "rc_profile": _UNLIMITED,
}

_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"output": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
    "root": {"level": "WARNING", "handlers": ["output"]},
}


class HomeserverFailed(MusherError):
    """The embedded homeserver can't be started, or refused what was asked of it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What has to stay the same for users and rooms to be found again."""

    server_name: str
    port: int
    registration_shared_secret: str = field(repr=False)
    macaroon_secret_key: str = field(repr=False)
    form_secret: str = field(repr=False)


def new_identity(server_name: str) -> Identity:
    """An identity with fresh secrets and no port yet (0)."""
    return Identity(server_name, 0, *(secrets.token_urlsafe(32) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class SynapseFolder:
    """The files of one embedded Synapse, all readable by their owner alone."""

    path: Path

    @classmethod
    def at(cls, path: Path | str) -> SynapseFolder:
        """The folder at `path`, made if it is missing. Raises `HomeserverFailed`."""
        folder = Path(path).absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HomeserverFailed(
                f"the embedded homeserver's folder {folder} can't be made ({error.strerror}): use another folder"
            ) from error
        return cls(folder)

    @property
    def config_file(self) -> Path:
        return self.path / "homeserver.yaml"

    @property
    def log_file(self) -> Path:
        return self.path / "homeserver.log"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep a second Synapse from opening the same database. Raises `HomeserverFailed`."""
        with open(self.path / "lock", "w", opener=_private) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HomeserverFailed(
                    f"another embedded homeserver runs in {self.path}: end that one first, or use another folder"
                ) from error
            yield

    def read_identity(self) -> Identity | None:
        """The identity that was kept here, or None in a new folder. Raises `HomeserverFailed`."""
        path = self.path / "identity.json"
        if not path.exists():
            return None
        try:
            return Identity(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise HomeserverFailed(
                f"{path} does not hold the embedded homeserver's identity any more: delete {self.path} to start afresh"
            ) from error

    def write_identity(self, identity: Identity) -> None:
        write_private(self.path / "identity.json", json.dumps(asdict(identity), indent=2))

    def write_config(self, identity: Identity, host: str, in_memory: bool) -> None:
        """Write all that Synapse reads at its start: two config files, and a signing key if there is none yet."""
        key = self.path / "signing.key"
        if not key.exists():
            seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
            write_private(key, f"ed25519 a_musher {seed}\n")
        # JSON is YAML.
        write_private(self.path / "log.yaml", json.dumps(_LOGGING, indent=2))
        write_private(self.config_file, json.dumps(self._synapse_config(identity, host, in_memory), indent=2))

    def _synapse_config(self, identity: Identity, host: str, in_memory: bool) -> dict[str, Any]:
        database = ":memory:" if in_memory else str(self.path / "homeserver.db")
        listener = {
            "port": identity.port,
            "bind_addresses": [host],
            "type": "http",
            "tls": False,
            "resources": [{"names": ["client"], "compress": False}],
        }
        return {
            "server_name": identity.server_name,
            "public_baseurl": f"http://{host}:{identity.port}/",
            "listeners": [listener],
            "database": {"name": "sqlite3", "args": {"database": database}},
            "log_config": str(self.path / "log.yaml"),
            "media_store_path": str(self.path / "media"),
            "signing_key_path": str(self.path / "signing.key"),
            "registration_shared_secret": identity.registration_shared_secret,
            "macaroon_secret_key": identity.macaroon_secret_key,
            "form_secret": identity.form_secret,
            "report_stats": False,
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "federation_domain_whitelist": [],
            "bcrypt_rounds": 4,
            "presence": {"enabled": False},
            **_RATE_LIMITS,
        }

    def open_log(self) -> IO[bytes]:
        """The log, to write at its end; `tell()` says where that is."""
        return open(self.log_file, "ab", opener=_private)

    def last_lines(self, start: int) -> str:
        """The last lines of the log from byte `start` on."""
        with open(self.log_file, "rb") as file:
            file.seek(start)
            return "\n".join(file.read().decode(errors="replace").splitlines()[-_LAST_LINES:])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_private(path: Path, text: str) -> None:
    """Replace `path` whole, or not at all."""
    new = path.with_name(path.name + ".new")
    with open(new, "w", opener=_private) as file:
        file.write(text)
    new.replace(path)
