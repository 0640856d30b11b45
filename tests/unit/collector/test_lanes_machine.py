"""Connections that come, go, lose and begin anew in any order: the book is true, and goes on."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.collector.test_lanes import Bench, venue

_CHANGES = 600
_SECOND_MS = 1100


class Lanes(RuleBasedStateMachine):
    """Up to three connections to a venue of one of the two sorts."""

    from_stream: bool

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(venue(5, _CHANGES, from_stream=self.from_stream))
        self.made = 0
        self.at: dict[str, int] = {}
        """What each connection has sent, of those that are subscribed."""
        self.paused: set[str] = set()
        self.numbers = 0
        self.by_id = {number: index for index, number in enumerate(self.bench.venue.ids)}
        self.join()

    # What happens

    @precondition(lambda self: self.made < _CHANGES - 100)
    @rule(count=st.integers(1, 4))
    def change(self, count: int) -> None:
        self.made += count

    @precondition(lambda self: len(self.at) + len(self.paused) < 3)
    @rule()
    def join(self) -> None:
        self.numbers += 1
        self._begin(f"c{self.numbers}")

    @precondition(lambda self: self.at)
    @rule(data=st.data(), lose=st.booleans(), leave_out=st.integers(0, 3))
    def deliver(self, data: st.DataObject, lose: bool, leave_out: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.at)))
        until = max(self.at[name], self.made - leave_out)
        for index in range(self.at[name], until):
            if lose and index == until - 1:
                continue
            self.bench.tell(name, index)
        self.at[name] = until

    @precondition(lambda self: self.at)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.at)))
        del self.at[name]
        self._leave(name)

    @precondition(lambda self: self.at)
    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.at)))
        del self.at[name]
        self.paused.add(name)
        self.bench.lanes.pause(name, self.bench.tick())

    @precondition(lambda self: self.paused)
    @rule(data=st.data(), dies=st.booleans())
    def after_unsubscribing(self, data: st.DataObject, dies: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.paused)))
        self.paused.discard(name)
        if dies:
            self._leave(name)
        else:
            self._begin(name)

    @rule()
    def wait(self) -> None:
        self.bench.lanes.tick(self.bench.tick(_SECOND_MS))

    @rule()
    def synchronise(self) -> None:
        """The answer to the request for a snapshot comes, or the subscription begins anew."""
        bench = self.bench
        if bench.book.in_step or not self.at:
            return
        if not self.from_stream:
            bench.book.on_snapshot(bench.venue.snapshot(self.made), bench.tick())
            return
        name = min(self.at)
        self._begin(name)

    # What always holds

    @invariant()
    def a_book_in_step_is_the_venues(self) -> None:
        bench = self.bench
        assert bench.out.problems == []
        if bench.book.in_step:
            count = self.by_id[bench.book.venue_sequence]
            assert bench.out.book.sorted() == bench.venue.book(count).sorted()

    def teardown(self) -> None:
        """When everything works at last, every book goes on within seconds."""
        for name in sorted(self.paused):
            self._begin(name)
        self.paused.clear()
        if not self.at:
            self.join()
        for _ in range(8):
            self.made += 2
            for name in sorted(self.at):
                for index in range(self.at[name], self.made):
                    self.bench.tell(name, index)
                self.at[name] = self.made
            self.wait()
            self.synchronise()
        assert self.bench.book.in_step
        self.bench.check(self.made)
        for name in self.at:
            assert self.bench.lanes.is_aligned(name)

    # Inside

    def _begin(self, name: str) -> None:
        bench = self.bench
        self.at[name] = self.made
        bench.lanes.join(name, bench.tick())
        if self.from_stream:
            bench.lanes.on_snapshot(name, bench.venue.snapshot(self.made), bench.tick())

    def _leave(self, name: str) -> None:
        if not self.bench.lanes.leave(name, self.bench.tick()):
            self.bench.book.on_disconnected("ended", self.bench.tick())


class StreamLanes(Lanes):
    """Snapshots come in the stream."""

    from_stream = True


class RequestLanes(Lanes):
    """Snapshots are asked for."""

    from_stream = False


_SETTINGS = settings(max_examples=60, stateful_step_count=30, deadline=None)
StreamLanes.TestCase.settings = _SETTINGS
RequestLanes.TestCase.settings = _SETTINGS
TestStreamLanes = StreamLanes.TestCase
TestRequestLanes = RequestLanes.TestCase
