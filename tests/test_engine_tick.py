"""Whom a tick asks, and what it tells: several models, conditions of different lengths."""

import pytest
import torch
from cases import same
from company import SHAPE, Asked, ask, joined_at_random, plan, told

import fastsample as fs


def padded(trees):
    """Tokens [1, L] of every length L in one tensor, and which of its numbers they are."""
    lengths = [tree["tokens"].shape[1] for tree in trees]
    tokens = torch.zeros(len(trees), max(lengths))
    for row, tree, n in zip(tokens, trees, lengths, strict=True):
        row[:n] = tree["tokens"][0]
    return {"tokens": tokens, "lengths": lengths}


def attend(x, t, tokens, lengths):
    """Whole numbers, whose sum is exact in any order; what stands behind them is not looked at."""
    there = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
    return ask(x, t, torch.where(there, tokens, torch.nan).nansum(1))


def tokens(*values):
    return {"tokens": torch.tensor([values], dtype=torch.float32)}


@pytest.mark.parametrize("pad_to", [None, 12])
def test_conditions_of_different_lengths(pad_to):
    made = []
    for k, solver in enumerate(("dpmpp_2m", "unipc", "euler", "dpmpp_2m_sde", "lcm", "heun")):
        words = {"seed": k, "cond": tokens(*range(1, 2 + k))}
        if k % 2:
            words |= {"uncond": tokens(-1), "guidance": 2.0}
        made.append((plan(solver, 3 + k), words))
    expected = []
    for plan_, words in made:
        own = {name: padded([words[name]]) for name in ("cond", "uncond") if name in words}
        sampler = fs.Sampler(plan_, attend)
        apart = {"batched_guidance": False, "shape": (1, *SHAPE)}
        expected.append(sampler(**words | own, **apart))
    engine = fs.Engine(attend, SHAPE, 6, pad_to=pad_to, collate=padded)
    for order in range(20):
        results = joined_at_random(engine, made, order)
        assert all(same(x, own) for x, own in zip(results, expected, strict=True)), order


def test_collate_is_asked_when_the_company_changes_and_told_the_rows_in_order():
    seen, given = [], [tokens(k, k) for k in range(3)]

    def collate(trees):
        seen.append([tree["tokens"][0, 0].item() for tree in trees])
        return padded(trees)

    engine = fs.Engine(attend, SHAPE, 3, pad_to=4, collate=collate)
    first = engine.submit(plan("euler", 4), seed=0, cond=given[0])
    second = engine.submit(plan("euler", 9), seed=1, cond=given[1], uncond=tokens(7), guidance=2.0)
    engine.tick()
    assert seen == []  # row 0 asks nobody
    engine.tick()
    engine.tick()
    assert seen == [[0, 1, 7, 7]]  # by place, then by branch; the last one again
    third = engine.submit(plan("euler", 6), seed=2, cond=given[2])
    engine.tick()
    assert len(seen) == 1  # its row asks nobody yet
    engine.tick()
    assert seen[1:] == [[0, 1, 7, 2]] and first.done
    engine.tick()
    assert seen[2:] == [[1, 7, 2, 2]]
    second.cancel()
    engine.submit(plan("euler", 2), seed=3, cond=tokens(5, 5, 5))
    engine.tick()
    assert seen[3:] == [[2, 2, 2, 2]]
    engine.run()
    assert third.done and seen[4:] == [[5, 2, 2, 2], [2, 2, 2, 2]]


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        (
            lambda trees: {"label": torch.zeros(3)},
            ValueError,
            r'collate\(trees\)\["label"\] has 3 samples for a batch of 2; 2, or fs.shared',
        ),
        (lambda trees: trees, TypeError, "collate returned a list for 2 trees; a dict"),
        (lambda trees: trees[0]["none"], KeyError, "none"),
        (
            lambda trees: engine_of[0].tick(),
            RuntimeError,
            "called by the model, or by a callback; between",
        ),
    ],
)
def test_a_collate_that_does_not_fit_leaves_every_request_where_it_was(made, error, said):
    collate = lambda trees: (answers.pop() if answers else both)(trees)
    both = lambda trees: {name: torch.cat([tree[name] for tree in trees]) for name in trees[0]}
    answers, cond = [made], {"label": torch.ones(1)}
    engine_of[:] = [fs.Engine(ask, SHAPE, collate=collate)]
    tickets = [engine_of[0].submit(plan(), seed=k, cond=cond) for k in range(2)]
    engine_of[0].tick()
    with pytest.raises(error, match=said):
        engine_of[0].tick()
    assert [ticket.row for ticket in tickets] == [1, 1]
    engine_of[0].run()
    alone = fs.Sampler(plan(), ask)(shape=(2, *SHAPE), seed=0, cond={"label": torch.ones(2)})
    assert same(torch.cat([ticket.result() for ticket in tickets]), alone)


engine_of = []


def test_collate_may_take_its_trees_apart_and_not_write_into_tensors():
    def takes(trees):
        return {
            "label": torch.cat([tree.pop("label") for tree in trees]),
            "text": list(texts(trees)),
        }

    def texts(trees):
        for tree in trees:
            yield tree.pop("text").pop()

    def writes(trees):
        return {"label": torch.cat([tree["label"].add_(1) for tree in trees])}

    engine = fs.Engine(ask, SHAPE, collate=takes)
    tickets = [engine.submit(plan("euler", n), seed=n, cond=told(n)) for n in (2, 3, 4)]
    engine.run()  # the trees of those left are asked for again as others end
    for n, ticket in zip((2, 3, 4), tickets, strict=True):
        own = fs.Sampler(ticket.plan, ask)(shape=(1, *SHAPE), seed=n, cond=told(n))
        assert same(ticket.result(), own)
    engine = fs.Engine(ask, SHAPE, collate=writes)
    engine.submit(plan("euler", 2), seed=1, cond=told(1))
    engine.tick()
    with pytest.raises(ValueError, match="^Engine.tick: collate changed a condition in place; let"):
        engine.tick()


def test_collate_may_leave_keywords_out_and_share_a_value():
    def collate(trees):
        return {"label": torch.cat([tree["label"] for tree in trees]), "text": fs.shared(None)}

    def model(x, t, label, text):
        assert text is None
        return ask(x, t, label)

    engine = fs.Engine(model, SHAPE, collate=collate)
    ticket = engine.submit(plan(), seed=1, cond=told(1) | {"scale": fs.shared([2.0])})
    engine.run()
    cond = {"label": told(1)["label"]}
    assert same(ticket.result(), fs.Sampler(plan(), ask)(shape=(1, *SHAPE), seed=1, cond=cond))


def test_a_collate_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"^Engine: collate is a dict; a callable\(trees\) -> tree"):
        fs.Engine(ask, SHAPE, collate={})


# -- several models --------------------------------------------------------------------------------
def lower(x, t, label, text=()):
    return ask(x * 0.5, t, label + 1, text)


def experts(solver, n, level):
    return fs.solvers.experts(plan(solver, n), level=level)


def swapping():
    """[(plan, words)]: two models that take over at levels of their own, some asked alone."""
    made = []
    for k, solver in enumerate(("dpmpp_2m", "unipc", "heun", "dpmpp_3m_sde", "euler")):
        words = {"seed": k, "cond": told(k)}
        two = {"uncond": told(9), "guidance": 1.5} if k % 2 else {}
        made.append((experts(solver, 4 + k, 2.0 + k), words | two))
    made.append((plan("dpmpp_2m", 5), {"seed": 8, "cond": told(1)}))  # the first alone
    late = fs.solvers.experts(plan("euler", 6), level=2.0)
    start = late.call.tolist().index(1)
    latent = torch.full((1, *SHAPE), 0.1)
    made.append((late, {"latent": latent, "start": start, "cond": told(2)}))  # the second alone
    return made


@pytest.mark.parametrize("pad_to", [None, 10])
def test_each_model_is_asked_once_for_the_requests_whose_row_asks_it(pad_to):
    made, models = swapping(), [Asked(), Asked(lower)]
    expected = []
    for plan_, words in made:
        start = {} if "latent" in words else {"shape": (1, *SHAPE)}
        given = [ask, lower][: plan_.call.max() + 1]
        expected.append(fs.Sampler(plan_, given)(**words, **start))
    engine = fs.Engine(models, SHAPE, 8, pad_to=pad_to)
    for order in range(10):
        results = joined_at_random(engine, made, order)
        assert all(same(x, own) for x, own in zip(results, expected, strict=True)), order
    assert pad_to is None or {*models[0].batches, *models[1].batches} == {pad_to}


def test_two_models_are_asked_in_one_tick_and_one_that_raises_names_its_requests():
    models = [Asked(), Asked(lower, error_at=2)]
    engine = fs.Engine(models, SHAPE)
    early = engine.submit(plan("euler", 6), seed=1, cond=told(1))
    late = engine.submit(
        experts("euler", 6, 1e6), seed=2, cond=told(2), uncond=told(0), guidance=2.0
    )
    for _ in range(3):
        engine.tick()
    assert models[0].batches == [3, 1] and models[1].batches == [2]
    assert models[0].times[1] == models[1].times[0][:1]
    with pytest.raises(KeyError):
        engine.tick()
    assert [t for t, _ in engine._tick.blamed] == [late, late] and early.row == late.row == 3
    engine.run()
    assert models[0].batches == [3, *[1] * 6] and models[1].batches == [2] * 6
    expected = fs.Sampler(late.plan, [ask, lower])(
        shape=(1, *SHAPE), seed=2, cond=told(2), uncond=told(0), guidance=2.0
    )
    assert same(late.result(), expected)


def test_requests_that_a_tick_leaves_out_stand_still():
    """What a policy may choose: those of one model alone, in any company."""
    made, engine = swapping(), fs.Engine([ask, lower], SHAPE)
    tickets = [engine.submit(plan_, **words) for plan_, words in made]
    model = lambda ticket: ticket._rows.calls[ticket.row]
    while engine.running:
        asked = {model(ticket) for ticket in engine.running}
        chosen = tuple(t for t in engine.running if model(t) == min(asked))
        rows = {ticket: ticket.row for ticket in engine.running}
        with torch.no_grad(), engine._lock:
            engine._tick.launch(chosen, engine._like)
            for ticket in engine._tick.advance(True):
                engine._over(ticket)
        assert all(ticket.row == row + (ticket in chosen) for ticket, row in rows.items())
    alone = fs.Engine([ask, lower], SHAPE)
    for ticket, (plan_, words) in zip(tickets, made, strict=True):
        own = alone.submit(plan_, **words)
        alone.run()
        assert same(ticket.result(), own.result())


@pytest.mark.parametrize("model", [[], [ask, 3], {"high": ask, "low": lower}])
def test_models_that_are_none_are_refused(model):
    with pytest.raises(ValueError, match=r"^Engine: model .*; a callable or a list of them, and"):
        fs.Engine(model, SHAPE)
