"""The subscriptions of one connection and where each of them stands. Pure: no sockets, no clocks.

The life of a topic:

    WANTED --request--> ASKED --acknowledged--> ACTIVE --renewed--> LEAVING --left--> WANTED
                          |                        +-----removed--> LEAVING --left--> gone
                          +--refused--> REFUSED --after a while--> WANTED

A request that the venue refuses as a whole is made again in halves, so that one bad topic does not
keep the others out.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.collector.venues.base import (
    Acknowledgement,
    Subscription,
    VenueAdapter,
    VenueFault,
    VenueRequest,
)

__all__ = ["Answer", "Topic", "TopicBook", "TopicState"]

_RETRY_SECONDS = 60.0
_LONGEST_RETRY_SECONDS = 3600.0
_RATE_LIMITED_SECONDS = 10.0


class TopicState(enum.Enum):
    """Where a subscription stands."""

    WANTED = "wanted"
    """To be asked for."""
    ASKED = "asked"
    """Asked for, not yet acknowledged."""
    ACTIVE = "active"
    """Acknowledged."""
    LEAVING = "leaving"
    """To be ended; the acknowledgement of that is awaited."""
    REFUSED = "refused"
    """The venue would not have it; asked for again after a while."""


@dataclass(slots=True)
class Topic:
    """One subscription. Times are seconds of the monotonic clock."""

    subscription: Subscription
    """What is subscribed to."""
    state: TopicState = TopicState.WANTED
    """Where it stands."""
    since: float = 0.0
    """When it came into this state."""
    wanted: bool = True
    """Whether it is to be had (again) once it has been left."""
    refusals: int = 0
    """Times in a row that the venue refused it."""
    refusal: str = ""
    """The venue's words, empty when it is not refused."""
    retry_at: float = 0.0
    """When it is asked for again; 0 when there is nothing to wait for."""
    alone: int = 0
    """Most topics that a request for this one may have; 0 for no limit."""


@dataclass(slots=True)
class Answer:
    """What an answer of the venue meant."""

    active: list[Topic] = field(default_factory=list)
    """Subscriptions that stand now."""
    refused: list[Topic] = field(default_factory=list)
    """Subscriptions that the venue refused, each by itself."""
    left: list[Topic] = field(default_factory=list)
    """Subscriptions that are over."""
    known: bool = True
    """Whether it answered anything that was asked."""


@dataclass(slots=True)
class _Pending:
    topics: set[str]
    subscribing: bool
    asked_at: float
    asked: int = 0
    """Topics that it was about at first."""


class TopicBook:
    """The topics of one connection, the requests that are due, and the answers to them.

    `opened` begins a new connection: nothing is subscribed to there. Counters: `refusals`.
    """

    def __init__(self, adapter: VenueAdapter) -> None:
        self.topics: dict[str, Topic] = {}
        self.refusals = 0
        self._adapter = adapter
        self._pending: dict[int, _Pending] = {}
        self._next_id = 1

    # What is wanted

    def add(self, subscriptions: Iterable[Subscription], now: float) -> None:
        """Want these too."""
        for each in subscriptions:
            topic = self.topics.get(each.topic)
            if topic is None:
                self.topics[each.topic] = Topic(each, since=now)
            else:
                topic.subscription = each
                topic.wanted = True

    def remove(self, names: Iterable[str], now: float) -> None:
        """Want these no more."""
        for name in names:
            topic = self.topics.get(name)
            if topic is None:
                continue
            topic.wanted = False
            if topic.state in (TopicState.WANTED, TopicState.REFUSED):
                del self.topics[name]
            elif topic.state is TopicState.ACTIVE:
                self._move(topic, TopicState.LEAVING, now)

    def renew(self, name: str, now: float) -> bool:
        """End a subscription and begin it again; tells whether there is one to end."""
        topic = self.topics.get(name)
        if topic is None or topic.state is not TopicState.ACTIVE:
            return False
        self._move(topic, TopicState.LEAVING, now)
        return True

    def opened(self, now: float) -> list[VenueRequest]:
        """Begin anew on a fresh connection; gives the requests that come first there."""
        self._pending.clear()
        for name, topic in list(self.topics.items()):
            if topic.wanted:
                if topic.state is not TopicState.REFUSED or now >= topic.retry_at:
                    self._move(topic, TopicState.WANTED, now)
            else:
                del self.topics[name]
        requests = self._adapter.opening_requests(self._next_id)
        for request in requests:
            self._note(request, subscribing=True, now=now)
        return requests

    # What is due

    def has_due(self, now: float) -> bool:
        """Tell whether there is something to ask for now."""
        return any(
            topic.state in (TopicState.WANTED, TopicState.LEAVING, TopicState.REFUSED)
            and now >= topic.retry_at
            and not self._is_pending(name)
            for name, topic in self.topics.items()
        )

    def due(self, now: float) -> VenueRequest | None:
        """Give the next request to send now, None when there is nothing to ask for."""
        for leaving in (True, False):
            state = TopicState.LEAVING if leaving else TopicState.WANTED
            names: list[str] = []
            limit = 0
            for name, topic in self.topics.items():
                if topic.state is TopicState.REFUSED and now >= topic.retry_at and not leaving:
                    self._move(topic, TopicState.WANTED, now)
                if topic.state is not state or now < topic.retry_at or self._is_pending(name):
                    continue
                if not names:
                    limit = topic.alone
                elif topic.alone != limit:
                    # Those that a refusal set apart go with their like only.
                    continue
                names.append(name)
                if limit and len(names) >= limit:
                    break
            if not names:
                continue
            make = self._adapter.unsubscribe if leaving else self._adapter.subscribe
            request = make(names, self._next_id)[0]
            self._note(request, subscribing=not leaving, now=now)
            if not leaving:
                for name in request.topics:
                    self._move(self.topics[name], TopicState.ASKED, now)
            return request
        return None

    def next_due(self, now: float) -> float | None:
        """Seconds until a topic is asked for again that has to wait; None when there is none."""
        times = [
            t.retry_at
            for t in self.topics.values()
            if t.state is TopicState.REFUSED or (t.state is TopicState.LEAVING and t.retry_at)
        ]
        return max(0.0, min(times) - now) if times else None

    def sent(self, request_id: int, now: float) -> None:
        """Note when a request went out: the time to answer begins then."""
        pending = self._pending.get(request_id)
        if pending is not None:
            pending.asked_at = now

    def give_up(self, now: float, seconds: float) -> Answer:
        """Take what is left of requests that were answered in part, and long ago, for refused."""
        result = Answer()
        for number, pending in list(self._pending.items()):
            if now - pending.asked_at > seconds and 0 < len(pending.topics) < pending.asked:
                del self._pending[number]
                for name in pending.topics:
                    if pending.subscribing:
                        self._refuse(name, "not answered", result, now)
                    else:
                        self._taken(name, False, result, now)
        return result

    def overdue(self, now: float, seconds: float) -> int:
        """Count the requests that have not been answered for so long."""
        return sum(1 for each in self._pending.values() if now - each.asked_at > seconds)

    # Answers

    def acknowledge(self, answer: Acknowledgement, now: float) -> Answer:
        """Take the venue's yes."""
        result = Answer()
        if answer.request_id is not None and answer.request_id in self._pending:
            ids = [answer.request_id]
        elif answer.topics is not None:
            ids = [n for n, each in self._pending.items() if each.topics & set(answer.topics)]
        else:
            ids = []
        result.known = bool(ids)
        for number in ids:
            pending = self._pending[number]
            taken = pending.topics if answer.topics is None else pending.topics & set(answer.topics)
            for name in list(taken):
                pending.topics.discard(name)
                self._taken(name, pending.subscribing, result, now)
            if answer.topics is not None and answer.complete:
                for name in list(pending.topics):
                    pending.topics.discard(name)
                    if pending.subscribing:
                        self._refuse(name, "left out of the venue's answer", result, now)
                    else:
                        # Not subscribed to any more, whatever the reason: that is what was asked.
                        self._taken(name, False, result, now)
            if not pending.topics:
                del self._pending[number]
        return result

    def refuse(self, fault: VenueFault, now: float) -> Answer:
        """Take the venue's no."""
        result = Answer()
        text = f"{fault.code} {fault.message}".strip()
        if fault.request_id is not None and fault.request_id in self._pending:
            numbers = [fault.request_id]
        elif fault.topic:
            numbers = [n for n, each in self._pending.items() if fault.topic in each.topics]
        else:
            numbers = []
        result.known = bool(numbers)
        for number in numbers:
            pending = self._pending[number]
            named = {fault.topic} & pending.topics if fault.topic else pending.topics
            names = [name for name in self.topics if name in named]
            pending.topics -= named
            if not pending.topics:
                del self._pending[number]
            if not pending.subscribing:
                for name in names:
                    if fault.rate_limited:
                        # It stands as before.
                        self.topics[name].retry_at = now + _RATE_LIMITED_SECONDS
                    else:
                        self._taken(name, False, result, now)
            elif fault.rate_limited:
                for name in names:
                    self._later(self.topics[name], text, now)
            elif len(names) > 1:
                # One of them is to blame: ask for halves.
                for name in names:
                    topic = self.topics[name]
                    topic.alone = max(1, len(names) // 2)
                    if topic.wanted:
                        self._move(topic, TopicState.WANTED, now)
                    else:
                        del self.topics[name]
            else:
                for name in names:
                    self._refuse(name, text, result, now)
        return result

    # Inside

    def _note(self, request: VenueRequest, *, subscribing: bool, now: float) -> None:
        self._pending[request.request_id] = _Pending(
            set(request.topics), subscribing, now, len(request.topics)
        )
        self._next_id = max(self._next_id, request.request_id) + 1

    def _is_pending(self, name: str) -> bool:
        return any(name in each.topics for each in self._pending.values())

    def _taken(self, name: str, subscribing: bool, result: Answer, now: float) -> None:
        topic = self.topics.get(name)
        if topic is None:
            return
        if subscribing:
            topic.refusals = topic.alone = 0
            topic.refusal = ""
            if topic.wanted:
                self._move(topic, TopicState.ACTIVE, now)
                result.active.append(topic)
            else:
                self._move(topic, TopicState.LEAVING, now)
        elif topic.wanted:
            self._move(topic, TopicState.WANTED, now)
            result.left.append(topic)
        else:
            del self.topics[name]
            result.left.append(topic)

    def _refuse(self, name: str, text: str, result: Answer, now: float) -> None:
        topic = self.topics.get(name)
        if topic is None:
            return
        self.refusals += 1
        topic.refusals += 1
        wait = _RETRY_SECONDS * 2.0 ** min(topic.refusals - 1, 10)
        self._refused(topic, text, min(wait, _LONGEST_RETRY_SECONDS), now)
        result.refused.append(topic)

    def _later(self, topic: Topic, text: str, now: float) -> None:
        self._refused(topic, text, _RATE_LIMITED_SECONDS, now)

    def _refused(self, topic: Topic, text: str, wait: float, now: float) -> None:
        if not topic.wanted:
            self.topics.pop(topic.subscription.topic, None)
            return
        topic.refusal = text
        topic.retry_at = now + wait
        self._move(topic, TopicState.REFUSED, now)

    @staticmethod
    def _move(topic: Topic, state: TopicState, now: float) -> None:
        topic.state = state
        topic.since = now
        if state is not TopicState.REFUSED:
            topic.retry_at = 0.0
