"""One step on a GPU, `Run.step` on the backend that covers it: the share of a triad's speed over
the same bytes.

`make gpu` runs it. Both sides are timed from the host over a whole trajectory, with one wait for
the device at its end.
"""

import pytest
import torch
from measure import figure, interleaved, outputs
from triad import step_bytes

import fastsample as fs

# shape -> evaluations in a round
SIZES = {(1, 16, 128, 128): 20, (1, 16, 21, 60, 104): 8, (4, 16, 21, 60, 104): 8}


def run_of(plan, shape, device):
    return fs.Run(plan, shape=shape, seed=0, device=device, preview=False)


def check(plan, shape, model_outputs):
    """The GPU's state equals the CPU's, bit for bit."""
    last = []
    for device in ("cpu", "cuda"):
        run = run_of(plan, shape, device)
        for f in model_outputs:
            run.step(f.to(device))
        last.append(run.x.cpu().view(torch.int32))
    if not torch.equal(*last):
        raise AssertionError("step: the GPU's state is not the CPU's, bit for bit")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def bench_step_cuda(benchmark, shape):
    benchmark.group = "gpu"
    schedule, nfe = fs.schedules.DiscreteVP.linear(), SIZES[shape]
    plan = fs.solvers.dpmpp_2m(schedule, fs.grids.trailing(schedule, nfe), prediction="eps")
    host = outputs(shape, nfe)
    with torch.inference_mode():
        check(plan, shape, host)
        model_outputs = [f.cuda() for f in host]
        moved = step_bytes(run_of(plan, shape, "cuda"))
        a, b, c = (torch.rand(int(moved) // 12, device="cuda") for _ in range(3))

        def ours():
            run = run_of(plan, shape, "cuda")
            torch.cuda.synchronize()
            return lambda: ([run.step(f) for f in model_outputs], torch.cuda.synchronize())

        def triad():
            torch.cuda.synchronize()
            adds = lambda: [torch.add(b, c, alpha=1.5, out=a) for _ in range(nfe)]
            return lambda: (adds(), torch.cuda.synchronize())

        own, peers = interleaved(benchmark, ours, {"triad": triad})
    name = f"dpmpp_2m on {torch.cuda.get_device_name()}, {'×'.join(map(str, shape))}"
    benchmark.extra_info.update(evaluations=nfe, bytes_per_step=moved)
    figure(benchmark, f"{name}: one step", [s / nfe * 1e6 for s in own], "µs")
    why = "the backend is plain torch, a kernel for each product and sum: "
    why += "this version has no CUDA kernels"
    share = [100 * p / s for p, s in zip(peers["triad"], own, strict=True)]
    figure(benchmark, f"{name}: share of the triad's speed", share, "%", target=85, missed=why)
