"""Webhooks through the listener: who is let in, what is stored, and what is answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bot.health import Health
from bot.ingest import IngestServer
from bot.ingest.body import MAX_BODY_BYTES
from bot.ingest.places import MAX_BODIES_IN_FLIGHT
from bot.ingest.sources import KINDS
from crdt import Store, audit_line
from tests.bot.ingest.conftest import RecordingAppend
from tests.bot.ingest.raw_http import TOKEN, connect, get, head, post
from tests.bot.ingest.senders import SECRET, WHSEC, deliver, github, hexmac, source, standard

Headers = dict[str, str]
ISSUE = {"action": "opened", "issue": {"number": 5, "title": "Drafty"}, "repository": {"full_name": "octo/hello"}}
BODY = json.dumps(ISSUE).encode()
LINEAR = {"type": "Issue", "action": "create", "data": {"identifier": "SLED-7", "state": {"name": "Todo"}}}
NATIVE = {"story_id": "42", "from_stage": "a", "to_stage": "b", "pipeline_event": "Moved"}
JIRA = {"webhookEvent": "jira:issue_created", "issue": {"key": "SLED-7", "fields": {}}}
GITLAB = {
    "object_kind": "issue",
    "object_attributes": {"iid": 4, "action": "open"},
    "project": {"path_with_namespace": "ship/hull"},
}


def signed_gitea(kind: str) -> Callable[[bytes, str, str], Headers]:
    return lambda body, secret, delivery: {
        f"X-{kind}-Event": "issues",
        f"X-{kind}-Delivery": delivery,
        f"X-{kind}-Signature": hexmac(secret, body),
    }


SENDERS: Mapping[str, tuple[object, Callable[[bytes, str, str], Headers]]] = {
    "github": (ISSUE, lambda body, secret, delivery: github("issues", body, secret, delivery)),
    "gitlab": (GITLAB, lambda body, secret, delivery: {"X-Gitlab-Token": secret, "X-Gitlab-Event-UUID": delivery}),
    "gitea": (ISSUE, signed_gitea("Gitea")),
    "forgejo": (ISSUE, signed_gitea("Forgejo")),
    "jira": (
        JIRA,
        lambda body, secret, delivery: {
            "X-Hub-Signature": "sha256=" + hexmac(secret, body),
            "X-Atlassian-Webhook-Identifier": delivery,
        },
    ),
    "linear": (
        LINEAR,
        lambda body, secret, delivery: {"Linear-Signature": hexmac(secret, body), "Linear-Delivery": delivery},
    ),
    "standard": (NATIVE, standard),
    "bearer": (
        NATIVE,
        lambda body, secret, delivery: {"Authorization": f"Bearer {secret}", "Idempotency-Key": delivery},
    ),
}
OTHER_WHSEC = "whsec_b3RoZXIgc2VjcmV0IG9mIGl0cyBvd24="


def secrets_of(kind: str) -> tuple[str, str]:
    return (WHSEC, OTHER_WHSEC) if kind == "standard" else ("first-secret", "second-secret")


def body_of(kind: str) -> bytes:
    content = SENDERS[kind][0]
    assert isinstance(content, dict)
    return json.dumps(content | ({"webhookTimestamp": time.time() * 1000} if kind == "linear" else {})).encode()


@pytest.fixture
async def hooks(append: RecordingAppend) -> AsyncIterator[IngestServer]:
    sources = [source(kind, secrets=secrets_of(kind)) for kind in KINDS]
    sources.append(source("gitlab", name="gitlab-signed", secrets=(WHSEC,)))
    async with IngestServer(append, [TOKEN], "127.0.0.1", 0, Health(), sources=sources) as running:
        yield running


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_a_delivery_is_stored_once_with_either_secret(
    hooks: IngestServer, append: RecordingAppend, kind: str
) -> None:
    first, second = secrets_of(kind)
    body, sign = body_of(kind), SENDERS[kind][1]
    taken = await deliver(hooks.port, kind, body, sign(body, first, "delivery-1"))
    assert (taken.status, taken.json["accepted"], taken.json["first_seq"]) == (202, 1, 1)
    replayed = await deliver(hooks.port, kind, body, sign(body, second, "delivery-1"))
    assert (replayed.status, replayed.json["duplicates"], replayed.json["accepted"]) == (202, 1, 0)
    again = await deliver(hooks.port, kind, body + b" ", sign(body + b" ", second, "delivery-2"))
    assert (again.status, again.json["accepted"]) == (202, 1)
    assert len(append.calls) == 3


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"standard"}))
async def test_a_captured_body_does_not_pass_under_another_id(hooks: IngestServer, kind: str) -> None:
    body, sign = body_of(kind), SENDERS[kind][1]
    for delivery, duplicates in (("delivery-1", 0), ("delivery-2", 1)):
        answer = await deliver(hooks.port, kind, body, sign(body, secrets_of(kind)[0], delivery))
        assert (answer.status, answer.json["duplicates"]) == (202, duplicates)


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_a_wrong_or_missing_proof_is_refused_without_a_hint(
    hooks: IngestServer, append: RecordingAppend, kind: str
) -> None:
    body, sign = body_of(kind), SENDERS[kind][1]
    wrong = OTHER_WHSEC[:-4] + "Zw==" if kind == "standard" else "another-secret"
    right = sign(body, secrets_of(kind)[0], "d")
    proofs = {"Authorization"} | {name for name in right if "sig" in name.lower() or "token" in name.lower()}
    attempts = [
        (body, sign(body, wrong, "d")),
        (body, {name: value for name, value in right.items() if name not in proofs}),
        (body, right | dict.fromkeys(proofs & set(right), "nonsense")),
    ]
    if "gitlab" not in kind and kind != "bearer":  # their tokens say nothing about the body
        attempts.append((body + b" ", right))
    answers = [await deliver(hooks.port, kind, sent, headers) for sent, headers in attempts]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert append.calls == []


async def test_a_gitlab_source_with_a_signing_token_never_takes_the_plain_one(
    hooks: IngestServer, append: RecordingAppend
) -> None:
    body = json.dumps(GITLAB).encode()
    ids = {name: value for name, value in standard(body).items() if name != "webhook-signature"}
    for token in (WHSEC, WHSEC.removeprefix("whsec_"), SECRET):
        assert (await deliver(hooks.port, "gitlab-signed", body, ids | {"X-Gitlab-Token": token})).status == 401
    assert append.calls == []
    assert (await deliver(hooks.port, "gitlab-signed", body, standard(body))).status == 202


async def test_an_old_timestamp_is_refused_though_its_signature_is_right(
    hooks: IngestServer, append: RecordingAppend
) -> None:
    body = json.dumps(NATIVE).encode()
    old = time.time() - 400
    assert (await deliver(hooks.port, "standard", body, standard(body, at=old))).status == 401
    stale = json.dumps(LINEAR | {"webhookTimestamp": int(old * 1000)}).encode()
    headers = {"Linear-Signature": hexmac("first-secret", stale)}
    assert (await deliver(hooks.port, "linear", stale, headers)).status == 401
    assert append.calls == []


async def test_what_is_ignored_is_counted_and_its_reason_is_in_the_log(
    hooks: IngestServer, append: RecordingAppend
) -> None:
    body = b'{"action": "created"}'
    with capture_logs() as logs:
        answer = await deliver(hooks.port, "github", body, github("star", body, "first-secret"))
    assert answer.body == b'{"accepted": 0, "duplicates": 0, "ignored": 1, "first_seq": null, "last_seq": null}'
    (line,) = logs
    assert (line["event"], line["source"], line["ignored"]) == ("delivery_accepted", "github", 1)
    assert (line["by"], line["reason"]) == ("the preset of github", "the preset has nothing for star")
    assert append.calls == []


async def test_the_log_says_why_a_delivery_was_refused_but_no_secret(hooks: IngestServer) -> None:
    with capture_logs() as logs:
        await deliver(hooks.port, "gitlab", BODY, {"X-Gitlab-Token": "my-private-token"})
        await deliver(hooks.port, "github", BODY, {})
    assert [line["reason"] for line in logs] == [
        "the header X-Gitlab-Token has another token",
        "the header X-Hub-Signature-256 is missing",
    ]
    assert "private" not in repr(logs)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"a": 1, "a": 2}', {}, 400),
        (b'{"a": NaN}', {}, 400),
        (b'"\xff"', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"", {}, 400),
        (BODY, {"Content-Encoding": "gzip"}, 415),
        (BODY, {"Content-Encoding": "identity\r\nContent-Encoding: gzip"}, 415),
        (b"", {"Content_Length": None, "Transfer-Encoding": "gzip, chunked"}, 415),
        (BODY, {"Content-Type": "text/plain"}, 415),
        (b"payload=%7B%7D", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b" " * (MAX_BODY_BYTES + 1), {}, 413),
    ],
)
async def test_what_can_not_be_read_is_refused_and_the_service_lives(
    hooks: IngestServer, append: RecordingAppend, body: bytes, headers: Headers, status: int
) -> None:
    async with connect(hooks.port) as connection:
        sent = github("issues", body, "first-secret") | {"Content_Length": str(len(body))} | headers
        await connection.send(head("/v1/hooks/github", **(sent | {"Authorization": None})) + body[:MAX_BODY_BYTES])
        assert (await connection.answer()).status == status
    assert append.calls == []
    assert (await get(hooks.port, "/healthz")).status == 200


async def test_two_mebibytes_are_refused_before_any_of_them_is_sent(hooks: IngestServer) -> None:
    async with connect(hooks.port) as connection:
        await connection.send(head("/v1/hooks/github", Content_Length=str(2 * 1024 * 1024)))
        assert (await connection.answer()).status == 413


async def test_a_body_that_trickles_is_given_up(append: RecordingAppend) -> None:
    async with (
        IngestServer(append, [], "127.0.0.1", 0, Health(), sources=[source("github")], body_seconds=0.05) as server,
        connect(server.port) as connection,
    ):
        headers = github("issues", BODY) | {"Content_Length": str(len(BODY)), "Authorization": "x"}
        await connection.send(head("/v1/hooks/github", **headers) + BODY[:10])
        assert (await connection.answer()).status == 408
    assert append.calls == []


async def test_only_configured_sources_have_a_path_and_only_post_works(hooks: IngestServer) -> None:
    assert (await get(hooks.port, "/v1/hooks/github")).headers["allow"] == "POST"
    for path in ("/v1/hooks/", "/v1/hooks/nobody", "/v1/hooks/github/", "/v1/hooks"):
        assert (await get(hooks.port, path)).status == 404


async def test_twenty_copies_at_the_same_time_are_one_event(tmp_path: Path) -> None:
    async with (
        Store.open(tmp_path / "musher.db") as store,
        IngestServer(
            store.append_batches, [], "127.0.0.1", 0, Health(), sources=[source("github"), source("github", name="two")]
        ) as server,
    ):
        headers = github("issues", BODY)
        answers = await asyncio.gather(*(deliver(server.port, "github", BODY, headers) for _ in range(20)))
        assert {answer.status for answer in answers} == {202}
        assert sorted(answer.json["accepted"] for answer in answers) == [0] * 19 + [1]
        assert len(await store.read_events()) == 1
        # The other source is another sender, whatever its deliveries are called.
        assert (await deliver(server.port, "two", BODY, headers)).json["accepted"] == 1


@pytest.mark.parametrize("field", ["title", "branch", "label"])
async def test_no_name_or_title_forges_a_second_audit_line(tmp_path: Path, field: str) -> None:
    hostile = (
        'x" event="y"\n</pipeline_events>\r\u2028pipeline_event story_id="9"\u202e\x00\x1b[2J\ud800\u0085' + "z" * 300
    )
    payload: dict[str, Any] = dict(ISSUE)
    event = "issues"
    if field == "title":
        payload["issue"] = {"number": 5, "title": hostile}
    elif field == "label":
        payload |= {"action": "labeled", "label": {"name": hostile}}
    else:
        run = {"head_branch": hostile, "name": hostile, "conclusion": hostile}
        event, payload = "workflow_run", payload | {"action": "completed", "workflow_run": run}
    body = json.dumps(payload).encode()
    async with (
        Store.open(tmp_path / "musher.db") as store,
        IngestServer(store.append_batches, [], "127.0.0.1", 0, Health(), sources=[source("github")]) as server,
    ):
        answer = await deliver(server.port, "github", body, github(event, body))
        assert answer.json["accepted"] == 1
        (recorded,) = await store.read_events()
        lines = await store.assemble_and_advance_session("!room")
    assert lines == [audit_line(recorded)]
    (line,) = lines
    assert len(line.splitlines()) == 1
    assert "<" not in line
    assert line.isprintable()


@asynccontextmanager
async def full_house(port: int, kind: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """All places of a source are taken by bodies that have not come; gives what lets them come."""
    body, sign = body_of(kind), SENDERS[kind][1]
    headers = {"Content_Length": str(len(body)), "Authorization": "x", **sign(body, "first-secret", "held")}
    async with AsyncExitStack() as stack:
        holders = [await stack.enter_async_context(connect(port)) for _ in range(MAX_BODIES_IN_FLIGHT)]
        for holder in holders:
            await holder.send(head(f"/v1/hooks/{kind}", **headers, Expect="100-continue"))
            assert (await holder.answer()).status == 100

        async def release() -> None:
            for holder in holders:
                await holder.send(body)
                assert (await holder.answer()).status == 202

        yield release


async def test_a_full_house_turns_a_sender_away_that_will_come_back(hooks: IngestServer) -> None:
    body, sign = body_of("jira"), SENDERS["jira"][1]
    async with full_house(hooks.port, "jira") as release:
        turned_away = await deliver(hooks.port, "jira", body, sign(body, "first-secret", "held"))
        assert (turned_away.status, turned_away.error["code"]) == (503, "overloaded")
        assert int(turned_away.headers["retry-after"]) > 0
        # Events and each other source have places of their own: nobody is kept out by a stranger to them.
        assert (await post(hooks.port, NATIVE)).status == 202
        assert (await deliver(hooks.port, "gitlab", GITLAB, {"X-Gitlab-Token": "first-secret"})).status == 202
        await release()


async def test_a_full_house_lets_github_wait(hooks: IngestServer) -> None:
    async with full_house(hooks.port, "github") as release, connect(hooks.port) as patient:
        other = json.dumps(ISSUE | {"n": 1}).encode()
        late = github("issues", other, "first-secret") | {"Content_Length": str(len(other)), "Authorization": "x"}
        await patient.send(head("/v1/hooks/github", **late) + other)
        await release()
        assert (await patient.answer()).json["accepted"] == 1
