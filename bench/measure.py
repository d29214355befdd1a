"""Timing in interleaved pairs, quartiles, and figures with their targets: what every benchmark here
shares.

A benchmark checks its result first and raises when it is wrong, so no number comes from a wrong
answer. Then it measures in turn, peer, ours, and the other way round in the next round: a machine
drifts more between two blocks of runs than within a pair, and whoever comes second finds the caches
of the first. Reported are median and quartiles.
"""

import gc
import itertools
from time import perf_counter

import numpy as np
import torch

PAIRS = 21  # of a round of ours and one of each peer


def quartiles(values):
    """(median, first quartile, third quartile) of a sequence of numbers."""
    q1, median, q3 = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return float(median), float(q1), float(q3)


def interleaved(benchmark, ours, peers, pairs=None):
    """Seconds of ours and of each peer, taken in turn `pairs` times; None: PAIRS.

    -> (ours [pairs], {peer: [pairs]}).

    ours, peers[name]: () -> work, a callable of no arguments. Making the work is not timed, so each
    round starts from fresh state. Two rounds of warm-up are thrown away. The pytest-benchmark
    fixture times ours, in the same rounds; in every other one the peers come after it, in the
    opposite order.
    """
    seconds, pairs = {name: [] for name in peers}, pairs or PAIRS

    def others(names):
        for name in names:
            work = peers[name]()
            gc.disable()
            start = perf_counter()
            work()
            seconds[name].append(perf_counter() - start)
            gc.enable()

    begun = itertools.count(1)

    def setup():
        if (number := next(begun)) % 2:
            others(reversed(peers) if number > 1 else ())  # they end the round before
            others(peers)
        return (ours(),), {}

    rounds = {"rounds": pairs, "warmup_rounds": 2, "iterations": 1}
    benchmark.pedantic(lambda work: work(), setup=setup, **rounds)
    others(() if next(begun) % 2 == 0 else reversed(peers))
    theirs = {name: values[2 : 2 + pairs] for name, values in seconds.items()}
    return list(benchmark.stats.stats.data), theirs


def often(work, calls):
    """() -> a round of so many calls; what a call returns is dropped before the next."""

    def round():
        for _ in range(calls):
            work()

    return lambda: round


def figure(benchmark, what, values, unit="", target=None, better="higher", missed=""):
    """Adds one line of the results table: what was measured, its median and quartiles, its target.

    values: one number (a count, exact) or a sequence of measurements. better: "higher", "lower" or
    "equal", the side of the target that meets it. missed: what stands in the way; kept only when
    the target is missed.
    """
    exact = np.ndim(values) == 0
    median, q1, q3 = (values, values, values) if exact else quartiles(values)
    line = {"what": what, "value": median, "unit": unit}
    if not exact:
        line.update(q1=q1, q3=q3, n=len(values))
    if target is not None:
        sides = {"higher": median >= target, "lower": median <= target, "equal": median == target}
        met = sides[better]
        line.update(target=target, better=better, met=bool(met))
        if not met and missed:
            line["note"] = missed
    benchmark.extra_info.setdefault("figures", []).append(line)
    return line


def outputs(shape, nfe):
    """Model outputs [nfe] that no model made: fixed numbers, the same for both sides."""
    generator = torch.Generator().manual_seed(1)
    # Four are enough to tell a wrong order of history.
    distinct = [torch.randn(shape, generator=generator) for _ in range(min(nfe, 4))]
    return [distinct[i % len(distinct)] for i in range(nfe)]
