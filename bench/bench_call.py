"""A whole `Sampler` call of ten evaluations, without the model: against `Run.restart` and the same
rows on a bound Run, and against loops written by hand.

The model is one opaque callable for every side, outside any graph; it hands out four tensors made
beforehand in turn (with one, a loop by hand would find its history and its prediction in the same
memory). Each side is checked first: ours has the bits of a new Run, the others agree to rounding.
"""

import itertools

import pytest
import torch
from measure import figure, interleaved, often, outputs, quartiles
from triad import step_bytes

import fastsample as fs

NFE = 10
# shape -> (calls in a round; targets: over the bound Run in µs or %, eager and compiled loop)
SIZES = {
    (50, 32): (200, 10.0, "µs", 5.0, 3.0),
    (1, 4, 64, 64): (100, 10.0, "µs", 3.5, 3.0),
    (1, 16, 128, 128): (12, 6.0, "%", 2.5, 1.2),
    (1, 16, 21, 60, 104): (2, 15.0, "%", 5.0, 1.0),
}
RESTART = {(50, 32): 3.0, (1, 4, 64, 64): 5.0}
SMALL = {(50, 32): 1.2, (256, 16): 1.5}


def plan_of(solver):
    schedule = fs.schedules.EDM()
    return fs.solvers.SOLVERS[solver](schedule, fs.grids.karras(schedule, NFE), prediction="x0")


def model_of(shape):
    turn = itertools.cycle(outputs(shape, 4))
    return lambda x, t: next(turn)


class ByHand:
    """The plan's rows as somebody writes them: x' and one kept value are sums over the state, what
    was kept, and the prediction (the model's output, as prediction="x0"); a value kept as it is is
    no sum.
    """

    def __init__(self, plan, model):
        self.plan, self.model, at = plan, model, plan.layout
        self.times = torch.tensor(plan.t[:, 0], dtype=torch.float32)
        columns = [0, *(at.slot(s) for s in range(at.S)), at.m]
        self.table = torch.tensor(plan.M[:, :2, columns], dtype=torch.float32)
        self.rows, self.as_it_is = [], [(len(columns) - 1, 1.0)]  # the model's output alone
        for i in range(1, plan.rows - 1):
            read = [k for k, c in enumerate(columns) if plan.reads[i] >> c & 1]
            sums = [[(k, float(plan.M[i, o, columns[k]])) for k in read] for o in range(2)]
            first, second = ([(k, c) for k, c in terms if c] for terms in sums)
            self.rows.append((i, first, second, int(plan.dst[i, 0])))
        self.fused = torch.compile(_both, dynamic=False)

    def begin(self, z):
        return z * self.plan.init_scale, [torch.zeros_like(z) for _ in range(self.plan.S)]

    def eager(self, z):
        x, kept = self.begin(z)
        for i, first, second, slot in self.rows:
            operands = [x, *kept, self.model(x, self.times[i - 1])]
            x = self.sum(first, operands)
            if slot >= 0:
                kept[slot] = self.sum(second, operands)
        return x

    def sum(self, terms, operands):
        if terms == self.as_it_is:
            return operands[-1]
        total = None
        for k, c in terms:
            total = c * operands[k] if total is None else total + c * operands[k]
        return total

    def bytes(self, elements):
        """Bytes that the rows of `eager` move: a product reads one operand and writes one, a sum
        reads two.
        """
        sums = [terms for _, *both, slot in self.rows for terms in both[: 1 + (slot >= 0)]]
        return sum(4 * elements * (5 * len(t) - 3) for t in sums if t != self.as_it_is)

    def compiled(self, z):
        x, kept = self.begin(z)
        for i, _, _, slot in self.rows:
            x, new = self.fused(x, kept, self.model(x, self.times[i - 1]), self.table[i])
            if slot >= 0:
                kept[slot] = new
        return x


def _both(x, kept, m, table):
    operands = [x, *kept, m]
    return tuple(sum(table[o, k] * v for k, v in enumerate(operands)) for o in range(2))


def check(plan, shape, z):
    """Bits of a new Run; loops by hand within the rounding of their sums."""
    run, model = fs.Run(plan, noise=z), model_of(shape)
    while not run.done:
        run.step(model(run.model_input, run.t))
    sampler = fs.Sampler(plan, model_of(shape))
    for _ in range(2):  # a new run, and a spare
        for _ in range(2):
            got = sampler(noise=z)
            if not torch.equal(got, run.x):
                raise AssertionError("call: the Sampler's bits are not the Run's")
            sampler.models[0](None, None), sampler.models[0](None, None)  # 12 outputs a call
    by_hand = ByHand(plan, model_of(shape))
    for loop in (by_hand.eager, ByHand(plan, model_of(shape)).compiled):
        gap = float((loop(z) - run.x).abs().max() / run.x.abs().max())
        if not gap <= 1e-4:
            raise AssertionError(f"call: a loop by hand differs by {gap:.1e}")


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def bench_call(benchmark, solver, shape):
    benchmark.group = "call"
    calls, most, unit, eager, compiled = SIZES[shape]
    plan, z = plan_of(solver), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        check(plan, shape, z)
        sampler, model = fs.Sampler(plan, model_of(shape)), model_of(shape)
        run, by_hand = fs.Run(plan, noise=z, preview=False), ByHand(plan, model_of(shape))

        def bound():
            run.restart(z)
            while not run.done:
                run.step(model(run.model_input, run.t))

        own, peers = interleaved(
            benchmark,
            often(lambda: sampler(noise=z), calls),
            {
                "bound": often(bound, calls),
                "eager": often(lambda: by_hand.eager(z), calls),
                "compiled": often(lambda: by_hand.compiled(z), calls),
            },
        )
    name = f"{solver}, {'×'.join(map(str, shape))}"
    benchmark.extra_info.update(evaluations=NFE, threads=str(torch.get_num_threads()))
    figure(benchmark, f"{name}: whole call of {NFE} steps", [s / calls * 1e6 for s in own], "µs")
    pairs = list(zip(own, peers["bound"], strict=True))
    over = [(a - b) / calls * 1e6 if unit == "µs" else 100 * (a / b - 1) for a, b in pairs]
    what = f"{name}: call over restart and the rows of a bound Run"
    figure(benchmark, what, over, unit, target=most, better="lower")
    moved = by_hand.bytes(z.numel()) / (NFE * step_bytes(run))
    why = f"it moves {moved:.1f} times our bytes" if z.numel() > 65536 else ""
    for loop, target in (("eager", eager), ("compiled", compiled)):
        ratios = [p / s for p, s in zip(peers[loop], own, strict=True)]
        words = "eager" if loop == "eager" else "with a compiled step"
        what = f"{name}: a loop by hand, {words}"
        figure(benchmark, what, ratios, "x", target=target, missed=why)


@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def bench_parts(benchmark, shape):
    """Where a whole call spends its time: loops that each do one thing less, taken in turn. The
    parts are their differences, so that they sum to the whole.
    """
    benchmark.group = "parts of a call"
    calls, solver = SIZES[shape][0], "dpmpp_2m"
    plan, z = plan_of(solver), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        check(plan, shape, z)
        sampler, model = fs.Sampler(plan, model_of(shape)), model_of(shape)
        run, f = fs.Run(plan, noise=z, preview=False), outputs(shape, NFE)
        launch, times = run._launch, run.times

        def bound():
            run.restart(z)
            while not run.done:
                run.step(model(run.model_input, run.t))

        def launches():
            launch.carry(0, None, z, None)
            for row, output in enumerate(f, 1):
                launch.take(row, output)

        sides = {
            "bound": bound,
            "launches": launches,
            "models": lambda: [model(z, t) for t in times[:NFE]],
            "first": lambda: launch.carry(0, None, z, None),
            "restart": lambda: run.restart(z),
        }
        own, peers = interleaved(
            benchmark,
            often(lambda: sampler(noise=z), calls),
            {name: often(work, calls) for name, work in sides.items()},
        )
    per_call = lambda seconds: [s / calls * 1e6 for s in seconds]
    whole, peers = per_call(own), {name: per_call(seconds) for name, seconds in peers.items()}
    less = lambda a, *others: [x - sum(y) for x, *y in zip(a, *others, strict=True)]
    before = less(peers["restart"], peers["first"])
    parts = {
        f"the {NFE + 1} launches, row 0 among them": peers["launches"],
        "the model's own calls, which hand out a tensor": peers["models"],
        "restart beside its launch: noise, seeds, status": before,
        f"Run.step beside its launch, {NFE} times": less(
            peers["bound"], before, peers["launches"], peers["models"]
        ),
        "the call around: arguments, a spare, memory for the result": less(whole, peers["bound"]),
    }
    total, (middle, *_) = sum(quartiles(part)[0] for part in parts.values()), quartiles(whole)
    if abs(total / middle - 1) > 0.1:
        raise AssertionError(f"parts: {total:.1f} µs together in a call of {middle:.1f} µs")
    name = "×".join(map(str, shape))
    figure(benchmark, f"{name}: whole call", whole, "µs")
    for part, values in parts.items():
        figure(benchmark, f"{name}: {part}", values, "µs")
    rows = less(peers["launches"], peers["first"])
    rates = [NFE * step_bytes(run) / us / 1e3 for us in rows]
    figure(benchmark, f"{name}: memory at the rows' launches", rates, "GB/s")


@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def bench_restart(benchmark, shape):
    """Of a run as a Sampler keeps it, and of one that forms x0 at every row, as a Run does unless
    told otherwise.
    """
    benchmark.group = "restart"
    plan, z = plan_of("dpmpp_2m"), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    calls, new = 10 * SIZES[shape][0], fs.Run(plan, noise=z)
    runs = [fs.Run(plan, noise=z, preview=preview) for preview in (False, True)]
    for run in runs:
        run.step(torch.zeros_like(z))
        run.restart(z)
        if not torch.equal(run.x, new.x) or run.row != new.row:
            raise AssertionError("restart: another state than a new run's")
    plain, showing = (often(lambda run=run: run.restart(z), calls) for run in runs)
    own, peers = interleaved(benchmark, plain, {"x0": showing})
    name, target = f"{'×'.join(map(str, shape))}: restart", RESTART.get(shape)
    for seconds, what, most in (
        (own, f"{name}, row 0 and the look at the noise included", target),
        (peers["x0"], f"{name} of a run that forms x0", None),
    ):
        values = [s / calls * 1e6 for s in seconds]
        figure(benchmark, what, values, "µs", target=most, better="lower")


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: "x".join(map(str, shape)))
def bench_small_samples(benchmark, shape):
    """One launch for a batch of many small samples at one row."""
    benchmark.group = "restart"
    plan, z = plan_of("dpmpp_2m"), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    alone, run, f = fs.Run(plan, noise=z[:1]), fs.Run(plan, noise=z), outputs(shape, 1)[0]
    alone.step(f[:1])
    run.step(f)
    if not torch.equal(alone.x, run.x[:1]):
        raise AssertionError("launch: a sample of a batch is not the sample alone")
    launch, calls = run._launch, 3000
    own, _ = interleaved(benchmark, often(lambda: launch.take(2, f), calls), {})
    what = f"{'×'.join(map(str, shape))}: one launch"
    values = [s / calls * 1e6 for s in own]
    figure(benchmark, what, values, "µs", target=SMALL[shape], better="lower")
