"""What was taken back leaves the transcript: its sender stays, its words go. Pure.

A user entry holds messages one after the other, each as `prompt.said` renders it: only its first line begins with the
sender, every further line that is not blank is indented.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from crdt import TakenBack, TranscriptEntry

REDACTED: Final = "[redacted]"

_SENDER: Final = re.compile(r"<[^>\n]*>: ")
_BEGINNINGS: Final = re.compile(rf"^(?={_SENDER.pattern})", re.MULTILINE)


def strike(entry: TranscriptEntry, gone: Sequence[TakenBack]) -> TranscriptEntry:
    """Put `[redacted]` for the words of some messages of an entry.

    Where the messages can't be told apart any more, all of them go: better too much than what was to be forgotten.
    """
    said = [message.removesuffix("\n") for message in _BEGINNINGS.split(entry.text) if message]
    context = list(entry.context)
    for one in gone:
        messages = context if one.context else said
        places = [one.place] if len(messages) == one.count else range(len(messages))
        for place in places:
            messages[place] = _struck(messages[place])
    return replace(entry, text="\n".join(said), context=context)


def _struck(message: str) -> str:
    sender = _SENDER.match(message)
    return (sender.group() if sender else "") + REDACTED
