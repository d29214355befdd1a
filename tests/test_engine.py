"""The Engine: every request equals its run alone, whatever else is in flight."""

import random
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import same
from company import EXPECTED, MADE, SHAPE, Asked, alone, ask, joined_at_random, plan, told
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from fastsample.kernels.backend import Choice
from fastsample.runtime.stack import LEAST, Stack

ENGINES = {}


COMING = given(
    order=st.integers(0, 2**32),
    capacity=st.sampled_from((9, 64)),
    policy=st.sampled_from(("first", "shortest", lambda waiting, running: waiting[::-1])),
)


@settings(max_examples=settings.default.max_examples)
@COMING
def test_each_request_equals_its_run_alone(order, capacity, policy):
    """64 of them in every order of coming and entering, in engines that have seen many requests
    before and in new ones.
    """
    equal_to_its_run_alone(order, capacity, policy)


@pytest.mark.slow
@settings(max_examples=200)
@COMING
def test_each_request_equals_its_run_alone_in_two_hundred_orders(order, capacity, policy):
    equal_to_its_run_alone(order, capacity, policy)


def equal_to_its_run_alone(order, capacity, policy):
    assert len(MADE) == 2 * len(fs.solvers.SOLVERS) + 4
    if order % 20 == 0:
        ENGINES.clear()
    new = fs.Engine(ask, SHAPE, capacity, policy=policy)
    engine = ENGINES.setdefault((capacity, policy), new)
    some = random.Random(~order).sample(range(len(MADE)), 64)
    results = joined_at_random(engine, [MADE[k] for k in some], order)
    for k, x in zip(some, results, strict=True):
        assert same(x, EXPECTED[k]), f"request {k}: {MADE[k][0]!r}"


def test_on_the_definition():
    engine = fs.Engine(ask, SHAPE, 20, backend="reference")
    results = joined_at_random(engine, MADE, 7)
    assert all(same(x, expected) for x, expected in zip(results, EXPECTED, strict=True))


@pytest.mark.parametrize(
    ("state", "model"), [(torch.float64, torch.float64), (torch.float32, torch.bfloat16)]
)
def test_in_other_dtypes(state, model):
    engine = fs.Engine(ask, SHAPE, 20, state_dtype=state, model_dtype=model)
    results = joined_at_random(engine, MADE[::5], 3)
    for x, (plan_, words) in zip(results, MADE[::5], strict=True):
        start = {} if "noise" in words or "latent" in words else {"shape": (1, *SHAPE)}
        sampler = fs.Sampler(plan_, ask, state_dtype=state, model_dtype=model)
        assert same(x, sampler(**words, **start)) and x.dtype == state


def test_a_network_under_pad_to_equals_its_run_alone_there():
    model = fs.models.fashion()
    grid = fs.grids.karras(model.schedule, 3)
    makers = [fs.solvers.SOLVERS[s] for s in ("dpmpp_2m", "unipc", "dpmpp_2m_sde", "euler")]
    made = [
        (makers[k % 4](model, grid), {"seed": k, "cond": {"label": torch.tensor([k])}})
        for k in range(8)
    ]
    expected = []
    for plan_, words in made:
        engine = fs.Engine(model, (1, 28, 28), 8, pad_to=8)
        ticket = engine.submit(plan_, **words)
        engine.run()
        expected.append(ticket.result())
    engine = fs.Engine(model, (1, 28, 28), 8, pad_to=8)
    for order in range(5):
        results = joined_at_random(engine, made, order)
        assert all(same(x, own) for x, own in zip(results, expected, strict=True)), order


# -- one tick --------------------------------------------------------------------------------------
def test_a_tick_asks_once_with_a_time_and_a_row_for_each_branch():
    model, long, short = Asked(), plan("dpmpp_2m", 5), plan("euler", 2)
    engine = fs.Engine(model, SHAPE)
    engine.submit(long, seed=1, cond=told(1))
    assert engine.tick() == [] and model.batches == []  # row 0 asks nobody
    assert (engine._places.host["f_index"] == -1).all()
    engine.tick()
    words = {"cond": told(2), "uncond": told(0), "guidance": 2.0}
    ticket = engine.submit(short, seed=2, **words)
    engine.tick()
    engine.tick()
    assert engine.tick() == [ticket] and ticket.done and engine.running[0].row == 5
    engine.run()
    assert model.batches == [1, 1, 3, 3, 1]
    late, early = ([float(np.float32(t)) for t in p.t[:-2, 0]] for p in (long, short))
    asked = [[late[0]], [late[1]], [late[2], *2 * [early[0]]], [late[3], *2 * [early[1]]]]
    assert model.times == [*asked, [late[4]]]
    assert engine.tick() == [] and len(model.batches) == 5


def test_a_row_that_needs_one_branch_asks_for_one():
    model, alone_ = Asked(), Asked()
    in_part, words = MADE[-1]
    engine = fs.Engine(model, SHAPE)
    engine.submit(in_part, **words)
    engine.run()
    fs.Sampler(in_part, alone_)(shape=(1, *SHAPE), **words)
    assert model.batches == alone_.batches and set(model.batches) == {1, 2}


def test_the_batch_keeps_its_size_under_pad_to():
    model = Asked()
    engine = fs.Engine(model, SHAPE, 9, pad_to=4)
    results = []
    for k in range(6):
        while sum(ticket.plan.G for ticket in engine.running) > 2:
            engine.tick()
        two = {"uncond": told(0), "guidance": 2.0} if k % 2 else {}
        words = {"seed": k, "cond": told(k)} | two
        results.append((engine.submit(plan(n=3 + k), **words), plan(n=3 + k), words))
    engine.run()
    assert set(model.batches) == {4}
    assert all(same(ticket.result(), alone(*request)) for ticket, *request in results)


def paused(plan_, at):
    """The plan with a row before row `at` that changes nothing and asks nobody."""
    before, own = at - 1, {f.name: getattr(plan_, f.name) for f in fields(plan_)}
    hold = {name: values[-1] for name, values in own.items() if name != "note"}
    hold |= {name: own[name][before] for name in ("c", "t")}
    hold |= {name: own[name][at] for name in ("alpha", "sigma")}
    return replace(plan_, **{name: np.insert(own[name], at, v, 0) for name, v in hold.items()})


def test_rows_that_ask_nobody():
    still = paused(plan("dpmpp_2m", 4), 3)
    assert still.call.tolist() == [-1, 0, 0, -1, 0, 0, -1]
    made = [(still, {"seed": 3, "cond": told(1)}), MADE[1], MADE[-1]]
    for order in range(5):
        results = joined_at_random(fs.Engine(ask, SHAPE, 3), made, order)
        assert all(same(x, alone(*r)) for x, r in zip(results, made, strict=True))


def test_a_model_told_two_times():
    def two(x, t, label):
        assert t.shape == (len(x), 2)
        return ask(x, t[:, 0] - t[:, 1], label)

    wide = plan("unipc", 4).padded(E=2)
    engine = fs.Engine(two, SHAPE)
    ticket = engine.submit(wide, seed=1, cond={"label": torch.ones(1)})
    engine.run()
    expected = fs.Sampler(wide, two)(shape=(1, *SHAPE), seed=1, cond={"label": torch.ones(1)})
    assert same(ticket.result(), expected)
    said, words = r"^Engine.submit: the plan tells the model 1 scalar", {"seed": 1}
    with pytest.raises(ValueError, match=said):
        engine.submit(plan(), seed=1, cond={"label": torch.ones(1)})
    engine = fs.Engine(lambda x, t: x, SHAPE, pad_to=1)
    with pytest.raises(ValueError, match="has 2 branches and pad_to=1"):  # and decides nothing
        engine.submit(wide, cond={}, uncond={}, guidance=2.0, **words)
    with engine._turn:  # as in a tick
        engine.submit(wide, **words).cancel()
        engine.submit(wide, **words)
        with pytest.raises(ValueError, match=said):
            engine.submit(plan(), **words)


class Counted(TorchDispatchMode):
    """Names of the operators that are dispatched, those apart that only look at memory."""

    VIEWS = {"slice", "select", "view", "detach", "alias"}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in self.VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("pad_to", "guided"), [(None, 0), (None, 2), (12, 2)])
def test_between_two_ticks_one_copy_and_one_gather(monkeypatch, pad_to, guided):
    """Launch and model left out: the launch is one that only notes that it was called."""
    launches = []
    stand_in = SimpleNamespace(
        bind=lambda pool: lambda row, f=(), noise=(), x_in=None, x_out=None: launches.append(row),
        fill=lambda out, seed, noise_id, stage=None: None,
    )
    choice = Choice("stand-in", "of the test", stand_in)
    monkeypatch.setattr("fastsample.runtime.engine.select", lambda *args: choice)
    output = torch.zeros(12, *SHAPE)
    engine = fs.Engine(lambda x, t, label, text: output[: len(x)], SHAPE, 8, pad_to=pad_to)
    for k in range(6):
        words = {"seed": k, "cond": told(k)}
        two = {"uncond": told(0), "guidance": 2.0} if k < guided else {}
        engine.submit(plan("unipc", 9), **words, **two)
    for _ in range(3):
        engine.tick()
    with Counted() as mode:
        for launched in range(4, 9):
            mode.names = []
            engine.tick()
            assert mode.names == ["copy_"] + ["index_select"] * bool(guided)
            assert launches == [None] * launched


# -- memory ----------------------------------------------------------------------------------------
def test_growing_between_ticks_changes_nobody():
    """From no slot and one branch to guidance, a slot, three, noise and masks, one by one."""
    kinds = (
        lambda p, words: p.S == p.L == p.K == 0,
        lambda p, words: p.S == p.L == 0 and "uncond" in words,
        lambda p, words: p.S == 1 and p.L == 0,
        lambda p, words: p.S == 3 and p.L == 0,
        lambda p, words: p.L == 1 and "mask" not in words,
        lambda p, words: "mask" in words,
    )
    order = [next(k for k, made in enumerate(MADE) if kind(*made)) for kind in kinds]
    engine, tickets, pools = fs.Engine(ask, SHAPE, 6), [], []
    for k in order:
        tickets.append(engine.submit(MADE[k][0], **MADE[k][1]))
        pools.append(engine._places.pool)
        engine.tick()
    engine.run()
    assert all(a is not b for a, b in zip(pools, pools[1:], strict=False))
    assert all(same(t.result(), EXPECTED[k]) for t, k in zip(tickets, order, strict=True))


def test_plans_stand_once_in_the_table_and_leave_it():
    stack, kept = Stack(torch.float32, torch.device("cpu")), []
    first = stack.rows(plan("euler", 3), False)
    assert stack.rows(first.plan, False) is first and stack.rows(first.plan, True) is not first
    for k in range(60):
        rows = stack.rows(plan("euler", 30 + k) if k else plan("dpmpp_2m", 60), False)
        if k % 9 == 0:  # few have users
            rows.users += 1
            kept.append(rows)
        held = sorted((r.first, r.first + r.plan.rows) for r in {*kept, rows})
        assert all(a[1] <= b[0] for a, b in zip(held, held[1:], strict=False))
        for r in kept:
            here = slice(r.first, r.first + r.plan.rows)
            assert np.array_equal(stack.table.f[here], r.records[0])
            assert stack.table.shapes[here] == tuple(r.records[2])
        assert len(stack.table.f) == LEAST < 60 * 30
    assert np.array_equal(kept[-1].records[0], kept[-1].plan.padded(S=1).table()[0])
