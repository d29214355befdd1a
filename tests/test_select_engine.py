"""Samples at rows of their own chosen among, in a pool and as an Engine's requests: each ends where
it would have, also in copies.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from cases import BACKENDS, BASE, lying, make, pooled, same
from choosing import FLOW, finish, inpainting, net, plan_of

import fastsample as fs
from fastsample.kernels.backend import bound, select
from fastsample.runtime.pool import Pool

POOLS = {
    "rows, weights, bounds and masks": replace(
        BASE, batch=5, weights=True, bound=True, noise_scale=True, mask=True, L=2
    ),
    "groups of a sample": replace(BASE, batch=5, groups=4, elements=60, K=2),
    "float64, in another order": replace(BASE, batch=5, state=torch.float64, layout="transposed"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", POOLS)
def test_a_pools_samples_stand_at_rows_of_their_own(case, backend):
    """All of a pool that is a sample's own moves: the launch after it gives each the same bits."""
    setup = make(POOLS[case])
    (x, slots, f, *table), options = setup.args, setup.options
    noise, stage = options.pop("noise"), torch.arange(5, dtype=torch.int32)
    index = torch.tensor([4, 1, 1, 0])

    def run(held: Pool, f: list, noise: list) -> Pool:
        launch = bound(select("step", held.x.device, held.x.dtype, backend), held)
        launch(None, *lying(held, f, noise))
        return held

    held = pooled(x, slots, *table, stage=stage, **options)
    chosen = held.selected(index)
    whole, chosen = run(held, f, noise), run(chosen, [v[index] for v in f], noise)
    for name in ("x", "model_input", "preview", "status", "seed", "stage", "row", "mask"):
        before, after = getattr(whole, name), getattr(chosen, name)
        assert before is after is None or same(before[index], after), name
    assert same(whole.slots[:, index], chosen.slots)
    assert not whole.status.any()


def submitted(engine, plans, **words):
    return [
        engine.submit(plan, seed=10 + k, **{name: v[k] for name, v in words.items()})
        for k, plan in enumerate(plans)
    ]


def test_an_engines_requests_are_chosen_among_at_rows_of_their_own():
    """Different plans at different rows, one with a mask and one with guidance: each ends where it
    would have, also in copies, and the others' places are free.
    """
    inpaint, words = inpainting()
    plans = [
        plan_of("dpmpp_2m", 5, FLOW),
        plan_of("unipc", 6, FLOW),
        inpaint,
        plan_of("lcm", 4, FLOW),
    ]
    ask = lambda x, t, y: net(x, t) + 0.01 * y.view(-1, 1, 1)
    made = lambda: fs.Engine(ask, (3, 8), capacity=7)
    only = lambda value: [None, None, value, None]
    given = {
        "mask": only(words["mask"][:1]),
        "known": only(words["known"][:1]),
        "cond": [{"y": torch.tensor([float(k)])} for k in range(4)],
        "uncond": [{"y": torch.tensor([9.0])}, None, None, None],
        "guidance": [3.0, None, None, None],
    }

    def begun(engine):
        first = submitted(engine, plans[:2], **{name: v[:2] for name, v in given.items()})
        engine.tick()
        engine.tick()
        more = [
            engine.submit(plans[k], seed=10 + k, **{name: v[k] for name, v in given.items()})
            for k in (2, 3)
        ]
        engine.tick()
        return [*first, *more]

    whole = made()
    tickets = begun(whole)
    whole.run()
    right = [ticket.result() for ticket in tickets]
    for index in ([3, 1, 0, 2], [2], [0, 0, 2, 2, 1, 1, 3], [1, 3]):
        engine = made()
        before = begun(engine)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            after = engine.select(index)
        assert engine.running == tuple(after) and len(set(after)) == len(index)
        engine.run()
        for ticket, k in zip(after, index, strict=True):
            assert same(ticket.result(), right[k]) and ticket.row == ticket.plan.rows - 1
        left = [before[k] for k in set(range(4)) - set(index)]
        assert all(ticket.done for ticket in left)
        for ticket in left:
            with pytest.raises(RuntimeError, match="cancelled"):
                ticket.result()


def test_an_engines_others_are_left_alone_and_copies_may_have_seeds():
    plan = plan_of("euler_ancestral", 5, FLOW)
    engine = fs.Engine(net, (8,), capacity=8)
    mine, theirs = submitted(engine, [plan] * 3), engine.submit(plan, seed=3)
    for _ in range(2):
        engine.tick()
    state = engine._places.copies(mine[1]._place)[0]
    with pytest.warns(UserWarning, match="Engine.select: index names a sample") as caught:
        engine.select([0, 0], tickets=[mine[0]])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        going = engine.select([1, 1, 1], tickets=mine, seeds=[70, 80, 11])
    assert all(same(ticket.x0, going[0].x0) for ticket in going)
    engine.run()
    row = 3
    for ticket, seed in zip(going, (70, 80, 11), strict=True):
        run = finish(fs.Run(plan, latent=state, start=row - 1, seed=[seed], stage=0))
        assert same(ticket.result(), run.x)
    assert same(theirs.result(), fs.Sampler(plan, net)(shape=(1, 8), seed=3))


def test_nobody_is_left_to_choose_from():
    plan = plan_of("euler", 3, FLOW)
    engine = fs.Engine(net, (8,), capacity=2)
    tickets = submitted(engine, [plan] * 2)
    assert engine.select([]) == [] and {ticket.state for ticket in tickets} == {"cancelled"}
    with pytest.raises(ValueError, match=r"sample 0 of 0; none is left, and \[\] is accepted$"):
        engine.select([0])


def test_what_an_engine_cannot_choose_is_refused_and_nothing_moves():
    plan = plan_of("euler_ancestral", 5, FLOW)
    engine, other = (fs.Engine(net, (8,), capacity=3) for _ in range(2))
    tickets, stranger = submitted(engine, [plan] * 3), other.submit(plan, seed=1)
    engine.tick()
    for call, error, said in (
        (lambda: engine.select([0, 1, 2, 2], seeds=1), RuntimeError, "capacity=3 requests"),
        (lambda: engine.select([3]), ValueError, "index names sample 3 of 3"),
        (lambda: engine.select([True]), TypeError, "truth values"),
        (lambda: engine.select([0], seeds=[1, 2]), ValueError, "seed holds 2 values"),
        (lambda: engine.select([0], tickets=[stranger]), ValueError, "not in flight"),
        (lambda: engine.select([0], tickets=tickets[:1] * 2), ValueError, "given twice"),
    ):
        with pytest.raises(error, match="^Engine.select: ") as raised:
            call()
        assert said in str(raised.value)
        assert engine.running == tuple(tickets)
    inpaint, words = inpainting()
    blended = fs.Engine(net, (3, 8))
    blended.submit(inpaint, seed=1, mask=words["mask"][:1], known=words["known"][:1])
    with pytest.raises(ValueError, match="draws its first noise again.*without seeds= is accepted"):
        blended.select([0], seeds=3)
    blended.select([0])
