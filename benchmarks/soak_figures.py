"""What the collector's process holds over time, and whether that grows."""

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import psutil

__all__ = ["Growth", "Sample", "Sampler", "growth"]

_LINE = re.compile(r"^(marketprism_[a-z_]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_WAITING = ("marketprism_publisher_buffered", "marketprism_publisher_in_flight")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """The collector at one instant."""

    at: float
    """Monotonic seconds."""
    rss: float
    """Resident memory, MiB."""
    fds: int
    """Open file descriptors."""
    sockets: int
    """Of these, network sockets."""
    tasks: int
    """Unfinished asyncio tasks."""
    messages: float
    """Messages that the broker has acknowledged since the start."""
    waiting: int
    """Messages on their way to the broker, not acknowledged."""
    cpu: float
    """Processor time used since the start, seconds."""


class Sampler:
    """Takes samples of one process: from the operating system, and from its `/metrics`."""

    def __init__(self, pid: int, metrics_url: str, session: aiohttp.ClientSession) -> None:
        self.samples: list[Sample] = []
        self._process = psutil.Process(pid)
        self._url = metrics_url
        self._session = session

    async def take(self) -> Sample:
        """Take one more sample."""
        async with self._session.get(self._url) as answer:
            text = await answer.text()
        values = {(name, labels): float(value) for name, labels, value in _LINE.findall(text)}
        process = self._process
        with process.oneshot():
            times = process.cpu_times()
            sample = Sample(
                time.monotonic(),
                process.memory_info().rss / _MIB,
                process.num_fds(),
                len(process.net_connections("inet")),
                int(values["marketprism_asyncio_tasks", ""]),
                sum(
                    value
                    for (name, labels), value in values.items()
                    if name == "marketprism_publisher_messages_total" and "acknowledged" in labels
                ),
                int(sum(value for (name, _), value in values.items() if name in _WAITING)),
                times.user + times.system,
            )
        self.samples.append(sample)
        return sample

    def rate(self, what: str, count: int = 2) -> float:
        """Give the growth of a counter a second over the last samples."""
        last = self.samples[-count:]
        if len(last) < 2:
            return 0.0
        first, newest = last[0], last[-1]
        grown: float = getattr(newest, what) - getattr(first, what)
        return grown / (newest.at - first.at)


@dataclass(frozen=True, slots=True)
class Growth:
    """What became of a figure after the warm-up."""

    what: str
    """Name of the figure."""
    level: float
    """Its median."""
    trend: float
    """What it grew by from the end of the warm-up to the end, by the median of all slopes."""
    allowed: float
    """What it may have grown by."""

    @property
    def grows(self) -> bool:
        """Whether it grew by more than allowed."""
        return self.trend > self.allowed


def growth(samples: Sequence[Sample], what: str, *, share: float, least: float) -> Growth:
    """Judge a figure: its trend over the samples may not exceed `share` of its median.

    A growth of up to `least` is noise. The trend is the median of the slopes between all pairs of
    samples (Theil-Sen), which a few outliers do not bend.
    """
    values = [float(getattr(sample, what)) for sample in samples]
    if len(values) < 4:
        return Growth(what, values[-1] if values else 0.0, 0.0, least)
    slopes = [
        (values[j] - values[i]) / (samples[j].at - samples[i].at)
        for i in range(len(values))
        for j in range(i + 1, len(values))
    ]
    level = statistics.median(values)
    trend = statistics.median(slopes) * (samples[-1].at - samples[0].at)
    return Growth(what, level, trend, max(least, share * level))
