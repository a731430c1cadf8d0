"""An operator's own rules: JMESPath over `{event, headers, body}`. Compiled once, pure afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jmespath
import structlog
from jmespath.exceptions import JMESPathError

from bot.errors import ConfigError
from bot.ingest.mapping import Ignored, Mapped, mapped
from crdt import PipelineEvent

log = structlog.get_logger(__name__)

_FIELDS: Final = ("story_id", "from_stage", "to_stage", "pipeline_event")


class RuleTexts(Protocol):
    """A rule as it is configured: a condition (`None`: always), and an expression for each field."""

    @property
    def when(self) -> str | None: ...
    @property
    def story_id(self) -> str: ...
    @property
    def from_stage(self) -> str: ...
    @property
    def to_stage(self) -> str: ...
    @property
    def pipeline_event(self) -> str: ...


class _Useless(Exception):
    """An expression gave nothing that a field can hold."""


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    when: Any
    fields: Mapping[str, Any]


class Rules:
    """The rules of one source, in their order; the first whose condition holds decides.

    Raises:
        ConfigError: an expression is not JMESPath; the problem names the source, the rule and its key.
    """

    def __init__(self, source: str, texts: Sequence[RuleTexts]) -> None:
        self._source = source
        self._rules = [_compile(source, number, text) for number, text in enumerate(texts, start=1)]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def map(self, event: str, headers: Mapping[str, str], body: object) -> Mapped:
        """Map a delivery by the first rule that matches. `headers` have lower-case names."""
        facts = {"event": event, "headers": headers, "body": body}
        for rule in self._rules:
            if self._holds(rule, facts):
                return mapped(rule.name, _apply(rule, facts))
        return Mapped("the rules", reason=f"none of {len(self._rules)} rules matches")

    def _holds(self, rule: _Rule, facts: Mapping[str, object]) -> bool:
        if rule.when is None:
            return True
        try:
            found = rule.when.search(facts)
        except Exception as error:  # jmespath lets errors of Python out too, as of contains(body.ref, body.branch)
            # A function over something that this delivery does not have: the condition does not hold.
            log.info("condition_failed", source=self._source, rule=rule.name, reason=_problem(error))
            return False
        return found not in (None, False, "", [], {})


def _compile(source: str, number: int, texts: RuleTexts) -> _Rule:
    def compiled(key: str, text: str) -> Any:
        try:
            return jmespath.compile(text)
        except JMESPathError as error:
            raise ConfigError(
                f"source {source}", [f"rule {number}: {key} is not JMESPath: {_problem(error)}"]
            ) from error

    when = None if texts.when is None else compiled("when", texts.when)
    return _Rule(f"rule {number}", when, {field: compiled(field, getattr(texts, field)) for field in _FIELDS})


def _apply(rule: _Rule, facts: Mapping[str, object]) -> PipelineEvent | Ignored:
    values = {}
    for field, expression in rule.fields.items():
        try:
            values[field] = _text(expression.search(facts))
        except _Useless as error:
            return Ignored(f"its {field} gives {error}, not a string")
        except Exception as error:  # jmespath lets errors of Python out too, as of ceil(to_number('inf'))
            return Ignored(f"its {field} fails: {_problem(error)}")
    return PipelineEvent(**values)


def _text(value: object) -> str:
    """Make a field of what an expression gave; nothing is an empty field, which only stages may be."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    names = {bool: "a boolean", float: "a fraction", list: "an array", dict: "an object"}
    raise _Useless(names.get(type(value), "nothing that JSON has"))


def _problem(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(" ,:")
