"""The cases: what is done to a venue, and what a collector has to tell of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from marketprism.collector.v1 import collector_service_pb2 as pb

from conformance import case_instruments, case_overlap
from conformance.scene import Missed, Scene
from conformance.venues import VenueFacts

__all__ = ["CASES", "Case"]

Inject = Callable[[Scene], Awaitable[None]]
Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One fault, and what is expected of a collector."""

    name: str
    """Name, as `--only VENUE:NAME` takes it."""
    title: str
    """The same for people."""
    inject: Inject
    """Makes it happen; returns once it has."""
    told: Words | Callable[[VenueFacts], Words] = ()
    """Words (see `Scene.words`) that must be told; `A|B` is one of them."""
    keeps_books: bool = False
    """Whether every book must go on in its epoch, without a rebuild."""
    whole_venue: bool = False
    """Whether it concerns every instrument; else the others must go on in their epochs."""
    profile: str = "plain"
    """How the collector must be set up."""
    venues: tuple[str, ...] = ()
    """Where it applies; empty means everywhere."""
    slow: bool = False
    """Whether it takes most of a minute or more."""
    recover_seconds: float = 40.0
    """Longest time until everything must be in step again."""
    trades: bool | Callable[[VenueFacts], bool] = False
    """Whether it is over when every trade until the fault is there, instead of when books are."""
    derivatives: bool = False
    """Whether it must be aimed at a derivative: spot has no mark price."""
    speaks: str = ""
    """Kind of data (`trade`, `ticker`, ...) of which more must come after the fault."""

    def words(self, facts: VenueFacts) -> Words:
        """Give what must be told at a venue."""
        return self.told(facts) if callable(self.told) else self.told

    def mends_trades(self, facts: VenueFacts) -> bool:
        """Tell whether trades are what it breaks at a venue."""
        return self.trades(facts) if callable(self.trades) else self.trades

    def applies(self, facts: VenueFacts) -> bool:
        """Whether it applies to a venue."""
        return not self.venues or facts.name in self.venues


_STORM = 30
_GAP = ("GAP@ORDER_BOOK", "RESYNCING:VENUE_GAP")
_BINANCE = ("binance", "binance_usdm", "binance_coinm")
_MARKED = ("binance_usdm", "binance_coinm", "okx")


async def _nothing(scene: Scene) -> None:
    await scene.struck()


def _frame(kind: str, stream: str = "book", **options: Any) -> Inject:
    async def inject(scene: Scene) -> None:
        await scene.happened(await scene.fault(kind, stream=stream, **options))

    return inject


def _cut(**options: Any) -> Inject:
    async def inject(scene: Scene) -> None:
        await scene.fault("cut", count=None, **options)
        await scene.struck()

    return inject


def _after_cut(kind: str, stream: str, **options: Any) -> Inject:
    """Make a fault of subscriptions, which shows when they are made anew."""

    async def inject(scene: Scene) -> None:
        fault = await scene.fault(kind, stream=stream, **options)
        await scene.cut()
        await scene.happened(fault)

    return inject


async def _all_silent(scene: Scene) -> None:
    """Acknowledge everything on the new connections, and send nothing."""
    fault = await scene.rig.venue.fault("silence", count=None)
    await scene.cut()
    await scene.happened(fault, 3 * len(scene.rig.natives))


async def _storm(scene: Scene) -> None:
    """Let frames of books and trades be lost, repeated, reordered and damaged, all at random."""
    facts = scene.rig.facts
    await _rage(scene, facts.book, facts.trade)


async def _storm_on_one(scene: Scene) -> None:
    """Let it happen to books on one of two connections."""
    name = await case_overlap.one_of_two(scene)
    await _rage(scene, scene.rig.facts.book, connection=name)


async def _rage(scene: Scene, *streams: str, **where: str) -> None:
    venue = scene.rig.venue
    faults = [
        await venue.fault(kind, stream=stream, count=None, probability=chance, **options, **where)
        for stream in streams
        for kind, chance, options in (
            ("drop", 0.02, {}),
            ("duplicate", 0.05, {}),
            ("reorder", 0.02, {}),
            ("corrupt", 0.01, {"mode": "types"}),
        )
    ]
    deadline = time.monotonic() + 30
    while sum([await venue.hits(fault) for fault in faults]) < _STORM:
        if time.monotonic() > deadline:
            raise Missed(f"within 30 s there were fewer than {_STORM} faults")
        await asyncio.sleep(0.1)
    await venue.clear()
    await scene.struck()


def _refused() -> Inject:
    async def inject(scene: Scene) -> None:
        fault = await scene.fault("refuse_subscription", stream="book", count=None)
        await scene.cut()
        await scene.happened(fault)
        await scene.wait("SUBSCRIPTION_REFUSED@ORDER_BOOK")
        await scene.rig.venue.clear()

    return inject


def _rest(kind: str, times: int = 1, **options: Any) -> Inject:
    """Let REST fail where it is needed: for a book, or for past trades where books need none."""

    async def inject(scene: Scene) -> None:
        facts = scene.rig.facts
        stream = "trade" if facts.from_stream else "book"
        paths = facts.trade_paths if facts.from_stream else (facts.book_path,)
        faults = [await scene.fault(kind, path=path, count=times, **options) for path in paths]
        await scene.happened(await scene.fault("drop", stream=stream))
        # Any of the paths will do: a collector asks at the one that it likes.
        await _any_happened(scene, faults, times)

    return inject


async def _no_history(scene: Scene) -> None:
    """Lose a trade that the venue's history leaves out, too."""
    for path in scene.rig.facts.trade_paths:
        await scene.fault("rest_trades_missing", path=path, count=100, ids=1)
    await scene.happened(await scene.fault("drop", stream="trade"))
    # Faults end with the injection, and the history is asked more than once.
    await scene.wait("GAP@TRADE")


async def _any_happened(scene: Scene, faults: Sequence[int], times: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        hits = [await scene.rig.venue.hits(fault) for fault in faults]
        if max(hits) >= times:
            return
        if time.monotonic() > deadline:
            raise Missed(f"REST was asked {max(hits)} times within 20 s, expected {times}")
        await asyncio.sleep(0.05)


def _on_trades(facts: VenueFacts) -> bool:
    return facts.from_stream


def _rest_words(on_books: Words, on_trades: Words) -> Callable[[VenueFacts], Words]:
    return lambda facts: on_trades if facts.from_stream else on_books


async def _stale_snapshot(scene: Scene) -> None:
    facts = scene.rig.facts
    options: dict[str, Any] = {"behind": 60} if facts.from_stream else {}
    stale = await scene.fault("stale_snapshot", symbol=scene.native, **options)
    await scene.fault("drop", stream="book")
    await scene.happened(stale)


async def _reset(scene: Scene) -> None:
    before = await scene.rig.venue.position(scene.native)
    await scene.fault("sequence_reset", symbol=scene.native)
    await scene.struck()
    scene.resets[scene.symbol] = before


async def _gap(scene: Scene) -> None:
    await scene.fault("gap", symbol=scene.native)
    await scene.struck()


async def _maintenance(scene: Scene) -> None:
    await scene.fault("maintenance", seconds=1.5, notice=0.3)
    await scene.struck()


async def _shutdown(scene: Scene) -> None:
    await scene.fault("server_shutdown", seconds=6.0, count=None)
    await scene.struck()
    await scene.wait("ROLLED_OVER|DISCONNECTED")


async def _refuse_connections(scene: Scene) -> None:
    fault = await scene.fault("refuse_connections", count=2)
    await scene.cut()
    await scene.happened(fault, 2)


async def _heartbeat(scene: Scene) -> None:
    await scene.happened(await scene.fault("heartbeat_refusal"), seconds=60)


async def _heartbeat_refused(scene: Scene) -> None:
    """Leave pings unanswered until the second one, or until the connection is given up."""
    fault = await scene.fault("heartbeat_refusal", count=None)
    await scene.happened(fault, seconds=60)
    deadline = time.monotonic() + 60
    while await scene.rig.venue.hits(fault) < 2 and "DISCONNECTED" not in scene.words():
        if time.monotonic() > deadline:
            raise Missed("within 60 s there was no second ping, and no disconnect")
        await asyncio.sleep(0.1)
    await scene.struck()


async def _resync(scene: Scene) -> None:
    request = pb.ResyncRequest(exchange=scene.rig.facts.name, symbol=scene.symbol)
    await scene.rig.stub.Resync(request, timeout=10)
    await scene.struck()


_MALFORMED = ("MALFORMED_FRAME", "RESYNCING")
_TRADES = ("BACKFILLED@TRADE|GAP@TRADE",)
_CUT = ("DISCONNECTED", "CONNECTED", "RESYNCING:VENUE_DISCONNECTED")

CASES: tuple[Case, ...] = (
    Case("steady", "no fault at all", _nothing, keeps_books=True),
    Case("drop", "a book's frame is lost", _frame("drop"), _GAP),
    Case(
        "drop-trade", "a trade is lost", _frame("drop", "trade"), _TRADES, keeps_books=True,
        trades=True,
    ),
    Case("duplicate", "a book's frame comes twice", _frame("duplicate"), keeps_books=True),
    Case("duplicate-trade", "a trade comes twice", _frame("duplicate", "trade"), keeps_books=True),
    Case("reorder", "a book's frames change places", _frame("reorder"), _GAP),
    Case(
        "reorder-trade", "trades change places", _frame("reorder", "trade"), keeps_books=True,
        trades=True,
    ),
    *(
        Case(
            f"corrupt-{mode}", f"a book's frame is damaged: {what}",
            _frame("corrupt", mode=mode), _MALFORMED,
        )
        for mode, what in (
            ("json", "broken JSON"),
            ("truncate", "half of it"),
            ("types", "wrong types"),
            ("binary", "a binary frame"),
            ("utf8", "not UTF-8"),
            ("empty", "empty"),
        )
    ),
    Case(
        "delay", "everything comes 1.5 s late", _frame("delay", seconds=1.5),
        ("STALE:FEED_SILENT",), whole_venue=True,
    ),
    Case("cut", "connections are closed", _cut(), _CUT, whole_venue=True),
    Case("cut-abort", "connections break", _cut(abort=True), _CUT, whole_venue=True),
    Case(
        "refuse-connections", "connections are closed and refused twice", _refuse_connections,
        _CUT, whole_venue=True,
    ),
    Case(
        "silence-book", "a book's subscription is acknowledged and silent",
        _after_cut("silence", "book"),
        ("SILENT@ORDER_BOOK",), whole_venue=True,
    ),
    Case(
        "silence-trade", "a subscription to trades is acknowledged and silent",
        _after_cut("silence", "trade"), ("SILENT@TRADE|BACKFILLED@TRADE",), whole_venue=True,
        speaks="trade",
    ),
    Case(
        "silence-ticker", "a subscription to tickers is acknowledged and silent",
        _after_cut("silence", "ticker"), ("SILENT@TICKER",), whole_venue=True,
        speaks="ticker",
    ),
    Case(
        "silence-top", "a subscription to best bids and offers is acknowledged and silent",
        _after_cut("silence", "top"), ("SILENT@BEST_BID_OFFER",), whole_venue=True,
        speaks="best_bid_offer",
    ),
    Case(
        "silence-mark", "a subscription to mark prices is acknowledged and silent",
        _after_cut("silence", "mark"), ("SILENT@MARK_PRICE",), whole_venue=True, venues=_MARKED,
        speaks="mark_price", derivatives=True,
    ),
    Case(
        "refuse-subscription", "the subscription of a book is refused, then granted", _refused(),
        ("SUBSCRIPTION_REFUSED@ORDER_BOOK",), whole_venue=True, slow=True, recover_seconds=100,
    ),
    Case(
        "sequence-reset", "a book's ids begin again lower", _reset,
        lambda facts: () if facts.resets_chain else ("STALE|RESYNCING", "RESYNCING"),
    ),
    Case("gap", "a book's ids are skipped", _gap, _GAP),
    Case(
        "stale-snapshot", "the snapshot for a rebuild is old", _stale_snapshot,
        lambda facts: _GAP if facts.from_stream else ("RESYNCING:SNAPSHOT_STALE",),
    ),
    Case(
        "rest-429", "REST answers: too many requests", _rest("rest_429", retry_after=1),
        _rest_words(("RATE_LIMITED", "RESYNCING:RATE_LIMITED"), ("RATE_LIMITED", *_TRADES)),
        trades=_on_trades,
    ),
    Case(
        "rest-418", "REST answers: banned for 2 s", _rest("rest_418", retry_after=2),
        _rest_words(("RATE_LIMITED", "RESYNCING:RATE_LIMITED"), ("RATE_LIMITED", *_TRADES)),
        trades=_on_trades,
    ),
    Case(
        "rest-5xx", "REST fails twice", _rest("rest_5xx", 2),
        _rest_words(("RESYNCING:SNAPSHOT_FAILED",), _TRADES),
        trades=_on_trades,
    ),
    Case(
        "rest-slow", "REST answers after 3 s", _rest("rest_slow", seconds=3.0),
        _rest_words(("RESYNCING",), _TRADES),
        trades=_on_trades,
    ),
    Case(
        "rest-holes", "a trade is lost, and REST's past trades leave it out", _no_history,
        ("GAP@TRADE",), keeps_books=True, trades=True, venues=(*_BINANCE, "okx"),
    ),
    Case(
        "maintenance", "notice, then closed for 1.5 s", _maintenance,
        ("DISCONNECTED", "RESYNCING"), whole_venue=True,
    ),
    Case(
        "shutdown", "the venue ends connections (24 h)", _shutdown,
        lambda facts: ("ROLLED_OVER",) if facts.notice else ("DISCONNECTED",), whole_venue=True,
    ),
    Case(
        "heartbeat", "the server asks for signs of life without need", _heartbeat,
        keeps_books=True, venues=("deribit",),
    ),
    Case(
        "heartbeat-refused", "pings of the client are not answered", _heartbeat_refused,
        venues=(*_BINANCE, "okx"), slow=True, whole_venue=True, recover_seconds=60,
    ),
    Case(
        "corrupt-trade", "a frame of trades is damaged", _frame("corrupt", "trade"),
        ("MALFORMED_FRAME", *_TRADES), keeps_books=True, trades=True,
    ),
    Case(
        "silence-all", "everything is acknowledged, and nothing comes", _all_silent,
        ("DISCONNECTED:NETWORK",), whole_venue=True,
    ),
    Case("storm", "30 faults at random on books and trades", _storm, whole_venue=True),
    Case("resync", "a rebuild is asked for", _resync, ("RESYNCING:REQUESTED",)),
    Case(
        "listed", "an instrument is listed", case_instruments.listed, keeps_books=True,
    ),
    Case(
        "expired", "an instrument expires", case_instruments.expired, keeps_books=True,
    ),
    Case(
        "tick", "an instrument gets another tick", case_instruments.tick, keeps_books=True,
    ),
    Case(
        "rollover", "connections are replaced for their age", case_overlap.rollover,
        ("ROLLED_OVER",), keeps_books=True, profile="rollover",
    ),
    Case(
        "rollover-drops", "frames are lost while connections are replaced",
        case_overlap.rollover_with_drops, ("ROLLED_OVER",), whole_venue=True, profile="rollover",
    ),
    Case(
        "one-of-two-cut", "one of two connections breaks", case_overlap.one_cut,
        ("DISCONNECTED", "CONNECTED"), keeps_books=True, profile="redundant",
    ),
    Case(
        "one-of-two-drops", "one of two connections loses a frame", case_overlap.one_drops,
        keeps_books=True, profile="redundant",
    ),
    Case(
        "one-of-two-corrupt", "a frame of one of two connections is damaged",
        case_overlap.one_corrupt, ("MALFORMED_FRAME",), keeps_books=True, profile="redundant",
    ),
    Case(
        "storm-on-one", "30 faults at random on one of two connections", _storm_on_one,
        keeps_books=True, profile="redundant",
    ),
    Case(
        "storm-on-two", "30 faults at random where books have two connections", _storm,
        whole_venue=True, profile="redundant",
    ),
    Case(
        "both-drop", "both connections lose the same frame", _frame("drop"), _GAP,
        profile="redundant",
    ),
    Case(
        "checksum", "a wrong checksum", _frame("wrong_checksum"),
        ("RESYNCING:CHECKSUM_MISMATCH",), profile="checksum", venues=("okx",),
    ),
    Case(
        "checksum-drop", "a frame is lost where there are checksums", _frame("drop"), _GAP,
        profile="checksum", venues=("okx",),
    ),
)  # fmt: skip
"""All cases."""
