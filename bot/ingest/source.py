"""A configured sender: its kind, its secrets and its rules, compiled. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from typing import Final, Protocol

from pydantic import SecretStr

from bot.ingest.mapping import Mapped, mapped
from bot.ingest.payload import Incomplete, Payload
from bot.ingest.rules import Rules, RuleTexts
from bot.ingest.signatures import Headers, check_body_time
from bot.ingest.sources import KINDS
from crdt import EventBatch

# Rules see what a delivery says, never what it proves itself with.
_PROOFS: Final = frozenset(
    {"authorization", "cookie", "linear-signature", "proxy-authorization", "webhook-signature", "x-forgejo-signature"}
    | {"x-gitea-signature", "x-gitlab-token", "x-gogs-signature", "x-hub-signature", "x-hub-signature-256"}
)


class SourceTexts(Protocol):
    """A source as it is configured."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def secrets(self) -> Sequence[SecretStr]: ...
    @property
    def rules(self) -> Sequence[RuleTexts]: ...


class Source:
    """One sender at `/v1/hooks/<name>`.

    Raises:
        ConfigError: a rule is not JMESPath.
    """

    def __init__(self, configured: SourceTexts) -> None:
        self.name = configured.name
        self._kind = KINDS[configured.kind]
        self._scheme = self._kind.scheme([secret.get_secret_value() for secret in configured.secrets])
        self._rules = Rules(configured.name, configured.rules)

    @property
    def kind(self) -> str:
        """The name of its kind."""
        return self._kind.name

    @property
    def patience_s(self) -> float:
        """Seconds in which a delivery must be taken or is lost; 0 for a sender that tries again by itself."""
        return self._kind.patience_s

    def check_headers(self, headers: Headers, now: float) -> None:
        """Refuse by its headers what no body can prove; `now` is Unix seconds.

        Raises:
            Unproven: see `Scheme`.
        """
        self._scheme.check_headers(headers, now)

    def verify(self, headers: Headers, body: bytes) -> None:
        """Check the signature of the raw body.

        Raises:
            Unproven: see `Scheme`.
        """
        self._scheme.verify(headers, body)

    def check_time(self, content: object, now: float) -> None:
        """Check the timestamp inside a signed body, where the kind has one there.

        Raises:
            Unproven: it is missing, or too far from our clock.
        """
        if self._kind.time_in_body:
            check_body_time(content, self._kind.time_in_body, now)

    def dedupe_keys(self, headers: Headers, body: bytes) -> tuple[str, ...]:
        """Name the delivery by its id and, where nothing proves the id, by its body too.

        Otherwise a captured delivery would pass again under another id.
        """
        keys = []
        given = next((headers[name] for name in self._kind.id_headers if headers.get(name)), None)
        if given is not None:
            keys.append(f"hook:{self.name}:id:{sha256(given.encode('utf-8', 'surrogateescape')).hexdigest()}")
        if not self._scheme.proves_id:
            keys.append(f"hook:{self.name}:body:{sha256(body).hexdigest()}")
        return tuple(keys)

    def batches(self, headers: Headers, body: bytes, mapped: Mapped) -> list[EventBatch]:
        """Give each batch the keys that know it again: of its own id if it has one, else of the delivery.

        A batch is dropped when one of its keys is known, so no two batches of a delivery share one.
        """
        batches: list[EventBatch] = []
        of_delivery = self.dedupe_keys(headers, body)
        for has_id, group in groupby(mapped.batches, lambda batch: bool(batch.dedupe_keys)):
            if has_id:
                own = (
                    EventBatch(each.events, tuple(f"hook:{self.name}:{key}" for key in each.dedupe_keys))
                    for each in group
                )
                batches += own
            else:
                batches.append(EventBatch(tuple(event for each in group for event in each.events), of_delivery))
                of_delivery = tuple(f"{key}+" for key in of_delivery)
        return batches

    def event_name(self, headers: Headers, content: object) -> str:
        """Give what the sender calls a delivery; `""` when it does not say."""
        return self._kind.event_name(headers, Payload(content))

    def map(self, headers: Headers, content: object) -> Mapped:
        """Make events of a delivery, by the rules if there are any, else by the preset of the kind.

        Raises:
            Unprocessable: the delivery is in our own format, and wrong.
        """
        event = self.event_name(headers, content)
        if self._rules:
            return self._rules.map(event, _visible_headers(headers), content)
        by = f"the preset of {self._kind.name}"
        try:
            outcome = self._kind.preset(event, Payload(content))
        except Incomplete as error:
            return Mapped(by, reason=str(error))
        return mapped(by, outcome)


def compile_sources(configured: Iterable[SourceTexts]) -> list[Source]:
    """Compile all sources of a configuration.

    Raises:
        ConfigError: a rule is not JMESPath.
    """
    return [Source(source) for source in configured]


def _visible_headers(headers: Headers) -> Mapping[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _PROOFS}
