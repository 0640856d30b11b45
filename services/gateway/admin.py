"""Envoy's admin interface, as far as the gateway asks it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

__all__ = ["AdminClient", "UpstreamState"]

_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """What Envoy thinks of one upstream."""

    endpoints: int
    """Endpoints it knows."""

    healthy: int
    """Endpoints it sends calls to."""


class AdminClient:
    """Asks the admin interface; every call raises `OSError` when Envoy does not answer rightly."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)

    async def close(self) -> None:
        """Give the connections back."""
        await self._session.close()

    async def ready(self) -> bool:
        """Tell whether Envoy takes traffic."""
        try:
            async with self._session.get(f"{self._base}/ready") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def upstreams(self) -> Mapping[str, UpstreamState]:
        """Give the state of every cluster by name."""
        found = await self._json("GET", "/clusters?format=json")
        return {
            cluster["name"]: _upstream_state(cluster.get("host_statuses", ()))
            for cluster in found.get("cluster_statuses", ())
        }

    async def active_requests(self) -> int:
        """Give how many requests and streams of clients are in progress."""
        found = await self._json(
            "GET", r"/stats?format=json&filter=^http\.[^.]*\.downstream_rq_active$"
        )
        return sum(
            item["value"]
            for item in found.get("stats", ())
            if not item.get("name", "").startswith("http.admin.")
        )

    async def drain(self) -> None:
        """Take no new connections and ask clients to leave the old ones when they can."""
        await self._ask("POST", "/drain_listeners?graceful&skip_exit")

    async def _json(self, method: str, path: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._ask(method, path, as_json=True)
        return found

    async def _ask(self, method: str, path: str, *, as_json: bool = False) -> Any:
        try:
            async with self._session.request(method, self._base + path) as answer:
                if answer.status != 200:
                    raise OSError(f"Envoy's admin interface answered {answer.status} to {path}")
                return await answer.json(content_type=None) if as_json else await answer.text()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise OSError(f"Envoy's admin interface did not answer {path}: {error!r}") from error


def _upstream_state(hosts: Any) -> UpstreamState:
    # A flag is only there when it is set: failed_active_health_check, failed_outlier_check, ...
    healthy = sum(
        all(
            value == "HEALTHY" if flag == "eds_health_status" else not value
            for flag, value in host.get("health_status", {}).items()
        )
        for host in hosts
    )
    return UpstreamState(endpoints=len(hosts), healthy=healthy)
