"""Runs cases on a rig and judges what the collector under test told and served."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from conformance.cases import Case
from conformance.follower import until
from conformance.rig import Rig
from conformance.scene import Missed, Scene
from conformance.simulated import SimulatorError

__all__ = ["Outcome", "run_case", "run_cases"]

_LEAST_COMPARED = 24
_LEAST_UPDATES = 10
_SETTLE_SECONDS = 30.0


@dataclass
class Outcome:
    """What one run of one case showed."""

    venue: str
    """Exchange id."""
    case: str
    """Name of the case."""
    symbol: str
    """Instrument that it was aimed at."""
    profile: str
    """How the collector was set up."""
    detected: list[str] = field(default_factory=list)
    """Words that were expected and told."""
    missed: list[str] = field(default_factory=list)
    """What was expected and did not come."""
    detect_seconds: float | None = None
    """From the fault to the first expected word; 0 when it was told before the suite knew."""
    recover_seconds: float | None = None
    """From the fault until every book concerned was in step beyond it."""
    requests: int = 0
    """REST requests for books and past trades that it cost."""
    weight: int = 0
    """Their request weight."""
    compared: int = 0
    """Comparisons of a book with the truth."""
    wrong: list[str] = field(default_factory=list)
    """Books that claimed to be in step and were not the venue's."""
    breaches: list[str] = field(default_factory=list)
    """Violations of the contract: continuity, order, what must go on and did not."""
    lost_trades: int = 0
    """Trades that stay missing, each told in the ledger."""
    backfilled_trades: int = 0
    """Trades that were fetched from the venue's history."""
    seconds: float = 0.0
    """How long the whole case took."""

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong and nothing missed."""
        return not (self.wrong or self.missed or self.breaches)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"passed": self.passed, **told}


async def run_cases(
    rig: Rig,
    cases: Sequence[Case],
    *,
    repeat: int = 1,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run cases one after the other, each `repeat` times on one instrument after the other."""
    outcomes = []
    for repetition in range(repeat):
        for number, case in enumerate(cases):
            symbols = rig.derivatives if case.derivatives else rig.symbols
            symbol = symbols[(number + repetition) % len(symbols)]
            outcome = await run_case(rig, case, symbol)
            outcomes.append(outcome)
            on_outcome(outcome)
    return outcomes


async def run_case(rig: Rig, case: Case, symbol: str) -> Outcome:
    """Run one case on one instrument."""
    follower = rig.follower
    outcome = Outcome(rig.facts.name, case.name, symbol, rig.profile.name)
    started = time.monotonic()
    scene = Scene(rig, symbol)
    before = _Before(rig)
    try:
        await rig.learn()
        if not await until(lambda: _all_in_step(rig), _SETTLE_SECONDS):
            raise Missed(f"before the case: {_out_of_step(rig)} out of step")
        requests = await rig.venue.requests()
        scene.begin()
        before = _Before(rig)
        await case.inject(scene)
        await rig.venue.clear()
        outcome.detected += scene.seen
        await _expect(scene, case, outcome)
        await _recover(scene, case, outcome)
        await _settle(scene, outcome, before)
        spent = await rig.venue.requests()
        for path in rig.facts.repair_paths:
            count = spent.get(path, 0) - requests.get(path, 0)
            outcome.requests += count
            outcome.weight += count * rig.facts.weights.get(path, 1)
    except Missed as missed:
        outcome.missed.append(str(missed))
    except (SimulatorError, grpc.aio.AioRpcError) as error:
        outcome.missed.append(f"{type(error).__name__}: {error}")
    finally:
        try:
            await rig.venue.clear()
        except SimulatorError as error:
            outcome.missed.append(str(error))
    await follower.comparer.settle()
    outcome.compared = follower.comparer.compared - before.compared
    # What was found since the last case ended is told by this one, so that nothing is left out.
    outcome.wrong = follower.comparer.take_wrong()
    outcome.breaches += follower.take_breaches()
    outcome.breaches += _disturbed(scene, case)
    outcome.seconds = time.monotonic() - started
    return outcome


class _Before:
    """Counters when a case begins."""

    def __init__(self, rig: Rig) -> None:
        follower = rig.follower
        self.compared = follower.comparer.compared
        self.updates = {symbol: follower.books[symbol].updates for symbol in rig.natives}
        self.missing = {symbol: set(follower.trades[symbol].missing) for symbol in rig.natives}
        self.backfilled = sum(follower.trades[symbol].backfilled for symbol in rig.natives)


def _all_in_step(rig: Rig) -> bool:
    return all(rig.follower.books[symbol].in_step for symbol in rig.natives)


def _out_of_step(rig: Rig) -> str:
    books = rig.follower.books
    return ", ".join(
        f"{symbol} is {books[symbol].state}" for symbol in rig.natives if not books[symbol].in_step
    )


async def _expect(scene: Scene, case: Case, outcome: Outcome) -> None:
    """Wait for the words that must be told."""
    wanted = case.words(scene.rig.facts)
    deadline = time.monotonic() + case.recover_seconds
    first: list[float] = []
    for word in wanted:
        alternatives = word.split("|")

        def told(alternatives: list[str] = alternatives) -> list[str]:
            words = scene.words()
            return [each for each in alternatives if each in words]

        if await until(told, max(0.1, deadline - time.monotonic())):
            found = told()[0]
            outcome.detected.append(found)
            first.append(scene.words()[found])
        else:
            outcome.missed.append(f"{word} was not told; told were {_summary(scene)}")
    if first and scene.struck_at:
        outcome.detect_seconds = max(0.0, min(first) - scene.struck_at)


def _summary(scene: Scene) -> str:
    words = [word for word in scene.words() if ":" in word]
    return ", ".join(words) or "nothing"


async def _recover(scene: Scene, case: Case, outcome: Outcome) -> None:
    rig = scene.rig
    concerned = list(rig.natives) if case.whole_venue or case.keeps_books else [scene.symbol]
    deadline = scene.struck_at + case.recover_seconds
    if not await until(
        lambda: all(scene.is_beyond(symbol) for symbol in concerned),
        max(1.0, deadline - time.monotonic()),
    ):
        late = [symbol for symbol in concerned if not scene.is_beyond(symbol)]
        raise Missed(
            f"{', '.join(late)}: not in step beyond the fault within {case.recover_seconds:g} s; "
            f"{late[0]} is {rig.follower.books[late[0]].state}, told were {_summary(scene)}"
        )
    if scene.took is not None:
        outcome.recover_seconds = scene.took
        return
    if case.mends_trades(rig.facts):
        tape = rig.follower.trades[scene.symbol]
        if not await until(lambda: tape.last >= scene.trade_at, case.recover_seconds):
            raise Missed(f"trades stay at {tape.last}, the venue was at {scene.trade_at}")
        reached = next((at for at, last in tape.reached if last >= scene.trade_at), None)
        outcome.recover_seconds = max(0.0, (reached or time.monotonic()) - scene.struck_at)
        return
    if case.speaks:
        await _speaks(scene, case, outcome)
        return
    if case.keeps_books:
        return
    times = [scene.recovered_at(symbol) for symbol in concerned]
    outcome.recover_seconds = max(
        (at - scene.struck_at for at in times if at is not None), default=0.0
    )


async def _speaks(scene: Scene, case: Case, outcome: Outcome) -> None:
    """Wait until a kind of data comes again of the instrument, and take that as the recovery."""
    follower = scene.rig.follower
    key = (case.speaks, scene.symbol)

    def count() -> int:
        if case.speaks == "trade":
            return len(follower.trades[scene.symbol].numbers)
        return follower.told[key]

    before = count()
    if not await until(lambda: count() > before + 1, case.recover_seconds):
        raise Missed(f"no {case.speaks} of {scene.symbol} comes any more")
    outcome.recover_seconds = time.monotonic() - scene.struck_at


async def _settle(scene: Scene, outcome: Outcome, before: _Before) -> None:
    """Let books go on, and see that every trade is there or told missing."""
    rig = scene.rig
    follower = rig.follower
    made = {symbol: await rig.venue.trades(native) for symbol, native in rig.natives.items()}
    newest = {symbol: numbers[-1] if numbers else 0 for symbol, numbers in made.items()}
    base = follower.comparer.compared

    def moved() -> bool:
        return follower.comparer.compared - before.compared >= _LEAST_COMPARED and all(
            follower.books[symbol].updates - before.updates.get(symbol, 0) >= _LEAST_UPDATES
            for symbol in rig.natives
        )

    if not await until(moved, _SETTLE_SECONDS):
        outcome.missed.append(
            f"books do not go on: {follower.comparer.compared - base} comparisons in "
            f"{_SETTLE_SECONDS:g} s"
        )

    def traded() -> bool:
        return all(follower.trades[symbol].last >= newest[symbol] for symbol in newest)

    if not await until(traded, _SETTLE_SECONDS):
        late = {s: (newest[s], follower.trades[s].last) for s in newest}
        outcome.missed.append(
            "trades do not come: "
            + ", ".join(f"{s} is at {b} of {a}" for s, (a, b) in late.items() if b < a)
        )
    for symbol in rig.natives:
        # A number that the venue does not list was used up without a trade of the market.
        missing = follower.trades[symbol].missing - before.missing.get(symbol, set())
        missing &= set(made[symbol])
        untold = missing - _told_missing(scene, symbol)
        outcome.lost_trades += len(missing) - len(untold)
        if untold:
            outcome.breaches.append(
                f"{symbol}: trades {sorted(untold)[:5]} ({len(untold)}) are missing and not told"
            )
    outcome.backfilled_trades = (
        sum(follower.trades[symbol].backfilled for symbol in rig.natives) - before.backfilled
    )
    for symbol in rig.natives:
        follower.compare(follower.books[symbol])


def _told_missing(scene: Scene, symbol: str) -> set[int]:
    found: set[int] = set()
    for entry in scene.entries(symbol):
        event = entry.event
        named = entry.kind != "BACKFILLED" and event.first_missing_id
        if entry.event_kind == "TRADE" and named:
            found.update(range(event.first_missing_id, event.last_missing_id + 1))
    return found


def _disturbed(scene: Scene, case: Case) -> list[str]:
    """Tell which books were rebuilt though the fault did not concern them."""
    if not scene.began or (case.whole_venue and not case.keeps_books):
        return []
    found = []
    for symbol in scene.rig.natives:
        if symbol == scene.symbol and not case.keeps_books:
            continue
        if symbol not in scene.positions:
            continue
        epochs = scene.new_epochs(symbol)
        if epochs:
            said = [f"{each.state}:{each.reason}" for each in scene.said(symbol)]
            found.append(
                f"{symbol} was rebuilt {epochs} times though the fault does not concern it: "
                + ", ".join(said)
            )
    return found
