"""What a service's `/health` says, for whoever waits for it."""

from collections.abc import Mapping
from typing import Any

import aiohttp

__all__ = ["explain_health", "health_detail"]

_SECONDS = 2.0
_HEALTHY = "healthy"


def health_detail(body: Mapping[str, Any]) -> str:
    """Give what is wrong, by the dependencies that are not healthy; empty when nothing is."""
    told = [str(body["detail"])] if body.get("detail") else []
    told += [
        f"{name}: {each.get('detail') or each.get('status')}"
        for name, each in body["dependencies"].items()
        if each.get("status") != _HEALTHY
    ]
    return "; ".join(told)


async def explain_health(url: str) -> str:
    """Ask a `/health` what keeps its service from being ready; empty when it does not tell."""
    try:
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            return health_detail(await answer.json())
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
        # It has not got so far that it could tell.
        return ""
