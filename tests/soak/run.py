"""A soak: Musher between faults, kills and people, for minutes, and the judgement at the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp

from bot.demo.homeserver import Homeserver
from crdt import verify_database
from tests.crdt.disk import library
from tests.servers.fault_proxy import FaultProxy
from tests.servers.faults import (
    HOMESERVER_FAULTS,
    MODEL_FAULTS,
    SENDS,
    SOFT_LOGOUT,
    SYNCS,
    TOKEN_GONE,
    Fault,
    every,
)
from tests.servers.model import ScriptedModel
from tests.servers.synapse import PASSWORD, Person, RoomEvent
from tests.soak.ailing import DISK
from tests.soak.decay import FILES, KEY_FILES, Decay, names_damage
from tests.soak.encrypted import Talk
from tests.soak.machine import Machine
from tests.soak.oracle import judge_events, judge_room
from tests.soak.outages import Outages, PatientPerson
from tests.soak.plan import Plan, Tally
from tests.soak.scene import Watch
from tests.soak.unquiet import UnquietRoom
from tests.system.outside import event, line_of
from tests.system.service import MusherProcess

KILL_EVERY_S: Final = 20.0
FAULT_AFTER_S: Final = 4.0
FAULT_LASTS_S: Final = (0.5, 6.0)
LONG_FAULT_LASTS_S: Final = (15.0, 60.0)
ROT_AFTER_KILL: Final = 0.4
"""The chance that files decay while the service is down."""
DISK_AFTER_S: Final = 10.0
KILL_ON_BROKEN_DISK: Final = 0.2
CLOCK_STEPS_AFTER_S: Final = 12.0
CLOCK_STEPS_AFTER_KILL: Final = 0.3
LOGOUT_EVERY_S: Final = 60.0
OUTAGE_EVERY_S: Final = 30.0
UNQUIET_AFTER_S: Final = 10.0
BURST_EVERY_S: Final = 150.0
BURST_MESSAGES: Final = 130
"""More than the 100 that one sync brings."""
EVENT_EVERY_S: Final = 1.0
UNFORESEEN: Final = ("_broke", "_not_read", "room_work_failed", "redaction_failed")
"""How the log lines end that tell of what nobody foresaw."""
SETTLED_WITHIN_S: Final = 300.0
"""Of a message, whatever befalls it meanwhile; a run that waits longer has lost it."""
SETTLED_AT_REST_S: Final = 120.0
"""The same when the faults are over: what a burst has left in the inbox is answered in turns of 20."""


@dataclass(eq=False)
class Soak:
    """One run, with everything that takes part in it."""

    plan: Plan
    synapse: Homeserver
    model: ScriptedModel
    musher: MusherProcess
    machine: Machine
    people: tuple[Person, Person]
    rooms: list[str]
    to_homeserver: FaultProxy
    to_model: FaultProxy
    watch: Watch
    unquiet: UnquietRoom
    talks: list[Talk]
    outages: Outages
    taken: dict[str, list[str]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    _starts: int = 1
    """How often the service had come to run when it was last started."""
    _kill_now: asyncio.Event = field(default_factory=asyncio.Event)
    """The next kill is due, whenever it was to come."""
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing new begins."""
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    """What had begun has come to its end."""
    _numbers: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        kinds = FILES if self.talks else FILES + KEY_FILES
        self.decay = Decay(self.musher, kinds, self.tally.faults, self.tally.findings)

    async def run(self) -> Tally:
        """Soak as long as planned, come to rest, and judge."""
        watching = asyncio.create_task(self.watch.run())
        try:
            async with asyncio.TaskGroup() as busy:
                tasks = [busy.create_task(task) for task in self._tasks()]
                busy.create_task(self._kill())
                await self._pause(self.plan.minutes * 60)
                self._over.set()
                await asyncio.wait(tasks)
                self._quiet.set()
            await self._come_to_rest()
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        await self._judge()
        return self.tally

    def _tasks(self) -> list[Any]:
        talks = [self._talk(person, room) for person in self.people for room in self.rooms]
        return [
            *talks,
            *map(self._talk_encrypted, self.talks),
            *(self._report(sender) for sender in ("ci", "tracker")),
            self._fail(self.to_homeserver, HOMESERVER_FAULTS, "homeserver"),
            self._fail(self.to_model, MODEL_FAULTS, "model"),
            self._restart_homeserver() if self.talks else self._log_out(),
            self._burst(),
            self._stir(),
            *([self._break_disk()] if library() else []),
            self._step_clock(),
        ]

    def _chance(self, name: str) -> random.Random:
        return random.Random(f"{self.plan.seed}/{name}")

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)

    # --- what goes on

    async def _say(self, person: Person, room: str) -> str:
        return await person.say(room, f"question {next(self._numbers)} in {room}")

    async def _talk(self, person: Person, room: str) -> None:
        chance = self._chance(f"{person.user_id[:4]} in room {self.rooms.index(room)}")
        while not self._over.is_set():
            said = await self._say(person, room)
            await self.watch.wait_until_settled(room, said, SETTLED_WITHIN_S)
            await self._pause(chance.expovariate(1.0))

    async def _talk_encrypted(self, talk: Talk) -> None:
        chance = self._chance(f"encrypted room {self.talks.index(talk)}")
        while not self._over.is_set():
            await talk.ask(SETTLED_WITHIN_S)
            await self._pause(chance.expovariate(1.0))

    async def _burst(self) -> None:
        chance = self._chance("burst")
        await self._pause(chance.expovariate(1 / BURST_EVERY_S))
        while not self._over.is_set():
            room = chance.choice(self.rooms)
            for _ in range(BURST_MESSAGES):
                await self._say(self.people[0], room)
            self.tally.counts["bursts"] += 1
            await self._pause(chance.expovariate(1 / BURST_EVERY_S))

    async def _report(self, sender: str) -> None:
        chance = self._chance(sender)
        for number in count():
            if self._over.is_set():
                return
            posted = event(f"{sender}-{number}", event_id=f"{sender}/{number}")
            await self.musher.post_events(posted, within=SETTLED_WITHIN_S)
            self.taken.setdefault(sender, []).append(line_of(posted))
            self.tally.counts["events"] += 1
            await self._pause(chance.expovariate(1 / EVENT_EVERY_S))

    async def _fail(self, proxy: FaultProxy, faults: tuple[Fault, ...], name: str) -> None:
        chance = self._chance(name)
        await self._pause(chance.expovariate(1 / FAULT_AFTER_S))
        while not self._over.is_set():
            fault, only = chance.choice(faults), chance.choice([every, every, SENDS, SYNCS])
            lasts = LONG_FAULT_LASTS_S if chance.random() < 0.04 else FAULT_LASTS_S
            self.tally.faults[f"{name} {fault.name}"] += 1
            async with proxy.during(fault, every if name == "model" else only):
                await self._pause(chance.uniform(*lasts))
            await self._pause(chance.expovariate(1 / FAULT_AFTER_S))

    async def _break_disk(self) -> None:
        """Let the disk of the service be full, fail now and then, or fail once; the service may have to start there."""
        chance = self._chance("disk")
        await self._pause(chance.expovariate(1 / DISK_AFTER_S))
        while not self._over.is_set():
            ailment, lasts = chance.choice(DISK), LONG_FAULT_LASTS_S if chance.random() < 0.04 else FAULT_LASTS_S
            self.tally.faults[f"disk {ailment}"] += 1
            self.machine.break_disk(ailment)
            if chance.random() < KILL_ON_BROKEN_DISK:
                self.tally.faults[f"disk {ailment}, at a start"] += 1
                self._kill_now.set()
            await self._pause(chance.uniform(*lasts))
            self.machine.mend_disk()
            await self._pause(chance.expovariate(1 / DISK_AFTER_S))

    async def _step_clock(self) -> None:
        chance = self._chance("clock")
        while not self._over.is_set():
            await self._pause(chance.expovariate(1 / CLOCK_STEPS_AFTER_S))
            self.tally.faults[f"clock {self.machine.step_clock(chance)}"] += 1

    async def _kill(self) -> None:
        """Kill the service now and then, and start it again, also when it has ended itself: as systemd would."""
        chance = self._chance("kill")
        while not self._quiet.is_set():
            due = self._quiet.wait() if self._over.is_set() else self._kill_due(chance.expovariate(1 / KILL_EVERY_S))
            by_itself = await _first(due, self.musher.wait_until_ended())
            if self._over.is_set() and not by_itself:
                continue
            self.tally.counts["ends at the start" if by_itself else "kills"] += 1
            await self._start_again(by_itself=by_itself)

    async def _kill_due(self, seconds: float) -> None:
        await _first(self._pause(seconds), self._kill_now.wait())
        self._kill_now.clear()

    async def _start_again(self, *, by_itself: bool) -> None:
        """Start a service that has ended by itself, or kill it first and see what befalls its machine meanwhile."""
        await self.musher.kill()
        started = len(self.musher.logged("service_started"))
        ran, self._starts = started > self._starts, started
        last_line = self.musher.tail().splitlines()[-1]
        explained = self.decay.explains(last_line, started=ran)
        if not by_itself:
            await self._befall_machine()
        elif ran and not explained:
            self.tally.findings.wrong.append(f"it ended while it ran: {last_line}")
        elif names_damage(last_line) and not explained:
            self.tally.findings.wrong.append(f"it can't start, and nobody has damaged anything: {last_line}")
        await self.musher.start(ready=False)

    async def _befall_machine(self) -> None:
        chance = self._chance(f"between the starts at kill {self.tally.counts['kills']}")
        if chance.random() < CLOCK_STEPS_AFTER_KILL:
            self.tally.faults[f"clock {self.machine.step_clock(chance)}, between two starts"] += 1
        if chance.random() < ROT_AFTER_KILL:
            await self.decay.befall(chance)

    async def _log_out(self) -> None:
        """End all of the bot's logins, as an administrator would, or have the homeserver say that they have ended."""
        chance = self._chance("logout")
        await self._pause(chance.expovariate(1 / LOGOUT_EVERY_S))
        while not self._over.is_set():
            said = chance.choice([None, SOFT_LOGOUT, TOKEN_GONE])
            if said is None:
                await log_out_everywhere(self.synapse, self.musher.user_id)
            else:
                await self.to_homeserver.begin(said, chance.choice([SYNCS, SENDS]), times=1)
            self.tally.faults[f"homeserver {said.name if said else 'logout of all devices'}"] += 1
            await self._pause(chance.expovariate(1 / LOGOUT_EVERY_S))

    async def _restart_homeserver(self) -> None:
        chance = self._chance("outage")
        await self._pause(chance.expovariate(1 / OUTAGE_EVERY_S))
        while not self._over.is_set():
            killed = chance.random() < 0.5
            self.tally.faults[f"homeserver {'killed' if killed else 'restarted'}"] += 1
            await self.outages.restart(killed=killed)
            await self._pause(chance.expovariate(1 / OUTAGE_EVERY_S))

    async def _stir(self) -> None:
        chance = self._chance("unquiet")
        while not self._over.is_set():
            await self._pause(chance.expovariate(1 / UNQUIET_AFTER_S))
            happened = await self.unquiet.go_on(chance, SETTLED_WITHIN_S)
            self.tally.faults[f"room {happened}"] += 1

    # --- the end

    async def _come_to_rest(self) -> None:
        """Without faults, one more question in each room is answered; after it nothing is under way."""
        if await _first(self.musher.wait_until_ready(), self.musher.wait_until_ended()):
            self.tally.counts["ends at the start"] += 1
            await self._start_again(by_itself=True)
            await self.musher.wait_until_ready()
        for room in self.rooms:
            last = await self._say(self.people[0], room)
            await self.watch.wait_until_settled(room, last, SETTLED_AT_REST_S)
        for talk in self.talks:
            await talk.ask(SETTLED_AT_REST_S)
        await self.unquiet.ask(SETTLED_AT_REST_S)
        await self.musher.stop()

    async def _judge(self) -> None:
        findings, bot = self.tally.findings, self.musher.user_id
        requests = [request.messages for request in self.model.requests]
        timelines = {room: await self.people[0].said(room) for room in self.rooms}
        timelines |= {talk.room: await talk.timeline(bot, findings) for talk in self.talks}
        for room, timeline in timelines.items():
            turns = judge_room(room, timeline, bot, requests, findings)
            judge_events(room, turns, self.taken, findings)
            self._count(timeline, len(turns))
        await self.unquiet.judge(findings)
        findings.wrong += verify_database(self.musher.database).problems
        findings.wrong += [str(line) for line in self.musher.logs if str(line.get("event")).endswith(UNFORESEEN)]
        findings.wrong += [line["line"] for line in self.musher.logs if "Traceback" in line.get("line", "")]
        findings.wrong += map(str, self.musher.logged("room_damaged"))
        self.tally.counts["calls that the disk refused"] = self.machine.refused
        self.tally.counts["events put off with 503"] = sum(
            line.get("status") == 503 for line in self.musher.logged("events_refused")
        )
        self.tally.counts["requests to the model"] = len(requests)
        self.tally.counts["requests to the homeserver"] = len(self.to_homeserver.calls)

    def _count(self, timeline: list[RoomEvent], turns: int) -> None:
        replies = [each for each in timeline if each["sender"] == self.musher.user_id]
        self.tally.counts["turns"] += turns
        self.tally.counts["messages"] += len(timeline) - len(replies)
        self.tally.counts["replies"] += len(replies)
        encrypted = sum(each["type"] == "m.room.encrypted" for each in replies)
        self.tally.counts["replies in encrypted rooms"] += encrypted
        self.tally.counts["notices among them"] += sum(each["content"]["msgtype"] == "m.notice" for each in replies)


async def _first(one: Awaitable[object], other: Awaitable[object]) -> bool:
    """Wait until one of two things happens; whether the other did."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[1].done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def log_out_everywhere(synapse: Homeserver, user_id: str) -> None:
    """End all logins of a user: their tokens are refused from now on, and their devices are gone."""
    user = user_id.removeprefix("@").partition(":")[0]
    credentials = await synapse.login(user, PASSWORD)
    headers = {"Authorization": f"Bearer {credentials.access_token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{synapse.url}/_matrix/client/v3/logout/all", json={}) as response,
    ):
        assert response.status == 200, await response.text()


@asynccontextmanager
async def prepared(plan: Plan, folder: Path, synapse: Homeserver) -> AsyncIterator[Soak]:
    """Everything that a run needs: people in rooms with a service that is ready, behind proxies."""
    mark = f"{time.time_ns():x}"
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(ScriptedModel())
        model.answer = lambda request: f"reply {request.number}"
        to_homeserver = await stack.enter_async_context(FaultProxy(synapse.url))
        to_model = await stack.enter_async_context(FaultProxy(model.url))
        outages = Outages(synapse)
        alice, bob = [
            await stack.enter_async_context(PatientPerson.on(synapse, f"{each}-{mark}")) for each in ("alice", "bob")
        ]
        alice.outages = bob.outages = outages
        user_id = await synapse.register(f"musher-{mark}", PASSWORD)
        # Hanging is to be met by time-outs, too, and a turn that nobody answers is to end within the run.
        sections = {"llm": {"timeout": "8s"}}
        machine = Machine(folder / "machine")
        musher = MusherProcess(
            folder / "musher", to_homeserver.url, user_id, to_model.url, sections, launch=machine.launch
        )
        stack.push_async_callback(musher.end)
        await musher.start()
        rooms = []
        for _ in range(plan.rooms + 1):
            room = await alice.create_room(invite=[user_id, bob.user_id])
            await bob.join(room)
            await alice.wait_for_membership(room, user_id)
            rooms.append(room)
        watch = Watch(alice, user_id)
        unquiet = UnquietRoom(alice, user_id, watch, [rooms.pop()])
        talks = [
            await stack.enter_async_context(Talk.begun(synapse, f"carol-{number}-{mark}", folder, user_id))
            for number in range(plan.encrypted)
        ]
        people, proxies = (alice, bob), (to_homeserver, to_model)
        yield Soak(plan, synapse, model, musher, machine, people, rooms, *proxies, watch, unquiet, talks, outages)
