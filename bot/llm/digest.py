"""The provider without a model: it reports the new pipeline events in plain words, and recalls what it told before.

Everything it knows stands in the conversation that it is given, as for any model. The same conversation gives the
same reply, byte for byte.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bot.llm.port import Reply
from bot.prompt import ModelMessage, split_user
from crdt import FOLDED, PipelineEvent, parse_audit_line

MAX_ROWS: Final = 50
"""Most stories that a status table shows."""
MAX_STEPS: Final = 10
"""Most steps of one story that an answer recalls."""

_GAP: Final = re.compile(r"events between (.*) and (.*) were dropped")
_SAID: Final = re.compile(r"^<(@[^>\s]+)>: ", re.MULTILINE)
_STATUS: Final = re.compile(
    r"\b(status|overview|summary|board|standup|all (the )?stories)\b|\bwhere (are|do|does|is) (we|things|every|all)",
    re.IGNORECASE,
)
_MARKDOWN: Final = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
_NUMBER_OF_STAGE: Final = re.compile(r"^\d+[\s_.-]+")
_WORD: Final = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+")
_STEM: Final = 4
_JOINER: Final = "\u200d"  # holds emoji together


@dataclass(slots=True)
class _Story:
    """What the conversation tells of one story."""

    name: str
    steps: list[PipelineEvent] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """The stage that it was last said to be in; empty if never or if it left without saying where to."""
        moves = [step for step in self.steps if step.from_stage or step.to_stage]
        return moves[-1].to_stage if moves else ""


@dataclass(frozen=True, slots=True)
class _Report:
    """The lines of a frame, read back: the events, how many more were folded, and what has to be said besides."""

    events: list[PipelineEvent]
    folded: int
    notes: list[str]

    @property
    def empty(self) -> bool:
        return not (self.events or self.notes)


class DigestModel:
    """Answers from the audit lines alone. Never fails, needs no network."""

    async def reply(self, messages: Sequence[ModelMessage]) -> Reply:
        """Tell what is new, then answer what the newest message asks of stories, stages and events."""
        return Reply(_digest(messages))

    async def check(self) -> None:
        """There is nothing that could be missing."""

    async def aclose(self) -> None:
        """There is nothing to close."""


def _digest(messages: Sequence[ModelMessage]) -> str:
    talk = [split_user(message.content) for message in messages if message.role == "user"]
    lines, spoken = talk[-1] if talk else ([], "")
    report = _read(lines)
    earlier = _stories(event for old, _ in talk[:-1] for event in _read(old).events)
    known = _stories(event for all_lines, _ in talk for event in _read(all_lines).events)
    met = any(message.role == "assistant" for message in messages)
    question = _question(spoken)
    parts = [] if report.empty else [_news(report, met)]
    parts += _answers(question, known, earlier, report)
    if report.empty:
        parts.append(_nothing_new(known, met, answered=bool(parts)))
    return "\n\n".join(parts)


def _read(lines: Iterable[str]) -> _Report:
    events: list[PipelineEvent] = []
    notes: list[str] = []
    folded = 0
    for line in lines:
        event = parse_audit_line(line)
        if event is not None:
            events.append(event)
            continue
        fold = FOLDED.fullmatch(line)
        folded += int(fold["count"]) if fold else 0
        notes.append(_note(line))
    return _Report(events, folded, notes)


def _note(line: str) -> str:
    if fold := FOLDED.fullmatch(line):
        numbers = f" (numbers {fold['first']} to {fold['last']})" if fold["first"] else ""
        return f"{_count(int(fold['count']), 'earlier event')}{numbers} did not fit in here."
    if gap := _GAP.fullmatch(line):
        first, last = _plain(gap[1]), _plain(gap[2])
        range_ = f"Events {first} to {last}" if gap[1].isdigit() and gap[2].isdigit() else None
        return f"{range_ or f'Events between {first} and {last}'} are lost: they were dropped before I could read them."
    return _plain(line)


def _stories(events: Iterable[PipelineEvent]) -> dict[str, _Story]:
    stories: dict[str, _Story] = {}
    for event in events:
        stories.setdefault(event.story_id, _Story(_plain(event.story_id))).steps.append(event)
    return stories


def _question(spoken: str) -> str:
    """What the asker said: the last messages of one sender, without those of others that came as context."""
    parts = _SAID.split(spoken)
    senders, texts = parts[1::2], parts[2::2]
    if not senders:
        return spoken
    newest = len(senders) - 1
    while newest and senders[newest - 1] == senders[-1]:
        newest -= 1
    return "\n".join(texts[newest:])


def _news(report: _Report, met: bool) -> str:
    since = "Since we last spoke" if met else "So far"
    happened = len(report.events) + report.folded
    if not report.events:
        opening = f"{since}, I missed something in the pipeline:"
    elif report.folded:
        opening = f"{since}, {_count(happened, 'thing')} happened; here are the newest {len(report.events)}:"
    else:
        opening = f"{since}, {_count(happened, 'thing')} happened:"
    bullets = [f"- {note}" for note in report.notes]
    bullets += [_bullet(story) for story in _stories(report.events).values()]
    return f"{opening}\n\n" + "\n".join(bullets)


def _bullet(story: _Story) -> str:
    name = f"**Story {story.name}**"
    if len(story.steps) == 1:
        return f"- {name} {_step(story.steps[0])}"
    steps = "\n".join(f"  - {_step(step)}" for step in story.steps)
    return f"- {name} {_whereabouts(story)}:\n{steps}"


def _step(event: PipelineEvent) -> str:
    before, after, what = _plain(event.from_stage), _plain(event.to_stage), _plain(event.pipeline_event)
    if not before and not after:
        return f"reported {what}"
    if not before:
        return f"entered {after} ({what})"
    if not after:
        return f"left {before} ({what})"
    if before == after:
        return f"stayed in {after} ({what})"
    return f"went from {before} to {after} ({what})"


def _whereabouts(story: _Story) -> str:
    if story.stage:
        return f"is now in {_plain(story.stage)}"
    left = next((step.from_stage for step in reversed(story.steps) if step.from_stage), "")
    return f"has left {_plain(left)}" if left else "is in no stage that I know of"


def _answers(question: str, known: dict[str, _Story], earlier: dict[str, _Story], report: _Report) -> list[str]:
    if not known:
        return []
    if _STATUS.search(question):
        return [_table(known)]
    answers = [_recall(known[name]) for name in known if name in earlier and _mentions(question, [name])]
    answers += [_at_stage(stage, known) for stage in _stages(known) if _mentions(question, _names_of_stage(stage))]
    if not answers and report.empty:
        answers = [_by_event(what, known) for what in _event_names(known) if _alike(question, what)]
    return answers


def _recall(story: _Story) -> str:
    shown = story.steps[-MAX_STEPS:]
    steps = f"last {len(shown)} of {len(story.steps)} steps" if len(shown) < len(story.steps) else "steps so far"
    heading = f"**Story {story.name}** {_whereabouts(story)}. Its {steps}:"
    return f"{heading}\n\n" + "\n".join(f"- {_step(step)}" for step in shown)


def _at_stage(stage: str, known: dict[str, _Story]) -> str:
    there = [story.name for story in _sorted(known) if story.stage == stage]
    return f"In **{_plain(stage)}** now: {_listed(there)}." if there else f"No story is in **{_plain(stage)}** now."


def _by_event(what: str, known: dict[str, _Story]) -> str:
    touched = [
        f"Story {story.name}, which {_whereabouts(story)}"
        for story in _sorted(known)
        if any(step.pipeline_event == what for step in story.steps)
    ]
    bullets = "\n".join(f"- {item}" for item in touched[:MAX_ROWS])
    return f"**{_plain(what)}** happened to:\n\n{bullets}{_more(len(touched))}"


def _table(known: dict[str, _Story]) -> str:
    stories = _sorted(known)
    rows = [("Story", "Stage", "Last event")]
    rows += [(s.name, _plain(s.stage) or "-", _plain(s.steps[-1].pipeline_event)) for s in stories[:MAX_ROWS]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [_row(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, _row("-" * width for width in widths))
    heading = "Where every story stands, as far as this conversation goes back:"
    return f"{heading}\n\n" + "\n".join(lines) + _more(len(stories))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _nothing_new(known: dict[str, _Story], met: bool, *, answered: bool) -> str:
    if not known and not met:
        return "Hello! I have not heard of any pipeline event yet. Once events come in, ask me here what happened."
    news = "Nothing new happened in the pipeline since we last spoke."
    if answered or not known:
        return news
    example = next(reversed(known.values())).name
    return f"{news} Ask for the *status* to see where every story stands, or name one, like {example}."


def _more(total: int) -> str:
    return f"\n\n... and {total - MAX_ROWS} more." if total > MAX_ROWS else ""


def _sorted(known: dict[str, _Story]) -> list[_Story]:
    """By name, numbers by value: 9 before 10."""
    return [known[name] for name in sorted(known, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in parts]


def _stages(known: dict[str, _Story]) -> list[str]:
    stages = {stage for story in known.values() for step in story.steps for stage in (step.from_stage, step.to_stage)}
    return sorted(stages - {""}, key=_natural)


def _names_of_stage(stage: str) -> list[str]:
    """People say "qa" for 3_qa and "code review" for code_review."""
    bare = _NUMBER_OF_STAGE.sub("", stage)
    return [name for name in (stage, bare, bare.replace("_", " "), bare.replace("-", " ")) if name.strip()]


def _event_names(known: dict[str, _Story]) -> list[str]:
    return list(dict.fromkeys(step.pipeline_event for story in known.values() for step in story.steps))


def _mentions(question: str, names: Iterable[str]) -> bool:
    """Whether a question holds one of the names as a word of its own."""
    asked = question.casefold()
    folded = [name.casefold() for name in names]
    return any(name in asked and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", asked) for name in folded)


def _alike(question: str, what: str) -> bool:
    """Whether a question and an event's name share a word or its stem: "did anything fail" and TestsFailed."""
    return bool(_stems(question) & _stems(what))


def _stems(text: str) -> set[str]:
    return {word[:_STEM].casefold() for word in _WORD.findall(text) if len(word) >= _STEM}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_ROWS]) + (f" and {len(names) - MAX_ROWS} more" if len(names) > MAX_ROWS else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(name: str) -> str:
    """A name from outside as Markdown that shows it and nothing else, on one line."""
    shown = "".join("\ufffd" if _hides(character) else character for character in " ".join(name.split()))
    return _MARKDOWN.sub(r"\\\g<0>", shown)


def _hides(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character != _JOINER
