"""Butcher tableaux of explicit one-step methods, as published: data, their sources, and no code but
what writes the data down.

Classical, of dy/du = f: f_j is asked at u + c_j Δ, where y_j = y + Δ sum_l a_jl f_l, and
y' = y + Δ sum_j b_j f_j. Exponential, of dy/dλ = -y + x0(y, λ), with z = -h:
y_j = e^{c_j z} y + h sum_l a_jl(z) x0_l and y' = e^z y + h sum_j b_j(z) x0_j, every coefficient a
sum of factor·phi_k(at·z), phi_0 = e^z, phi_{k+1}(z) = (phi_k(z) - 1/k!)/z.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method of s stages.

    order        its order for smooth problems
    nodes        c [s]: 0 first, the others above 0 and at most 1
    stages       a [s - 1]: the rows of stages 2, 3, .., with one, two, .. numbers; each row sums to
                 its node
    weights      b [s]; they sum to 1
    exponential  every coefficient is a list of (factor, k, at), the sum of factor·phi_k(at·z)
    source       who published it, with "doi:" or "arXiv:"
    """

    order: int
    nodes: Sequence
    stages: Sequence
    weights: Sequence
    exponential: bool = False
    source: str = ""


def _numbers(text: str) -> list[Fraction]:
    return [Fraction(word) for word in text.split()]


def _classical(order: int, nodes: str, stages: list[str], weights: str, source: str) -> Tableau:
    rows = [_numbers(row) for row in stages]
    return Tableau(order, _numbers(nodes), rows, _numbers(weights), False, source)


def _phi(at, *factors) -> list[tuple]:
    """factors[0]·phi_1(at·z) + factors[1]·phi_2(at·z) + ..."""
    return [(factor, k, at) for k, factor in enumerate(factors, 1) if factor]


HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
HAIRER = "Hairer, Norsett, Wanner 1993, Solving ODEs I, sec. II.1, doi:10.1007/978-3-540-78862-1"
RALSTON = (
    "Ralston 1962, RK methods with minimum error bounds, doi:10.1090/S0025-5718-1962-0150954-0"
)
COX = "Cox, Matthews 2002, Exponential time differencing, {}, doi:10.1006/jcph.2002.6995"
RES = "Zhang, Song, Chen 2023, Improved order analysis of exponential integrators, arXiv:2308.02157"

_ETDRK2 = (2, [0, 1], [[_phi(1, 1)]], [_phi(1, 1, -1), _phi(1, 0, 1)], True)

TABLEAUX = {
    "midpoint": _classical(2, "0 1/2", ["1/2"], "0 1", HAIRER),
    "heun2": _classical(2, "0 1", ["1"], "1/2 1/2", HAIRER),
    "ralston2": _classical(2, "0 2/3", ["2/3"], "1/4 3/4", RALSTON),
    "heun3": _classical(3, "0 1/3 2/3", ["1/3", "0 2/3"], "1/4 0 3/4", HAIRER),
    "kutta3": _classical(3, "0 1/2 1", ["1/2", "-1 2"], "1/6 2/3 1/6", HAIRER),
    "ralston3": _classical(3, "0 1/2 3/4", ["1/2", "0 3/4"], "2/9 1/3 4/9", RALSTON),
    "ssprk3": _classical(
        3,
        "0 1 1/2",
        ["1", "1/4 1/4"],
        "1/6 1/6 2/3",
        "Shu, Osher 1988, Efficient implementation of ENO, doi:10.1016/0021-9991(88)90177-5",
    ),
    "rk4": _classical(4, "0 1/2 1/2 1", ["1/2", "0 1/2", "0 0 1"], "1/6 1/3 1/3 1/6", HAIRER),
    "rk38": _classical(4, "0 1/3 2/3 1", ["1/3", "-1/3 1", "1 -1 1"], "1/8 3/8 3/8 1/8", HAIRER),
    # Ralston's third order; its fourth stage, the first of the next step, serves an error estimate
    "bogacki_shampine": _classical(
        3,
        "0 1/2 3/4",
        ["1/2", "0 3/4"],
        "2/9 1/3 4/9",
        "Bogacki, Shampine 1989, A 3(2) pair, doi:10.1016/0893-9659(89)90079-7",
    ),
    # without the seventh stage, for the same reason: fifth order by six evaluations a step
    "dormand_prince": _classical(
        5,
        "0 1/5 3/10 4/5 8/9 1",
        [
            "1/5",
            "3/40 9/40",
            "44/45 -56/15 32/9",
            "19372/6561 -25360/2187 64448/6561 -212/729",
            "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        ],
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
        "Dormand, Prince 1980, A family of embedded RK formulae, doi:10.1016/0771-050X(80)90013-3",
    ),
    "etdrk2": Tableau(*_ETDRK2, COX.format("eq. 22")),
    # ComfyUI's exp_heun_2_x0
    "exp_heun": Tableau(
        *_ETDRK2, "Hochbruck, Ostermann 2005, Explicit exponential RK, doi:10.1137/040611434"
    ),
    "etdrk3": Tableau(
        3,
        [0, HALF, 1],
        [[_phi(HALF, HALF)], [_phi(1, -1), _phi(1, 2)]],
        [_phi(1, 1, -3, 4), _phi(1, 0, 4, -8), _phi(1, 0, -1, 4)],
        True,
        COX.format("eq. 23-25"),
    ),
    # the published (e^{z/2} - 1)·phi_1(z/2)/2 is phi_1(z) - phi_1(z/2)
    "etdrk4": Tableau(
        4,
        [0, HALF, HALF, 1],
        [
            [_phi(HALF, HALF)],
            [[], _phi(HALF, HALF)],
            [_phi(1, 1) + _phi(HALF, -1), [], _phi(HALF, 1)],
        ],
        [_phi(1, 1, -3, 4), _phi(1, 0, 2, -4), _phi(1, 0, 2, -4), _phi(1, 0, -1, 4)],
        True,
        COX.format("eq. 26-29"),
    ),
    "res_2s": Tableau(
        2, [0, HALF], [[_phi(HALF, HALF)]], [_phi(1, 1, -2), _phi(1, 0, 2)], True, RES
    ),
    # c_2 = 1/2, c_3 = 1, which makes gamma = 4
    "res_3s": Tableau(
        3,
        [0, HALF, 1],
        [
            [_phi(HALF, HALF)],
            [_phi(1, 1, -2) + _phi(HALF, 0, -2), _phi(1, 0, 2) + _phi(HALF, 0, 2)],
        ],
        [_phi(1, 1, Fraction(-5, 3)), _phi(1, 0, Fraction(4, 3)), _phi(1, 0, THIRD)],
        True,
        RES,
    ),
    # rk4 on e^λ y: a constant x0 is integrated by Simpson's rule, not exactly
    "lawson4": Tableau(
        4,
        [0, HALF, HALF, 1],
        [
            [[(HALF, 0, HALF)]],
            [[], [(HALF, 0, 0)]],
            [[], [], [(1, 0, HALF)]],
        ],
        [
            [(Fraction(1, 6), 0, 1)],
            [(THIRD, 0, HALF)],
            [(THIRD, 0, HALF)],
            [(Fraction(1, 6), 0, 0)],
        ],
        True,
        "Lawson 1967, Generalized RK processes for stable systems, doi:10.1137/0704033",
    ),
}
