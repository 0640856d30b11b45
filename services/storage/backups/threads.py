"""Blocking work beside the event loop, and several pieces of work at once, with one error."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from services.shared.errors import MarketPrismError

__all__ = ["all_of", "in_thread"]

_T = TypeVar("_T")


async def in_thread(work: Callable[..., _T], *arguments: Any) -> _T:
    """Run blocking work on a thread. A caller who is cancelled waits for its end first.

    So nothing is still being written when what was written is cleared away.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if not running.done():
            await asyncio.wait({running})
        if not running.cancelled():
            running.exception()
        raise


async def all_of(works: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run all at once and give their results in order; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        ours = [each for each in errors.exceptions if isinstance(each, MarketPrismError)]
        raise (ours[0] if ours else errors.exceptions[0]) from None
    return [task.result() for task in tasks]
