"""Meter: what an Engine counts of its ticks and requests, and how it is told."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

ENDS = ("result", "cancelled", "refused", "failed")
# seconds, from 10 µs to half an hour, four to the octave: a percentile is known to 19 %
BOUNDS = tuple(1e-5 * 2 ** (k / 4) for k in range(111))
EVERY = 4  # of them is told to Prometheus: one to the octave


@dataclass
class Times:
    """Durations in seconds, by how many lie in each interval between BOUNDS. total: their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def copy(self) -> Times:
        return Times(self.counts.copy(), self.total)

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def percentile(self, share: float) -> float:
        """What `share` percent of them do not exceed, to the next of BOUNDS; 0 where there is none,
        infinity beyond the last bound.
        """
        if not 0 <= share <= 100:
            raise ValueError(f"Times.percentile: {share!r:.60}; 0 to 100 are accepted")
        up_to = list(accumulate(self.counts))
        least = max(share / 100 * up_to[-1], 1)
        at = next((k for k, n in enumerate(up_to) if n >= least), None)
        return 0.0 if at is None else (*BOUNDS, float("inf"))[at]


@dataclass(frozen=True)
class Metrics:
    """An Engine's counts since it was made.

    requests: taken in, copies of `select` among them; ended: how many in each state; waiting and
    running: now. On a GPU one that became non-finite counts among the results. refusals: submits
    that raised EngineFull. ticks: those of which a row ran; ticked: the requests of each, summed.
    launches; rows: of the models' batches. queue_wait: from submit to a place; step: a tick;
    request: from submit to the result, of those that have one.
    """

    requests: int
    ended: Mapping[str, int]
    waiting: int
    running: int
    refusals: int
    ticks: int
    ticked: int
    launches: int
    rows: int
    queue_wait: Times
    step: Times
    request: Times

    @property
    def occupancy(self) -> float:
        """Requests of a tick, on the average."""
        return self.ticked / self.ticks if self.ticks else 0.0

    def prometheus(self, engine: str = "") -> str:
        """As Prometheus' text; engine: its label. ImportError where prometheus_client is missing;
        `fastsample.runtime.meter.prometheus` takes several Engines in one text.
        """
        return prometheus({engine: self})


class Meter:
    """Counts, under the Engine's lock."""

    def __init__(self) -> None:
        self.requests = self.refusals = self.ticks = self.ticked = 0
        self.ended: Counter[str] = Counter(dict.fromkeys(ENDS, 0))
        self.queue_wait, self.step, self.request = Times(), Times(), Times()

    def tick(self, requests: int, seconds: float) -> None:
        self.ticks += 1
        self.ticked += requests
        self.step.add(seconds)

    def read(self, **now: int) -> Metrics:
        """As it stands; now: waiting, running, launches, rows."""
        counts = {name: getattr(self, name) for name in ("requests", "refusals", "ticks", "ticked")}
        times = {name: getattr(self, name).copy() for name in ("queue_wait", "step", "request")}
        return Metrics(**counts, **times, ended=dict(self.ended), **now)


def prometheus(engines: Mapping[str, Metrics]) -> str:
    """The metrics of several Engines, by label `engine`, as Prometheus' text. ImportError, one
    sentence, where prometheus_client is missing.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        why = "Metrics.prometheus: it needs prometheus_client; pip install 'fastsample[serve]'"
        raise ImportError(why) from error

    class Told:
        def collect(self) -> Iterator:
            return _families(engines)

    registry = CollectorRegistry()
    registry.register(Told())
    return generate_latest(registry).decode()


def _families(engines: Mapping[str, Metrics]) -> Iterator:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    ended = CounterMetricFamily(
        "fastsample_ended", "requests that have ended, by how", labels=["engine", "state"]
    )
    for name, metrics in engines.items():
        for state, count in metrics.ended.items():
            ended.add_metric([name, state], count)
    yield ended
    for word, said, kind in (
        ("requests", "requests taken in", CounterMetricFamily),
        ("refusals", "requests refused for want of room", CounterMetricFamily),
        ("ticks", "ticks of which a row ran", CounterMetricFamily),
        ("ticked", "requests of every tick, summed", CounterMetricFamily),
        ("launches", "launches of a step", CounterMetricFamily),
        ("rows", "rows of the models' batches", CounterMetricFamily),
        ("waiting", "requests that wait for a place", GaugeMetricFamily),
        ("running", "requests in flight", GaugeMetricFamily),
    ):
        family = kind(f"fastsample_{word}", said, labels=["engine"])
        for name, metrics in engines.items():
            family.add_metric([name], getattr(metrics, word))
        yield family
    for word, said in (
        ("queue_wait", "from submit to a place"),
        ("step", "a tick"),
        ("request", "from submit to the result"),
    ):
        family = HistogramMetricFamily(f"fastsample_{word}_seconds", said, labels=["engine"])
        for name, metrics in engines.items():
            times = getattr(metrics, word)
            family.add_metric([name], _buckets(times), times.total)
        yield family


def _buckets(times: Times) -> list[tuple[str, int]]:
    """How many lie at or below each bound that is told, and below infinity."""
    up_to = list(accumulate(times.counts))
    told = [(f"{BOUNDS[k]:.6g}", up_to[k]) for k in range(0, len(BOUNDS), EVERY)]
    return [*told, ("+Inf", up_to[-1])]
