"""The composition root: builds every part, gives each the one function that it needs, and ends them in order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import jmespath
import structlog

from bot.admin import AdminServer
from bot.config import Config
from bot.damage import DamagedRooms
from bot.deliver import Deliveries
from bot.errors import MusherError
from bot.health import Health
from bot.ingest import IngestServer, compile_sources
from bot.intake import PATIENCE_S, STALE_AFTER_S, Intake
from bot.invitations import Invitations
from bot.lanes import Lanes
from bot.llm import ModelFailed, Provider
from bot.matrix import Identity, KeysUnavailable, MatrixClient, RateLimited, Unreachable
from bot.metrics import MeasuredModel, Metrics
from bot.pace import Pace
from bot.pause import PausePoints
from bot.policy import Rules
from bot.trouble import Trouble
from bot.turn import STORE_RETRY_S, Keep, RoomSettings, Turns
from bot.typing_notice import only_while_open
from bot.unforeseen import contained
from bot.watch import Watch
from bot.wiring import ACCESS_TOKEN, DEVICE_ID, USER_ID, credentials, encryption, language_model, stored_login
from crdt import RESTORED_AT_MS, PipelineEvent, RecordedEvent, Store, StoreDamaged, StoreUnavailable

log = structlog.get_logger(__name__)

TURN_GRACE_S: Final = 5.0
FLUSH_GRACE_S: Final = 2.0
"""With the ingest server's own grace at the same time, the service ends within 10 s of the signal."""
HOUSEKEEPING_EVERY_S: Final = 3600.0


class ModelUnusable(MusherError):
    """The configured model can't answer; found out before the service starts."""

    def __init__(self, error: ModelFailed) -> None:
        super().__init__(f"the language model can't be used: {error.detail}")


class HomeserverUnusable(MusherError):
    """The homeserver gives no answer that the service could start with; a start is not repeated."""

    def __init__(self, error: Unreachable | RateLimited) -> None:
        if isinstance(error, RateLimited):
            problem = f"asks for a pause of {error.retry_after_s:g} s; start Musher again after that"
        else:
            problem = (
                f"can't be used: {error.problem}; check that matrix.homeserver is right and that the server is up, "
                "then start Musher again"
            )
        super().__init__(f"the homeserver {error.homeserver} {problem}")


@dataclass(frozen=True, slots=True)
class Started:
    """Where the running service is to be found."""

    user_id: str
    device_id: str
    ingest_port: int
    admin_port: int


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
        model = language_model(config.llm)
        pace = Pace()
        client = MatrixClient(credentials(config), encryption(config), store, on_silence=pace.silent)
        try:
            login = _Login(client, store)
            if await _ends_before(stop, _prepare(config, model, login)):
                rules = _rules(config, await store.read_setting(RESTORED_AT_MS))
                await _Running(config, store, model, client, login, pace, pauses, rules).run(stop, on_started)
        except ExceptionGroup as group:
            raise _first(group) from group
        finally:
            await client.close()
            await model.aclose()
    log.info("service_stopped")


async def _prepare(config: Config, model: Provider, login: _Login) -> None:
    await _check_model(config, model)
    try:
        await login.log_in()
    except KeysUnavailable:
        raise
    except (Unreachable, RateLimited) as error:
        raise HomeserverUnusable(error) from error


async def _ends_before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work`, which may wait long for others; broken off, and `False`, when `stop` is set."""
    working, stopping = asyncio.create_task(work, name="start"), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait({working, stopping})


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; the rest followed from it, and stays in the trace."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class _Login:
    """The bot's one device at the homeserver, remembered in the database."""

    def __init__(self, client: MatrixClient, store: Store) -> None:
        self._client = client
        self._store = store
        self.device_id = ""

    async def log_in(self) -> None:
        """Resume the stored login, or make one and store it."""
        stored = await stored_login(self._store.read_setting)
        identity = await self._client.connect(stored)
        self.device_id = identity.device_id
        if identity == stored or await self._is_stored(identity):
            await self._client.retire_lost_device()
        log.info("logged_in", user=identity.user_id, device=identity.device_id, resumed=identity == stored)

    async def _is_stored(self, identity: Identity) -> bool:
        """Store a login; `False` where that is not possible now: it stands, only the next start will not know it."""
        settings = {USER_ID: identity.user_id, DEVICE_ID: identity.device_id, ACCESS_TOKEN: identity.access_token}
        try:
            await self._store.write_settings(settings)
        except StoreUnavailable as error:
            log.error("login_not_stored", reason=str(error))
            return False
        return True


class _Running:
    """Everything that runs once the store is open and the login stands."""

    def __init__(
        self,
        config: Config,
        store: Store,
        model: Provider,
        client: MatrixClient,
        login: _Login,
        pace: Pace,
        pauses: PausePoints,
        rules: Rules,
    ) -> None:
        self._config = config
        self._store = store
        self._login = login
        self._health, self._metrics = Health(), Metrics()
        self._health.register("sync", patience_s=PATIENCE_S)
        self._health.stale_after("sync", STALE_AFTER_S)
        self._health.register("model", required=False)
        self._watch = Watch(store, self._health)
        self._store_trouble = Trouble("turn_postponed", level="error")
        self._deliveries = Deliveries(
            store,
            client,
            pace,
            pauses.reached,
            login=lambda: client.access_token,
            moved_to=self._moved_to,
            ended=self._metrics.delivery_ended,
        )
        self._damaged = DamagedRooms(store, self._health, self._deliveries.wake)
        self._turns = Turns(
            store=store,
            model=MeasuredModel(model, self._metrics, self._health),
            typing=only_while_open(client.typing, pace),
            announce=self._deliveries.announce,
            expect=self._deliveries.expect,
            queued=self._deliveries.wake,
            reached=pauses.reached,
            personas={name: persona.instructions for name, persona in config.personas.items()},
            rooms={room_id: RoomSettings(room.persona, _keep(room.filter)) for room_id, room in config.rooms.items()},
            context_tokens=config.llm.context_tokens,
            moved_to=self._moved_to,
            ended=self._metrics.turn_ended,
        )
        self._lanes = Lanes(self._answer_next, config.matrix.max_parallel_rooms)
        self._invitations = Invitations(client, pace, rules)
        self._intake = Intake(
            store,
            client,
            pace,
            self._health,
            rules,
            wake=self._lanes.wake,
            log_in_again=login.log_in,
            invited=self._invitations.came,
            left=self._invitations.ended,
            queued=self._deliveries.wake,
            unreadable=self._metrics.decrypt_failed,
        )

    def _moved_to(self, room_id: str) -> str:
        return self._intake.session_of(room_id)

    async def run(self, stop: asyncio.Event, on_started: Callable[[Started], None]) -> None:
        """Run all parts until `stop`; the first that fails for good ends the others."""
        async with asyncio.TaskGroup() as parts:
            listening: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
            parts.create_task(self._serve(stop, listening), name="listeners")
            started = await listening
            loops = [
                parts.create_task(self._intake.run(await self._store.read_cursor()), name="intake"),
                parts.create_task(self._invitations.run(), name="invitations"),
                parts.create_task(self._deliveries.run(), name="deliveries"),
                parts.create_task(self._housekeep(), name="housekeeping"),
                parts.create_task(self._watch.run(), name="watch"),
            ]
            try:
                for session_id in [*await self._store.waiting_sessions(), *await self._store.sessions_to_redact()]:
                    self._lanes.wake(session_id)
                on_started(started)
                ports = {"ingest_port": started.ingest_port, "admin_port": started.admin_port}
                log.info("service_started", user=started.user_id, **ports)
                await stop.wait()
                log.info("service_stopping")
                loops[0].cancel()
                await self._lanes.close(TURN_GRACE_S)
            finally:
                await self._lanes.close(0)
                for loop in loops:
                    loop.cancel()
        await self._flush()

    async def _serve(self, stop: asyncio.Event, listening: asyncio.Future[Started]) -> None:
        user_id, device_id = self._config.matrix.user_id, self._login.device_id
        async with self._ingest_server() as ingest, self._admin_server() as admin:
            listening.set_result(Started(user_id, device_id, ingest.port, admin.port))
            await stop.wait()

    def _admin_server(self) -> AdminServer:
        admin, user_id = self._config.admin, self._config.matrix.user_id
        identity = {"sled_id": self._store.sled_id, "user_id": user_id, "device_id": self._login.device_id}
        return AdminServer(admin.host, admin.port, self._store, self._health, self._metrics, identity)

    def _ingest_server(self) -> IngestServer:
        ingest = self._config.ingest
        tokens = [token.get_secret_value() for token in ingest.tokens]
        return IngestServer(
            self._store.append_batches,
            tokens,
            ingest.host,
            ingest.port,
            self._health,
            sources=compile_sources(ingest.sources),
            append_gap=self._append_gap,
        )

    async def _append_gap(self, sentinel: PipelineEvent) -> int:
        seq = await self._store.append_event(sentinel)
        self._metrics.gap_recorded()
        return seq

    async def _answer_next(self, session_id: str) -> bool:
        try:
            return await self._answer_or_tell(session_id)
        except StoreUnavailable as error:
            self._store_trouble.met(str(error), session=session_id)
            await asyncio.sleep(STORE_RETRY_S)
            return True

    async def _answer_or_tell(self, session_id: str) -> bool:
        try:
            more = await self._turns.answer_next(session_id)
        except StoreDamaged as error:
            await self._damaged.found(session_id, error)
            return False
        self._store_trouble.over()
        self._damaged.answered(session_id)
        return more

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_EVERY_S)
            with contained("housekeeping_broke"):
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


def _rules(config: Config, restored_at_ms: str | None) -> Rules:
    matrix = config.matrix
    return Rules(
        allows=matrix.allows,
        allowed_rooms=frozenset(matrix.allowed_rooms),
        respond_to=matrix.respond_to,
        answer_backlog_s=matrix.answer_backlog.total_seconds(),
        # The clock may have been ahead at the restore: what is said from now on is answered in any case.
        answer_after_ms=min(int(restored_at_ms or 0), time.time_ns() // 1_000_000),
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
        except Exception as error:  # jmespath lets errors of Python out too, as of ceil(to_number('inf'))
            log.warning("filter_failed", expression=expression, event_seq=event.event_seq, reason=str(error))
            return True
        return found not in (None, False, "", [], {})

    return keep
