"""The demo's two accounts: the person at the terminal, and the bot."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from bot.demo.synapse_folder import write_private
from bot.errors import MusherError

PERSON: Final = "you"
BOT: Final = "musher"
_FILE: Final = "accounts.json"


class AccountsLost(MusherError):
    """The passwords can't be read any more."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} does not hold the demo's passwords any more: delete {path.parent} to start afresh")


@dataclass(frozen=True, slots=True)
class Passwords:
    """Made once for a folder and kept there, so that the accounts can be used again."""

    person: str = field(repr=False)
    bot: str = field(repr=False)

    @classmethod
    def kept_in(cls, folder: Path) -> Self:
        """Read them from the folder, or make them there. Raises `AccountsLost`."""
        path = folder / _FILE
        if not path.exists():
            made = cls(secrets.token_urlsafe(9), secrets.token_urlsafe(32))
            write_private(path, json.dumps(asdict(made), indent=2))
            return made
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise AccountsLost(path) from error
