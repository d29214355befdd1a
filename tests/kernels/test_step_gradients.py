"""step under autograd: gradients of inputs and of the plan's numbers, NaN that stays out of them,
and torch's own checks of the op.
"""

from dataclasses import replace

import pytest
import torch
from cases import BASE, MODELS, Case, make
from test_step import structure_of

from fastsample.kernels import step
from fastsample.kernels.layout import BRANCHES, DU, READS_LO


def leaves(setup):
    """Floating inputs of a call, as double leaves that want a gradient; clip is held, since it
    switches at 0.
    """
    x, slots, f, numbers, words, row, at = setup.args
    hot = torch.ones(at.WF, dtype=torch.float64)
    hot[at.p + 2] = 0
    want = [
        t.double().clone().requires_grad_()
        for t in (x, *slots, *f, numbers, setup.options["scale"], setup.options["noise_scale"])
    ]

    def call(*given, structure=None, rows=row):
        S, G = at.S, at.G
        table = given[1 + S + G] * hot + (1 - hot) * numbers
        options = {
            **setup.options,
            "scale": given[-2],
            "noise_scale": given[-1],
            "model_dtype": torch.float64,
        }
        return [
            v
            for v in step(
                given[0],
                given[1 : 1 + S],
                given[1 + S : 1 + S + G],
                table,
                words,
                rows,
                at,
                **options,
                structure=structure,
            )[:5]
            if v.numel()
        ]

    return want, call


@pytest.mark.parametrize("known", [False, True], ids=["rows", "structure"])
def test_gradients(known):
    setup = make(
        Case(
            elements=3,
            batch=2,
            S=1,
            G=2,
            L=1,
            K=1,
            state=torch.float64,
            model=torch.float64,
            noise_scale=True,
        ),
        seed=1,
        rows=3,
    )
    setup.args = (
        setup.args[0],
        [torch.nan_to_num(s, 0.25) for s in setup.args[1]],
        *setup.args[2:],
    )
    setup.args[4][:, READS_LO] |= 0b11 | 1 << setup.at.m | 1 << setup.at.n
    setup.args[4][:, BRANCHES] = 3
    setup.args[4][:, DU] = 0
    want, call = leaves(setup)
    options = {"structure": structure_of(setup, 1), "rows": torch.full((2,), 1)} if known else {}
    assert torch.autograd.gradcheck(lambda *given: call(*given, **options), want)
    gradients = torch.autograd.grad(sum(v.sum() for v in call(*want, **options)), want)
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    table = gradients[-3]
    at = setup.at
    assert all(
        bool(table[:, k].abs().sum() > 0) for k in (0, at.m, at.p, at.p + 1, at.U, at.V, at.c)
    ), "M, p, q, U, V and c all get a gradient"


def test_unread_nan_stays_out_of_gradients():
    setup = make(replace(BASE, state=torch.float64, model=torch.float64, noise_scale=True, S=2))
    setup.args[4][:, READS_LO] &= ~0b110  # no slot is read
    setup.args[4][:, BRANCHES] &= 1
    setup.args[4][:, READS_LO] &= ~(1 << (setup.at.m + 3))
    for slot in setup.args[1]:
        slot.fill_(torch.nan)
    setup.args[2][1].fill_(torch.nan)
    want, call = leaves(setup)
    gradients = torch.autograd.grad(sum(v.sum() for v in call(*want)), want, allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_opcheck(model):
    """Everything once; schema, registration and shapes for the other dtypes (compiling takes
    seconds).
    """
    setup = make(replace(BASE, model=model, elements=5, mask=True, noise_scale=True))
    x, slots, f, numbers, words, row, at = setup.args
    slots = [torch.nan_to_num(s, 0.25) for s in slots]
    o = setup.options
    args = (
        x.requires_grad_(),
        slots,
        f,
        numbers.requires_grad_(),
        words,
        row,
        list(at),
        None,
        o["scale"],
        o["seed"],
        o["noise_scale"],
        None,
        None,
        [],
        o["mask"],
        o["known"],
        0,
        model,
        True,
        None,
        None,
    )
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.fastsample.step.default,
        args,
        test_utils=(*quick, "test_aot_dispatch_dynamic") if model == torch.bfloat16 else quick,
    )
