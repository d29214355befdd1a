"""Slots of one sequence at noise levels of their own, in one forward."""

import pytest
import torch
from cases import same
from company import SHAPE, Asked, alone, ask, normal, plan, told

import fastsample as fs


def ladder(engine, plan_, slots, rows=1, **words):
    tickets = []
    for k in range(slots):
        after = (tickets[-1], rows) if tickets else None
        tickets.append(engine.submit(plan_, seed=k, cond=told(k), after=after, **words))
    return tickets


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "heun"])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_each_slot_has_the_bits_of_its_run_alone(solver, rows):
    engine, plan_ = fs.Engine(ask, SHAPE), plan(solver, 6)
    beside = engine.submit(plan("unipc", 9), seed=50, cond=told(1))
    tickets = ladder(engine, plan_, 5, rows)
    started = [None] * 5
    for tick in range(1, 100):
        engine.tick()
        for k, ticket in enumerate(tickets):
            if started[k] is None and ticket.row > 0:
                started[k] = tick
        if not engine.running:
            break
    assert started == [1 + k * rows for k in range(5)]
    for k, ticket in enumerate(tickets):
        assert same(ticket.result(), alone(plan_, {"seed": k, "cond": told(k)}))
    assert same(beside.result(), alone(beside.plan, {"seed": 50, "cond": told(1)}))


def test_a_stream_asks_for_all_slots_in_order_each_at_a_level_of_its_own():
    """As many slots as rows that ask: one enters and one ends a tick. Places are used again in an
    order of their own, which the model is not told.
    """
    model, plan_, other = Asked(), plan("euler", 4), plan("euler", 1)
    engine, slots = fs.Engine(model, SHAPE, 6), []
    for k in range(20):
        after = slots[-1] if slots else None
        slots.append(engine.submit(plan_, seed=k, cond=told(k), after=after))
        if k == 7:
            engine.submit(other, seed=99, cond=told(0))
        assert len(engine.tick()) == (k >= 4) + (k == 8)
    own, levels = (
        [float(t) for t in torch.tensor(p.t[: p.nfe, 0]).float()] for p in (other, plan_)
    )
    whole = [times for times in model.times if len(times) > 3]
    assert whole == [levels[::-1] if k != 4 else own + levels[::-1] for k in range(16)]
    engine.run()
    for k, slot in enumerate(slots):
        assert same(slot.result(), alone(plan_, {"seed": k, "cond": told(k)}))


def test_slots_that_enter_at_rows_of_their_own_stand_together():
    model, plan_ = Asked(), plan("euler", 5)
    engine, slots = fs.Engine(model, SHAPE), []
    for k in range(4):
        after = (slots[-1], 0) if slots else None
        given = {"latent": normal(k), "start": 4 - k, "cond": told(k)}
        slots.append(engine.submit(plan_, after=after, **given))
    engine.tick()
    assert model.times[0] == sorted(model.times[0]) and len(set(model.times[0])) == 4
    engine.run()
    for k, slot in enumerate(slots):
        given = {"latent": normal(k), "start": 4 - k, "cond": told(k)}
        assert same(slot.result(), alone(plan_, given))


@pytest.mark.parametrize("policy", ["first", "shortest"])
@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_a_ladder_of_more_slots_than_places_ends(policy, capacity):
    engine = fs.Engine(ask, SHAPE, capacity, waiting=20, policy=policy)
    tickets = [*ladder(engine, plan("dpmpp_2m", 5), 4), *ladder(engine, plan("euler", 3), 4, 3)]
    engine.run()
    for k, ticket in enumerate(tickets):
        assert same(ticket.result(), alone(ticket.plan, {"seed": k % 4, "cond": told(k % 4)}))


def test_a_slot_that_ends_early_holds_back_nobody():
    engine, plan_ = fs.Engine(ask, SHAPE), plan("euler", 5)
    first, second, third = ladder(engine, plan_, 3, 4)
    engine.tick()
    first.cancel()
    engine.tick()
    assert (second.row, third.row) == (1, 0)
    twins = engine.select([0, 0, 1], seeds=[1, 1, 2])  # the third waits on behind the second
    engine.run()
    assert same(twins[1].result(), second.result())
    for k, ticket in ((1, second), (2, third)):
        assert same(ticket.result(), alone(plan_, {"seed": k, "cond": told(k)}))


@pytest.mark.parametrize(
    ("after", "error", "said"),
    [
        (lambda own, other: other, TypeError, "a ticket of this Engine"),
        (lambda own, other: (other, 1), TypeError, "a ticket of this Engine"),
        (lambda own, other: 3, TypeError, "after is 3; a ticket of this Engine, or"),
        (lambda own, other: (own, -1), ValueError, "after is -1 rows behind a request; a whole"),
        (lambda own, other: (own, 1.5), ValueError, "after is 1.5 rows"),
    ],
)
def test_what_is_no_ladder_is_refused(after, error, said):
    engine, other = fs.Engine(ask, SHAPE), fs.Engine(ask, SHAPE)
    tickets = [each.submit(plan(), seed=0, cond=told(0)) for each in (engine, other)]
    with pytest.raises(error, match=f"^Engine.submit: .*{said}"):
        engine.submit(plan(), seed=1, cond=told(1), after=after(*tickets))
    assert engine.running == tuple(tickets[:1])


def test_a_model_of_the_whole_sequence_sees_its_slots_side_by_side():
    """Each slot hears the one before it: the loop by hand, on a Run a slot."""

    def sequence(x, t, label):
        before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        return ask(x + before * 0.25, t, label)

    plan_, n = plan("dpmpp_2m", 5), 4
    runs = [fs.Run(plan_, shape=(1, *SHAPE), seed=k) for k in range(n)]
    begun = 0
    while not all(run.done for run in runs):
        begun = min(begun + 1, n)
        going = [k for k, run in enumerate(runs[:begun]) if not run.done]
        x, t = (
            torch.cat([getattr(runs[k], v).clone() for k in going]) for v in ("model_input", "t")
        )
        f = sequence(x, t, torch.tensor([float(k) for k in going]))
        for k, own in zip(going, f.split(1), strict=True):
            runs[k].step(own)
    engine, slots = fs.Engine(sequence, SHAPE), []
    for k in range(n):
        words = {"seed": k, "cond": {"label": torch.tensor([float(k)])}}
        slots.append(engine.submit(plan_, after=slots[-1] if slots else None, **words))
    engine.run()
    assert all(same(slot.result(), run.x) for slot, run in zip(slots, runs, strict=True))
