"""What a soak comes to: what is wrong, and the figures of the run."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.soak_books import Follower
from benchmarks.soak_figures import Growth, Sample, growth
from benchmarks.soak_mesh import Soak

__all__ = ["Verdict", "grown", "judge"]

_LEAST_SAMPLES = 12
_WARM_UP = 1 / 3
_AT_REST_TASKS = 6
_AT_REST_SOCKETS = 8
_EXPIRED_SECONDS = 60.0
_MOST_TOLD = 12
_BEHIND = 5_000
"""Messages waiting for the broker at which memory is not judged: it is what holds them."""
# What a figure may grow by from the end of the warm-up to the end: a share of its median, and
# what is always noise: of sockets, those that are kept for the next REST request, eight a venue; of
# tasks, those that wait for missed trades, which come and go.
_BOUNDS = {"rss": (0.05, 12.0), "fds": (0.1, 12.0), "sockets": (0.1, 12.0), "tasks": (0.1, 20.0)}


@dataclass(frozen=True)
class Verdict:
    """The outcome."""

    problems: list[str]
    """What is wrong, for people; empty when all is well."""
    figures: dict[str, Any]
    """What was measured and counted."""
    growths: list[Growth]
    """Trends of what the collector holds; empty when the run was too short to tell."""

    def described(self) -> dict[str, Any]:
        """JSON-ready."""
        trends = {
            each.what: {"median": each.level, "trend": each.trend, "allowed": each.allowed}
            for each in self.growths
        }
        return {"problems": self.problems, **self.figures, "growth": trends}

    def lines(self) -> list[str]:
        """For people."""
        lines = [""]
        width = max(map(len, self.figures))
        for name, value in self.figures.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {_text(each)}" for key, each in value.items()) or "none"
            lines.append(f"{name.replace('_', ' '):<{width}}  {_text(value)}")
        lines += [
            f"{each.what + ' after the warm-up':<{width}}  median {each.level:.1f}, trend "
            f"{each.trend:+.1f}, allowed {each.allowed:.1f}"
            for each in self.growths
        ]
        lines.append("")
        lines += [f"WRONG: {problem}" for problem in self.problems[:_MOST_TOLD]]
        if len(self.problems) > _MOST_TOLD:
            lines.append(f"... and {len(self.problems) - _MOST_TOLD} more")
        lines.append("FAILED" if self.problems else "PASSED")
        return lines


def judge(soak: Soak) -> Verdict:
    """Judge a run that has ended and settled."""
    follower, comparer = soak.follower, soak.comparer
    samples = [s for s in soak.sampler.samples if soak.began < s.at <= soak.ended]
    growths = _growths(samples)
    problems = list(soak.problems)
    if comparer.wrong:
        problems.append(f"{len(comparer.wrong)} comparisons were wrong; {comparer.wrong[0]}")
    if follower.breach_count:
        problems.append(
            f"the contract was broken {follower.breach_count} times; {follower.breaches[0]}"
        )
    if not comparer.compared:
        problems.append("nothing was compared")
    problems += _trade_problems(follower)
    overloaded = max((sample.waiting for sample in samples), default=0) > _BEHIND
    problems += [
        f"{each.what} grew by {each.trend:.1f}, allowed is {each.allowed:.1f}"
        for each in growths
        if each.grows and not overloaded
    ]
    problems += grown(soak.at_rest[0], soak.at_rest[-1])
    longest = max(follower.books.values(), key=lambda book: book.longest_out)
    if longest.longest_out > soak.options.longest_outage:
        problems.append(
            f"{longest.exchange}/{longest.symbol} was out of step for {longest.longest_out:.0f} s; "
            f"{longest.why_longest}"
        )
    problems += [
        f"{book.exchange}/{book.symbol} has expired and still claims to be in step"
        for book in follower.books.values()
        if book.retired and book.in_step and time.monotonic() - book.retired > _EXPIRED_SECONDS
    ]
    return Verdict(problems, _figures(soak, samples), growths)


def _growths(samples: Sequence[Sample]) -> list[Growth]:
    steady = samples[int(len(samples) * _WARM_UP) :]
    if len(samples) < _LEAST_SAMPLES:
        return []
    return [growth(steady, what, share=a, least=b) for what, (a, b) in _BOUNDS.items()]


def _trade_problems(follower: Follower) -> list[str]:
    return [
        f"trades {exchange}/{symbol}: {first}..{last} are missing, and the ledger says nothing"
        for (exchange, symbol), tape in follower.trades.items()
        for first, last in tape.unexplained()
    ]


def grown(begin: Sample, end: Sample) -> list[str]:
    """Tell of what a collector at rest has more than it had at rest before."""
    return [
        f"at rest there were {getattr(begin, what)} {what} before the faults and "
        f"{getattr(end, what)} after them"
        for what, allowed in (("tasks", _AT_REST_TASKS), ("sockets", _AT_REST_SOCKETS))
        if getattr(end, what) > getattr(begin, what) + allowed
    ]


def _figures(soak: Soak, samples: Sequence[Sample]) -> dict[str, Any]:
    follower, comparer = soak.follower, soak.comparer
    span = soak.ended - soak.began
    first = soak.at_rest[0]
    messages = samples[-1].messages - first.messages if samples else 0
    behind = max((sample.waiting for sample in samples), default=0)
    incidents: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for venue in soak.venues:
        incidents += venue.saboteur.done
        refused += venue.saboteur.refused
    entries: Counter[str] = Counter()
    for (_, kind), count in follower.entries.items():
        entries[kind.lower()] += count
    tapes = follower.trades.values()
    outages = sorted((b.longest_out for b in follower.books.values()), reverse=True)
    longest = max(follower.books.values(), key=lambda book: book.longest_out)
    shares = soak.shares_in_step
    return {
        "seconds": round(span),
        "seed": soak.options.seed,
        "instruments": len(follower.expected()),
        "frames_per_second": round(soak.frame_rate(len(soak.frames))),
        "messages_per_second": round(messages / span),
        "of_a_core": {name: round(share, 3) for name, share in soak.used.items()},
        "comparisons": dict(comparer.compared),
        "levels_compared": comparer.levels,
        "wrong": len(comparer.wrong),
        "not_comparable": dict(comparer.untold),
        "most_waiting_for_the_broker": behind,
        "growth_judged": behind <= _BEHIND or "no: the machine is too slow, the broker was behind",
        "contract_breaches": follower.breach_count,
        "epochs": sum(book.epochs for book in follower.books.values()),
        "updates_followed": follower.updates,
        "in_step_on_average": round(sum(shares) / len(shares), 4) if shares else 0.0,
        "longest_out_of_step_seconds": round(outages[0], 1),
        "because_of": f"{longest.exchange}/{longest.symbol} {longest.why_longest}"[:200],
        "trades": {
            "published": sum(t.count for t in tapes),
            "fetched later": sum(t.backfilled for t in tapes),
            "holes in the ledger": sum(len(t.holes) - len(t.unexplained()) for t in tapes),
            "holes unexplained": sum(len(t.unexplained()) for t in tapes),
        },
        "incidents": dict(sorted(incidents.items())),
        "incidents_refused": dict(refused.most_common(5)),
        "faults_waited_for_recovery_seconds": {
            venue.name: round(venue.saboteur.waited) for venue in soak.venues
        },
        "ledger": dict(sorted(entries.items())),
        "at_rest_before": _rest(soak.at_rest[0]),
        "at_rest_after": _rest(soak.at_rest[-1]),
        "reader_interruptions": follower.interruptions,
    }


def _rest(sample: Sample) -> dict[str, Any]:
    return {
        "MiB": round(sample.rss), "tasks": sample.tasks, "sockets": sample.sockets,
        "fds": sample.fds,
    }  # fmt: skip


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
