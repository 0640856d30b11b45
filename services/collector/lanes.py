"""One book fed by more than one connection: the first to tell a change wins, nothing is lost.

A venue tells the same changes on every connection, each with the id that it continues. So a change
that continues the book is applied, whichever lane brought it; one that the book has had is dropped;
one that lies ahead waits until the other lane has brought what is between. Only when that does not
come, there is a gap. A lane that joins counts from its first change that the book has had or that
continues it: then it is aligned, and the others may leave without a gap.

Where snapshots come in the stream, that of a joining lane is kept aside: the book goes on, in the
same epoch, and is built from it only when every other lane is gone before this one was aligned.

With one lane, as nearly always, everything goes straight to the book. Pure: no sockets, no clocks;
times are nanoseconds.
"""

from collections import deque

from services.collector.synchroniser import BookSynchroniser
from services.collector.venues.base import (
    BookDiff,
    BookHeartbeat,
    BookSnapshot,
    SnapshotSource,
    VenueAdapter,
)

__all__ = ["BookLanes"]

_MOST_HELD = 5000
_IDS_KEPT = 4096
_PATIENCE = 1_000_000_000  # how long a change ahead waits for what is before it


class _Lane:
    """What one connection told that the book has not taken."""

    __slots__ = ("aligned", "heard", "held", "snapshot")

    def __init__(self) -> None:
        self.aligned = False
        self.heard = 0
        self.held: deque[tuple[BookDiff, int]] = deque(maxlen=_MOST_HELD)
        self.snapshot: tuple[BookSnapshot, int] | None = None

    def forget(self) -> None:
        self.held.clear()
        self.snapshot = None


class BookLanes:
    """Stands between the connections and a book's synchroniser.

    Lanes are named by their connection. Counter: `duplicates`, changes that another lane had
    brought before.
    """

    def __init__(self, book: BookSynchroniser, adapter: VenueAdapter) -> None:
        self.duplicates = 0
        self._book = book
        self._adapter = adapter
        self._from_stream = adapter.snapshot_source is SnapshotSource.STREAM
        self._lanes: dict[str, _Lane] = {}
        self._several = False
        self._recent: deque[int] = deque(maxlen=_IDS_KEPT)
        self._known: set[int] = set()

    # Lanes

    @property
    def names(self) -> list[str]:
        """The connections that carry this book, oldest first."""
        return list(self._lanes)

    def join(self, name: str, now: int) -> None:
        """Take a connection whose changes flow from now on."""
        if name in self._lanes:
            # Subscribed to anew: its changes have no continuity with what came before.
            self._lanes[name] = _Lane()
        elif self._lanes:
            if not self._several:
                self._several = True
                self._begin_ids()
                next(iter(self._lanes.values())).aligned = True
            self._lanes[name] = _Lane()
        else:
            self._lanes[name] = _Lane()
        if not self._book.in_step or len(self._lanes) == 1:
            self._book.begin(now)

    def leave(self, name: str, now: int) -> bool:
        """Let a connection go; tells whether another one carries the book on without a gap."""
        gone = self._lanes.pop(name, None)
        if gone is None:
            return bool(self._lanes)
        if not self._lanes:
            self._several = False
            return False
        carried = any(lane.aligned for lane in self._lanes.values())
        if not carried:
            # None of those left has met the book: go on from what the first of them has.
            lane = next(iter(self._lanes.values()))
            lane.aligned = True
            if lane.snapshot is not None:
                self._restart(lane)
            else:
                held = list(lane.held)
                lane.held.clear()
                for diff, received in held:
                    self._book.on_diff(diff, received)
        # One that is left may be behind: it is alone once it has brought something new.
        return True

    def pause(self, name: str, now: int) -> None:
        """Take note that a connection tells nothing until it joins again.

        A book that another one carries goes on from that alone; what is to become of a book that
        nobody else carries was decided when the subscription was begun anew.
        """
        if self._book.in_step and len(self._lanes) > 1:
            self.leave(name, now)

    def heard(self, name: str) -> int:
        """When a connection last told something of the book, nanoseconds; 0 when never."""
        lane = self._lanes.get(name)
        heard = lane.heard if lane is not None else 0
        return heard if self._several else max(heard, self._book.receive_time)

    def is_aligned(self, name: str) -> bool:
        """Tell whether the book goes on from this connection alone without a gap."""
        lane = self._lanes.get(name)
        if lane is None or not self._several:
            return True
        if lane.aligned or not self._book.in_step:
            return True
        if self._from_stream:
            at = lane.snapshot
            return at is not None and not lane.held and at[0].last == self._book.venue_sequence
        # Nothing came since it joined, from it or from the others: its next change continues.
        return not lane.held and not any(each.held for each in self._lanes.values())

    # What comes in

    def on_diff(self, name: str, diff: BookDiff, now: int) -> None:
        """Take a change."""
        if not self._several:
            self._book.on_diff(diff, now)
            return
        lane = self._lanes.get(name)
        if lane is None:
            return
        lane.heard = now
        book = self._book
        if not book.in_step:
            if self._from_stream and not lane.aligned:
                self._hold(lane, diff, now)
                return
            book.on_diff(diff, now)
            if book.in_step:
                self._begin_ids()
                lane.aligned = True
            return
        self._offer(lane, diff, now)

    def on_snapshot(self, name: str, snapshot: BookSnapshot, now: int) -> None:
        """Take a snapshot that came in the stream."""
        lane = self._lanes.get(name)
        if lane is not None:
            lane.heard = now
        if self._several and lane is not None and self._book.in_step:
            others = any(each.aligned for each in self._lanes.values() if each is not lane)
            if others:
                lane.forget()
                lane.aligned = snapshot.last in self._known
                if not lane.aligned:
                    lane.snapshot = (snapshot, now)
                return
        self._book.on_stream_snapshot(snapshot, now)
        if self._several and lane is not None:
            for each in self._lanes.values():
                each.aligned = each is lane
                each.held.clear()
            lane.snapshot = None
            self._begin_ids()

    def on_heartbeat(self, name: str, heartbeat: BookHeartbeat, now: int) -> None:
        """Take the venue's word that the book stands at an id."""
        lane = self._lanes.get(name)
        if lane is not None:
            lane.heard = now
        if not self._several:
            self._book.on_heartbeat(heartbeat, now)
            return
        if lane is None:
            return
        if heartbeat.last == self._book.venue_sequence:
            lane.aligned = True
            self._book.on_heartbeat(heartbeat, now)
        # Else one of the lanes is behind the other: their changes tell.

    def on_malformed(self, name: str, detail: str, now: int) -> bool:
        """Note a frame that could not be read; tells whether the book lost something by it."""
        lane = self._lanes.get(name)
        others = any(each.aligned for each in self._lanes.values() if each is not lane)
        if self._several and lane is not None and self._book.in_step and others:
            return False
        self._book.on_malformed(detail, now)
        return True

    def tick(self, now: int) -> None:
        """Give up waiting for what does not come."""
        if not self._several or not self._book.in_step:
            return
        aligned = any(lane.aligned for lane in self._lanes.values())
        for lane in self._lanes.values():
            # One that has not met the book waits for the others to come so far, if any can.
            waits = lane.held and (lane.aligned or not aligned)
            if waits and now - lane.held[0][1] > _PATIENCE:
                self._give_up(lane)
                return

    # Inside

    def _offer(self, lane: _Lane, diff: BookDiff, now: int) -> None:
        if lane.held:
            # It waits for something: what follows must not overtake it.
            if diff.last in self._known:
                lane.held.clear()
                self._had(lane)
                return
            self._hold(lane, diff, now)
            self._drain()
        elif self._fits(diff):
            self._apply(lane, diff, now)
            self._drain()
        elif self._is_old(diff):
            if diff.last not in self._known and diff.exchange_time > self._book.exchange_time:
                # Older by its id and newer by its time: the venue may count anew; the book tells.
                self._book.on_diff(diff, now)
            else:
                self._had(lane)
            return
        else:
            self._hold(lane, diff, now)
        if lane.aligned and all(each.held for each in self._lanes.values()):
            # None of them can go on: what is missing comes from nobody.
            self._give_up(lane)

    def _fits(self, diff: BookDiff) -> bool:
        sequence = self._book.venue_sequence
        if diff.previous == sequence:
            return True
        if self._adapter.ordered_ids:
            return diff.previous < sequence < diff.last
        return False

    def _is_old(self, diff: BookDiff) -> bool:
        return diff.last in self._known or self._adapter.repeats(diff, self._book.venue_sequence)

    def _had(self, lane: _Lane) -> None:
        lane.aligned = True
        lane.snapshot = None
        self.duplicates += 1

    def _apply(self, lane: _Lane, diff: BookDiff, now: int) -> None:
        lane.aligned = True
        lane.snapshot = None
        if diff.previous == self._book.venue_sequence:
            self._book.on_diff(diff, now)
        else:
            self._book.on_overlap(diff, now)
        self._remember(diff.last)
        if len(self._lanes) == 1 and not lane.held:
            self._several = False

    def _drain(self) -> None:
        moved = True
        while moved and self._book.in_step:
            moved = False
            for lane in self._lanes.values():
                while lane.held:
                    diff, received = lane.held[0]
                    if self._fits(diff):
                        lane.held.popleft()
                        self._apply(lane, diff, received)
                    elif self._is_old(diff):
                        lane.held.popleft()
                        self._had(lane)
                    else:
                        break
                    moved = True

    def _hold(self, lane: _Lane, diff: BookDiff, now: int) -> None:
        if len(lane.held) == _MOST_HELD:
            # What it held has no beginning any more.
            lane.forget()
        lane.held.append((diff, now))

    def _give_up(self, lane: _Lane) -> None:
        """Let the book see the gap."""
        held = list(lane.held)
        for each in self._lanes.values():
            each.held.clear()
        for diff, received in held:
            self._book.on_diff(diff, received)
        if self._from_stream and not self._book.in_step:
            for each in self._lanes.values():
                each.aligned = False
                each.snapshot = None

    def _restart(self, lane: _Lane) -> None:
        assert lane.snapshot is not None
        snapshot, received = lane.snapshot
        lane.snapshot = None
        held = list(lane.held)
        lane.held.clear()
        self._book.on_stream_snapshot(snapshot, received)
        self._begin_ids()
        for diff, at in held:
            self._book.on_diff(diff, at)
            self._remember(diff.last)

    def _begin_ids(self) -> None:
        self._recent.clear()
        self._known.clear()
        self._remember(self._book.venue_sequence)

    def _remember(self, number: int) -> None:
        recent = self._recent
        if len(recent) == _IDS_KEPT:
            self._known.discard(recent[0])
        recent.append(number)
        self._known.add(number)
