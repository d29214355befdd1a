"""Runs that begin at a level of their own, one a sample: from images, from states that stand there
already, and up to noise, in one batch.
"""

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids, solvers
from fastsample.model import Model
from fastsample.schedules import VP, Flow

LEVELS = (0.4, 2.5, 30.0)


def judged(prediction, schedule):
    """A model, elementwise in x, and the batch sizes it was asked with."""
    asked = []

    def model(x, t):
        asked.append(len(x))
        return torch.tanh(x) * (1.0 + t.view(-1, 1).to(x.dtype))

    return Model(model, schedule, prediction), asked


@pytest.mark.parametrize(
    ("schedule", "prediction"), [(VP(), "eps"), (Flow(3.0), "flow")], ids=["VP", "Flow"]
)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_a_level_for_each_sample(solver, schedule, prediction):
    model, asked = judged(prediction, schedule)
    plan = solvers.SOLVERS[solver](model, grids.uniform(schedule, 6))
    images = torch.linspace(-1.0, 1.0, 15).reshape(3, 5)
    alone = [
        fs.Sampler(plan, model)(latent=images[i : i + 1], level=level, seed=i)
        for i, level in enumerate(LEVELS)
    ]
    asked.clear()
    engine = fs.Engine(model, (5,), capacity=3)
    tickets = [
        engine.submit(plan, latent=images[i : i + 1], level=level, seed=i)
        for i, level in enumerate(LEVELS)
    ]
    engine.run()
    assert asked == [3] * plan.nfe  # one call for all of them
    for ticket, wanted in zip(tickets, alone, strict=True):
        torch.testing.assert_close(ticket.result(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("schedule", "prediction"), [(VP(), "eps"), (Flow(3.0), "flow")], ids=["VP", "Flow"]
)
def test_a_state_that_stands_there_already(schedule, prediction):
    """The state that an image's noise makes, handed in at its level, ends where the image does."""
    model, _ = judged(prediction, schedule)
    plan = solvers.dpmpp_2m(model, grids.uniform(schedule, 6))
    image = torch.linspace(-1.0, 1.0, 5)[None]
    engine = fs.Engine(model, (5,), capacity=3)
    pairs = []
    for level in LEVELS:
        there = plan.remake(level=level)
        assert abs(there.sigma[1] / there.alpha[1] - level) <= 1e-12 * level
        whole, states = fs.Sampler(there, model)(latent=image, seed=3, trajectory=True)
        again = fs.Sampler(there, model)(latent=states[0], start=1)
        torch.testing.assert_close(again, whole, rtol=0, atol=0)
        pairs.append((engine.submit(there, latent=states[0], start=1), whole))
    engine.run()
    for ticket, whole in pairs:
        torch.testing.assert_close(ticket.result(), whole, rtol=0, atol=0)


def test_images_go_up_beside_others_that_come_down():
    schedule = Flow()
    model, _ = judged("flow", schedule)
    up = solvers.inverted("heun", model, np.linspace(0.0, 1.0, 5))
    down = solvers.heun(model, grids.uniform(schedule, 5))
    image, noise = torch.linspace(-1.0, 1.0, 5)[None], torch.linspace(2.0, -1.0, 5)[None]
    engine = fs.Engine(model, (5,), capacity=2)
    rises, falls = engine.submit(up, latent=image), engine.submit(down, noise=noise)
    engine.run()
    for ticket, wanted in (
        (rises, fs.Sampler(up, model)(latent=image)),
        (falls, fs.Sampler(down, model)(noise=noise)),
    ):
        torch.testing.assert_close(ticket.result(), wanted, rtol=0, atol=0)
