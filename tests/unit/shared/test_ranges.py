"""Runs of numbers are the set that they stand for, whatever is added and let go."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.shared.ranges import Ranges

_RUN = st.tuples(st.integers(-5, 40), st.integers(-5, 40))


def numbers(ranges: Ranges) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


@given(st.lists(st.tuples(st.booleans(), _RUN), max_size=30), _RUN)
def test_runs_are_the_set_that_they_stand_for(
    changes: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    ranges, truth = Ranges(), set[int]()
    for adds, (first, last) in changes:
        run = set(range(first, last + 1))
        if adds:
            ranges.add(first, last)
            truth |= run
        else:
            ranges.discard(first, last)
            truth -= run
        assert numbers(ranges) == truth
        runs = list(ranges)
        assert all(before[1] + 1 < after[0] for before, after in pairwise(runs))
        assert ranges.count == len(truth)
        assert bool(ranges) == bool(truth)
    first, last = asked
    wanted = set(range(first, last + 1))
    if wanted:
        assert ranges.holds(first, last) == (wanted <= truth)
    assert numbers(Ranges(ranges.within(first, last))) == wanted & truth


def test_runs_beyond_belief_cost_nothing() -> None:
    ranges = Ranges([(1, 10**18)])
    ranges.discard(5, 10**17)
    assert list(ranges) == [(1, 4), (10**17 + 1, 10**18)]
