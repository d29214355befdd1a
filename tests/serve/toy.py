"""A model of small samples that takes its time, as `examples.ray_serve` is told of one by name."""

import time

import fastsample as fs


def slow(x, t, label):
    time.sleep(0.03)
    return x / (1 + t.view(-1, 1, 1, 1) ** 2) + 0.01 * label.view(-1, 1, 1, 1)


def model() -> fs.Model:
    return fs.Model(slow, fs.schedules.EDM(), "x0", model_id="toy")


def plan(steps: int) -> fs.Plan:
    return fs.solvers.euler(model(), fs.grids.karras(fs.schedules.EDM(), steps))
