"""Tableaux of Runge-Kutta methods: order conditions in exact fractions, on every rooted tree; those
of exponential ones for stiff problems; one slope each; and a tableau of one's own.

An exponential method on dy/dlambda = -y + x0(y, lambda) is, in v = e^lambda y, a Runge-Kutta method
on v' = e^lambda x0 with coefficients that depend on h: A_ij = a_ij(-h) e^{(c_i - c_j) h} and
B_j = b_j(-h) e^{(1 - c_j) h}. It is of order p if for every tree of q nodes the condition holds up
to and with h^{p - q}. The rows of A need not sum to c, so a leaf stands either for the slope, with
sum_j A_ij, or for lambda, with c_i.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import pytest
from interpreter import run
from oracle import orders
from oracle.linear import EPS, mp
from oracle.probe import states
from oracle.stages import etdrk3, etdrk4, lawson4, res_3s
from scipy.integrate import RK23, RK45

from fastsample import grids
from fastsample.plan import Plan
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import SOLVERS, Tableau, rk
from fastsample.solvers._tableau import checked, coefficient
from fastsample.solvers._tableau_steps import dpm_solver
from fastsample.solvers._tableaux import TABLEAUX

CLASSICAL = [name for name, tableau in TABLEAUX.items() if not tableau.exponential]
EXPONENTIAL = [name for name, tableau in TABLEAUX.items() if tableau.exponential]
LAMBDA = "lambda"  # the leaf that stands for the variable itself


@cache
def trees(order: int, leaves: tuple = ()) -> list[tuple]:
    """Rooted trees of so many nodes, as sorted tuples of subtrees; `leaves` are further leaves."""
    found = []
    for sizes in _partitions(order - 1, order - 1):
        found += _joined(sizes, leaves)
    return sorted(set(found), key=repr)


def _partitions(total: int, largest: int) -> Iterator[tuple]:
    if total == 0:
        yield ()
    for first in range(min(total, largest), 0, -1):
        for rest in _partitions(total - first, first):
            yield (first, *rest)


def _joined(sizes: tuple, leaves: tuple) -> list[tuple]:
    if not sizes:
        return [()]
    size, count = sizes[0], sizes.count(sizes[0])
    branches = trees(size, leaves) + [*leaves] * (size == 1)
    return [
        tuple(sorted((*many, *rest), key=repr))
        for many in combinations_with_replacement(branches, count)
        for rest in _joined(sizes[count:], leaves)
    ]


def size(tree) -> int:
    return 1 if tree == LAMBDA else 1 + sum(map(size, tree))


def density(tree) -> int:
    return 1 if tree == LAMBDA else size(tree) * math.prod(map(density, tree))


def test_there_are_as_many_trees_as_known():
    assert [len(trees(k)) for k in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    assert [len(trees(k, (LAMBDA,))) for k in range(1, 4)] == [1, 2, 5]


class Series(tuple):
    """A power series in h, in Fractions, to a length that all share."""

    def __add__(self, other):
        return Series(a + b for a, b in zip(self, other, strict=True))

    def __mul__(self, other):
        if not isinstance(other, Series):
            return Series(Fraction(other) * a for a in self)
        pairs = [(self[: n + 1], other[n::-1]) for n in range(len(self))]
        return Series(sum(a * b for a, b in zip(*pair, strict=True)) for pair in pairs)


def phi_series(terms, shift, length: int) -> Series:
    """sum factor·phi_k(-at h), times e^{shift h}."""
    total = Series([Fraction(0)] * length)
    for factor, k, at in terms:
        found = [(-Fraction(at)) ** n / Fraction(math.factorial(n + k)) for n in range(length)]
        total += Series(found) * factor
    return total * Series(Fraction(shift) ** n / Fraction(math.factorial(n)) for n in range(length))


def weight(tree, stages: list, values: list, nodes: list, one: Series) -> list:
    """Of every stage, the elementary weight of what hangs at it."""
    out = [one] * len(nodes)
    for child in tree:
        if child == LAMBDA:
            below = [one * c for c in nodes]
        else:
            inner = weight(child, stages, values, nodes, one)
            zero = one * 0
            below = [sum((a * w for a, w in zip(row, inner, strict=False)), zero) for row in stages]
        out = [a * b for a, b in zip(out, below, strict=True)]
    return out


def defects(tableau: Tableau, order: int) -> list[Series]:
    """sum_j B_j weight_j - 1/density for every tree of so many nodes, as series in h; of classical
    ones, whose rows sum to c, as numbers and without the leaf lambda.
    """
    length, leaves = (tableau.order + 1, (LAMBDA,)) if tableau.exponential else (1, ())
    nodes = [Fraction(c) for c in tableau.nodes]
    one = Series([Fraction(1)] + [Fraction(0)] * (length - 1))
    if tableau.exponential:
        make = lambda entry, here, there: phi_series(entry, here - there, length)
    else:
        make = lambda entry, here, there: one * entry
    rows = [([], nodes[0]), *zip(tableau.stages, nodes[1:], strict=True), (tableau.weights, 1)]
    made = [[make(a, c, d) for a, d in zip(row, nodes, strict=False)] for row, c in rows]
    out = []
    for tree in trees(order, leaves):
        inner = weight(tree, made[:-1], made[-1], nodes, one)
        total = sum((b * w for b, w in zip(made[-1], inner, strict=True)), one * 0)
        out.append(total + one * Fraction(-1, density(tree)))
    return out


def order_of(tableau: Tableau) -> int:
    """The order up to which all conditions hold, at most one above that it claims."""
    most = tableau.order + 1
    found = {q: defects(tableau, q) for q in range(1, most + 1)}
    held = lambda p, q: all(abs(c) <= 1e-12 for each in found[q] for c in each[: p - q + 1])
    return max(p for p in range(most + 1) if all(held(p, q) for q in range(1, p + 1)))


@pytest.mark.parametrize("name", TABLEAUX)
def test_order_conditions(name):
    """All of them up to the order, and not all of the next: the order is no higher than claimed."""
    assert order_of(TABLEAUX[name]) == TABLEAUX[name].order
    for q in range(1, TABLEAUX[name].order + 1):
        for found in defects(TABLEAUX[name], q):
            assert not any(found[: TABLEAUX[name].order - q + 1]), f"a tree of {q} nodes: {found}"


@pytest.mark.parametrize("variant", ["dpmsolver", "taylor"])
@pytest.mark.parametrize(
    "order, shares, reached",
    [(1, [], 1), (2, [0.5], 2), (2, [0.3], 2)]
    + [(3, [1 / 3, 2 / 3], 3), (3, [0.5, 2 / 3], 3), (3, [0.25, 0.8], 2), (3, [1 / 3, 0.5], 2)],
)
def test_order_of_dpm_solver(order, shares, reached, variant):
    """The third asks for r2 = 2/3, whatever r1 and the variant; in noise form alike, whose
    conditions are those of z = h.
    """
    tableau = dpm_solver(order, variant, *shares)
    assert tableau.order == order_of(tableau) == reached


def phi_mp(k: int, z):
    """phi_k as the integral of e^{(1-u)z} u^{k-1}/(k-1)!."""
    if k == 0:
        return mp.exp(z)
    return mp.quad(lambda u: mp.exp((1 - u) * z) * u ** (k - 1) / mp.factorial(k - 1), [0, 1])


# how far the conditions of Hochbruck and Ostermann 2005 hold whatever z is: sum b = phi_1,
# sum b c = phi_2, sum b c^2 = 2 phi_3; rows sum to c phi_1(c z)
STIFF = {"etdrk2": 2, "exp_heun": 2, "etdrk3": 3, "etdrk4": 3, "res_2s": 2, "res_3s": 2}


@pytest.mark.parametrize("z", [-0.01, -0.7, -3.0, -12.0])
@pytest.mark.parametrize("name", STIFF)
def test_stiff_order_conditions(name, z):
    tableau = checked(name)
    for c, row in zip(tableau.nodes[1:], tableau.stages, strict=True):
        assert abs(sum(coefficient(a, z) for a in row) - c * phi_mp(1, c * z)) <= 1e-12
    weights = [coefficient(b, z) for b in tableau.weights]
    for k in (1, 2, 3):
        moment = sum(b * c ** (k - 1) for b, c in zip(weights, tableau.nodes, strict=True))
        gap = abs(moment - math.factorial(k - 1) * phi_mp(k, z))
        assert (gap <= 1e-12) is (k <= STIFF[name]), f"moment {k - 1}: {gap}"


@pytest.mark.parametrize("name", TABLEAUX)
def test_slope(name):
    """The last of the doublings to 120 steps that rounding and coarse steps do not hide."""
    make = lambda n: rk(EDM(), orders.grid(EDM(), n), prediction="x0", tableau=name)
    found, error, n = orders.slope(lambda n: orders.error(make(n), EDM()), (15, 30, 60, 120))
    p = TABLEAUX[name].order
    assert p - 0.3 <= found <= p + 0.6, f"order {found:.2f} at n = {n}, error {error:.1e}"


PRINTED = {"etdrk3": etdrk3, "etdrk4": etdrk4, "res_3s": res_3s, "lawson4": lawson4}


@pytest.mark.parametrize("z", [-0.05, -1.0, -9.0])
@pytest.mark.parametrize("name", PRINTED)
def test_phi_functions_are_the_printed_coefficients(name, z):
    tableau = checked(name)
    rows = [*tableau.stages, tableau.weights]
    for row, (_, printed) in zip(rows, PRINTED[name](mp.mpf(z)), strict=True):
        assert [coefficient(a, z) for a in row] == pytest.approx([*map(float, printed)], abs=1e-14)


@pytest.mark.parametrize(("name", "theirs"), [("bogacki_shampine", RK23), ("dormand_prince", RK45)])
def test_equals_scipy(name, theirs):
    tableau = checked(name)
    assert tableau.nodes == pytest.approx(theirs.C[: len(tableau.nodes)])
    assert tableau.weights == pytest.approx(theirs.B)
    for k, row in enumerate(tableau.stages, 1):
        assert row == pytest.approx(theirs.A[k, :k])


def same_states(ours, theirs, row: int = 1):
    found, wanted = states(ours).states, states(theirs).states
    assert np.abs(found - wanted).max() <= 64 * EPS * np.abs(wanted).max()


# DPM-Solver++(2S): (1 - e^{-h}) [m + (m1 - m)/(2 r)] at r = 1/2
OWN = Tableau(
    2, [0, 0.5], [[[(0.5, 1, 0.5)]]], [[], [(1, 1, 1)]], True, "me 2026, arXiv:0000.00000"
)


@pytest.mark.parametrize("schedule", [VP(), EDM(), Flow(3.0)], ids=lambda s: type(s).__name__)
def test_is_what_other_solvers_are(schedule):
    grid = grids.karras(schedule, 5)
    same_states(
        rk(schedule, grid, prediction="x0", tableau="heun2"),
        SOLVERS["heun"](schedule, grid, prediction="x0"),
    )
    same_states(
        rk(schedule, grid, prediction="x0", tableau=OWN),
        SOLVERS["dpmpp_2s"](schedule, grid, prediction="x0"),
    )
    euler = Tableau(1, [0], [], [1])
    same_states(
        rk(schedule, grid, prediction="x0", tableau=euler),
        SOLVERS["euler"](schedule, grid, prediction="x0"),
    )


@pytest.mark.parametrize(
    "tableau", [OWN, TABLEAUX["rk38"], TABLEAUX["lawson4"]._replace(source="")]
)
def test_a_tableau_of_ones_own_is_kept_in_the_note(tableau):
    plan = rk(VP(), grids.karras(VP(), 3), prediction="v", tableau=tableau)
    again = Plan.from_bytes(plan.to_bytes())
    assert again.remake().to_bytes() == plan.to_bytes()
    assert again.remake(1).nfe == len(tableau.nodes) + 1
    kept = json.loads(json.dumps(plan.note["arguments"]["tableau"]))
    assert rk(VP(), grids.karras(VP(), 3), prediction="v", tableau=kept) == plan


def test_a_tableau_of_arrays():
    given = Tableau(3, RK23.C, [row[:k] for k, row in enumerate(RK23.A) if k], RK23.B)
    made = rk(VP(), grids.karras(VP(), 3), prediction="v", tableau=given)
    named = rk(VP(), grids.karras(VP(), 3), prediction="v", tableau="bogacki_shampine")
    assert np.array_equal(made.M, named.M)
    with pytest.raises(ValueError, match=r"stages.0. = .0.0, 0.0, 0.0.; a list of 1, as"):
        rk(VP(), grids.karras(VP(), 3), prediction="v", tableau=given._replace(stages=RK23.A))


def test_lawson_leaves_the_schedule_and_says_so():
    """Simpson's rule on e^lambda: off by h^5/2880 of a constant x0."""
    h = 0.5
    plan = rk(EDM(), [1.0, math.exp(-h)], prediction="x0", tableau="lawson4")
    assert plan.note["consistent"] is False
    off = states(plan).states[-1, 1:].sum() + math.expm1(-h)
    assert off == pytest.approx(h**5 / 2880 * math.exp(-h / 2), rel=0.1)
    assert rk(EDM(), [1.0, 0.5], prediction="x0", tableau="etdrk4").note["consistent"] is True


BAD = [
    ("rk5", "rk: tableau = 'rk5'; one of midpoint, "),
    (3, "rk: tableau is a int; a name, or a Tableau, is accepted"),
    ({"nodes": [0], "extra": 1}, "rk: tableau is a dict; a name, or a Tableau, is accepted"),
    (Tableau(0, [0], [], [1]), "rk: tableau: order = 0; a whole number from 1 up is accepted"),
    (Tableau(1, [0.5], [], [1]), "rk: tableau: nodes = .0.5.; numbers of which the first is 0"),
    (Tableau(1, "0", [], [1]), "rk: tableau: nodes = 0; numbers of which the first is 0"),
    (Tableau(2, [0, 1.5], [[1.5]], [0.5, 0.5]), "from the second on numbers above 0 up to 1"),
    (Tableau(2, [0, 0], [[0]], [0.5, 0.5]), "from the second on numbers above 0 up to 1"),
    (Tableau(2, [0, 1], [[0.5, 0.5]], [0.5, 0.5]), r"stages.0. = .*; a list of 1, as an explicit"),
    (Tableau(2, [0, 1], [], [0.5, 0.5]), "0 stages beside 2 nodes; one less than nodes"),
    (Tableau(2, [0, 1], 3, [0.5, 0.5]), "stages = 3; a list of rows is accepted"),
    (Tableau(2, [0, 1], [[0.5]], [0.5, 0.5]), r"stages.0. sum to 0.5 at z = 0; 1, which is"),
    (Tableau(2, [0, 1], [[1]], [0.5, 0.4]), "weights sum to 0.9 at z = 0; 1, which is consistent"),
    (Tableau(2, [0, 1], [[math.nan]], [0.5, 0.5]), r"stages.0. = .nan.; finite numbers"),
    (Tableau(1, [0], [], [[(1, -1, 1)]], True), r"weights = .*; lists of \(factor, k, at\)"),
    (Tableau(1, [0], [], [1], True), r"weights = .1.; lists of \(factor, k, at\), k from 0 up"),
]


@pytest.mark.parametrize(("tableau", "sentence"), BAD)
def test_bad_tableaux_are_refused(tableau, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        rk(EDM(), [4.0, 2.0, 0.0], prediction="x0", tableau=tableau)
    assert "\n" not in str(caught.value)


LIMITS = ["rk4", "dormand_prince", "etdrk2", "etdrk3", "etdrk4", "res_2s", "res_3s"]


@pytest.mark.parametrize("name", LIMITS)
def test_alpha_zero_is_the_limit(name):
    """A run from alpha = 0 is the limit of runs that start ever closer to it, at alpha = 2^-p; an
    exponential weight goes there as 1/p, since lambda is a logarithm.
    """
    x, model = np.linspace(-1.5, 1.5, 16), lambda x_in, t, row, call: [np.tanh(x_in + t[0])]
    ends = []
    for power in (20, 40, 1100):  # 1 - 2^-1100 is 1
        plan = rk(Flow(), [1.0 - 2.0**-power, 0.6, 0.3], prediction="flow", tableau=name)
        ends.append(run(plan, x, model))
    near, nearer = (np.abs(end - ends[-1]).max() for end in ends[:-1])
    assert 0 < nearer <= (0.6 if TABLEAUX[name].exponential else 2.0**-19) * near


def test_spaces_are_refused_where_they_have_no_meaning():
    with pytest.raises(ValueError, match="rk: space = 'x'; one of rho, flow"):
        rk(EDM(), [4.0, 0.0], prediction="x0", space="x")
    with pytest.raises(ValueError, match="rk: space = 'rho' on a grid that starts at alpha = 0"):
        rk(Flow(), [1.0, 0.5], prediction="flow", space="rho")
    with pytest.raises(ValueError, match="rk: space = 'flow' with an exponential tableau"):
        rk(EDM(), [4.0, 0.0], prediction="x0", space="flow", tableau="etdrk2")
