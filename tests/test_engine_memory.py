"""The memory that an Engine takes, and what of it max_bytes counts before."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from cases import same
from company import EXPECTED, MADE, SHAPE, ask, normal, plan

import fastsample as fs
from fastsample.runtime.ticket import Ticket


def taken(engine):
    """Bytes of the storages that places and tables stand in."""
    size = 0
    for places, stack in engine._memory:
        tensors = [*vars(places.pool).values(), *stack.table[:2], *vars(places).values()]
        tensors = [v for v in tensors if isinstance(v, torch.Tensor)]
        storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in tensors}
        size += sum(storages.values()) + stack._numbers.nbytes
    return size


def fixed(engine, plan_, words):
    """What the budget says that the Engine will have taken for the places and the table."""
    begin = [words.get(k) for k in ("noise", "latent", "start", "seed", "stage", "noise_source")]
    said = [words.get(k) for k in ("cond", "uncond", "branches", "guidance")]
    blend = [words.get(k) for k in ("mask", "known")]
    request = engine._requests.made(plan_, begin, said, (None, None), blend)
    return engine._budget.fixed([Ticket(engine, request, 0.0, None, None, 1)])


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"pad_to": 5, "preview": False},
        {"state_dtype": torch.float64, "model_dtype": torch.bfloat16},
    ],
)
def test_what_is_counted_is_what_is_taken(words):
    """In an Engine that takes one request, and where another one moves in beside it."""
    few = MADE[::7] + [next(made for made in MADE if "mask" in made[1])]
    for made in few:
        engine = fs.Engine(lambda x, t, **cond: x, (1025, 3), 4, **words)
        large = {"mask": torch.ones(1, 1025, 3)}
        large |= {name: normal(3, 1025, 3) for name in ("noise", "latent", "known")}
        shaped = {name: large.get(name, value) for name, value in made[1].items()}
        counted = fixed(engine, made[0], shaped)
        engine.submit(made[0], **shaped)
        assert counted == taken(engine)
    engine = fs.Engine(lambda x, t, **cond: x, SHAPE, 9, **words)
    for before, (plan_, words_) in pairwise([None, *MADE[:9]]):
        held = 0 if before is None else taken(engine)
        counted = fixed(engine, plan_, words_)
        pool, table = engine._places.pool, engine._stack.table
        engine.submit(plan_, **words_)
        engine.running[-1].cancel()
        moved = engine._places.pool is not pool, engine._stack.table is not table
        if moved == (False, False):
            assert counted == taken(engine) == held
        else:
            assert taken(engine) < counted <= taken(engine) + held or before is None


def test_tracks_are_counted():
    shapes = {"video": (3, 4, 5), "audio": (7,)}
    words = {"seed": 1, "cond": {"label": torch.zeros(1)}}
    plans = {"video": plan("unipc", 4), "audio": plan("euler", 4)}
    need = fixed(fs.Engine(lambda x, t, label: x, shapes, 4), plans, words) + 2 * 4
    with pytest.raises(ValueError, match=f"needs {need:,} bytes by itself; max_bytes={need - 1:,}"):
        fs.Engine(lambda x, t, label: x, shapes, 4, max_bytes=need - 1).submit(plans, **words)
    engine = fs.Engine(lambda x, t, label: x, shapes, 4, max_bytes=need)
    engine.submit(plans, **words)
    assert taken(engine) == need - 2 * 4


def test_places_that_move_in_steps_stay_within_what_is_counted(monkeypatch):
    engine, peaks = fs.Engine(lambda x, t, **cond: x, SHAPE, 1, waiting=9), []
    right = type(engine._places)._grow

    def grow(places, *words):
        before = 0 if places.pool is None else taken(engine)
        right(places, *words)
        peaks.append(before + taken(engine))

    monkeypatch.setattr(type(engine._places), "_grow", grow)
    for k in (0, *sorted(range(1, 9), key=lambda k: MADE[k][0].S)):
        engine.submit(MADE[k][0], **MADE[k][1])
    counted = engine._budget.fixed(engine.waiting)
    engine.run()
    assert len(peaks) > 2 and max(peaks) <= counted


def test_a_request_is_refused_before_memory_is_taken():
    guided = {"cond": {"y": torch.zeros(1, 100)}, "uncond": {"y": torch.zeros(1, 100)}}
    guided |= {"guidance": 2.0, "seed": 1}
    model = lambda x, t, y: x
    free = fs.Engine(model, SHAPE, 3)
    need = fixed(free, plan("unipc", 4), guided)
    leaves = 2 * 2 * 400  # of two branches, as they came and joined
    for most, admitted in ((need + leaves - 1, False), (need + leaves, True)):
        engine = fs.Engine(model, SHAPE, 3, max_bytes=most)
        if admitted:
            assert engine.submit(plan("unipc", 4), **guided).state == "running"
            said = (
                f"with this request {need + 2 * leaves:,} bytes are needed; max_bytes={most:,} are"
            )
            with pytest.raises(fs.EngineFull, match=f"^Engine.submit: {said}") as full:
                engine.submit(plan("unipc", 4), **guided)
            assert full.value.retry_after == 1.0
            engine.run()
            assert engine.submit(plan("unipc", 4), **guided).state == "running"
        else:
            said = f"needs {need + leaves:,} bytes by itself; max_bytes={most:,} are"
            with pytest.raises(ValueError, match=f"^Engine.submit: the request {said}"):
                engine.submit(plan("unipc", 4), **guided)
            assert engine._places.pool is None and engine._stack.table is None
            assert engine.running == engine.waiting == ()


def test_those_that_wait_count_with_what_they_hold():
    model, noise = (lambda x, t: x), normal(1)
    need = fixed(fs.Engine(model, SHAPE, 1), plan(), {"noise": noise})
    engine = fs.Engine(model, SHAPE, 1, waiting=9, max_bytes=need + 2 * noise.nbytes)
    engine.submit(plan(), noise=noise)
    for _ in range(3):
        engine.tick()
    engine._times.clear()
    engine._times.extend([0.5, 1.5])
    for _ in range(2):
        engine.submit(plan(), noise=noise)
    with pytest.raises(fs.EngineFull, match="bytes are needed") as full:
        engine.submit(plan(), noise=noise)
    assert full.value.retry_after == 6 * 1.0  # the first to give some back is the first that waits
    assert engine.submit(plan(), seed=1).state == "waiting"  # holds nothing
    engine.run()


def test_results_are_the_same_under_a_bound():
    engine = fs.Engine(ask, SHAPE, 4, waiting=20, max_bytes=1 << 20)
    tickets = [engine.submit(p, **words) for p, words in MADE[:20]]
    engine.run()
    assert all(same(t.result(), x) for t, x in zip(tickets, EXPECTED, strict=False))
    for most in (0, 1.5, "1 GB", True):
        with pytest.raises(ValueError, match="^Engine: max_bytes=.*; a whole number of 1 or more"):
            fs.Engine(ask, SHAPE, max_bytes=most)


def collate(trees):
    return {"label": torch.cat([tree["label"] for tree in trees])}


@pytest.mark.parametrize("collate", [None, collate])
def test_conditions_go_when_their_request_ends_though_others_run(collate):
    """Also those of the first one, and those of a model that nobody asks any more."""
    high = fs.solvers.experts(plan("euler", 4), level=1.5)
    assert {*high.call.tolist()} == {-1, 0, 1}
    there = []

    def low(x, t, label):
        there.append(weakref.ref(label))
        return ask(x, t, label)

    engine = fs.Engine([ask, low], SHAPE, collate=collate)
    cond = {"label": torch.zeros(1)}
    there.append(weakref.ref(cond["label"]))
    first = engine.submit(high, seed=1, cond=cond)
    del cond
    longer = engine.submit(plan("euler", 30), seed=2, cond={"label": torch.ones(1)})
    while not first.done:
        engine.tick()
    assert len(there) > 1 and {ref() for ref in there} == {None} and longer.state == "running"
    if collate is None:
        said = r'cond\["label"\] is torch.float64 \[1\] on cpu, and torch.float32 \[1\] on cpu in'
        with pytest.raises(ValueError, match=said):
            engine.submit(plan(), seed=3, cond={"label": torch.ones(1).double()})


def test_what_nobody_reads_is_its_tickets_own():
    """Neither a place of the Engine's nor memory of it."""
    engine = fs.Engine(ask, SHAPE, 2, waiting=64)
    tickets = [engine.submit(p, **words) for p, words in MADE[:8]]
    with torch.inference_mode():
        engine.run()
    assert engine._seats == [None] * 2 and not tickets[0].result().is_inference()
    assert all(same(t.result(), x) for t, x in zip(tickets, EXPECTED, strict=False))
    there = weakref.ref(tickets[0].result())
    del tickets
    gc.collect()
    assert there() is None


def test_copies_are_counted():
    cond = {"label": torch.zeros(1, 100)}
    free = fs.Engine(lambda x, t, label: x, SHAPE, 4)
    need = fixed(free, plan("euler", 4), {"seed": 1, "cond": cond}) + 2 * 2 * 400
    engine = fs.Engine(lambda x, t, label: x, SHAPE, 4, max_bytes=need)
    first, second = (engine.submit(plan("euler", 4), seed=k, cond=cond) for k in range(2))
    engine.tick()
    with pytest.raises(RuntimeError, match=f"^Engine.select: with 1 copies {need + 800:,} bytes a"):
        engine.select([0, 1, 1])
    assert engine.running == (first, second)
    (again, copied) = engine.select([1, 1], seeds=4)
    assert first.state == "cancelled" and (again, copied) == engine.running
    engine.run()
    assert (again.state, copied.state) == ("result", "result")
