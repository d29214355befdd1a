"""The Engine's tickets, and what goes wrong: in one request, in the model, in what is asked for."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import same
from company import EXPECTED, MADE, SHAPE, Asked, ask, normal, plan, told

import fastsample as fs
from fastsample.kernels import native


# -- tickets ---------------------------------------------------------------------------------------
def test_a_place_is_used_again_and_what_was_not_read_is_kept():
    engine = fs.Engine(ask, SHAPE, 4)
    tickets = []
    for plan_, words in MADE[:20]:
        while len(engine.running) == 4:
            engine.tick()
        tickets.append(engine.submit(plan_, **words))
    engine.run()
    results = [ticket.result() for ticket in tickets]
    assert all(same(x, own) for x, own in zip(results, EXPECTED, strict=False))
    assert all(t.result() is x for t, x in zip(tickets, results, strict=True))
    assert not any(rows.users for rows in engine._stack._held.values())


def test_result_before_the_end_and_after_cancel():
    engine = fs.Engine(ask, SHAPE, 2)
    first, second = (engine.submit(p, **words) for p, words in MADE[:2])
    with pytest.raises(RuntimeError, match=r"^Ticket.result: the request is at row 0 of 4; "):
        first.result()
    engine.tick()
    engine.tick()
    first.cancel()
    assert first.done and first.x0 is None and engine.running == (second,)
    with pytest.raises(RuntimeError, match=r"^Ticket.result: the request is cancelled; "):
        first.result()
    third = engine.submit(MADE[2][0], **MADE[2][1])
    engine.run()
    first.cancel(), third.cancel()  # nothing happens
    assert same(second.result(), EXPECTED[1]) and same(third.result(), EXPECTED[2])


def test_x0_is_the_prediction_of_the_last_row():
    engine = fs.Engine(ask, SHAPE)
    tickets = [engine.submit(MADE[k][0], **MADE[k][1]) for k in (0, 1)]
    run = fs.Run(MADE[0][0], noise=MADE[0][1]["noise"], seed=100)
    assert tickets[0].x0 is None
    engine.tick()
    assert tickets[0].x0 is None
    kept = []
    while not run.done:
        run.step(ask(run.model_input, run.t, **told(0)))
        engine.tick()
        kept.append((tickets[0].x0, run.x0.clone()))
    assert all(same(ours, theirs) for ours, theirs in kept)
    assert same(tickets[0].result(), run.x) and same(tickets[0].x0, run.x0)
    still = fs.Engine(ask, SHAPE, preview=False)
    ticket = still.submit(MADE[0][0], **MADE[0][1])
    still.run()
    assert ticket.x0 is None and same(ticket.result(), EXPECTED[0]) and ticket.x0 is None


def test_eight_threads_submit_and_tick():
    engine, results = fs.Engine(ask, SHAPE, 64), {}

    def work(k):
        mine = {n: engine.submit(MADE[n][0], **MADE[n][1]) for n in range(k, 64, 8)}
        while not all(ticket.done for ticket in mine.values()):
            engine.tick()
        results.update({n: ticket.result() for n, ticket in mine.items()})

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(results[n], EXPECTED[n]) for n in range(64))


# -- what may go wrong -----------------------------------------------------------------------------
def poisoned(x, t, label, text):
    """NaN for label -1 at the second half of the times."""
    f = ask(x, t, label, text)
    return torch.where(((label == -1) & (t < 0.5)).view(-1, 1, 1), torch.nan, f)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_nan_ends_one_request_and_touches_no_other(backend):
    if backend == "native" and native.MISSING:
        pytest.fail(native.MISSING)
    engine = fs.Engine(poisoned, SHAPE, 64, backend=backend)
    tickets = [engine.submit(p, **words) for p, words in MADE[:9]]
    bad = engine.submit(
        plan("dpmpp_3m", 8), seed=4, cond={"label": torch.tensor([-1.0]), "text": [""]}
    )
    row = next(r for r in range(1, 9) if bad.plan.t[r - 1, 0] < 0.5)
    ended = []
    while bad not in ended:
        ended = engine.tick()
    assert bad.done and bad.row == row + 1 < 9
    tickets += [engine.submit(p, **words) for p, words in MADE[9:20]]  # other plans join
    assert bad._place in [ticket._place for ticket in tickets[9:]]  # as good as any
    engine.run()
    with pytest.raises(FloatingPointError, match=f"^Ticket.result: .* non-finite at row {row} of"):
        bad.result()
    assert all(same(t.result(), x) for t, x in zip(tickets, EXPECTED, strict=False))


def test_without_check_nan_is_a_result():
    engine = fs.Engine(poisoned, SHAPE, check=None)
    cond = {"label": torch.tensor([-1.0]), "text": [""]}
    ticket = engine.submit(plan(), noise=normal(0) * 5, cond=cond)
    assert engine.submit(plan("unipc"), seed=0, cond=told(1)).row == 0
    engine.run()
    assert ticket.row == 6 and bool(ticket.result().isnan().all())


def test_a_model_that_raises_leaves_every_request_where_it_was():
    model = Asked(error_at=2)
    engine = fs.Engine(model, SHAPE)
    tickets = [engine.submit(p, **words) for p, words in MADE[:20]]
    engine.tick()
    engine.tick()
    with pytest.raises(KeyError, match="a model's own error"):
        engine.tick()
    assert {ticket.row for ticket in tickets} == {2}
    engine.run()
    assert all(same(t.result(), x) for t, x in zip(tickets, EXPECTED, strict=False))


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (
            lambda x: x[:1],
            ValueError,
            r"the model returned \[1, 3, 2\] for a sample of \[2, 3, 2\]",
        ),
        (lambda x: x.double(), TypeError, "the model returned torch.float64, asked in"),
        (lambda x: None, TypeError, "the model returned a NoneType"),
        (lambda x: x.clone().requires_grad_(), RuntimeError, "output requires grad"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(answer, error, said):
    engine = fs.Engine(lambda x, t: answer(x), SHAPE)
    tickets = [engine.submit(plan(), seed=k) for k in range(2)]
    engine.tick()
    with pytest.raises(error, match=f"^Engine.tick: .*{said}"):
        engine.tick()
    assert [ticket.row for ticket in tickets] == [1, 1]


@pytest.mark.parametrize("requests", [1, 2, 3])
@pytest.mark.parametrize("part", [0, 1])
def test_a_model_that_writes_into_its_input_is_refused(requests, part):
    """Whether its batch was gathered (three requests, the second gone) or not."""

    def greedy(*given):
        given[part].mul_(2)
        return given[0] + 1

    with torch.inference_mode(requests == 2):
        engine = fs.Engine(greedy, SHAPE, 8)
        tickets = [engine.submit(plan(), seed=k) for k in range(requests)]
        if requests == 3:
            tickets[1].cancel()
        engine.tick()
        with pytest.raises(ValueError, match=r"^Engine.tick: the model changed its input in place"):
            engine.tick()


def test_the_model_may_submit_and_cancel_and_not_tick():
    made = []

    def model(x, t):
        for call in (engine.tick, engine.run, lambda: engine.select([0])):
            with pytest.raises(RuntimeError, match="called by the model, or by a callback; betwee"):
                call()
        if not made:
            made.append(engine.submit(plan(n=1), seed=1))
            first.cancel()
            assert first.state == "cancelled" and first in engine.running
        return x

    engine = fs.Engine(model, SHAPE)
    first, second = engine.submit(plan(n=3), seed=0), engine.submit(plan(n=1), seed=2)
    engine.tick()
    assert engine.tick() == [second] and first.row == 2
    assert engine.running == () and engine.waiting == (made[0],)
    engine.run()
    assert (first.state, second.state, made[0].state) == ("cancelled", "result", "result")
    assert same(made[0].result(), fs.Sampler(plan(n=1), lambda x, t: x)(seed=1, shape=(1, *SHAPE)))


# -- refusals --------------------------------------------------------------------------------------
def changed(**words):
    return MADE[0][0], {**{"seed": 1, "cond": told(1)}, **words}


REFUSED = {
    "no plan": (("plan", {}), TypeError, "plan is a str; a Plan is needed"),
    "shape": (changed(noise=normal(0, 3, 3)), ValueError, r"\[1, 3, 3\] was given; one sample"),
    "two samples": (
        changed(noise=torch.cat([normal(0), normal(1)])),
        ValueError,
        r"\[2, 3, 2\] was given",
    ),
    "no dict": (changed(cond=[1]), TypeError, "cond is a list"),
    "two samples told": (
        changed(cond=told(1) | {"label": torch.zeros(2)}),
        ValueError,
        r'cond\["label"\] has 2 samples for a batch of 1',
    ),
    "dtype": (
        changed(cond=told(1) | {"label": torch.tensor([1])}),
        ValueError,
        r'cond\["label"\] is torch.int64 \[1\] on cpu, and torch.float32 \[1\] on cpu in the '
        "requests in flight",
    ),
    "missing": (
        changed(cond={"text": [""]}),
        ValueError,
        r'cond\["label"\] is missing, and torch.float32 \[1\]',
    ),
    "one more": (
        changed(cond=told(1) | {"more": {"scale": 2.0}}),
        ValueError,
        r'cond\["more"\]\["scale"\] is 2.0, and missing in the requests in flight',
    ),
    "unlike branches": (
        changed(uncond={"label": torch.zeros(1), "text": 3}, guidance=2.0),
        ValueError,
        r'uncond\["text"\] is 3, and ',
    ),
    "guidance alone": (changed(guidance=2.0), ValueError, "guidance is given without uncond"),
    "uncond alone": (changed(uncond=told(0)), ValueError, "given without guidance"),
    "several models": (
        (replace(plan(), call=np.where(np.arange(7) == 2, 1, plan().call)), {"seed": 1}),
        TypeError,
        "asks model 1",
    ),
    "scaled noise": (
        (plan(), {"noise": torch.full((1, *SHAPE), torch.inf), "cond": told(1)}),
        ValueError,
        "noise holds NaN or Inf in sample 0",
    ),
    "seed": (changed(seed=1.5), TypeError, "seed is a float"),
    "stage": (changed(stage=-1), ValueError, "stage is -1"),
    "latent without start": (
        (plan(), {"latent": normal(1), "cond": told(1)}),
        ValueError,
        "latent= is given without start=",
    ),
    "an image that is missing": (
        (plan(start=2), {"seed": 1, "cond": told(1)}),
        ValueError,
        "begins from an image; pass latent=",
    ),
    "noise drawn again": (
        (
            plan(inpaint=True),
            {"noise": normal(1), "mask": normal(1) * 0, "known": normal(2), "cond": told(1)},
        ),
        ValueError,
        "noise= is given and the plan draws its first noise again",
    ),
    "mask without a plan for it": (
        changed(mask=torch.ones(1, *SHAPE), known=normal(1)),
        ValueError,
        "no row of this plan blends a known image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_is_refused_in_one_sentence_and_leaves_nothing(case):
    (plan_, words), error, said = REFUSED[case]
    engine = fs.Engine(ask, SHAPE, 3)
    tickets = [engine.submit(p, **w) for p, w in MADE[:2]]
    engine.tick()
    with pytest.raises(error, match=f"^Engine.submit: .*{said}") as raised:
        engine.submit(plan_, **words)
    assert "\n" not in str(raised.value)
    assert engine.running == tuple(tickets)
    engine.run()
    assert all(same(t.result(), x) for t, x in zip(tickets, EXPECTED, strict=False))


def test_a_full_engine_refuses():
    engine = fs.Engine(ask, SHAPE, 2, waiting=0)
    for plan_, words in MADE[:2]:
        engine.submit(plan_, **words)
    said = (
        r"^Engine.submit: 1 branch.* beside 2 requests in flight with 3 and 0 that wait; capacity=2"
    )
    with pytest.raises(fs.EngineFull, match=said):
        engine.submit(MADE[0][0], **MADE[0][1])
    padded = fs.Engine(ask, SHAPE, 9, pad_to=3, waiting=0)
    padded.submit(MADE[1][0], **MADE[1][1])
    with pytest.raises(fs.EngineFull, match=r"^Engine.submit: 2 branch.* with pad_to=3"):
        padded.submit(MADE[1][0], **MADE[1][1])
    padded.submit(MADE[0][0], **MADE[0][1])
    many = {"branches": [told(0)] * 4, "guidance": [1.0, 2.0, 3.0], "seed": 1}
    with pytest.raises(ValueError, match="the request has 4 branches and pad_to=3; as many"):
        padded.submit(plan(), **many)


def test_another_form_of_condition_is_accepted_once_nobody_is_in_flight():
    engine = fs.Engine(lambda x, t, **cond: x * len(cond), SHAPE)
    for cond in ({"a": torch.ones(1)}, {"a": 3, "b": "text"}, {}):
        ticket = engine.submit(plan(), seed=1, cond=cond)
        engine.run()
        assert ticket.done


@pytest.mark.parametrize(
    "words",
    [
        {"shape": 3},
        {"shape": (3, 0)},
        {"capacity": 0},
        {"capacity": True},
        {"pad_to": 0},
        {"pad_to": 1.5},
        {"model": None},
        {"check": "start"},
        {"state_dtype": torch.float16},
        {"device": "nowhere"},
    ],
)
def test_an_engine_that_cannot_be_is_refused(words):
    with pytest.raises((ValueError, TypeError), match=r"^Engine: "):
        fs.Engine(**{"model": ask, "shape": SHAPE} | words)
