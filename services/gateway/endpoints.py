"""The endpoint files that Envoy reads again whenever one is replaced."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.gateway.plan import Address, Cluster
from services.gateway.render import render_endpoints
from services.shared.errors import InvalidArgument, NotFound

__all__ = ["EndpointFiles"]


class EndpointFiles:
    """Where each upstream is, told to a running Envoy without a restart.

    Envoy watches for renames, so a file is written beside its place and moved there.
    """

    def __init__(self, clusters: Sequence[Cluster]) -> None:
        self._files: Mapping[str, Path] = {
            cluster.name: cluster.endpoints_file
            for cluster in clusters
            if cluster.endpoints_file is not None
        }
        self._now: dict[str, tuple[Address, ...]] = {}
        for cluster in clusters:
            if cluster.endpoints_file is not None:
                self.set(cluster.name, [cluster.address])

    @property
    def clusters(self) -> frozenset[str]:
        """Names of the upstreams that can be moved."""
        return frozenset(self._files)

    def get(self, cluster: str) -> tuple[Address, ...]:
        """Give where an upstream is; raises `NotFound`."""
        self._file(cluster)
        return self._now[cluster]

    def set(self, cluster: str, addresses: Sequence[Address]) -> bool:
        """Say where an upstream is from now on; gives whether that is news.

        No address means that it is nowhere. Raises `NotFound` for an upstream that has no file
        (unknown, or found by DNS) and `InvalidArgument` for a host name.
        """
        file = self._file(cluster)
        for address in addresses:
            if not address.is_ip:
                raise InvalidArgument(
                    f"expected the endpoints of {cluster} as IP addresses, got {address.host!r}; "
                    f"set upstreams.{cluster}.host in config/gateway.yaml to use DNS"
                )
        wanted = tuple(addresses)
        if self._now.get(cluster) == wanted:
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(render_endpoints(cluster, wanted), encoding="utf-8")
        scratch.replace(file)
        self._now[cluster] = wanted
        return True

    def _file(self, cluster: str) -> Path:
        try:
            return self._files[cluster]
        except KeyError:
            raise NotFound(
                f"expected an upstream with an endpoint file ({', '.join(sorted(self._files))}), "
                f"got {cluster!r}",
                reason="UPSTREAM_NOT_FOUND",
                metadata={"cluster": cluster},
            ) from None
