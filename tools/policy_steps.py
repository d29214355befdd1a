"""The table of docs/hosts/lerobot.md: end points of LeRobot's loop by number of evaluations, with
its own Euler steps and with plans found here, all through the hook that its flow policies call.

    python tools/policy_steps.py [--unseen 64]

No weights of a policy come with the package. The network is the embedded flow transformer, which is
trained and asked as those are (t from 1 to 0, velocity noise - data), on 28x28 numbers in place of
50 actions of 32. Prints Markdown: mean PSNR to a fine run over noises that no search saw, where the
data's range is 2, and the root mean square error that this is.
"""

import argparse
from pathlib import Path
from sys import path

path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import fastsample as fs  # noqa: E402
from fastsample.interop import lerobot  # noqa: E402


def rows(model, seen, label):
    """(what, evaluations, hook) of every row."""
    for n in (5, 10, 20):
        yield "Euler, LeRobot's own", n, lerobot.euler_integrate
    words = {"cond": {"label": label[: len(seen)]}}
    yield "dpmpp_2m, even times", 5, lerobot.integrator(even(model, 5))
    fit = fs.optimize.fit(model, seen[:16], 6, cond={"label": label[:16]})
    for n in (4, 5, 6):
        yield "found: times and coefficients (`fit`)", n, lerobot.integrator(fit.plans[n])
    found = fs.optimize.search(model, seen, [5], beam=1, iterations=4, **words)
    yield "found, polished (`search`)", 5, lerobot.integrator(found.plans[5])


def even(model, n):
    return fs.solvers.dpmpp_2m(model, fs.grids.uniform(model.schedule, n))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unseen", type=int, default=64)
    unseen = parser.parse_args().unseen
    model, random = fs.models.fashion_flow(), torch.Generator().manual_seed(0)
    seen = torch.randn(48, 1, 28, 28, generator=random)
    fresh = torch.randn(unseen, 1, 28, 28, generator=random)
    label = torch.arange(max(48, unseen)) % 10
    denoise = lambda x, t: model.fn(x, t, label[: len(x)])
    run = lambda hook, n: torch.cat([hook(denoise, part, n) for part in fresh.split(50)])
    target, closer = (run(lerobot.integrator(even(model, n)), n) for n in (64, 128))
    agree = fs.metrics.psnr_each(target, closer).mean()
    print(f"Against 128 steps of dpmpp_2m, with which 64 agree to {agree:.1f} dB.\n")
    print("| steps | evaluations | mean PSNR | error |\n|---|---|---|---|")
    for what, n, hook in rows(model, seen, label):
        x = run(hook, n)
        error = (x - closer).square().mean().sqrt()
        psnr = fs.metrics.psnr_each(x, closer).mean()
        print(f"| {what} | {n} | {psnr:.1f} dB | {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
