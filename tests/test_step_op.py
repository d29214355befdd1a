"""`fastsample::step_`: the launch as an op on the tensors in its signature; torch's own checks of
it, and what it refuses.
"""

from dataclasses import replace

import pytest
import torch
from cases import BASE, CASES, MODELS, launched, make, same

from fastsample.runtime.step_op import STEP

ROW = 4
NAMED = ("x", "slots", "model_input", "status", "x_out", "f", "table_f", "table_i", "seed")
NAMED += ("stage", "scale", "noise_scale", "mask", "known", "noise", "row", "dims")
WHOLE = [
    c for c in CASES if c.groups == 1 and not (c.weights or c.bound) and c.layout == "contiguous"
]


def ready(case):
    """(setup, the op's arguments by name) of a case whose samples all run one row."""
    setup = make(case)
    x, slots, f, numbers, words, _, at = setup.args
    slots = [torch.nan_to_num(s, 0.25) for s in slots]
    setup.args = (x, slots, f, numbers, words, ROW, at)
    option = setup.options
    asked = torch.full_like(x, torch.nan, dtype=case.model)
    own = torch.stack([s.flatten() for s in slots]) if slots else x.new_empty(0, x.numel())
    given = (x.clone(), own, asked, torch.zeros(case.batch, dtype=torch.int32), None, f)
    given += (numbers, words, option["seed"], None, option["scale"], option["noise_scale"])
    given += (option["mask"], option["known"], option["noise"], ROW, [*at, 1])
    return setup, dict(zip(NAMED, given, strict=True))


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_the_op_gives_the_bits_of_the_launch(case):
    setup, given = ready(case)
    want = launched(*setup.args, **setup.options, backend="reference")
    for whole in (False, True):
        _, given = ready(case)
        if whole:
            given["f"] = [torch.cat(given["f"])]
        assert STEP(*given.values()) is None
        assert same(given["x"], want.x) and same(given["model_input"], want.model_input)
        assert same(given["status"], want.status)
        assert same(given["slots"], want.slots.flatten(1))


def test_the_state_may_be_written_elsewhere():
    setup, given = ready(BASE)
    want, before = launched(*setup.args, **setup.options, backend="reference"), given["x"].clone()
    given["x_out"] = torch.full_like(before, torch.nan)
    STEP(*given.values())
    assert same(given["x_out"], want.x) and same(given["x"], before)


def test_writes_are_counted():
    """A graph that kept what is written must be told."""
    _, given = ready(BASE)
    written = [given[name] for name in ("x", "slots", "model_input", "status")]
    before = [v._version for v in written]
    STEP(*given.values())
    assert all(v._version > n for v, n in zip(written, before, strict=True))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_opcheck(model):
    """Schema, registration and shapes for every dtype of the model."""
    _, given = ready(replace(BASE, model=model, elements=5, mask=True, noise_scale=True))
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(STEP, tuple(given.values()), test_utils=quick)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(3, 37, dtype=torch.float16)}, "the state is torch.float16"),
        ({"x": torch.zeros(37, 3).t()}, "the state is .* of strides"),
        ({"slots": torch.zeros(1, 111)}, "slots has shape"),
        ({"slots": torch.zeros(2, 110)}, "slots has shape"),
        ({"f": [torch.zeros(1, 37)] * 2}, "model outputs are"),
        ({"f": [torch.zeros(3, 1)] * 2}, "model outputs are"),
        ({"f": [torch.zeros(3, 37).double()] * 2}, "model outputs are"),
        ({"f": [torch.zeros(3, 37)] * 3}, "model outputs are"),
        ({"table_f": torch.zeros(7, 5)}, "table_f has shape"),
        ({"table_i": torch.zeros(7, 3, dtype=torch.int32)}, "table_i has shape"),
        ({"status": torch.zeros(2, dtype=torch.int32)}, "status has shape"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "seed has shape"),
        ({"mask": torch.zeros(2, 37), "known": torch.zeros(3, 37)}, "mask has shape"),
        ({"x_out": torch.zeros(3, 1)}, "x_out is"),
        ({"noise": [torch.zeros(3, 1)]}, "noise is"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence):
    _, given = ready(BASE)
    before = given["x"].clone()
    with pytest.raises(ValueError, match=f"^step_: {sentence}"):
        STEP(*(given | change).values())
    assert same(given["x"], before)


@pytest.mark.parametrize("name", ["x", "slots", "table_f", "f"])
def test_what_requires_grad_is_refused(name):
    _, given = ready(BASE)
    given[name] = (
        [v.requires_grad_() for v in given[name]] if name == "f" else given[name].requires_grad_()
    )
    with pytest.raises(RuntimeError, match=r"step_: an argument requires grad, .*differentiable"):
        STEP(*given.values())
