from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bot import app
from bot.app import HomeserverUnusable, ModelUnusable, Started, run_service
from bot.config import Config
from bot.demo.homeserver import Homeserver
from bot.errors import ListenFailed, MusherError
from bot.matrix import LoginRefused, NotAHomeserver
from bot.prompt import split_user
from crdt import Delivery, Message, PipelineEvent, RecordedEvent, Store, StoreBusy, StoreFull
from tests.bot.edge import until
from tests.bot.matrix.fake import USER, FakeHomeserver, error
from tests.conftest import PersonMaker
from tests.servers.model import ScriptedModel
from tests.servers.synapse import PASSWORD

TOKEN = "ingest-token"
STOP_WITHIN_S = 10.0


@pytest.fixture(autouse=True)
def own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUSHER_PAUSE_AT", "MUSHER_PAUSE_DIR"):
        monkeypatch.delenv(name, raising=False)


ConfigMaker = Callable[..., Config]


@pytest.fixture
def make_config(tmp_path: Path) -> ConfigMaker:
    """A configuration for a homeserver that is no model's: digest, unless `llm` says otherwise."""

    def make(homeserver: str, user_id: str, *, llm: dict[str, Any] | None = None, **matrix: Any) -> Config:
        account = {"homeserver": homeserver, "user_id": user_id, "allowed_users": ["@*:*"]}
        return Config.model_validate(
            {
                "matrix": account | ({"password": PASSWORD} | matrix),
                "store": {"path": tmp_path / "musher.db"},
                "llm": llm or {"provider": "digest"},
                "ingest": {"port": 0, "tokens": [TOKEN]},
                "admin": {"port": 0},
            }
        )

    return make


def openai(model: ScriptedModel, name: str = "test-model") -> dict[str, Any]:
    return {"provider": "openai", "base_url": model.url, "model": name}


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Started]:
    """The service, from its start to its stop in good order."""
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    service = asyncio.create_task(run_service(config, stop=stop, on_started=started.set_result))
    try:
        await asyncio.wait({service, started}, return_when=asyncio.FIRST_COMPLETED)
        if service.done():
            await service
        yield started.result()
    finally:
        stop.set()
        async with asyncio.timeout(STOP_WITHIN_S):
            await service


async def post_event(port: int, story_id: str) -> None:
    event = {"story_id": story_id, "from_stage": "a", "to_stage": "b", "pipeline_event": "Moved"}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"http://127.0.0.1:{port}/v1/events", json=event, headers=headers) as response,
    ):
        assert response.status == 202


# With a real homeserver


async def test_a_service_answers_knows_new_events_once_and_goes_on_after_a_restart(
    synapse: Homeserver,
    make_person: PersonMaker,
    model: ScriptedModel,
    make_config: ConfigMaker,
    unique: Callable[[str], str],
) -> None:
    bot_id = await synapse.register(unique("musher"), PASSWORD)
    alice = await make_person("alice")
    config = make_config(synapse.url, bot_id, llm=openai(model))
    async with running(config) as first:
        room = await alice.create_room([bot_id])
        await alice.wait_for_membership(room, bot_id)
        await post_event(first.ingest_port, "42")
        question = await alice.say(room, "what happened?")
        (reply,) = await alice.wait_for_replies_to(room, question, bot_id)
        assert reply["content"]["body"] == "reply 1"
    while_down = await alice.say(room, "are you there?")
    async with running(config) as second:
        await alice.wait_for_replies_to(room, while_down, bot_id)
    assert second.device_id == first.device_id
    lines = [split_user(request.text)[0] for request in model.requests]
    assert [len(each) for each in lines] == [1, 0]
    assert 'story_id="42"' in lines[0][0]
    assert len(await alice.said(room, bot_id)) == 2
    messages = [request.messages for request in model.requests]
    assert messages[1][: len(messages[0])] == messages[0]


async def test_a_stop_parks_a_turn_whose_model_hangs_and_the_next_start_answers_it(
    synapse: Homeserver,
    make_person: PersonMaker,
    model: ScriptedModel,
    make_config: ConfigMaker,
    unique: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "TURN_GRACE_S", 0.2)
    bot_id = await synapse.register(unique("musher"), PASSWORD)
    alice = await make_person("alice")
    config = make_config(synapse.url, bot_id, llm=openai(model))
    model.hang()
    async with running(config):
        room = await alice.create_room([bot_id])
        await alice.wait_for_membership(room, bot_id)
        question = await alice.say(room, "hello?")
        await model.wait_for_requests(1)
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 3
    assert await alice.said(room, bot_id) == []
    async with running(config):
        await alice.wait_for_replies_to(room, question, bot_id)
    assert model.requests[0].messages == model.requests[1].messages


def test_the_grace_periods_leave_time_to_close() -> None:
    assert app.TURN_GRACE_S + app.FLUSH_GRACE_S < STOP_WITHIN_S - 2


async def test_a_wrong_password_is_told(
    synapse: Homeserver, make_config: ConfigMaker, unique: Callable[[str], str]
) -> None:
    bot_id = await synapse.register(unique("musher"), PASSWORD)
    with pytest.raises(LoginRefused):
        await run_service(make_config(synapse.url, bot_id, password="wrong"), stop=asyncio.Event())


# With homeservers that a real one is not on demand


@pytest.fixture
def over() -> asyncio.Event:
    """Set when the test is over, so that the fake homeserver may end what hangs in it."""
    return asyncio.Event()


@pytest.fixture
async def fake(over: asyncio.Event) -> AsyncIterator[FakeHomeserver]:
    async with FakeHomeserver() as server:

        async def no_news(_request: web.Request) -> dict[str, Any]:
            await over.wait()
            return {}

        server.routes["/sync"] = no_news
        yield server
        over.set()


@pytest.fixture
def make_faked(fake: FakeHomeserver, make_config: ConfigMaker) -> ConfigMaker:
    """A configuration for the fake homeserver, with a token in place of a password."""
    known = fake.credentials
    account = {"password": None, "access_token": known.access_token, "device_id": known.device_id}
    return lambda **fields: make_config(fake.url, known.user_id, **(account | fields))


async def test_a_service_without_work_starts_and_stops(make_faked: ConfigMaker) -> None:
    with capture_logs() as logs:
        async with running(make_faked()) as started:
            assert started.ingest_port > 0
    events = [line["event"] for line in logs]
    assert events.index("service_started") < events.index("service_stopping") < events.index("service_stopped")


async def test_errors_of_the_start_come_out_as_they_are(
    make_config: ConfigMaker, make_faked: ConfigMaker, model: ScriptedModel, fake: FakeHomeserver, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    expected: list[tuple[Config, type[Exception]]] = [
        (make_config(nobody, "@musher:fake"), HomeserverUnusable),
        (make_config(model.url, "@musher:fake"), NotAHomeserver),
        (make_faked(llm=openai(model, "no-such-model")), ModelUnusable),
    ]
    for config, kind in expected:
        with pytest.raises(kind):
            await run_service(config, stop=asyncio.Event())
    async with Store.open(tmp_path / "musher.db"):
        with pytest.raises(StoreBusy):
            await run_service(make_faked(), stop=asyncio.Event())


async def test_an_address_that_is_taken_comes_out_as_one_error(make_faked: ConfigMaker) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = make_faked()
        ingest = config.ingest.model_copy(update={"port": taken.getsockname()[1]})
        with pytest.raises(ListenFailed):
            await run_service(config.model_copy(update={"ingest": ingest}), stop=asyncio.Event())


async def test_a_login_that_ends_for_good_ends_the_service_with_that_error(
    make_faked: ConfigMaker, fake: FakeHomeserver
) -> None:
    fake.routes["/sync"] = lambda _: error(401, "M_UNKNOWN_TOKEN")
    started = asyncio.Event()

    def on_started(_: Started) -> None:
        started.set()
        fake.routes["/account/whoami"] = lambda _: error(401, "M_UNKNOWN_TOKEN")

    with pytest.raises(MusherError, match=r"ended the login of @musher:fake"):
        async with asyncio.timeout(STOP_WITHIN_S):
            await run_service(make_faked(), stop=asyncio.Event(), on_started=on_started)
    assert started.is_set()


async def test_a_stop_during_the_start_ends_it_at_once(
    make_faked: ConfigMaker, fake: FakeHomeserver, over: asyncio.Event
) -> None:
    """The homeserver takes the connection and never answers: the login would wait a minute."""
    asked, stop = asyncio.Event(), asyncio.Event()

    async def hangs(_request: web.Request) -> dict[str, Any]:
        asked.set()
        await over.wait()
        return {}

    fake.routes["/versions"] = hangs
    service = asyncio.create_task(run_service(make_faked(), stop=stop))
    await asyncio.wait_for(asked.wait(), 30)
    stop.set()
    async with asyncio.timeout(30):
        await service


async def test_a_stop_before_the_start_starts_nothing(make_faked: ConfigMaker) -> None:
    stop = asyncio.Event()
    stop.set()
    started: list[Started] = []
    async with asyncio.timeout(30):
        await run_service(make_faked(), stop=stop, on_started=started.append)
    assert started == []


async def test_what_waits_in_inbox_and_outbox_is_worked_at_the_start(
    make_faked: ConfigMaker, fake: FakeHomeserver, tmp_path: Path
) -> None:
    sent: asyncio.Queue[str] = asyncio.Queue()

    async def takes(request: web.Request) -> dict[str, Any] | web.StreamResponse:
        if "/send/" not in request.path:
            return error(404, "M_NOT_FOUND")
        await sent.put((await request.json())["body"])
        return {"event_id": f"$of-{request.path.rpartition('/')[2]}"}

    fake.routes[""] = takes
    async with Store.open(tmp_path / "musher.db") as store:
        await store.append_event(PipelineEvent("42", "a", "b", "Moved"))
        await store.admit([Message("$1", "!one:fake", "@alice:fake", "what happened?")])
        left_over = Delivery("musher-left-over", "!two:fake", '{"msgtype": "m.text", "body": "left over"}')
        await store.settle([], "answered", [left_over])
    async with running(make_faked()):
        async with asyncio.timeout(30):
            bodies = {await sent.get(), await sent.get()}
    assert "left over" in bodies
    assert any("42" in body for body in bodies)


async def test_a_login_that_can_not_be_stored_is_used_all_the_same(
    make_faked: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write_settings

    async def refuses_logins(store: Store, values: dict[str, str]) -> None:
        if "matrix_access_token" in values:
            raise StoreFull(str(store.path))
        await write(store, values)

    monkeypatch.setattr(Store, "write_settings", refuses_logins)
    with capture_logs() as logs:
        async with running(make_faked()):
            pass
    assert [line["event"] for line in logs].count("login_not_stored") == 1


@pytest.mark.parametrize("failures", [0, 1], ids=["at once", "at the second try"])
async def test_a_delivery_in_doubt_is_looked_for_after_a_new_login_even_of_the_same_device(
    failures: int, make_config: ConfigMaker, fake: FakeHomeserver, tmp_path: Path
) -> None:
    """A homeserver forgets a device's transaction ids with its login, not with its name."""
    ended, looked, sends = asyncio.Event(), asyncio.Event(), []

    def is_over(request: web.Request) -> bool:
        return ended.is_set() and request.headers["Authorization"] == "Bearer old-token"

    async def takes(request: web.Request) -> dict[str, Any] | web.StreamResponse:
        if request.path.endswith("/messages"):
            looked.set()
            content = {"dev.musher.delivery_id": "musher-in-doubt"}
            return {"chunk": [{"event_id": "$there", "sender": USER, "content": content}]}
        if "/send/" in request.path:
            sends.append(request.path)
            ended.set()
        if request.path.endswith("/sync"):
            await (ended if "old-token" in request.headers["Authorization"] else asyncio.Event()).wait()
        return error(401, "M_UNKNOWN_TOKEN") if is_over(request) else error(404, "M_NOT_FOUND")

    async def shows_keys(request: web.Request) -> dict[str, Any] | web.StreamResponse:
        nonlocal failures
        if "old-token" not in request.headers["Authorization"] and failures:
            failures -= 1
            return error(500, "M_UNKNOWN")
        return {"device_keys": {}}

    whoami = fake.routes["/account/whoami"]
    fake.routes["/keys/query"] = shows_keys
    fake.routes["/account/whoami"] = lambda each: error(401, "M_UNKNOWN_TOKEN") if is_over(each) else whoami(each)
    fake.routes["/login"] = lambda _: {"user_id": USER, "device_id": "SLED", "access_token": "another-token"}
    fake.routes |= {"": takes, "/sync": takes}
    async with Store.open(tmp_path / "musher.db") as store:
        names = ("matrix_user_id", "matrix_device_id", "matrix_access_token")
        await store.write_settings(dict(zip(names, (USER, "SLED", "old-token"), strict=True)))
        await store.settle([], "answered", [Delivery("musher-in-doubt", "!one:fake", "{}")])
    async with running(make_config(fake.url, USER)):
        await asyncio.wait_for(looked.wait(), 15)
        await until(lambda: "another-token" in fake.asked("/sync")[-1].headers["Authorization"], 15)
    assert len(fake.asked("/keys/upload")) == 2
    assert len(sends) == 1
    assert len(fake.asked("/login")) == 1
    async with Store.open(tmp_path / "musher.db") as store:
        assert await store.read_setting("matrix_access_token") == "another-token"


RECORDED = RecordedEvent("build-1", 1, "inf", "a", "b", "Moved", "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ("story_id == 'inf'", True),
        ("story_id == 'x'", False),
        ("occurred_at", False),
        ("pipeline_event", True),
        ("starts_with(event_seq, 'x')", True),
        ("ceil(to_number(story_id)) > `5`", True),
    ],
    ids=["true", "false", "null", "text", "its own error", "an error of Python"],
)
def test_a_filter_keeps_what_it_finds_and_what_it_fails_over(expression: str, kept: bool) -> None:
    keep = app._keep(expression)
    assert keep is not None
    with capture_logs():
        assert keep(RECORDED) is kept


def test_without_a_filter_nothing_is_asked() -> None:
    assert app._keep(None) is None
