"""REST requests to a venue within its request weight, obeying 429, 418 and Retry-After."""

import time
from collections.abc import Callable

import aiohttp

from services.collector.budget import Priority, RequestBudget
from services.collector.venues.base import RestRequest

__all__ = ["Priority", "RateLimitedError", "RequestBudget", "RestClient", "RestError"]

_USED_WEIGHT = "X-MBX-USED-WEIGHT-1M"
_MAX_BODY = 64 * 1024 * 1024
_DEFAULT_RETRY_AFTER = 5.0
_LONGEST_REFUSAL = 4096
_LONGEST_WEIGHT = 12  # digits


class RestError(Exception):
    """A request failed: no answer, or one that is not 200.

    `status` is the HTTP status, 0 without an answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_final(self) -> bool:
        """Whether the venue refuses the request itself, so that asking again is of no use."""
        return 400 <= self.status < 500 and self.status not in (408, 418, 429)


class RateLimitedError(RestError):
    """The venue says that we ask too much: for `retry_after` seconds no request is to be made."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RestClient:
    """Makes GET requests to one venue.

    `on_answer(url, body, receive_time)` sees every good answer, for the recorder. `refusal(status,
    body)` is the adapter's `rest_refusal`: it knows a refusal that is told in the body only, under
    HTTP 200 too when the answer is short. HTTP 429 and 418 are refusals in any case.
    """

    def __init__(
        self,
        base_url: str,
        session: aiohttp.ClientSession,
        budget: RequestBudget,
        seconds: float,
        on_answer: Callable[[str, bytes, int], None] | None = None,
        refusal: Callable[[int, bytes], float | None] | None = None,
    ) -> None:
        self.budget = budget
        self._base_url = base_url.rstrip("/")
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=seconds)
        self._on_answer = on_answer
        self._refusal = refusal

    async def get(
        self, request: RestRequest, priority: Priority = Priority.SNAPSHOT
    ) -> tuple[bytes, int]:
        """Make the request when the budget allows it and nobody more urgent waits.

        Gives the body and when it was read (nanoseconds since 1970). Raises RateLimitedError when
        the venue refuses because we ask too much, after which the budget lets no request through
        for as long as the venue says; RestError on anything else that is not an answer.
        """
        await self.budget.take(request.weight, priority)
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
                if used.isascii() and used.isdigit() and len(used) < _LONGEST_WEIGHT:
                    self.budget.note_used(int(used))
                after = self._refused(response.status, body, response.headers.get("Retry-After"))
                if after is not None:
                    self.budget.block(after)
                    raise RateLimitedError(
                        f"{request.path}: HTTP {response.status}, no request for {after:g} s: "
                        f"{body[:200]!r}",
                        after,
                    )
                if response.status != 200:
                    raise RestError(
                        f"{request.path}: expected HTTP 200, got {response.status}: {body[:200]!r}",
                        response.status,
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

    def _refused(self, status: int, body: bytes, retry_after: str | None) -> float | None:
        """Tell for how long to make no request, None when the answer is no refusal."""
        said = None
        if self._refusal is not None and (status != 200 or len(body) <= _LONGEST_REFUSAL):
            said = self._refusal(status, body)
        if said is None and status not in (429, 418):
            return None
        header = _seconds(retry_after)
        if header is None and not said:
            return _DEFAULT_RETRY_AFTER
        return max(header or 0.0, _seconds(said) or 0.0)


def _seconds(said: float | str | None) -> float | None:
    """Bound what a venue says; None when it says nothing of use."""
    try:
        seconds = float(said or "")
    except ValueError:
        return None
    return min(max(seconds, 0.1), 3 * 86_400) if seconds == seconds else None
