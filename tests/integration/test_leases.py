"""Leases with a real nats-server: collectors come, go, die and freeze, and the broker fails."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from prometheus_client import CollectorRegistry

from services.broker.server import NatsServer
from services.broker.settings import BrokerSettings
from services.broker.streams import ensure_streams
from services.collector.leases import LeaseChange, LeaseManager, LeaseSettings
from tests.integration.lease_worker import EXCHANGE
from tests.integration.nats_tools import Relay, call, connected, make_stream, nats_server, until

ROOT = Path(__file__).resolve().parents[2]
SLOTS = 16
LEASE = 1.5
SETTINGS = LeaseSettings(
    enabled=True, lease_seconds=LEASE, renew_seconds=0.25, slots=SLOTS, local_deaths=False
)
RECOVERY = LEASE + 2.0
"""Seconds after a death in which everything has to be held again."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


class Sharer:
    """A manager in this process, and what it told."""

    def __init__(
        self,
        url: str,
        name: str,
        settings: LeaseSettings = SETTINGS,
        *,
        confirms: bool = True,
        slots: int = SLOTS,
    ) -> None:
        self.name = name
        self.confirms = confirms
        self.changes: list[LeaseChange] = []
        self.suspensions: list[bool] = []
        self.manager = LeaseManager(
            url, name, {EXCHANGE: slots}, settings, self._changed, self.suspensions.append
        )
        self.running = asyncio.create_task(self.manager.run())

    def _changed(self, change: LeaseChange) -> None:
        self.changes.append(change)
        if change.handed_over and self.confirms:
            self.manager.release_done(change.exchange, change.handed_over)

    @property
    def held(self) -> frozenset[int]:
        return self.manager.held(EXCHANGE)

    @property
    def problem(self) -> str:
        return self.manager.status().problem

    async def vanish(self) -> None:
        """End without a word, as a killed process does."""
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running


@contextlib.asynccontextmanager
async def sharers(url: str, *names: str, **more: Any) -> AsyncIterator[list[Sharer]]:
    everybody = [Sharer(url, name, **more) for name in names]
    try:
        yield everybody
    finally:
        for sharer in everybody:
            await sharer.vanish()


def shared(*sharers: Sharer) -> bool:
    """Whether these hold every slot once."""
    held = [slot for sharer in sharers for slot in sharer.held]
    assert len(held) == len(set(held)), f"expected each slot to be held once, got {held}"
    return len(held) == SLOTS


async def test_three_divide_the_slots_and_survive_the_end_of_one(server: NatsServer) -> None:
    async with sharers(server.url, "a", "b", "c") as (a, b, c):
        await until(lambda: shared(a, b, c), "all slots are held", RECOVERY)
        assert all(len(each.held) > 2 for each in (a, b, c))
        assert a.manager.status().members == ("a", "b", "c")
        await a.vanish()
        await until(lambda: shared(b, c), "the slots of the dead are taken over", RECOVERY)
        status = b.manager.status()
        assert (status.members, status.total) == (("b", "c"), SLOTS)
        taken = [slot for each in (b, c) for change in each.changes for slot in change.taken_over]
        assert sorted(taken) == sorted(a.changes[-1].assigned)
        assert status.taken_over + c.manager.status().taken_over == len(taken)


async def test_who_stops_hands_over_at_once(server: NatsServer) -> None:
    async with sharers(server.url, "a", "b") as (a, b):
        await until(lambda: shared(a, b), "all slots are held", RECOVERY)
        had = a.held
        await a.manager.stop()
        await a.running
        assert a.changes[-1].handed_over == had
        assert not a.held
        await until(lambda: shared(b), "the other has everything", LEASE / 2)
        assert b.manager.status().taken_over == 0


async def test_nothing_is_handed_over_before_publishing_has_stopped(server: NatsServer) -> None:
    async with sharers(server.url, "a", confirms=False) as (a,):
        await until(lambda: shared(a), "all slots are held", RECOVERY)
        async with sharers(server.url, "b") as (b,):
            await until(lambda: len(a.changes) > 1, "some slots are to be handed over")
            going = a.changes[-1].handed_over
            symbol = next(
                f"S{n}" for n in range(10_000) if a.manager.slot_of(EXCHANGE, f"S{n}") in going
            )
            await until(lambda: "b" in a.manager.status().members, "the other is there")
            assert a.manager.owns(EXCHANGE, symbol), "expected the last events to be allowed"
            assert not b.held
            fence = a.manager.fence(EXCHANGE, symbol)
            a.manager.release_done(EXCHANGE, going)
            assert not a.manager.owns(EXCHANGE, symbol)
            await until(lambda: b.held == going, "the other takes them", LEASE / 2)
            assert b.manager.fence(EXCHANGE, symbol) > fence
            # A collector that never says that it stopped keeps nobody from stopping.
            async with asyncio.timeout(4):
                await a.manager.stop()
                await a.running
            await until(lambda: shared(b), "what was not handed over is taken over", RECOVERY)


async def test_a_restart_of_the_broker_moves_nothing(server: NatsServer) -> None:
    async with sharers(server.url, "a", "b", "c") as everybody:
        await until(lambda: shared(*everybody), "all slots are held", RECOVERY)
        told = [len(each.changes) for each in everybody]
        renewed = [each.manager.status().renew_time for each in everybody]
        server.child.kill()
        await until(lambda: server.restarts == 1, "the broker is started again")
        await until(
            lambda: (
                all(
                    each.manager.status().renew_time > before
                    for each, before in zip(everybody, renewed, strict=True)
                )
                and shared(*everybody)
            ),
            "all have renewed",
        )
        assert [len(each.changes) for each in everybody] == told
        assert not any(each.manager.status().lost for each in everybody)


async def test_while_the_broker_is_away_nothing_is_published_and_nothing_is_given_up(
    server: NatsServer,
) -> None:
    relay = Relay(server.port)
    async with relay.running(), sharers(relay.url, "a") as (a,):
        await until(lambda: shared(a), "all slots are held", RECOVERY)
        relay.refuse()
        relay.cut()
        await until(lambda: a.suspensions == [True], "it is suspended", LEASE)
        assert a.manager.status().suspended
        assert not a.held
        assert len(a.manager.assigned(EXCHANGE)) == SLOTS, "expected it to go on collecting"
        assert "NATS cannot be reached" in a.problem
        relay.let_through()
        await until(lambda: shared(a), "it goes on", RECOVERY)
        assert a.suspensions == [True, False]
        assert len(a.changes) == 1


@pytest.mark.parametrize("way", ["cut", "hold"])
async def test_who_alone_cannot_reach_the_broker_is_replaced_and_comes_back(
    server: NatsServer, way: str
) -> None:
    relay = Relay(server.port)
    async with (
        relay.running(),
        sharers(relay.url, "a") as (a,),
        sharers(server.url, "b", "c") as (b, c),
    ):
        await until(lambda: shared(a, b, c), "all slots are held", RECOVERY)
        if way == "cut":
            relay.refuse()
            relay.cut()
        else:
            relay.hold_answers()
        await until(lambda: shared(a, b, c) and not a.held, "the others take over", RECOVERY)
        assert a.manager.assigned(EXCHANGE), "expected it not to know"
        relay.cut()
        relay.let_through()
        await until(lambda: a.changes[-1].lost or len(a.changes) > 2, "it is told", RECOVERY)
        await until(lambda: shared(a, b, c) and bool(a.held), "it has a share again", RECOVERY)
        assert a.manager.status().lost == 1
        assert a.suspensions[:1] == [True]


@pytest.mark.parametrize("verb", ["DELETE", "PURGE"])
async def test_a_wiped_bucket_is_filled_anew_by_those_who_hold(
    server: NatsServer, verb: str
) -> None:
    async with sharers(server.url, "a", "b") as everybody:
        await until(lambda: shared(*everybody), "all slots are held", RECOVERY)
        told = [len(each.changes) for each in everybody]
        group = everybody[0].manager._member.group
        assert group is not None
        await call(server.url, f"STREAM.{verb}.KV_{SETTINGS.bucket}")

        def anew() -> bool:
            assert shared(*everybody), "expected everybody to keep what they had"
            now = [each.manager._member.group for each in everybody]
            return all(g is not None and g.era != group.era and len(g.members) == 2 for g in now)

        await until(anew, "all are members of another era", RECOVERY)
        assert [len(each.changes) for each in everybody] == told


async def test_a_bucket_that_is_missing_is_made_and_any_client_can_read_it(
    server: NatsServer,
) -> None:
    async with sharers(server.url, "a") as (a,):
        await until(lambda: shared(a), "all slots are held", RECOVERY)
        client = await nats.connect(server.url)
        try:
            bucket = await client.jetstream().key_value(SETTINGS.bucket)
            entry = await bucket.get(SETTINGS.group)
            assert entry.value is not None
            record = json.loads(entry.value)
            assert list(record["members"]) == ["a"]
            assert record["exchanges"][EXCHANGE]["owners"] == ["a"] * SLOTS
            # An operator deletes the key: it is as good as a wiped disk.
            await bucket.delete(SETTINGS.group)
            await until(
                lambda: bool((group := a.manager._member.group) and group.era != record["era"]),
                "it is written anew",
            )
            assert shared(a)
        finally:
            await client.close()
        async with connected(server.url) as connection:
            broker = BrokerSettings.model_validate(
                {"streams": {"T": {"subjects": ["t"]}}, "buckets": {SETTINGS.bucket: {}}}
            )
            done = await ensure_streams(connection, broker)
            assert done == {"T": "created", f"KV_{SETTINGS.bucket}": "unchanged"}


async def test_the_broker_makes_the_bucket_and_keeps_its_form(server: NatsServer) -> None:
    def broker(**bucket: Any) -> BrokerSettings:
        return BrokerSettings.model_validate(
            {"streams": {"T": {"subjects": ["t"]}}, "buckets": {SETTINGS.bucket: bucket}}
        )

    name = f"KV_{SETTINGS.bucket}"
    async with connected(server.url) as connection:
        assert (await ensure_streams(connection, broker()))[name] == "created"
        assert (await ensure_streams(connection, broker()))[name] == "unchanged"
        assert (await ensure_streams(connection, broker(max_bytes="1MiB")))[name] == "updated"
    async with sharers(server.url, "a") as (a,):
        await until(lambda: shared(a), "all slots are held", RECOVERY)


@pytest.mark.parametrize(
    "record", [b"not json", b'{"format":2}', b'{"format":1,"era":"x"}', b"\xff\xfe"]
)
async def test_a_record_of_somebody_else_is_told_and_left_alone(
    server: NatsServer, record: bytes
) -> None:
    await make_stream(
        server.url, f"KV_{SETTINGS.bucket}", f"$KV.{SETTINGS.bucket}.>", max_msgs_per_subject=1
    )
    async with connected(server.url) as connection:
        await connection.request(f"$KV.{SETTINGS.bucket}.{SETTINGS.group}", record)
    async with sharers(server.url, "a") as (a,):
        await until(lambda: "expected the collectors' record" in a.problem, "it says so")
        assert not a.manager.assigned(EXCHANGE)
        await call(server.url, f"STREAM.PURGE.KV_{SETTINGS.bucket}")
        await until(lambda: shared(a), "it goes on once the record is deleted", RECOVERY)
        assert a.problem == ""


async def test_a_broker_without_jetstream_is_trouble_and_no_end(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"lease_seconds": 1.0})
    async with sharers("nats://127.0.0.1:9", "a", settings=settings) as (a,):
        await until(lambda: "NATS cannot be reached" in a.problem, "it says so")
        assert not a.running.done()
        async with asyncio.timeout(3):
            await a.manager.stop()
            await a.running


async def test_what_is_lost_is_told_in_the_numbers_by_which_it_was_held(
    server: NatsServer,
) -> None:
    relay = Relay(server.port)
    symbols = [f"S{number}" for number in range(200)]
    async with relay.running(), sharers(relay.url, "a") as (a,):
        await until(lambda: shared(a), "all slots are held", RECOVERY)
        told: list[set[int]] = []
        counted = a.manager._on_change

        def on_change(change: LeaseChange) -> None:
            told.append({a.manager.slot_of(EXCHANGE, symbol) for symbol in symbols})
            counted(change)

        a.manager._on_change = on_change
        relay.refuse()
        relay.cut()
        fewer = SETTINGS.model_copy(update={"slots": 4})
        async with sharers(server.url, "b", settings=fewer, slots=4) as (b,):
            await until(lambda: len(b.held) == 4, "another divides the exchange anew", RECOVERY)
            relay.let_through()
            await until(lambda: a.manager.held(EXCHANGE), "the first has a share", RECOVERY)
            assert len(a.changes[1].lost) == SLOTS
            assert told[0] == set(range(SLOTS))
            assert told[-1] == set(range(4))


async def test_metrics_tell_the_state(server: NatsServer) -> None:
    async with sharers(server.url, "a") as (a,):
        await until(lambda: shared(a), "all slots are held", RECOVERY)
        registry = CollectorRegistry()
        registry.register(a.manager)
        prefix = "marketprism_collector_leases"
        assert registry.get_sample_value(f"{prefix}_held") == SLOTS
        assert registry.get_sample_value(f"{prefix}_members") == 1
        assert registry.get_sample_value(f"{prefix}_suspended") == 0
        moves = registry.get_sample_value(f"{prefix}_moves_total", {"kind": "taken_over"})
        assert moves == 0


# Processes of their own.


class Worker:
    """A process that holds leases, and what it said that it may publish."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: list[Any]) -> None:
        self.name = name
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._log = log
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            said = json.loads(line)
            self.lines.append(said)
            self._log.append(said)

    @property
    def slots(self) -> set[int]:
        return {int(slot) for slot in self.lines[-1]["fences"]} if self.lines else set()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.send(signal.SIGCONT)
            self.send(number)
        await self.process.wait()
        await self._reader


class Workers:
    """Several, and all that they said."""

    def __init__(self, url: str, settings: LeaseSettings) -> None:
        self.url = url
        self.settings = settings
        self.log: list[dict[str, Any]] = []
        self.started: list[Worker] = []

    async def start(self, name: str) -> Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.lease_worker",
            self.url,
            name,
            self.settings.model_dump_json(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen/python'}"},
        )
        self.started.append(Worker(name, process, self.log))
        return self.started[-1]

    def shared(self, *workers: Worker) -> Callable[[], bool]:
        """Whether these may publish all slots, by what they said last."""
        return lambda: set.union(*(worker.slots for worker in workers)) == set(range(SLOTS))

    def check(self) -> None:
        """No slot was published by an older claim after a newer one had published it."""
        newest: dict[str, tuple[int, int, str]] = {}
        for line in sorted(self.log, key=lambda said: said["after"]):
            for slot, fence in line["fences"].items():
                newer, since, other = newest.get(slot, (0, 0, ""))
                assert fence >= newer or line["before"] < since, (
                    f"expected slot {slot} to be published by {other} alone since {since}, and "
                    f"{line['name']} did by an older claim at {line['before']}"
                )
                assert fence != newer or line["name"] == other, "expected a claim to have one owner"
                if fence > newer:
                    newest[slot] = fence, line["after"], line["name"]


@contextlib.asynccontextmanager
async def workers(url: str, settings: LeaseSettings = SETTINGS) -> AsyncIterator[Workers]:
    everybody = Workers(url, settings)
    try:
        yield everybody
    finally:
        for worker in everybody.started:
            await worker.end(signal.SIGKILL)
    everybody.check()


@pytest.mark.parametrize("local_deaths", [False, True])
async def test_a_killed_process_is_replaced(server: NatsServer, *, local_deaths: bool) -> None:
    # With a long lease only the end of the process itself can be what was noticed.
    lease = {"lease_seconds": 20.0} if local_deaths else {}
    settings = SETTINGS.model_copy(update={"local_deaths": local_deaths, **lease})
    if local_deaths:
        # The first era has to grow as old as a lease, which is not what is tested here.
        async with sharers(server.url, "first") as (first,):
            await until(lambda: shared(first), "the record is settled", RECOVERY)
            await first.manager.stop()
    async with workers(server.url, settings) as everybody:
        a, b, c = [await everybody.start(name) for name in "abc"]
        await until(everybody.shared(a, b, c), "all slots are held")
        await until(lambda: a.slots and b.slots and c.slots, "each has a share")
        await a.end(signal.SIGKILL)
        await until(everybody.shared(b, c), "the others take over", RECOVERY)
        again = await everybody.start("a")
        await until(lambda: bool(again.slots), "it comes back")
        await until(everybody.shared(again, b, c), "all slots are held")


async def test_a_stopped_process_is_replaced_and_publishes_nothing_when_it_goes_on(
    server: NatsServer,
) -> None:
    async with workers(server.url) as everybody:
        a, b, c = [await everybody.start(name) for name in "abc"]
        await until(everybody.shared(a, b, c), "all slots are held")
        await until(lambda: a.slots and b.slots and c.slots, "each has a share")
        a.send(signal.SIGSTOP)
        await until(everybody.shared(b, c), "the others take over", RECOVERY)
        said = len(a.lines)
        a.send(signal.SIGCONT)
        await until(lambda: len(a.lines) > said + 1 and bool(a.slots), "it comes back")
        assert a.lines[-1]["lost"] == 1
        await until(everybody.shared(a, b, c), "all slots are held")
        assert not a.lines[said + 1]["fences"] or a.lines[said + 1]["lost"] == 1


async def test_processes_that_end_in_order_leave_no_lease_to_wait_for(server: NatsServer) -> None:
    async with workers(server.url) as everybody:
        a, b = [await everybody.start(name) for name in "ab"]
        await until(everybody.shared(a, b), "all slots are held")
        await until(lambda: a.slots and b.slots, "each has a share")
        await a.end(signal.SIGTERM)
        assert a.process.returncode == 0
        await until(everybody.shared(b), "the other has everything", LEASE * 0.6)
        assert b.lines[-1]["taken_over"] == 0
