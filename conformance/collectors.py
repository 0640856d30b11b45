"""Starts the collector under test: our own, or any program that reads the same description."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from conformance.venues import VenueFacts
from services.shared.ports import free_port
from services.shared.probes import tcp_ready
from services.shared.process import ChildProcess

__all__ = ["PROFILES", "CollectorPlan", "Profile", "collector_process", "into"]


@dataclass(frozen=True, slots=True)
class Profile:
    """How the collector under test is configured beside the usual."""

    name: str
    """Name, as `--profile` takes it."""
    summary: str
    """The same for people."""
    collector: Mapping[str, Any] = field(default_factory=dict)
    """Settings of our collector's venue."""
    simulator: Mapping[str, str] = field(default_factory=dict)
    """Settings of the simulated venue."""


PROFILES: Mapping[str, Profile] = {
    each.name: each
    for each in (
        Profile("plain", "one connection, silence limit 1 s, quiet limit 3 s"),
        Profile(
            "rollover",
            "connections are replaced after 4 s",
            collector={"rollover_seconds": 4.0, "overlap_seconds": 5.0},
        ),
        Profile("redundant", "two connections all the time", collector={"redundancy": 2}),
        Profile(
            "checksum",
            "the venue sends checksums, as it did until it began to send 0",
            simulator={"checksum": "true"},
        ),
    )
}
"""The ways in which a collector is set up, by name."""

_KINDS = ("order_book", "trade", "best_bid_offer", "ticker", "mark_price")
# Short times, so that seconds show what takes minutes live.
_QUICK: Mapping[str, Any] = {
    "symbols": ["*"],
    "kinds": list(_KINDS),
    "snapshot_depth": 500,
    "backoff_seconds": 0.05,
    "backoff_limit_seconds": 0.5,
    "silence_seconds": 1.0,
    "quiet_seconds": 3.0,
    "lag_seconds": 1.0,
    "acknowledge_seconds": 2.0,
    "open_seconds": 2.0,
    "rest_seconds": 2.0,
    "instrument_refresh_seconds": 5.0,
}


@dataclass(frozen=True, slots=True)
class CollectorPlan:
    """What a collector under test is told."""

    directory: Path
    """Where it may write."""
    nats_url: str
    """The broker."""
    grpc_port: int
    """Where `CollectorService` is to be served on loopback."""
    facts: VenueFacts
    """The venue."""
    rest_url: str
    """Its REST address."""
    ws_url: str
    """Its WebSocket address."""
    profile: Profile
    """How it is to be set up."""


def collector_process(plan: CollectorPlan, command: str = "") -> ChildProcess:
    """Describe the process of the collector; ready when it serves gRPC.

    `command` is another collector's: it finds what to do in the JSON file that the environment
    variable CONFORMANCE_PLAN names.
    """
    plan.directory.mkdir(parents=True, exist_ok=True)
    env: dict[str, str] = {}
    if command:
        words = shlex.split(command)
        file = plan.directory / "plan.json"
        file.write_text(json.dumps(_described(plan), indent=2), encoding="utf-8")
        env["CONFORMANCE_PLAN"] = str(file)
    else:
        words = [sys.executable, "-m", "services.collector"]
        env["MARKETPRISM_CONFIG_DIR"] = str(_our_configuration(plan))
        root = Path(__file__).resolve().parents[1]
        paths = [str(root), str(root / "gen/python"), os.environ.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    return ChildProcess(
        f"collector of {plan.facts.name}",
        words,
        env=env,
        ready=lambda: tcp_ready("127.0.0.1", plan.grpc_port),
        ready_seconds=60,
        stop_seconds=15,
        restart=None,
        on_line=into(plan.directory / "collector.log"),
    )


def into(file: Path) -> Callable[[str], None]:
    """Give what writes lines behind those that a file has."""

    def write(line: str) -> None:
        with file.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    return write


def _described(plan: CollectorPlan) -> dict[str, Any]:
    return {
        "nats_url": plan.nats_url,
        "grpc_address": f"127.0.0.1:{plan.grpc_port}",
        "exchange": plan.facts.name,
        "rest_url": plan.rest_url,
        "ws_url": plan.ws_url,
        "kinds": list(_KINDS),
        "symbols": ["*"],
        "profile": plan.profile.name,
        "settings": {**_QUICK, **plan.profile.collector},
    }


def _our_configuration(plan: CollectorPlan) -> Path:
    folder = plan.directory / "config"
    folder.mkdir(exist_ok=True)
    mesh = {
        "data_dir": str(plan.directory / "var"),
        "nats": {"url": plan.nats_url},
        "shutdown_grace_seconds": 1,
        "log": {"format": "json"},
        "services": {"collector": {"grpc_port": plan.grpc_port, "http_port": free_port()}},
    }
    collector = {
        "collector_id": f"conformance-{plan.facts.name.replace('_', '-')}",
        "exchanges": {
            plan.facts.name: {
                **_QUICK,
                "rest_url": plan.rest_url,
                "ws_url": plan.ws_url,
                **plan.profile.collector,
            }
        },
        "books": {"snapshot_every_updates": 100, "snapshot_every_seconds": 2},
    }
    for name, values in (("services", mesh), ("collector", collector)):
        text = yaml.safe_dump(values, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder
