"""The composition root: builds every part, gives each the one function that it needs, and ends them in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import jmespath
import structlog

from bot.config import Config
from bot.deliver import Deliveries
from bot.errors import MusherError
from bot.health import Health
from bot.ingest import IngestServer
from bot.intake import STALE_AFTER_S, Intake
from bot.lanes import Lanes
from bot.llm import ModelFailed, Provider, build_model
from bot.matrix import Credentials, Identity, MatrixClient
from bot.pace import Pace
from bot.pause import PausePoints
from bot.policy import Rules
from bot.turn import Keep, RoomSettings, Turns
from crdt import RecordedEvent, Store, StoreUnavailable

log = structlog.get_logger(__name__)

TURN_GRACE_S: Final = 5.0
FLUSH_GRACE_S: Final = 2.0
"""With the ingest server's own grace at the same time, the service ends within 10 s of the signal."""
HOUSEKEEPING_EVERY_S: Final = 3600.0
STORE_RETRY_S: Final = 2.0

_USER_ID, _DEVICE_ID, _ACCESS_TOKEN = "matrix_user_id", "matrix_device_id", "matrix_access_token"


class ModelUnusable(MusherError):
    """The configured model can't answer; found out before the service starts."""

    def __init__(self, error: ModelFailed) -> None:
        super().__init__(f"the language model can't be used: {error.detail}")


@dataclass(frozen=True, slots=True)
class Started:
    """Where the running service is to be found."""

    user_id: str
    device_id: str
    ingest_port: int


def _ignore(started: Started) -> None:
    """Nobody asked to be told."""


async def run_service(
    config: Config, *, stop: asyncio.Event | None = None, on_started: Callable[[Started], None] = _ignore
) -> None:
    """Run the service until SIGTERM or SIGINT, or until `stop` is set, then end it in order.

    Raises:
        MusherError, CrdtError: it can't start, or can't go on; the message says what to do.
    """
    if stop is None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    pauses = PausePoints(os.environ)
    store = Store.open(
        config.store.path,
        sled_id=config.sled.id,
        segment_events=config.store.segment_events,
        retention_events=config.store.retention_events,
        retention_days=config.store.retention_days,
        on_step=pauses.reached,
    )
    async with store:
        model = _build_model(config)
        client = MatrixClient(_credentials(config))
        try:
            await _check_model(config, model)
            login = _Login(client, store)
            await login.log_in()
            service = _Service(config, store, model, client, login, pauses)
            await service.run(stop, on_started)
        finally:
            await client.close()
            await model.aclose()
    log.info("service_stopped")


class _Login:
    """The bot's one device at the homeserver, remembered in the database."""

    def __init__(self, client: MatrixClient, store: Store) -> None:
        self._client = client
        self._store = store
        self.device_id = ""
        self.device_is_new = False

    async def log_in(self) -> None:
        """Resume the stored login, or make one and store it."""
        user_id, device_id, token = [
            await self._store.read_setting(name) for name in (_USER_ID, _DEVICE_ID, _ACCESS_TOKEN)
        ]
        stored = Identity(user_id, device_id, token) if user_id and device_id and token else None
        identity = await self._client.connect(stored)
        self.device_id = identity.device_id
        self.device_is_new = stored is not None and stored.device_id != identity.device_id
        if identity != stored:
            await self._store.write_settings(
                {_USER_ID: identity.user_id, _DEVICE_ID: identity.device_id, _ACCESS_TOKEN: identity.access_token}
            )
        log.info("logged_in", user=identity.user_id, device=identity.device_id, resumed=identity == stored)


class _Service:
    """Everything that runs once the store is open and the login stands."""

    def __init__(
        self,
        config: Config,
        store: Store,
        model: Provider,
        client: MatrixClient,
        login: _Login,
        pauses: PausePoints,
    ) -> None:
        self._config = config
        self._store = store
        self._login = login
        self._health = Health("sync")
        self._health.stale_after("sync", STALE_AFTER_S)
        pace = Pace()
        self._deliveries = Deliveries(store, client, pace, pauses.reached, device_is_new=login.device_is_new)
        self._turns = Turns(
            store=store,
            model=model,
            typing=client.typing,
            on_queued=self._deliveries.wake,
            reached=pauses.reached,
            personas={name: persona.instructions for name, persona in config.personas.items()},
            rooms={room_id: RoomSettings(room.persona, _keep(room.filter)) for room_id, room in config.rooms.items()},
            context_tokens=config.llm.context_tokens,
        )
        self._lanes = Lanes(self._answer_room, config.matrix.max_parallel_rooms)
        self._intake = Intake(
            store, client, pace, self._health, _rules(config), wake=self._lanes.wake, log_in_again=login.log_in
        )

    async def run(self, stop: asyncio.Event, on_started: Callable[[Started], None]) -> None:
        """Run all parts until `stop`; the first that fails for good ends the others."""
        async with asyncio.TaskGroup() as parts:
            listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            parts.create_task(self._serve(stop, listening), name="ingest")
            port = await listening
            loops = [
                parts.create_task(self._intake.run(await self._store.read_cursor()), name="intake"),
                parts.create_task(self._deliveries.run(), name="deliveries"),
                parts.create_task(self._housekeep(), name="housekeeping"),
            ]
            try:
                for session_id in await self._store.waiting_sessions():
                    self._lanes.wake(session_id)
                on_started(Started(self._config.matrix.user_id, self._login.device_id, port))
                log.info("service_started", ingest_port=port, user=self._config.matrix.user_id)
                await stop.wait()
                log.info("service_stopping")
                loops[0].cancel()
                await self._lanes.close(TURN_GRACE_S)
            finally:
                await self._lanes.close(0)
                for loop in loops:
                    loop.cancel()
        await self._flush()

    async def _serve(self, stop: asyncio.Event, listening: asyncio.Future[int]) -> None:
        ingest = self._config.ingest
        tokens = [token.get_secret_value() for token in ingest.tokens]
        async with IngestServer(self._store.append_batches, tokens, ingest.host, ingest.port, self._health) as server:
            listening.set_result(server.port)
            await stop.wait()

    async def _answer_room(self, session_id: str) -> None:
        try:
            await self._turns.answer_room(session_id)
        except StoreUnavailable as error:
            log.error("turn_postponed", session=session_id, reason=str(error))
            await asyncio.sleep(STORE_RETRY_S)
            self._lanes.wake(session_id)

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_EVERY_S)
            try:
                await self._store.housekeep()
            except StoreUnavailable as error:
                log.error("housekeeping_postponed", reason=str(error))

    async def _flush(self) -> None:
        """Send what the last turns left in the outbox, if it goes quickly; the rest waits for the next start."""
        try:
            async with asyncio.timeout(FLUSH_GRACE_S):
                while await self._deliveries.send_due():
                    pass
        except TimeoutError:
            log.info("deliveries_left_for_next_start")


def _credentials(config: Config) -> Credentials:
    matrix = config.matrix
    return Credentials(
        homeserver=matrix.homeserver,
        user_id=matrix.user_id,
        password=matrix.password.get_secret_value() if matrix.password else None,
        access_token=matrix.access_token.get_secret_value() if matrix.access_token else None,
        device_id=matrix.device_id,
    )


def _rules(config: Config) -> Rules:
    matrix = config.matrix
    return Rules(
        allows=matrix.allows,
        allowed_rooms=frozenset(matrix.allowed_rooms),
        respond_to=matrix.respond_to,
        answer_backlog_s=matrix.answer_backlog.total_seconds(),
    )


def _build_model(config: Config) -> Provider:
    llm = config.llm
    return build_model(
        llm.provider,
        base_url=llm.base_url or "",
        model=llm.model or "",
        api_key=llm.api_key.get_secret_value() if llm.api_key else None,
        timeout=llm.timeout.total_seconds(),
        max_reply_tokens=llm.max_reply_tokens,
        temperature=llm.temperature,
    )


async def _check_model(config: Config, model: Provider) -> None:
    if not config.llm.check_model:
        return
    try:
        await model.check()
    except ModelFailed as error:
        raise ModelUnusable(error) from error


def _keep(expression: str | None) -> Keep | None:
    """Compile a room's filter. An event over which it fails is kept: better one too many than one too few."""
    if expression is None:
        return None
    compiled: Any = jmespath.compile(expression)

    def keep(event: RecordedEvent) -> bool:
        facts: Mapping[str, object] = asdict(event)
        try:
            found = compiled.search(facts)
        except jmespath.exceptions.JMESPathError as error:
            log.warning("filter_failed", expression=expression, event_seq=event.event_seq, reason=str(error))
            return True
        return found not in (None, False, "", [], {})

    return keep
