"""One step on the CPU: `Run.step` against diffusers' `scheduler.step`, and against a triad that
moves the same bytes.

Both sides are given the same model outputs, float32, and the same threads; a round is a whole
trajectory, set up outside the clock.
"""

import diffusers
import numpy as np
import pytest
import torch
from measure import figure, interleaved, outputs
from triad import moves, step_bytes

import fastsample as fs

# shape -> evaluations in a round
SIZES = {(1, 4, 64, 64): 500, (1, 16, 128, 128): 20, (1, 16, 21, 60, 104): 8}
WORDS = {"dpmpp_2m": {}, "unipc": {"order": 2}}
TARGETS = {"dpmpp_2m": (25, 10, 10), "unipc": (35, 10, 5)}
BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def peer_scheduler(solver, nfe):
    """diffusers' scheduler of the same method, its defaults kept: order 2, a last step of order 1,
    sigma = 0 at the end.
    """
    kinds = {
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
    }
    scheduler = kinds[solver](**BETAS)
    scheduler.set_timesteps(nfe)
    return scheduler


def our_plan(solver, scheduler):
    """The same method on the same grid: the times are read off the peer's sigmas."""
    schedule = fs.schedules.DiscreteVP.linear()
    grid = fs.grids.from_sigmas(schedule, scheduler.sigmas.double().numpy())
    return fs.solvers.SOLVERS[solver](schedule, grid, prediction="eps", **WORDS[solver])


def fitted_plan(nfe):
    """As `fit` makes them at 10 evaluations and more with history=10: every row from the tenth on
    reads x, its prediction and nine kept ones, and keeps its own. The weights are DDIM's, a tenth
    of the prediction's shared out among the kept.
    """
    schedule = fs.schedules.DiscreteVP.linear()
    grid = fs.grids.uniform(schedule, nfe)
    steps = enumerate(np.transpose(fs.solvers.jump(schedule, grid[:-1], grid[1:])).tolist())
    weights = [[a, *[b / 90] * (n := min(k, 9)), b * (1 - n / 90)] for k, (a, b) in steps]
    return fs.solvers.fitted(schedule, grid, weights=weights, prediction="eps")


def end_of(plan, noise, model_outputs):
    """Ours in float64, and its range; float32 differs from it by rounding alone."""
    last = {}
    for dtype in (torch.float32, torch.float64):
        run = fs.Run(plan, noise=noise.to(dtype), state_dtype=dtype)
        for f in model_outputs:
            run.step(f.to(run.model_input.dtype))
        last[dtype] = run.x.double()
    size = float(last[torch.float64].abs().max())
    own = float((last[torch.float32] - last[torch.float64]).abs().max()) / size
    bound = 2.0**-24 * plan.W * plan.rows * float(abs(plan.M).max())
    if not own <= bound:
        raise AssertionError(
            f"step: float32 differs from float64 by {own:.1e} of its range; rounding explains "
            f"{bound:.1e}"
        )
    return last[torch.float64], size


def check(plan, scheduler, noise, model_outputs):
    """Ours against rounding, and against the peer: the two do the same work."""
    end, size = end_of(plan, noise, model_outputs)
    x = noise.clone()
    for t, f in zip(scheduler.timesteps, model_outputs, strict=True):
        x = scheduler.step(f, t, x, return_dict=False)[0]
    foreign = float((x.double() - end).abs().max()) / size
    # The peer rounds its sigmas and coefficients to float32 before it uses them.
    if not foreign <= 1e-3:
        raise AssertionError(
            f"step: differs from {type(scheduler).__name__} by {foreign:.1e} of its range"
        )


@pytest.mark.parametrize("solver", TARGETS)
@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def bench_step(benchmark, solver, shape):
    benchmark.group = "step"
    nfe, elements = SIZES[shape], torch.Size(shape).numel()
    plan = our_plan(solver, peer_scheduler(solver, nfe))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model_outputs = outputs(shape, nfe)
    with torch.inference_mode():
        check(plan, peer_scheduler(solver, nfe), noise, model_outputs)
        per_step = step_bytes(fs.Run(plan, noise=noise, preview=False))
        loops = {name: _rounds(move, nfe) for name, move in moves(per_step, elements).items()}

        def ours():
            run = fs.Run(plan, noise=noise, preview=False)
            return lambda: [run.step(f) for f in model_outputs]

        def theirs():
            scheduler = peer_scheduler(solver, nfe)
            scheduler.set_begin_index(0)
            pairs = list(zip(scheduler.timesteps, model_outputs, strict=True))

            def loop():
                x = noise
                for t, f in pairs:
                    x = scheduler.step(f, t, x, return_dict=False)[0]

            return loop

        own, peers = interleaved(benchmark, ours, {"diffusers": theirs, **loops})
    name = f"{solver}, {'×'.join(map(str, shape))}"
    target = TARGETS[solver][list(SIZES).index(shape)]
    threads = str(torch.get_num_threads())
    benchmark.extra_info.update(evaluations=nfe, bytes_per_step=per_step, threads=threads)
    figure(benchmark, f"{name}: one step", [s / nfe * 1e6 for s in own], "µs")
    why = f"ours moves {per_step / elements:.0f} bytes an element at the speed shown; the peer "
    why += "costs more or less by its page faults"
    ratios = [p / s for p, s in zip(peers["diffusers"], own, strict=True)]
    figure(benchmark, f"{name}: against diffusers", ratios, "x", target=target, missed=why)
    shares = {loop: [100 * p / s for p, s in zip(peers[loop], own, strict=True)] for loop in loops}
    call = "the call from Python is most of it: the triad is one ctypes call with its arguments "
    why, what = call + "made beforehand" if elements < 65536 else "", "share of a triad's speed"
    figure(benchmark, f"{name}: {what}", shares["triad"], "%", target=85, missed=why)
    least = 72 if elements < 65536 else None
    figure(benchmark, f"{name}: of an in-place loop's", shares["in place"], "%", target=least)


@pytest.mark.parametrize("shape", [*SIZES][:2], ids=lambda shape: "x".join(map(str, shape)))
def bench_fitted_step(benchmark, shape):
    """A fitted plan's widest rows, beside the loops alone: no peer has any."""
    benchmark.group = "step"
    nfe, elements = SIZES[shape], torch.Size(shape).numel()
    plan = fitted_plan(nfe)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model_outputs = outputs(shape, nfe)
    with torch.inference_mode():
        end_of(plan, noise, model_outputs)
        per_step = step_bytes(fs.Run(plan, noise=noise, preview=False))
        loops = {name: _rounds(move, nfe) for name, move in moves(per_step, elements).items()}

        def ours():
            run = fs.Run(plan, noise=noise, preview=False)
            return lambda: [run.step(f) for f in model_outputs]

        own, peers = interleaved(benchmark, ours, loops)
    name, threads = f"fitted, {'×'.join(map(str, shape))}", str(torch.get_num_threads())
    benchmark.extra_info.update(evaluations=nfe, bytes_per_step=per_step, threads=threads)
    figure(benchmark, f"{name}: one step", [s / nfe * 1e6 for s in own], "µs")
    words = {"triad": "share of a triad's speed", "in place": "of an in-place loop's"}
    for loop, what in words.items():
        shares = [100 * p / s for p, s in zip(peers[loop], own, strict=True)]
        least = 85 if loop == "triad" else None
        figure(benchmark, f"{name}: {what}", shares, "%", target=least)


def _rounds(move, nfe):
    return lambda: lambda: [move() for _ in range(nfe)]
