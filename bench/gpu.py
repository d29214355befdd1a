"""What the benchmarks of a GPU share: its name and caches, graphs, and time by the device's own
events.

Under the stand-in for torch.cuda (`make gpu REHEARSE=1`) the device is the CPU, sizes are small and
times mean nothing: every line is run, and what is written says "rehearsed".
"""

import torch
from measure import interleaved

from fastsample.runtime.capturable import CUDA, KIND

REHEARSED = CUDA is not torch.cuda


def cut(size, small):
    """The size; a small one in a rehearsal."""
    return min(size, small) if REHEARSED else size


def rotation(held):
    """How many sets of operands that hold so many bytes are taken in turn, so that none is still in
    a cache when it comes again: together more than three L2 caches.
    """
    return int(3 * CUDA.get_device_properties(KIND).L2_cache_size // held) + 1


def random(*shape, dtype=torch.float32, seed=1):
    """Random numbers on the device, for memory that is all zeros can be faster."""
    generator = torch.Generator(KIND).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=KIND).to(dtype)


def captured(work, warm=2):
    """The work as a graph; -> replay. warm: how often it runs beforehand, on a side stream."""
    side = CUDA.Stream()
    side.wait_stream(CUDA.current_stream())
    with CUDA.stream(side):
        for _ in range(warm):
            work()
    CUDA.current_stream().wait_stream(side)
    graph = CUDA.CUDAGraph()
    with CUDA.graph(graph):
        work()
    return graph.replay


def triad(moved, count, times=1):
    """replay of a = b + s c, `times` over each of `count` sets in turn, `moved` bytes each."""
    n = max(1, int(moved) // 12)
    sets = [[random(n, seed=3 * k + part) for part in range(3)] for k in range(count)]
    adds = lambda: [torch.add(b, c, alpha=1.5, out=a) for _ in range(times) for a, b, c in sets]
    return captured(adds, warm=1)


def on_device(benchmark, ours, peers, calls=1, host=None):
    """Seconds on the device of ours and each peer, work that only queues, taken in turn, each
    `calls` times between two events. -> (ours, {peer: seconds})

    host: {name: work} too, timed in the same turns from the host, with a wait at the end.
    """
    kept = {}

    def timed(name, work):
        start, end = (CUDA.Event(enable_timing=True) for _ in range(2))
        spent = kept[name] = []

        def round():
            start.record()
            for _ in range(calls):
                work()
            end.record()
            end.synchronize()
            spent.append(start.elapsed_time(end) / 1e3 / calls)

        return lambda: round

    def waited(work):
        return lambda: lambda: ([work() for _ in range(calls)], CUDA.synchronize())

    others = {name: timed(name, work) for name, work in peers.items()}
    others |= {name: waited(work) for name, work in (host or {}).items()}
    pairs, theirs = interleaved(benchmark, timed("ours", ours), others)
    # as `interleaved` keeps them: two rounds to warm up, then those timed
    seconds = {name: spent[2 : 2 + len(pairs)] for name, spent in kept.items()}
    seconds |= {name: [s / calls for s in theirs[name]] for name in host or {}}
    return seconds.pop("ours"), seconds


def ratios(over, under, scale=1.0):
    """scale over / under, pair by pair."""
    return [scale * a / b for a, b in zip(over, under, strict=True)]
