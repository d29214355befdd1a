"""One step on a GPU: its time, and its share of the speed of a triad over the same bytes.

The state is float32, the model's outputs float32, float16 or bfloat16. A graph runs every row of a
plan over clones of the run, taken in turn, that do not fit in the caches together; the triad is
replayed over as many bytes of as many arrays. Each case is first held to the definition on the same
device, bit for bit.
"""

import pytest
import torch
from gpu import captured, cut, on_device, random, ratios, rotation, triad
from measure import figure
from triad import step_bytes

import fastsample as fs

pytestmark = pytest.mark.gpu
NFE = 4
MODELS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SIZES = {"64 KB": 2**16, "1 MB": 2**20, "32 MB": 2**25, "256 MB": 2**28, "1 GB": 2**30}
LARGE = 2**25  # bytes of state from which the share has a target
CASES = [("dpmpp_2m", model, size) for size in SIZES for model in MODELS]
CASES += [("unipc", "fp32", "256 MB"), ("dpmpp_2m_sde", "fp32", "256 MB")]
WHY = "the cut of a launch in csrc/cuda/rules.h was reasoned, not yet measured on this card"


def plan_of(solver):
    """Of a model that answers x0: its state keeps its size however often a row runs on it."""
    schedule = fs.schedules.Flow()
    grid = fs.grids.uniform(schedule, NFE)
    return fs.solvers.SOLVERS[solver](schedule, grid, prediction="x0")


def run_of(plan, noise, model, backend=None):
    words = {"model_dtype": model, "preview": False, "check": None, "backend": backend}
    return fs.Run(plan, noise=noise, seed=0, **words)


def check(plan, elements, model):
    """The state equals that of the definition, on this device, bit for bit."""
    last = []
    for backend in (None, "reference"):
        run = run_of(plan, random(1, elements), model, backend)
        for k in range(plan.nfe):
            run.step(random(1, elements, dtype=model, seed=2 + k))
        last.append(run.x.view(torch.int32))
    if not torch.equal(*last):
        raise AssertionError("step: the state is not the definition's, bit for bit")


def marked(solver, model, size):
    quick = solver == "dpmpp_2m" and size in ("64 KB", "32 MB", "256 MB")
    words = {"id": f"{solver}-{model}-{size.replace(' ', '')}"}
    return pytest.param(solver, model, size, marks=[] if quick else pytest.mark.long, **words)


@pytest.mark.parametrize(("solver", "model", "size"), [marked(*case) for case in CASES])
def bench_step_cuda(benchmark, solver, model, size):
    plan, elements = plan_of(solver), cut(SIZES[size], 2**12) // 4
    shown = solver == "dpmpp_2m" and size in ("64 KB", "256 MB")
    benchmark.group = "gpu" if shown else "gpu step"
    like, large = MODELS[model], SIZES[size] >= LARGE and solver != "dpmpp_2m_sde"
    with torch.inference_mode():
        check(plan, elements, like)
        moved = step_bytes(run_of(plan, random(1, elements), like))
        count = rotation(moved / 2)  # what lies in a clone is read and written once at most
        runs = [run_of(plan, random(1, elements, seed=k), like) for k in range(count)]
        given = [random(1, elements, dtype=like, seed=count + k) for k in range(count)]
        rows = lambda: [run.step(f) for _ in range(NFE) for run, f in zip(runs, given, strict=True)]
        peers = {"triad": triad(moved, count, times=NFE)}
        own, others = on_device(benchmark, captured(rows, warm=0), peers)
        if not all(run.done and run.x.isfinite().all() for run in runs):
            raise AssertionError("step: the replayed states are not finite")
    steps = NFE * count
    name = f"{solver}, {model} model, {size}"
    words = {"clones": str(count), "backend": runs[0]._choice.name}
    benchmark.extra_info.update(evaluations=NFE, bytes_per_step=moved, **words)
    figure(benchmark, f"{name}: one step", [s / steps * 1e6 for s in own], "µs")
    figure(benchmark, f"{name}: bytes a second", [moved * steps / s / 1e12 for s in own], "TB/s")
    share, target = ratios(others["triad"], own, 100), 90 if large and model != "fp16" else None
    figure(benchmark, f"{name}: share of the triad's speed", share, "%", target=target, missed=WHY)
