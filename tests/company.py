"""64 requests of every kind, which share an Engine, and what each comes to alone."""

import random

import torch

import fastsample as fs

SCHEDULE, SHAPE = fs.schedules.Flow(shift=3.0), (3, 2)


def ask(x, t, label, text=()):
    """Elementwise, of exactly rounded operations: a row of a batch is the row alone."""
    column = (-1, *[1] * (x.dim() - 1))
    lengths = torch.tensor([float(len(word)) for word in text] or [0.0], dtype=x.dtype)
    x = x + label.to(x.dtype).view(column) * 0.25 + lengths.view(column)
    return x / (x.abs() + 1) - t.to(x.dtype).view(column) * x


class Asked:
    """A model, and what it was asked."""

    def __init__(self, model=ask, error_at=None):
        self.model, self.batches, self.times, self.error_at = model, [], [], error_at

    def __call__(self, x, t, **cond):
        self.batches.append(len(x))
        self.times.append(t.tolist())
        if len(self.batches) == self.error_at:
            raise KeyError("a model's own error")
        return self.model(x, t, **cond)


def told(k):
    return {"label": torch.tensor([float(k)]), "text": ["ab" * (k % 3)]}


def plan(solver="dpmpp_2m", n=5, **words):
    grid = fs.grids.uniform(SCHEDULE, n)
    return fs.solvers.SOLVERS[solver](SCHEDULE, grid, prediction="flow", **words)


def normal(seed, *shape):
    return torch.randn(1, *(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


def requests():
    """[(plan, words of submit)]: every solver at two lengths, by turns with noise given, guided
    with noise drawn and a stage, or with a mask, guided or not; an image, and an order of its own
    where there is one.
    """
    made = []
    for k, (solver, n) in enumerate((s, n) for s in fs.solvers.SOLVERS for n in (3, 7)):
        words = {"seed": 100 + k, "cond": told(k)}
        two = {"uncond": told(0), "guidance": 1.5 + k}
        kind = (k // 2 + k % 2) % 3  # the other length of a solver has another
        if kind == 0:
            made.append((plan(solver, n), words | {"noise": normal(k)}))
        elif kind == 1:
            made.append((plan(solver, n), words | two | {"stage": k}))
        else:
            masked = {"mask": (normal(k) > 0).float(), "known": normal(50 + k)}
            made.append((plan(solver, n, inpaint=True), words | (two if k % 2 else {}) | masked))
    image = plan("unipc", 6, start=2)
    made.append((image, {"latent": normal(1), "seed": 9, "cond": told(1)}))
    late = plan("euler", 6)
    made.append((late, {"latent": normal(2), "start": 3, "cond": told(2)}))
    no_mask = plan("unipc", 5, order=2, inpaint=True)  # could take one
    made.append((no_mask, {"seed": 2**64 - 1, "cond": told(3)}))
    in_part = fs.guidance.guided(plan("dpmpp_2m", 6), 2, interval=(-1.0, 1.0))
    made.append((in_part, {"seed": 5, "cond": told(4), "uncond": told(0), "guidance": 4.0}))
    return made


def alone(plan, words, shape=SHAPE):
    start = {} if "noise" in words or "latent" in words else {"shape": (1, *shape)}
    return fs.Sampler(plan, ask)(**words, **start)


def joined_at_random(engine, made, order):
    """Results of the requests, submitted in a random order with random ticks in between."""
    chance, tickets = random.Random(order), {}
    for k in chance.sample(range(len(made)), len(made)):
        while len(engine.waiting) == engine.capacity or chance.random() < 0.3:
            engine.tick()
        tickets[k] = engine.submit(made[k][0], **made[k][1])
    engine.run()
    return [tickets[k].result() for k in range(len(made))]


MADE = requests()
EXPECTED = [alone(*request) for request in MADE]
