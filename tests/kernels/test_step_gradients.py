"""The definition of the step under autograd: derivatives of what a row reads and of the plan's
numbers, and NaN that stays out of them.
"""

from dataclasses import replace

import pytest
import torch
from cases import BASE, BRANCHES, DU, KNOWN_READS, READS_LO, Case, make, shape_of
from torch.autograd import forward_ad

from fastsample.kernels.reference import step as definition

WIDE = {"state": torch.float64, "model": torch.float64, "noise_scale": True}
SMALL = Case(elements=2, batch=2, S=1, G=2, L=1, K=1, **WIDE)
CASES = {
    "plain": SMALL,
    "bound": replace(SMALL, bound=True),
    "weights": replace(SMALL, weights=True),
    "mask": replace(SMALL, mask=True),
    "no slot": replace(SMALL, S=0, G=1, K=0),
}
OPTIONS = ("scale", "noise_scale", "weights", "bound", "mask", "known")


def ready(case, reads=True):
    """A case whose rows all read and write everything, or what chance chose."""
    setup = make(case, seed=1, rows=4)
    x, slots, *rest = setup.args
    setup.args = (x, [torch.nan_to_num(s, 0.25) for s in slots], *rest)
    if reads:
        words, at = setup.args[4], setup.at
        words[:, READS_LO] = (1 << at.W) - 1
        words[:, BRANCHES], words[:, DU] = (1 << at.G) - 1, 0 if at.S else -1
        words[:, KNOWN_READS] = (2 << at.L) - 1
    return setup


def leaves(setup, row):
    """{name: leaf} of every floating input, and call(*leaves) -> what row number `row` gives."""
    x, slots, f, numbers, words, _, at = setup.args
    shape, option = shape_of(at, numbers[row], words[row]), setup.options
    draw = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    given = {"x": x, **{f"r{s}": v for s, v in enumerate(slots)}}
    given |= {**{f"f{g}": v for g, v in enumerate(f)}, "numbers": numbers[row]}
    given |= {name: option[name] for name in OPTIONS if option[name] is not None}
    given = {name: v.clone().requires_grad_() for name, v in given.items()}

    def call(*leaves):
        of = dict(zip(given, leaves, strict=True))
        pick = lambda letter, count: [of[f"{letter}{k}"] for k in range(count)]
        noise = [draw * of["noise_scale"][:, None]] * at.L
        rest = [of.get(name) for name in ("scale", "weights", "bound", "mask", "known")]
        slots, f = pick("r", at.S), pick("f", at.G)
        out = definition.row(shape, at, of["numbers"], of["x"], slots, f, noise, *rest)
        return [v for v in out if v is not None]

    return given, call


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_a_row(name):
    """Of first and second order, backwards and forwards, rows with a clip and without."""
    setup = ready(CASES[name])
    for row in (2, 3):
        given, call = leaves(setup, row)
        assert torch.autograd.gradcheck(call, list(given.values()), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, list(given.values()))


@pytest.mark.parametrize("name", CASES)
def test_every_input_that_is_read_has_a_gradient(name):
    setup = ready(CASES[name])
    given, call = leaves(setup, 2)
    loss = sum(v.square().sum() for v in call(*given.values()))
    found = torch.autograd.grad(loss, list(given.values()), allow_unused=True)
    found = dict(zip(given, found, strict=True))
    unread = {"scale"} & set(given) if "weights" in given else set()  # a pre-pass stands in for it
    assert {k for k, g in found.items() if g is None} == unread
    assert all(bool(g.abs().sum() > 0) for g in found.values() if g is not None)
    at, numbers = setup.at, found["numbers"]
    fields = ["M", "p", "q", "c", "preview"]
    fields += [] if "weights" in given else ["U", *["V"] * (at.K > 0)]
    assert all(bool(numbers[at.at(field)].abs() > 0) for field in fields)
    assert bool(numbers[: at.W].abs().min() > 0), "a number of M for each operand"


def test_the_gradient_of_the_bound_is_that_of_the_clamp():
    """m / bound inside, the sign of m outside: d/d bound = -m / bound^2 inside and 0 outside."""
    setup = ready(CASES["bound"])
    given, call = leaves(setup, 2)
    bound, numbers, at = given["bound"], given["numbers"], setup.at
    weights = [numbers[at.at("U") + g] + given["scale"] * numbers[at.at("V") + g] for g in range(2)]
    mixed = sum(w * given[f"f{g}"] for g, w in enumerate(weights))
    m = numbers[at.at("p")] * given["x"] + numbers[at.at("q")] * mixed
    inside = m.abs() <= bound[:, None]
    assert 0 < int(inside.sum()) < m.numel()
    *_, x0 = call(*given.values())
    (got,) = torch.autograd.grad(x0.sum(), bound)
    slope = torch.where(inside, -m / bound[:, None] ** 2, 0) * numbers[at.at("preview") + 1]
    torch.testing.assert_close(got, slope.sum(1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("forward", [False, True], ids=["backward", "forward"])
def test_unread_nan_stays_out_of_gradients(forward):
    setup = ready(replace(BASE, **WIDE), reads=False)
    x, slots, f, numbers, words, _, at = setup.args
    words[:, READS_LO] &= ~0b110  # no slot is read
    words[:, BRANCHES] &= 1
    words[:, READS_LO] &= ~(1 << at.branch(1))
    for unread in (*slots, f[1]):
        unread.fill_(torch.nan)
    for row in range(len(numbers)):
        given, call = leaves(setup, row)
        unread = {"r0", "r1", "f1"}
        if forward:
            along = [
                torch.full_like(v, torch.nan if k in unread else 1.0) for k, v in given.items()
            ]
            with forward_ad.dual_level():
                moving = map(forward_ad.make_dual, given.values(), along)
                tangents = [forward_ad.unpack_dual(v).tangent for v in call(*moving)]
            assert all(t is None or bool(torch.isfinite(t).all()) for t in tangents)
            continue
        outputs = sum(v.sum() for v in call(*given.values()))
        found = torch.autograd.grad(outputs, list(given.values()), allow_unused=True)
        found = dict(zip(given, found, strict=True))
        assert all(found[name] is None for name in unread)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in found.values())


def test_operands_that_are_not_read_may_be_absent():
    """A slot, a branch and a draw that no row reads need not be there at all."""
    setup = ready(SMALL)
    x, slots, f, numbers, words, _, at = setup.args
    words[:, READS_LO], words[:, BRANCHES] = 1 | 1 << at.m, 1
    x = x.requires_grad_()
    shape = shape_of(at, numbers[2], words[2])
    given = (shape, at, numbers[2], x)
    scale = setup.options["scale"]
    there = definition.row(*given, slots, f, [torch.zeros_like(x)], scale)
    absent = definition.row(*given, [None], [f[0], None], [None], scale)
    for a, b in zip(there, absent, strict=True):
        assert a is b is None or torch.equal(a, b)
    assert torch.equal(*(torch.autograd.grad(v[0].sum(), x)[0] for v in (there, absent)))
