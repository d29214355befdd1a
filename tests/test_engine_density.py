"""What an Engine hands back of each row: exact levels, and how the state was distributed that a row
led to, with the bits of a Run alone.
"""

import pytest
import torch
from cases import BACKENDS, same
from company import SHAPE, ask, normal, plan, told

import fastsample as fs

TWO = {"uncond": told(0), "guidance": 2.0}
MASK = {"mask": (normal(3) > 0).float(), "known": normal(4)}
BESIDE = {
    "dpmpp_2m_sde": (plan("dpmpp_2m_sde", 5), {"seed": 1, "cond": told(1)}),
    "guided": (plan("euler_ancestral", 6), {"seed": 2, "cond": told(2)} | TWO),
    "two draws": (plan("dpmpp_sde", 4), {"seed": 3, "cond": told(3), "stage": 2}),
    "deterministic": (plan("unipc", 7), {"seed": 4, "cond": told(4)}),
    "lcm": (plan("lcm", 3), {"seed": 5, "cond": told(5)}),
    "masked": (plan("dpmpp_2m_sde", 5, inpaint=True), {"seed": 6, "cond": told(6)} | MASK),
    "window": (
        plan("euler_ancestral", 4),
        {
            "seed": 7,
            "cond": told(7),
            "noise_source": fs.window((2, 3, 4), (slice(1), ..., slice(2))),
        },
    ),
}


def by_run(plan_, words, backend):
    """{row: (x, mean, std, log_prob)} of every row of a Run that has a density."""
    words = dict(words)
    conds = [words.pop(name) for name in ("cond", "uncond") if name in words]
    if len(conds) == 2:
        plan_ = fs.guidance.guided(plan_, 2)
    run, found = fs.Run(plan_, shape=(1, *SHAPE), backend=backend, **words), {}
    while not run.done:
        f, row = [ask(run.model_input, run.t, **cond) for cond in conds], run.row
        if run.std.any() and "mask" not in words:
            found[row] = [None, run.mean(f), run.std, run.log_prob(f)]
        run.step(f)
        if row in found:
            found[row][0] = run.x.clone()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_row_that_draws_has_the_density_of_a_run_alone(backend):
    engine = fs.Engine(ask, SHAPE, density=True, backend=backend)
    tickets, seen = {}, {name: {} for name in BESIDE}

    def tick():
        engine.tick()
        for name, ticket in tickets.items():
            if ticket.drawn is not None:
                seen[name][ticket.drawn.row] = ticket.drawn

    for name, (plan_, words) in BESIDE.items():
        tickets[name] = engine.submit(plan_, **words)
        tick()
    while engine.running:
        tick()
    for name in BESIDE:
        expected = by_run(*BESIDE[name], backend)
        if name == "masked":  # a run refuses most of its rows
            continue
        assert seen[name].keys() == expected.keys() and (name == "deterministic") == (not expected)
        for row, (x, mean, std, log_prob) in expected.items():
            ours = seen[name][row]
            assert ours.row == row and ours.log_prob.dtype == torch.float64
            assert same(ours.x, x) and same(ours.mean, mean), (name, row)
            assert same(ours.std, std) and same(ours.log_prob, log_prob), (name, row)


def test_a_row_that_re_uses_noise_has_none():
    plan_, words = BESIDE["masked"]
    engine, run = fs.Engine(ask, SHAPE, density=True), None
    ticket = engine.submit(plan_, **words)
    rows = {k: v for k, v in words.items() if k != "cond"}
    run, allowed = fs.Run(plan_, shape=(1, *SHAPE), **rows), set()
    while not run.done:
        f = ask(run.model_input, run.t, **words["cond"])
        try:
            if run.std.any() and run.mean(f) is not None:
                allowed.add(run.row)
        except ValueError:
            pass
        run.step(f)
    found = set()
    while engine.running:
        engine.tick()
        found |= {ticket.drawn.row} if ticket.drawn is not None else set()
    assert found == allowed and len(allowed) < plan_.nfe


def test_levels_are_the_plans_own_numbers():
    engine = fs.Engine(ask, SHAPE)
    ticket = engine.submit(plan("dpmpp_2m", 5), seed=1, cond=told(1))
    seen = [ticket.levels]
    while engine.running:
        engine.tick()
        seen.append(ticket.levels)
    assert seen == list(zip(ticket.plan.sigma, ticket.plan.alpha, strict=True))
    assert all(type(v) is float for pair in seen for v in pair)
    assert ticket.drawn is None


def test_what_was_drawn_stays_as_it_was_and_is_not_there_unasked():
    engine, still = fs.Engine(ask, SHAPE, density=True), fs.Engine(ask, SHAPE)
    words = {"seed": 1, "cond": told(1)}
    ticket, other = (each.submit(plan("euler_ancestral", 5), **words) for each in (engine, still))
    for _ in range(3):
        engine.tick()
        still.tick()
    kept = ticket.drawn
    copies = [v.clone() for v in kept[1:]]
    engine.run()
    still.run()
    assert ticket.drawn.row > kept.row
    assert all(same(v, copy) for v, copy in zip(kept[1:], copies, strict=True))
    assert other.drawn is None and same(other.result(), ticket.result())
