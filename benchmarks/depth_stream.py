"""A seeded stream of Binance spot depth frames, as heavy as a busy market: the collector's load."""

import bisect
import json
import random
from collections.abc import Iterator
from pathlib import Path

__all__ = ["write_depth_stream"]

_TICKS_IN_ONE = 100
_MIDDLE = 6_000_000  # ticks of 0.01


class _Side:
    """Levels of one side as ticks -> units of 0.00001, and the ticks in ascending order."""

    def __init__(self, rng: random.Random, direction: int, levels: int) -> None:
        self.direction = direction
        self.rng = rng
        self.levels: dict[int, int] = {}
        price = _MIDDLE
        while len(self.levels) < levels:
            price += direction * rng.choice((1, 1, 2, 3, 6))
            self.levels[price] = self._size()
        self.order = sorted(self.levels)
        self.target = levels

    def _size(self) -> int:
        return self.rng.randint(1, 500_000)

    def best(self) -> int:
        return self.order[-1] if self.direction < 0 else self.order[0]

    def change(self, count: int, opposite: int) -> dict[int, int]:
        """Change, delete and add `count` levels, mostly near the touch."""
        changes: dict[int, int] = {}
        while len(changes) < count:
            rank = (
                int(self.rng.expovariate(1 / 25))
                if self.rng.random() < 0.7
                else self.rng.randrange(len(self.order))
            )
            rank = min(rank, len(self.order) - 1)
            price = self.order[-1 - rank if self.direction < 0 else rank]
            if price in changes:
                continue
            kind = self.rng.random()
            if kind < 0.22 and len(self.order) > self.target - 50:
                del self.order[bisect.bisect_left(self.order, price)]
                del self.levels[price]
                changes[price] = 0
            elif kind < 0.44:
                price += self.rng.choice((-2, -1, 1, 2))
                if (
                    price in self.levels
                    or price in changes
                    or ((price - opposite) * self.direction <= 0)
                ):
                    continue
                bisect.insort(self.order, price)
                self.levels[price] = changes[price] = self._size()
            else:
                self.levels[price] = changes[price] = self._size()
        return changes


def _price(ticks: int, decimals: int) -> str:
    return f"{ticks // _TICKS_IN_ONE}.{ticks % _TICKS_IN_ONE:02d}" + "0" * (decimals - 2)


def _size(units: int) -> str:
    return f"{units // 100_000}.{units % 100_000:05d}000"


def _levels(changes: Iterator[tuple[int, int]]) -> list[list[str]]:
    return [[_price(ticks, 8), _size(units)] for ticks, units in changes]


def write_depth_stream(
    folder: Path, frames: int = 40_000, changes: int = 20, levels: int = 1000, seed: int = 20261124
) -> None:
    """Write `binance_spot.jsonl` (one combined-stream frame a line), `binance_snap.json` (the REST
    snapshot before the first of them) and `truth.json` (the book after the last).

    Each frame changes `changes` levels a side of a book of about `levels` a side.
    """  # noqa: D205 - three files are one sentence
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    bids, asks = _Side(rng, -1, levels), _Side(rng, 1, levels)
    update_id = 50_000_000_000
    time = 1_780_000_000_000
    snapshot = {
        "lastUpdateId": update_id,
        "bids": _levels((price, bids.levels[price]) for price in reversed(bids.order)),
        "asks": _levels((price, asks.levels[price]) for price in asks.order),
    }
    compact = (",", ":")
    (folder / "binance_snap.json").write_text(json.dumps(snapshot, separators=compact))
    with (folder / "binance_spot.jsonl").open("w") as out:
        for _ in range(frames):
            time += 100
            down = bids.change(changes, asks.best())
            up = asks.change(changes, bids.best())
            data = {
                "e": "depthUpdate",
                "E": time,
                "s": "BTCUSDT",
                "U": update_id + 1,
                "u": update_id + len(down) + len(up),
                "b": _levels(iter(sorted(down.items(), reverse=True))),
                "a": _levels(iter(sorted(up.items()))),
            }
            update_id += len(down) + len(up)
            frame = {"stream": "btcusdt@depth@100ms", "data": data}
            out.write(json.dumps(frame, separators=compact) + "\n")
    truth = {
        "n": frames,
        "lastUpdateId": update_id,
        "bids": _levels((price, bids.levels[price]) for price in reversed(bids.order)),
        "asks": _levels((price, asks.levels[price]) for price in asks.order),
    }
    (folder / "truth.json").write_text(json.dumps(truth, separators=compact))
