"""Deribit's heartbeats: asked for in time, closed when unanswered, and refused by a fault."""

import json
from typing import Any

from services.simulator.deribit_session import DeribitSession

_TEST_REQUEST = {"params": {"type": "test_request"}, "method": "heartbeat", "jsonrpc": "2.0"}


class FakeConnection:
    """What a session looks at of its connection."""

    def __init__(self) -> None:
        self.streams: dict[str, bool] = {"book.X.100ms": True}
        self.heard_at = 0.0
        self.frames = 0
        self.ended: Any = None

    def close(self, code: int, reason: str) -> None:
        """Note how the connection ends."""
        self.ended = (code, reason)

    def abort(self, reason: str) -> None:
        """Note that the connection is broken off."""
        self.ended = reason


class Clocked:
    """A session and the frames that it sends as time passes."""

    def __init__(self) -> None:
        self.connection = FakeConnection()
        self.session = DeribitSession(0.0, answer_seconds=10.0, idle_seconds=60.0)

    def at(self, now: float, *, refuse: bool = False) -> list[dict[str, Any]]:
        """Return what is sent at that time."""
        frames = self.session.due(self.connection, now, refuse=refuse)  # type: ignore[arg-type]
        self.connection.frames += len(frames)
        return [json.loads(frame) for frame in frames]

    def next_at(self) -> float:
        """Return when something is due."""
        return self.session.next_at(self.connection)  # type: ignore[arg-type]


def test_without_heartbeats_nothing_is_due_on_a_connection_with_subscriptions() -> None:
    clocked = Clocked()
    assert clocked.at(10_000.0) == []
    assert clocked.next_at() == float("inf")
    assert clocked.connection.ended is None


def test_a_sign_of_life_is_asked_for_every_interval() -> None:
    clocked = Clocked()
    clocked.session.set_heartbeat(10.0, 0.0)
    assert clocked.at(9.9) == []
    assert clocked.next_at() == 10.0
    for now in (10.0, 20.0, 30.0):
        clocked.connection.frames += 2  # the answer to the last public/test, and a notification
        assert clocked.at(now) == [_TEST_REQUEST]
        assert clocked.session.tested()
    assert clocked.connection.ended is None


def test_a_quiet_connection_is_sent_a_heartbeat_as_well() -> None:
    clocked = Clocked()
    clocked.session.set_heartbeat(10.0, 0.0)
    for now in (10.0, 20.0):
        sent = clocked.at(now)
        assert [frame["params"]["type"] for frame in sent] == ["heartbeat", "test_request"]
        assert clocked.session.tested()
        clocked.connection.frames += 1  # the answer to public/test is no sign of traffic


def test_without_an_answer_the_connection_is_closed_by_the_venues_code() -> None:
    clocked = Clocked()
    clocked.session.set_heartbeat(10.0, 0.0)
    clocked.at(10.0)
    assert clocked.next_at() == 20.0
    clocked.at(19.9)
    assert clocked.connection.ended is None
    clocked.at(20.0)
    assert clocked.connection.ended == (4000, "heartbeat close")


def test_disabled_heartbeats_ask_for_nothing_and_close_nothing() -> None:
    clocked = Clocked()
    clocked.session.set_heartbeat(10.0, 0.0)
    clocked.at(10.0)
    clocked.session.disable_heartbeat()
    assert clocked.at(100.0) == []
    assert clocked.connection.ended is None


def test_a_refusing_server_asks_in_a_burst_takes_no_answer_and_closes() -> None:
    clocked = Clocked()
    clocked.session.set_heartbeat(10.0, 0.0)
    assert clocked.at(10.0, refuse=True) == [_TEST_REQUEST] * 5
    assert not clocked.session.tested()
    clocked.at(20.0)
    assert clocked.connection.ended == (4000, "heartbeat close")


def test_who_neither_asks_nor_subscribes_is_broken_off() -> None:
    clocked = Clocked()
    clocked.connection.streams.clear()
    clocked.connection.heard_at = 5.0
    assert clocked.next_at() == 65.0
    clocked.at(64.9)
    assert clocked.connection.ended is None
    clocked.at(65.0)
    assert clocked.connection.ended == "idle: no request and no subscription"


def test_a_session_without_credits_is_ended_at_once() -> None:
    clocked = Clocked()
    clocked.session.too_many_requests()
    assert clocked.next_at() == 0.0
    clocked.at(0.0)
    assert clocked.connection.ended == (1008, "too_many_requests")
