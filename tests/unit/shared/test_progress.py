"""A queue is stuck only while something waits and nothing of it gets done."""

from services.shared.progress import Progress


def test_nothing_is_stuck_before_it_was_looked_at() -> None:
    assert Progress().stuck_seconds(1e9) == 0.0


def test_what_waits_without_progress_is_stuck_since_the_last_progress() -> None:
    progress = Progress()
    progress.observe(5, waiting=False, now=10.0)
    progress.observe(5, waiting=True, now=11.0)
    progress.observe(5, waiting=True, now=15.0)
    assert progress.stuck_seconds(16.0) == 6.0
    progress.observe(6, waiting=True, now=17.0)
    assert progress.stuck_seconds(18.0) == 1.0


def test_an_empty_queue_is_never_stuck() -> None:
    progress = Progress()
    for now in (1.0, 50.0, 100.0):
        progress.observe(0, waiting=False, now=now)
        assert progress.stuck_seconds(now) == 0.0
