"""Requests of several tracks in an Engine: each has the bits of fs.Sampler(plans, model)."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from company import normal
from tracked import alike, plan_of

import fastsample as fs

SHAPES = {"video": (3, 4, 5), "audio": (7,)}


def heard(x, t, label):
    """Elementwise, but for one number of the other track that each hears."""
    first = {name: v.flatten(1)[:, 0] for name, v in x.items()}
    other = {"video": "audio", "audio": "video"}

    def one(name, v):
        column = (-1, *[1] * (v.dim() - 1))
        own = v + (first[other[name]] * 0.25 + label).view(column)
        return own / (own.abs() + 1) - t[name].view(column) * v

    return {name: one(name, v) for name, v in x.items()}


def lower(x, t, label):
    return heard({name: v * 0.5 for name, v in x.items()}, t, label + 1)


def told(k):
    return {"label": torch.tensor([float(k)])}


def both(solver, n, other=None, **words):
    names = {"video": solver, "audio": other or solver}
    return {name: plan_of(name, solver=names[name], n=n, **words) for name in SHAPES}


def noise(k):
    return {name: normal(k, *size) for name, size in SHAPES.items()}


def swapped(plans):
    """The same, each asking the second model from its fifth row on."""
    calls = lambda plan: np.where((np.arange(plan.rows) > 4) & (plan.call == 0), 1, plan.call)
    return {name: replace(plan, call=calls(plan)) for name, plan in plans.items()}


def requests():
    made = [(both("unipc", 4), {"noise": noise(1), "cond": told(1)})]
    made.append((both("dpmpp_2m_sde", 6, "euler"), {"seed": 5, "cond": told(2)}))
    words = {"seed": 6, "stage": 3, "cond": told(3), "uncond": told(0)}
    made.append((both("dpmpp_3m", 5), words | {"guidance": {"video": 2.0, "audio": 1.5}}))
    made.append((swapped(both("euler", 7)), {"seed": {"video": 8, "audio": 9}, "cond": told(4)}))
    masked = both("dpmpp_2m", 5, inpaint=True)
    known = {"video": normal(7, *SHAPES["video"])}
    mask = {"video": (normal(8, *SHAPES["video"]) > 0).float()}
    made.append((masked, {"seed": 11, "cond": told(5), "mask": mask, "known": known}))
    image = {"video": normal(9, *SHAPES["video"]), "audio": normal(10, *SHAPES["audio"])}
    made.append((both("euler", 6), {"latent": image, "start": 3, "cond": told(6)}))
    made.append((both("lcm", 6), {"latent": image, "strength": 0.5, "seed": 1, "cond": told(7)}))
    return made


def alone(plans, words):
    start = {} if "noise" in words or "latent" in words else {"shape": _batch()}
    asked = max(int(plan.call.max()) for plan in plans.values())
    return fs.Sampler(plans, [heard, lower][: asked + 1])(**words, **start)


def _batch():
    return {name: (1, *size) for name, size in SHAPES.items()}


@pytest.mark.parametrize("pad_to", [None, 9])
def test_each_request_has_the_bits_of_its_run_alone(pad_to):
    made = requests()
    expected = [alone(*request) for request in made]
    engine = fs.Engine([heard, lower], SHAPES, 5, pad_to=pad_to, waiting=9)
    assert engine.shape == SHAPES
    for order in range(10):
        chance, tickets = random.Random(order), {}
        for k in chance.sample(range(len(made)), len(made)):
            while chance.random() < 0.3:
                engine.tick()
            tickets[k] = engine.submit(made[k][0], **made[k][1])
        engine.run()
        for k, own in enumerate(expected):
            assert alike(tickets[k].result(), own), (order, k)


def test_a_tick_asks_once_and_launches_each_track():
    seen = []

    def model(x, t, label):
        seen.append({name: (tuple(v.shape), t[name].tolist()) for name, v in x.items()})
        return heard(x, t, label)

    engine = fs.Engine(model, SHAPES)
    plans = both("euler", 3)
    tickets = [engine.submit(plans, seed=k, cond=told(k)) for k in range(2)]
    levels = tickets[0].levels
    assert levels == {k: (float(p.sigma[0]), float(p.alpha[0])) for k, p in plans.items()}
    assert tickets[0].x0 is None
    engine.tick()
    engine.tick()
    times = {k: [float(torch.tensor(p.t[0, 0]).float())] * 2 for k, p in plans.items()}
    assert seen == [{k: ((2, *size), times[k]) for k, size in SHAPES.items()}]
    run = fs.Run(plans, shape=_batch(), seed=0)
    run.step(heard(run.model_input, run.t, **told(0)))
    assert alike(tickets[0].x0, run.x0)
    assert engine.metrics().launches == 4
    tickets[1].cancel()
    engine.run()
    assert alike(tickets[0].result(), alone(plans, {"seed": 0, "cond": told(0)}))


def test_a_track_that_becomes_non_finite_ends_its_request_alone():
    def model(x, t, label):
        f = heard(x, t, label)
        bad = (label == 3) & (t["audio"] < 0.9)
        return f | {"audio": torch.where(bad.view(-1, 1), torch.nan, f["audio"])}

    engine, plans = fs.Engine(model, SHAPES), both("dpmpp_2m", 5)
    tickets = [engine.submit(plans, seed=k, cond=told(k)) for k in (3, 4)]
    engine.run()
    with pytest.raises(FloatingPointError, match=r"^Ticket.result: audio became non-finite at row"):
        tickets[0].result()
    assert alike(tickets[1].result(), alone(plans, {"seed": 4, "cond": told(4)}))
    again = engine.submit(plans, seed=5, cond=told(5))
    engine.run()
    assert alike(again.result(), alone(plans, {"seed": 5, "cond": told(5)}))


def submitted(plans=None, engine=None, **words):
    engine = engine or fs.Engine(heard, SHAPES)
    return engine.submit(plans or both("euler", 4), **{"seed": 1, "cond": told(1)} | words)


REFUSED = {
    "one plan": (lambda: submitted(plan_of("video")), "plan is a Plan; a dict of the tracks"),
    "another name": (
        lambda: submitted({"video": plan_of("video")}),
        "plan is a dict of 'video'; a",
    ),
    "unlike counts": (
        lambda: submitted({**both("euler", 4), "audio": plan_of("audio", "euler", 3)}),
        "track 'video' asks the model 4 times and 'audio' 3; .*after=1",
    ),
    "unlike rows": (
        lambda: submitted(
            both("euler", 4), start={"video": 2}, latent={"video": normal(1, 3, 4, 5)}
        ),
        "track 'audio' asks the model 4 times and 'video' 3",
    ),
    "guided in part": (
        lambda: submitted(
            {
                name: fs.guidance.guided(p, 2, interval=(lo, 9.0))
                for (name, p), lo in zip(both("euler", 4).items(), (-9.0, 0.0), strict=True)
            },
            uncond=told(0),
            guidance=2.0,
        ),
        "track 'video' enters at row 0 with rows that ask .*fs.Sampler\\(plans, model\\)",
    ),
    "noise of one": (lambda: submitted(seed=None, noise=normal(1, 7)), "noise is a Tensor; a dict"),
    "shape of one": (
        lambda: submitted(seed=None, noise=noise(1) | {"audio": normal(1, 8)}),
        r"track 'audio': Engine.submit: \[1, 8\] was given; one sample, \[1, 7\]",
    ),
    "density": (lambda: fs.Engine(heard, SHAPES, density=True), "density=True with shapes by"),
    "words": (
        lambda: fs.Engine(fs.Model(heard, fs.schedules.Flow(), "flow"), SHAPES),
        "model is an fs.Model",
    ),
    "no tracks": (lambda: fs.Engine(heard, {}), r"shape=\{\}"),
    "no name": (lambda: fs.Engine(heard, {3: (2,)}), r"shape=\{3: \(2,\)\}"),
    "select": (lambda: _selected(), "requests of several tracks"),
}


def _selected():
    engine = fs.Engine(heard, SHAPES)
    submitted(engine=engine)
    engine.select([0])


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    make, said = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=f"^Engine.*{said}") as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda f: f["video"], "the model returned a Tensor; a dict of the tracks"),
        (lambda f: {"video": f["video"]}, "the model returned a dict of 'video'; a dict"),
        (lambda f: f | {"audio": f["audio"][:, :3]}, r"the model returned \[1, 3\] for a sample"),
    ],
)
def test_an_answer_that_does_not_fit(answer, said):
    engine = fs.Engine(lambda x, t, label: answer(heard(x, t, label)), SHAPES)
    ticket = submitted(engine=engine)
    engine.tick()
    with pytest.raises((ValueError, TypeError), match=f"^Engine.tick: .*{said}"):
        engine.tick()
    assert ticket.row == 1
