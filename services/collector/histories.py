"""Past trades of one instrument, page by page, as its venue's REST history gives them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from services.collector.contracts import ContractSize
from services.collector.rest import RestError
from services.collector.venues.base import (
    MalformedFrameError,
    RestRequest,
    TradePrint,
    VenueAdapter,
)
from services.shared.decimals import InvalidDecimalError
from services.shared.ranges import Ranges

__all__ = ["HistoryPages", "Hole", "Page"]

_ATTEMPTS = 6

_Ask: TypeAlias = Callable[[RestRequest], Awaitable[tuple[bytes, int]]]
_Decode: TypeAlias = Callable[[bytes, str], list[TradePrint]]


@dataclass(frozen=True, slots=True)
class Hole:
    """Trades to look for. Times are nanoseconds since 1970."""

    native_symbol: str
    """The venue's name of the instrument."""
    first: int
    """First number that is missing."""
    last: int
    """Last number that is missing."""
    since: int
    """When the trade before them was made, or earlier; 0 when not known."""
    oldest: int
    """Trades made before this are not wanted."""
    pages: int
    """Requests to make at the most."""
    fresh: bool = True
    """Whether the hole has just opened, so that the newest trades reach back into it."""
    sizes: ContractSize | None = None
    """What converts quantities; a trade that it cannot convert makes its page malformed."""


@dataclass(frozen=True, slots=True)
class Page:
    """What one answer had of a hole."""

    first: int
    """First number that the page settles."""
    last: int
    """Last number that it settles."""
    trades: tuple[TradePrint, ...]
    """What it has of them, oldest first."""
    skipped: tuple[tuple[int, int], ...]
    """Runs of numbers that are no trades of the market."""
    received: int
    """When the answer was read, nanoseconds since 1970."""


class HistoryPages:
    """Asks a venue for the pages of one hole.

    `ask(request)` makes a request, `wait(attempt)` waits before another attempt, `failed(error)` is
    told what goes wrong. Pages come from the newer end where the venue's history can be asked by
    number, else from the older end. `detail` tells why the hole was not filled further, empty when
    it was to the end.
    """

    def __init__(
        self,
        hole: Hole,
        adapter: VenueAdapter,
        ask: _Ask,
        wait: Callable[[int], Awaitable[None]],
        failed: Callable[[Exception], None],
    ) -> None:
        self.detail = ""
        self._hole = hole
        self._adapter = adapter
        self._ask = ask
        self._wait = wait
        self._failed = failed
        self._left = hole.pages
        self._error = "the venue's history has none of them"

    async def __aiter__(self) -> AsyncIterator[Page]:
        """Give the pages, until the hole is filled or there are no more."""
        hole, last = self._hole, self._hole.last
        if hole.fresh:
            page = await self._newest()
            if page is not None:
                last = page.first - 1
                yield page
        if self.detail or last < hole.first:
            return
        by_number = self._adapter.older_trades_request(hole.native_symbol, last, last) is not None
        async for page in self._older(last) if by_number else self._later(last):
            yield page

    # The three ways

    async def _newest(self) -> Page | None:
        """Ask for the newest trades, again while they do not reach the end of the hole.

        REST is a little behind the stream that showed the hole.
        """
        hole, adapter = self._hole, self._adapter
        first = max(hole.first, hole.last - adapter.history_page + 1)
        found: dict[int, TradePrint] = {}
        told = Ranges()
        received = newest = attempt = 0
        while attempt < _ATTEMPTS:
            if attempt:
                await self._wait(attempt - 1)
            attempt += 1
            request = adapter.trades_request(hole.native_symbol, first, hole.last - first + 1)
            answer = await self._answer(request, adapter.decode_trades)
            if answer is not None and answer[0]:
                trades, received = answer
                found |= {each.trade_id: each for each in trades}
                told.add(_first(trades[0]), trades[-1].trade_id)
                if trades[-1].trade_id > newest:
                    newest, attempt = trades[-1].trade_id, min(attempt, 1)
            if self.detail or newest >= hole.last:
                break
        if not found:
            self.detail = self.detail or self._error
        run = next((run for run in told if run[1] == newest), None)
        if run is None or newest < hole.first or run[0] > hole.last:
            return None
        trades = [found[number] for number in sorted(found) if number >= run[0]]
        first, last = max(run[0], hole.first), min(newest, hole.last)
        return self._page(first, last, trades, received, run[0])

    async def _older(self, last: int) -> AsyncIterator[Page]:
        """Ask by number, back from `last`."""
        hole, adapter = self._hole, self._adapter
        while last >= hole.first:
            first = max(hole.first, last - adapter.history_page + 1)
            request = adapter.older_trades_request(hole.native_symbol, first, last)
            answer = await self._patiently(request, adapter.decode_trades)
            if answer is None:
                return
            trades = [each for each in answer[0] if first <= _first(each) and each.trade_id <= last]
            wanted = [each for each in trades if each.exchange_time >= hole.oldest]
            if wanted:
                begin = _first(wanted[0])
                yield self._page(begin, last, wanted, answer[1], begin)
            if len(wanted) < len(trades):
                self.detail = "those before are older than what is fetched"
                return
            if not trades:
                self.detail = f"the venue's history begins at {last + 1}"
                return
            last = _first(trades[0]) - 1

    async def _later(self, last: int) -> AsyncIterator[Page]:
        """Ask by time, from the trade before the hole on."""
        hole, adapter = self._hole, self._adapter
        if not hole.since:
            self.detail = "when they were made is not known"
            return
        first, after = hole.first, None
        since = max(hole.since, hole.oldest)
        while first <= last:
            request = adapter.later_trades_request(hole.native_symbol, since, after)
            if request is None:
                self.detail = "the venue has no history beyond its latest trades"
                return
            answer = await self._patiently(request, adapter.decode_later_trades)
            if answer is None:
                return
            trades = answer[0]
            begin = after.trade_id + 1 if after is not None else 0
            if not trades or trades[-1].trade_id < begin:
                self.detail = f"the venue's history does not reach {first}"
                return
            # Pages continue each other: what neither of two has was no trade of the market.
            told = begin or _first(trades[0])
            after = trades[-1]
            end = min(after.trade_id, last)
            if end >= first:
                yield self._page(first, end, trades, answer[1], told)
                first = end + 1

    # One request

    async def _patiently(
        self, request: RestRequest | None, decode: _Decode
    ) -> tuple[list[TradePrint], int] | None:
        """Make a request, again when it fails; None when it stays so, which `detail` tells."""
        assert request is not None
        for attempt in range(_ATTEMPTS):
            if attempt:
                await self._wait(attempt - 1)
            answer = await self._answer(request, decode)
            if answer is not None or self.detail:
                return answer
        self.detail = self._error
        return None

    async def _answer(
        self, request: RestRequest, decode: _Decode
    ) -> tuple[list[TradePrint], int] | None:
        """Make a request once; None when it failed, for good when `detail` is set."""
        hole = self._hole
        if self._left <= 0:
            self.detail = f"it would take more than {hole.pages} requests"
            return None
        self._left -= 1
        try:
            body, received = await self._ask(request)
            trades = decode(body, hole.native_symbol)
            if hole.sizes is not None:
                hole.sizes.levels((each.price, each.quantity) for each in trades)
        except (RestError, MalformedFrameError, InvalidDecimalError) as error:
            self._error = str(error)
            self._failed(error)
            if isinstance(error, RestError) and error.is_final:
                self.detail = self._error
            return None
        return trades, received

    def _page(
        self, first: int, last: int, trades: Sequence[TradePrint], received: int, told: int
    ) -> Page:
        """Make a page of first..last of an answer that leaves out nothing from `told` on."""
        inside = [each for each in trades if first <= _first(each) and each.trade_id <= last]
        skipped = Ranges()
        if self._adapter.history_skips and trades:
            skipped.add(max(first, told), min(last, trades[-1].trade_id))
            for each in trades:
                skipped.discard(_first(each), each.trade_id)
        return Page(first, last, tuple(inside), tuple(skipped), received)


def _first(trade: TradePrint) -> int:
    return trade.trade_id - max(trade.trade_count, 1) + 1
