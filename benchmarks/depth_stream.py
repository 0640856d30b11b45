"""A seeded stream of depth frames, as heavy as a busy market, in the words of four venues."""

import bisect
import json
import random
from collections.abc import Iterable
from pathlib import Path

__all__ = ["FILES", "write_depth_stream"]

FILES = {
    "binance": "binance_spot.jsonl",
    "binance_usdm": "binance_um.jsonl",
    "okx": "okx.jsonl",
    "deribit": "deribit.jsonl",
}
"""Name of the file of a venue's frames."""

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
        self.added: set[int] = set()
        self.target = levels

    def _size(self) -> int:
        return self.rng.randint(10, 500_000)

    def best(self) -> int:
        return self.order[-1] if self.direction < 0 else self.order[0]

    def whole(self) -> list[tuple[int, int]]:
        """All levels, best first."""
        order = reversed(self.order) if self.direction < 0 else self.order
        return [(price, self.levels[price]) for price in order]

    def change(self, count: int, opposite: int) -> dict[int, int]:
        """Change, delete and add `count` levels, mostly near the touch; `added` has new ones."""
        changes: dict[int, int] = {}
        self.added.clear()
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
                self.added.add(price)
            else:
                self.levels[price] = changes[price] = self._size()
        return changes


_Levels = Iterable[tuple[int, int]]
_COMPACT = (",", ":")


def _fixed(number: int, decimals: int, zeros: int = 0) -> str:
    """Give units as a decimal with all its places, and more zeros behind."""
    one = 10**decimals
    return f"{number // one}.{number % one:0{decimals}d}" + "0" * zeros


def _short(number: int, decimals: int) -> str:
    return _fixed(number, decimals).rstrip("0").rstrip(".") if number else "0"


def _binance(levels: _Levels) -> list[list[str]]:
    return [[_fixed(price, 2, 6), _fixed(size, 5, 3)] for price, size in levels]


def _okx(levels: _Levels) -> list[list[str]]:
    return [
        [_short(price, 2), _short(size, 5), "0", "2" if size else "0"] for price, size in levels
    ]


def _deribit(levels: _Levels, added: set[int]) -> list[list[object]]:
    return [
        [
            "new" if price in added else "change" if size else "delete",
            price / _TICKS_IN_ONE,
            size / 100_000,
        ]
        for price, size in levels
    ]


class _Frames:
    """Writes one change after the other for all venues, with ids that continue."""

    def __init__(self, folder: Path) -> None:
        self.update_id = 50_000_000_000
        self._time = 1_780_000_000_000
        self._files = {name: (folder / file).open("w") for name, file in FILES.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def begin(self, bids: _Side, asks: _Side) -> None:
        """Write the snapshots of the venues that send them in the stream."""
        down, up = bids.whole(), asks.whole()
        self._okx("snapshot", -1, down, up)
        self._deribit({"type": "snapshot"}, down, up, {each for each, _ in (*down, *up)})

    def change(self, down: _Levels, up: _Levels, added: set[int], count: int) -> None:
        """Write a change of `count` levels."""
        self._time += 100
        before = self.update_id
        self.update_id += count
        data = {
            "e": "depthUpdate", "E": self._time, "s": "BTCUSDT",
            "U": before + 1, "u": self.update_id, "b": _binance(down), "a": _binance(up),
        }  # fmt: skip
        self._write("binance", {"stream": "btcusdt@depth@100ms", "data": data})
        data = {
            "e": "depthUpdate", "E": self._time, "T": self._time - 3, "s": "BTCUSDT",
            "U": before + 1, "u": self.update_id, "pu": before, "b": data["b"], "a": data["a"],
        }  # fmt: skip
        self._write("binance_usdm", {"stream": "btcusdt@depth@0ms", "data": data})
        self._okx("update", before, down, up)
        self._deribit({"type": "change", "prev_change_id": before}, down, up, added)

    def _okx(self, action: str, before: int, down: _Levels, up: _Levels) -> None:
        book = {
            "asks": _okx(up), "bids": _okx(down), "ts": str(self._time), "checksum": 0,
            "seqId": self.update_id, "prevSeqId": before,
        }  # fmt: skip
        where = {"channel": "books", "instId": "BTC-USDT"}
        self._write("okx", {"arg": where, "action": action, "data": [book]})

    def _deribit(
        self, head: dict[str, object], down: _Levels, up: _Levels, added: set[int]
    ) -> None:
        data = {
            **head, "timestamp": self._time, "instrument_name": "BTC-PERPETUAL",
            "change_id": self.update_id, "bids": _deribit(down, added), "asks": _deribit(up, added),
        }  # fmt: skip
        parameters = {"channel": "book.BTC-PERPETUAL.100ms", "data": data}
        self._write("deribit", {"jsonrpc": "2.0", "method": "subscription", "params": parameters})

    def _write(self, venue: str, frame: dict[str, object]) -> None:
        self._files[venue].write(json.dumps(frame, separators=_COMPACT) + "\n")


def write_depth_stream(
    folder: Path, frames: int = 40_000, changes: int = 20, levels: int = 1000, seed: int = 20261124
) -> None:
    """Write the same market as four venues would tell it, one frame a line (`FILES`), the REST
    snapshot before the first of Binance's (`binance_snap.json`), and `truth.json`, the book after
    the last frame. The files of OKX and Deribit begin with a snapshot, one more line.

    Each frame changes `changes` levels a side of a book of about `levels` a side.
    """  # noqa: D205 - these files are one sentence
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    bids, asks = _Side(rng, -1, levels), _Side(rng, 1, levels)
    written = _Frames(folder)
    snapshot = {
        "lastUpdateId": written.update_id,
        "bids": _binance(bids.whole()),
        "asks": _binance(asks.whole()),
    }
    (folder / "binance_snap.json").write_text(json.dumps(snapshot, separators=_COMPACT))
    written.begin(bids, asks)
    for _ in range(frames):
        down = sorted(bids.change(changes, asks.best()).items(), reverse=True)
        up = sorted(asks.change(changes, bids.best()).items())
        written.change(down, up, bids.added | asks.added, len(down) + len(up))
    written.close()
    truth = {
        "n": frames,
        "lastUpdateId": written.update_id,
        "bids": _binance(bids.whole()),
        "asks": _binance(asks.whole()),
    }
    (folder / "truth.json").write_text(json.dumps(truth, separators=_COMPACT))
