"""A topic that is wanted is subscribed to once, whatever the venue answers and in what order."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from marketprism.market.v1 import common_pb2

from services.collector.topics import TopicBook, TopicState
from services.collector.venues.base import (
    Acknowledgement,
    Subscription,
    VenueFault,
    VenueRequest,
)

_KINDS = (common_pb2.EVENT_KIND_TRADE,)


class Adapter:
    """Makes requests of at most `most` topics, and opens with `opening` requests."""

    def __init__(self, most: int = 100, opening: int = 0) -> None:
        self.most = most
        self.opening = opening

    def opening_requests(self, first_request_id: int) -> list[VenueRequest]:
        return [VenueRequest(first_request_id + n, (), "hello") for n in range(self.opening)]

    def subscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        return self._requests("subscribe", topics, first_request_id)

    def unsubscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        return self._requests("unsubscribe", topics, first_request_id)

    def _requests(self, verb: str, topics: Sequence[str], first: int) -> list[VenueRequest]:
        parts = [tuple(topics[n : n + self.most]) for n in range(0, len(topics), self.most)]
        return [VenueRequest(first + n, part, verb) for n, part in enumerate(parts)]


def subscriptions(names: Iterable[str]) -> list[Subscription]:
    return [Subscription(name, _KINDS) for name in names]


def book(*names: str, most: int = 100, opening: int = 0) -> TopicBook:
    topics = TopicBook(Adapter(most, opening))  # type: ignore[arg-type]
    topics.add(subscriptions(names), 0.0)
    topics.opened(0.0)
    return topics


def ask(topics: TopicBook, now: float = 0.0) -> VenueRequest:
    request = topics.due(now)
    assert request is not None, "expected a request that is due"
    return request


def active(*names: str, most: int = 100) -> TopicBook:
    topics = book(*names, most=most)
    while (request := topics.due(0.0)) is not None:
        topics.acknowledge(Acknowledgement(request.request_id), 0.0)
    assert states(topics) == dict.fromkeys(names, "active")
    return topics


def states(topics: TopicBook) -> dict[str, str]:
    return {name: topic.state.value for name, topic in topics.topics.items()}


def names(found: list[object]) -> list[str]:
    return sorted(topic.subscription.topic for topic in found)  # type: ignore[attr-defined]


# One request, one answer (Binance)


def test_an_answer_to_a_request_is_one_for_all_that_it_asked_for() -> None:
    topics = book("a", "b")
    request = ask(topics)
    assert (request.frame, request.topics) == ("subscribe", ("a", "b"))
    assert topics.due(0.0) is None, "nothing is asked for twice"
    answer = topics.acknowledge(Acknowledgement(request.request_id), 1.0)
    assert names(answer.active) == ["a", "b"]
    assert states(topics) == {"a": "active", "b": "active"}
    assert topics.overdue(99.0, 0.0) == 0


def test_more_than_a_request_may_hold_is_asked_for_with_the_next() -> None:
    topics = book("a", "b", "c", most=2)
    first, second = ask(topics), ask(topics)
    assert (first.topics, second.topics) == (("a", "b"), ("c",))
    assert first.request_id != second.request_id


def test_opening_requests_are_awaited_and_number_before_subscriptions() -> None:
    topics = book("a", opening=2)
    topics.topics.clear()
    opening = topics.opened(5.0)
    topics.add(subscriptions(["a"]), 5.0)
    request = ask(topics, 5.0)
    assert len({request.request_id, *(each.request_id for each in opening)}) == 3
    assert topics.overdue(6.0, 0.5) == 3
    for each in opening:
        assert topics.acknowledge(Acknowledgement(each.request_id), 6.0).known
    assert topics.overdue(6.0, 0.5) == 1


def test_an_answer_to_nothing_that_was_asked_changes_nothing() -> None:
    topics = book("a")
    request = ask(topics)
    for stranger in (Acknowledgement(999), Acknowledgement(None), Acknowledgement(None, ("z",))):
        assert not topics.acknowledge(stranger, 0.0).known
    assert not topics.refuse(VenueFault(999, "1", "no"), 0.0).known
    assert not topics.refuse(VenueFault(None, "1", "no", "z"), 0.0).known
    assert states(topics) == {"a": "asked"}
    assert topics.acknowledge(Acknowledgement(request.request_id), 0.0).known
    assert not topics.acknowledge(Acknowledgement(request.request_id), 0.0).known, "told twice"


def test_a_refused_request_is_made_again_in_halves_until_the_bad_one_is_alone() -> None:
    wanted = [f"t{number}" for number in range(8)]
    topics = book(*wanted)
    asked: list[int] = []
    refused: list[str] = []
    while (request := topics.due(0.0)) is not None:
        asked.append(len(request.topics))
        if "t5" in request.topics:
            fault = VenueFault(request.request_id, "4", "no such stream")
            refused += names(topics.refuse(fault, 0.0).refused)
        else:
            topics.acknowledge(Acknowledgement(request.request_id), 0.0)
    assert asked == [8, 4, 4, 2, 1, 1, 2]
    assert refused == ["t5"]
    assert topics.topics["t5"].refusal == "4 no such stream"
    others = {name: state for name, state in states(topics).items() if name != "t5"}
    assert set(others.values()) == {"active"}


def test_a_new_topic_is_not_held_up_by_those_that_were_refused_with_another() -> None:
    topics = book("a", "b", "c", "d")
    topics.refuse(VenueFault(ask(topics).request_id, "4", "no"), 0.0)
    topics.add(subscriptions(["e", "f"]), 0.0)
    asked = [ask(topics).topics for _ in range(3)]
    assert sorted(asked) == [("a", "b"), ("c", "d"), ("e", "f")]


def test_a_refused_topic_is_asked_for_again_later_and_later() -> None:
    topics = book("a")
    now = 0.0
    waits = []
    for _ in range(9):
        request = ask(topics, now)
        answer = topics.refuse(VenueFault(request.request_id, "4", "no"), now)
        assert names(answer.refused) == ["a"]
        wait = topics.next_due(now)
        assert wait is not None
        assert topics.due(now + wait - 0.1) is None
        waits.append(wait)
        now += wait
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    topics.acknowledge(Acknowledgement(ask(topics, now).request_id), now)
    assert topics.next_due(now) is None
    assert (topics.topics["a"].refusals, topics.topics["a"].refusal) == (0, "")


def test_what_was_refused_for_being_too_much_is_no_refusal_and_comes_again_soon() -> None:
    topics = book("a", "b")
    request = ask(topics)
    answer = topics.refuse(VenueFault(request.request_id, "3", "slow", rate_limited=True), 0.0)
    assert (answer.refused, answer.known, topics.refusals) == ([], True, 0)
    assert topics.next_due(0.0) == 10.0
    assert topics.due(9.9) is None
    assert ask(topics, 10.0).topics == ("a", "b")


# Leaving


def test_a_removed_topic_is_ended_and_forgotten_once_that_is_acknowledged() -> None:
    topics = active("a", "b")
    topics.remove(["a", "stranger"], 1.0)
    request = ask(topics, 1.0)
    assert (request.frame, request.topics) == ("unsubscribe", ("a",))
    answer = topics.acknowledge(Acknowledgement(request.request_id), 2.0)
    assert names(answer.left) == ["a"]
    assert states(topics) == {"b": "active"}


def test_what_was_removed_before_it_was_acknowledged_is_ended_afterwards() -> None:
    topics = book("a")
    request = ask(topics)
    topics.remove(["a"], 0.0)
    assert topics.due(0.0) is None, "the venue has not answered yet"
    answer = topics.acknowledge(Acknowledgement(request.request_id), 0.0)
    assert answer.active == []
    assert ask(topics).frame == "unsubscribe"


def test_what_was_removed_while_its_request_was_refused_is_not_asked_for_again() -> None:
    topics = book("a", "b", "c")
    request = ask(topics)
    topics.remove(["a"], 0.0)
    topics.refuse(VenueFault(request.request_id, "4", "no"), 0.0)
    assert states(topics) == {"b": "wanted", "c": "wanted"}


def test_what_is_wanted_again_while_it_is_ended_begins_anew() -> None:
    topics = active("a")
    topics.remove(["a"], 0.0)
    leaving = ask(topics)
    topics.add(subscriptions(["a"]), 0.0)
    assert topics.due(0.0) is None
    topics.acknowledge(Acknowledgement(leaving.request_id), 0.0)
    assert ask(topics).frame == "subscribe"


def test_renewing_ends_a_subscription_before_it_begins_again() -> None:
    topics = active("a", "b")
    assert topics.renew("a", 1.0)
    assert not topics.renew("a", 1.0), "it is on its way already"
    assert not topics.renew("stranger", 1.0)
    leaving = ask(topics, 1.0)
    assert (leaving.frame, leaving.topics) == ("unsubscribe", ("a",))
    assert topics.due(1.0) is None, "not before the venue says that it has ended"
    assert names(topics.acknowledge(Acknowledgement(leaving.request_id), 2.0).left) == ["a"]
    again = ask(topics, 2.0)
    assert (again.frame, again.topics) == ("subscribe", ("a",))


def test_an_end_that_the_venue_refuses_is_an_end() -> None:
    topics = active("a", "b")
    topics.renew("a", 0.0)
    topics.remove(["b"], 0.0)
    fault = VenueFault(ask(topics).request_id, "5", "not subscribed")
    assert names(topics.refuse(fault, 0.0).left) == ["a", "b"]
    assert states(topics) == {"a": "wanted"}


def test_an_end_that_was_too_much_at_once_is_asked_for_again() -> None:
    topics = active("a")
    topics.remove(["a"], 0.0)
    request = ask(topics)
    topics.refuse(VenueFault(request.request_id, "3", "slow", rate_limited=True), 0.0)
    assert topics.due(9.0) is None
    assert topics.next_due(0.0) == 10.0
    assert (ask(topics, 10.0).frame, states(topics)) == ("unsubscribe", {"a": "leaving"})


# An answer that lists what was taken (Deribit)


def test_a_topic_that_is_left_out_of_a_complete_answer_is_refused() -> None:
    topics = book("a", "b", "c")
    request = ask(topics)
    answer = topics.acknowledge(Acknowledgement(request.request_id, ("a", "c")), 0.0)
    assert (names(answer.active), names(answer.refused)) == (["a", "c"], ["b"])
    assert topics.topics["b"].refusal == "left out of the venue's answer"
    assert topics.overdue(99.0, 0.0) == 0


def test_an_end_that_the_answer_does_not_list_has_come_all_the_same() -> None:
    topics = active("a", "b")
    topics.renew("a", 0.0)
    topics.renew("b", 0.0)
    answer = topics.acknowledge(Acknowledgement(ask(topics).request_id, ("a",)), 0.0)
    assert names(answer.left) == ["a", "b"]
    assert states(topics) == {"a": "wanted", "b": "wanted"}


# An answer for each topic (OKX)


@pytest.mark.parametrize("numbered", [True, False], ids=["with the id", "topics only"])
def test_topics_that_are_answered_one_by_one_stand_one_by_one(numbered: bool) -> None:
    topics = book("a", "b", "c")
    request = ask(topics)
    number = request.request_id if numbered else None
    assert names(topics.acknowledge(Acknowledgement(number, ("b",), False), 0.0).active) == ["b"]
    assert states(topics) == {"a": "asked", "b": "active", "c": "asked"}
    assert topics.overdue(1.0, 0.5) == 1, "two are awaited still"
    refused = topics.refuse(VenueFault(number, "60018", "wrong", "a"), 0.0)
    assert names(refused.refused) == ["a"], "a topic that is named is refused by itself"
    topics.acknowledge(Acknowledgement(number, ("c",), False), 0.0)
    assert states(topics) == {"a": "refused", "b": "active", "c": "active"}
    assert topics.overdue(1.0, 0.5) == 0


def test_a_refusal_without_a_name_is_about_what_has_not_been_answered() -> None:
    topics = book("a", "b", "c")
    request = ask(topics)
    topics.acknowledge(Acknowledgement(request.request_id, ("a",), False), 0.0)
    topics.refuse(VenueFault(request.request_id, "60012", "bad"), 0.0)
    assert states(topics) == {"a": "active", "b": "wanted", "c": "wanted"}
    assert [ask(topics).topics, ask(topics).topics] == [("b",), ("c",)]


# A new connection


def test_on_a_new_connection_everything_is_asked_for_but_what_was_just_refused() -> None:
    topics = active("a", "b", "c", "d")
    topics.add(subscriptions(["e"]), 0.0)
    topics.refuse(VenueFault(ask(topics).request_id, "4", "no"), 0.0)
    topics.renew("a", 0.0)
    topics.remove(["b"], 0.0)
    ask(topics)
    topics.opened(30.0)
    assert states(topics) == {"a": "wanted", "c": "wanted", "d": "wanted", "e": "refused"}
    assert ask(topics, 30.0).topics == ("a", "c", "d")
    assert ask(topics, 60.0).topics == ("e",)


def test_answers_of_the_old_connection_are_not_taken_for_the_new_one() -> None:
    topics = book("a")
    old = ask(topics)
    topics.opened(1.0)
    new = ask(topics, 1.0)
    assert new.request_id != old.request_id
    assert not topics.acknowledge(Acknowledgement(old.request_id), 1.0).known
    assert states(topics) == {"a": "asked"}


# Anything at all

_NAMES = [f"t{number}" for number in range(6)]
_SOME = st.sets(st.sampled_from(_NAMES), min_size=1)


class AnyOrder(RuleBasedStateMachine):
    """A venue of any of the three sorts, that knows what it sends to whom."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.topics = TopicBook(Adapter(most=4))  # type: ignore[arg-type]
        self.topics.opened(0.0)
        self.wanted: set[str] = set()
        self.flowing: set[str] = set()
        self.asked: dict[int, tuple[bool, list[str]]] = {}

    # What the collector does

    @rule(some=_SOME)
    def add(self, some: set[str]) -> None:
        self.topics.add(subscriptions(sorted(some)), self.now)
        self.wanted |= some

    @rule(some=_SOME)
    def remove(self, some: set[str]) -> None:
        self.topics.remove(sorted(some), self.now)
        self.wanted -= some

    @rule(name=st.sampled_from(_NAMES))
    def renew(self, name: str) -> None:
        assert self.topics.renew(name, self.now) <= (name in self.flowing)

    @rule()
    def open(self) -> None:
        self.flowing.clear()
        self.asked.clear()
        self.topics.opened(self.now)

    @rule()
    def send(self) -> None:
        request = self.topics.due(self.now)
        if request is not None:
            subscribing = request.frame == "subscribe"
            self.asked[request.request_id] = (subscribing, list(request.topics))
            for name in request.topics:
                assert (name in self.flowing) != subscribing, f"{request.frame} of {name}"

    @rule(seconds=st.sampled_from([1.0, 60.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # What the venue answers

    def _take(self, number: int, some: Iterable[str]) -> None:
        subscribing, left = self.asked[number]
        for name in some:
            left.remove(name)
            (self.flowing.add if subscribing else self.flowing.discard)(name)
        if not left:
            del self.asked[number]

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def take_all(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        self._take(number, list(self.asked[number][1]))
        assert self.topics.acknowledge(Acknowledgement(number), self.now).known

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), numbered=st.booleans())
    def take_one(self, data: st.DataObject, numbered: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        name = data.draw(st.sampled_from(self.asked[number][1]))
        self._take(number, [name])
        answer = Acknowledgement(number if numbered else None, (name,), complete=False)
        assert self.topics.acknowledge(answer, self.now).known

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def list_taken(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        subscribing, left = self.asked[number]
        taken = data.draw(st.sets(st.sampled_from(left)))
        rest = [name for name in left if name not in taken]
        self._take(number, sorted(taken))
        if not subscribing:
            self.flowing -= set(rest)
        self.asked.pop(number, None)
        self.topics.acknowledge(Acknowledgement(number, tuple(taken)), self.now)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), limited=st.booleans(), named=st.booleans())
    def refuse(self, data: st.DataObject, limited: bool, named: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        subscribing, left = self.asked[number]
        name = data.draw(st.sampled_from(left)) if named else ""
        over = [name] if named else list(left)
        for each in over:
            left.remove(each)
            if not subscribing and not limited:
                self.flowing.discard(each)
        if not left:
            del self.asked[number]
        fault = VenueFault(number, "1", "no", name, rate_limited=limited)
        assert self.topics.refuse(fault, self.now).known

    # What always holds

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        for name in self.wanted:
            assert self.topics.topics[name].wanted
        for name, topic in self.topics.topics.items():
            assert topic.wanted == (name in self.wanted)
            if not topic.wanted:
                assert topic.state in (TopicState.ASKED, TopicState.LEAVING)
            assert (topic.state in (TopicState.ACTIVE, TopicState.LEAVING)) == (
                name in self.flowing
            )

    def teardown(self) -> None:
        """A venue that takes everything in the end sends what is wanted, and nothing else."""
        for _ in range(200):
            for number in sorted(self.asked):
                self._take(number, list(self.asked[number][1]))
                self.topics.acknowledge(Acknowledgement(number), self.now)
            self.now += 4000.0
            self.send()
            if not self.asked:
                break
        assert self.flowing == self.wanted
        assert set(self.topics.topics) == self.wanted
        assert self.topics.next_due(self.now) is None


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
