"""REST requests to a venue within its request weight, obeying 429, 418 and Retry-After."""

import asyncio
import time
from collections.abc import Callable

import aiohttp

from services.collector.venues.base import RestRequest
from services.shared.log import get_logger

__all__ = ["RateLimitedError", "RequestBudget", "RestClient", "RestError"]

_WINDOW = 60.0
_USED_WEIGHT = "X-MBX-USED-WEIGHT-1M"
_MAX_BODY = 64 * 1024 * 1024
_DEFAULT_RETRY_AFTER = 5.0
_WORTH_TELLING = 1.0


class RestError(Exception):
    """A request failed: no answer, or one that is not 200."""


class RateLimitedError(RestError):
    """The venue answered 429 or 418; `retry_after` seconds are to pass before the next request."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestBudget:
    """Request weight of one venue and IP address, counted a minute at a time as the venue does.

    `limit` is what we allow ourselves, `used` the larger of our count and the venue's own in the
    running minute. `clock` gives seconds since 1970.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self.requests = 0
        self.rate_limited = 0
        self.blocked_until = 0.0
        self.waiting = 0
        self._clock = clock
        self._minute = 0
        self._used = 0
        self._log = get_logger()

    @property
    def used(self) -> int:
        """Weight used in the running minute."""
        self._roll()
        return self._used

    def wait_seconds(self, weight: int) -> float:
        """Seconds until a request of this weight may be made; 0 when it may now."""
        now = self._clock()
        self._roll()
        if now < self.blocked_until:
            return self.blocked_until - now
        if self._used and self._used + weight > self.limit:
            return (self._minute + 1) * _WINDOW - now
        return 0.0

    @property
    def waits(self) -> str:
        """Why requests wait now, and for how long; empty while none does."""
        now = self._clock()
        if not self.waiting:
            return ""
        if now < self.blocked_until:
            return f"requests wait {self.blocked_until - now:.0f} s more, as the venue demanded"
        return (
            f"requests wait {(self._minute + 1) * _WINDOW - now:.0f} s more for the next minute's "
            f"request weight, {self.used} of {self.limit} are used"
        )

    async def take(self, weight: int) -> None:
        """Wait until a request of this weight may be made, and count it."""
        self.waiting += 1
        try:
            while (seconds := self.wait_seconds(weight)) > 0:
                if self.waiting == 1 and seconds > _WORTH_TELLING:
                    self._log.info("requests wait", why=self.waits)
                await asyncio.sleep(seconds)
        finally:
            self.waiting -= 1
        self.requests += 1
        self._used += weight

    def note_used(self, used: int) -> None:
        """Take over the venue's own count, which includes others on our address."""
        self._roll()
        self._used = max(self._used, used)

    def block(self, seconds: float) -> None:
        """Make no request for so long: the venue said so."""
        self.rate_limited += 1
        self.blocked_until = max(self.blocked_until, self._clock() + seconds)

    def _roll(self) -> None:
        minute = int(self._clock() // _WINDOW)
        if minute != self._minute:
            self._minute = minute
            self._used = 0


class RestClient:
    """Makes GET requests to one venue.

    `on_answer(url, body, receive_time)` sees every good answer, for the recorder.
    """

    def __init__(
        self,
        base_url: str,
        session: aiohttp.ClientSession,
        budget: RequestBudget,
        seconds: float,
        on_answer: Callable[[str, bytes, int], None] | None = None,
    ) -> None:
        self.budget = budget
        self._base_url = base_url.rstrip("/")
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=seconds)
        self._on_answer = on_answer

    async def get(self, request: RestRequest) -> tuple[bytes, int]:
        """Make the request; give the body and when it was read (nanoseconds since 1970).

        Raises RateLimitedError on 429 and 418, RestError on anything else that is not an answer.
        """
        await self.budget.take(request.weight)
        url = self._base_url + request.path
        try:
            async with self._session.get(
                url, params=request.query, timeout=self._timeout, allow_redirects=False
            ) as response:
                body = await response.content.read(_MAX_BODY + 1)
                while not response.content.at_eof() and len(body) <= _MAX_BODY:
                    body += await response.content.read(_MAX_BODY + 1 - len(body))
                received = time.time_ns()
                used = response.headers.get(_USED_WEIGHT, "")
                if used.isdigit():
                    self.budget.note_used(int(used))
                if response.status in (429, 418):
                    after = _retry_after(response.headers.get("Retry-After"))
                    self.budget.block(after)
                    raise RateLimitedError(
                        f"{request.path}: HTTP {response.status}, no request for {after:g} s", after
                    )
                if response.status != 200:
                    raise RestError(
                        f"{request.path}: expected HTTP 200, got {response.status}: {body[:200]!r}"
                    )
                if len(body) > _MAX_BODY:
                    raise RestError(f"{request.path}: the answer is larger than {_MAX_BODY} bytes")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RestError(
                f"{request.path}: {type(error).__name__}: {error or 'no answer in time'}"
            ) from error
        if self._on_answer is not None:
            self._on_answer(str(response.url), body, received)
        return body, received


def _retry_after(text: str | None) -> float:
    try:
        seconds = float(text or "")
    except ValueError:
        return _DEFAULT_RETRY_AFTER
    return min(max(seconds, 0.1), 3 * 86_400) if seconds == seconds else _DEFAULT_RETRY_AFTER
