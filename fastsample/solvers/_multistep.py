"""Multistep steps: a polynomial through the outputs of the last points, integrated exactly.

What the model says is carried from point to point as y; the exact step from point s to t adds up y
along the way, and a solver of order p puts the polynomial through p outputs in its place. Three
choices make the solver (`Form`): what y is, which variable the polynomial is in, and how much noise
the step renews. With h = lambda_t - lambda_s, lambda = ln(alpha/sigma), and v running from 0 to 1,

    carry "x0"   x_t = (sigma_t/sigma_s) e^{-eta h} x_s + alpha_t ∫ H e^{-(1-v)H} x0 dv + noise,
                 H = (1 + eta) h, noise = sigma_t sqrt(1 - e^{-2 eta h}) n
    carry "eps"  x_t = (alpha_t/alpha_s) x_s + alpha_t (1 + eta) ∫ eps d rho + noise,
                 rho = sigma/alpha, noise = sigma_t sqrt(eta (e^{2h} - 1)) n
    carry "v"    x_t = (n_t/n_s) x_s + n_t ∫ v ds,  v = eps - x0, n = alpha + sigma, s = sigma/n

(Lu et al. 2022, arXiv:2206.00927 and 2211.01095; Xue et al. 2023, arXiv:2309.05019, eq. 6 with
eta = tau².) The polynomial is in

    "lambda"   DPM-Solver, UniPC, SA-Solver, DEIS in log rho
    "level"    rho, or s where v is carried: linear multistep, DEIS in rho
    "time"     the schedule's own time: DEIS's tAB
    "index"    the number of the step, as if all were equal: PNDM, iPNDM

The first-order step is DDIM's whatever is carried, so a step is written as that one and what the
older outputs add to it, sum_k w_k (y_k - y_0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from ..schedules import Flow
from ._build import ZERO, Builder, Lin, M, R, X
from ._exponential import gain, moments
from ._over_time import over_time

BASE = R("anchor")  # the x that a corrector comes back to
# alpha + sigma = 1 on Flow, but for the rounding of two quotients
ROUNDING = 4.0 * np.finfo(np.float64).eps


class Form(NamedTuple):
    """What is carried, the polynomial's variable, and eta >= 0, the strength of the step's noise
    (0: the ODE), as the module's docstring has them.
    """

    carry: str = "x0"
    variable: str = "lambda"
    eta: float = 0.0


class Levels(NamedTuple):
    """alpha, sigma and half_log_snr at the points of a path, noise to data; with times, their
    schedule and the integrals of all steps where a polynomial in time is asked for. known: those of
    other steps, `more` than were asked for: a corrector comes back to a step.
    """

    alpha: Sequence[float]
    sigma: Sequence[float]
    half_log_snr: Sequence[float]
    t: Sequence[float] = ()
    schedule: object = None
    stored: str = "x0"  # what m is
    over_time: Sequence[list[float]] = ()
    known: dict[int, tuple[Form, list[float]]] | None = None
    more: int = 0

    @classmethod
    def of(cls, b: Builder, on_sigma: bool = False) -> Levels:
        """on_sigma: on Flow those of x as if alpha were 1, lambda = -ln sigma, as ComfyUI has them;
        the first-order step is the same.
        """
        found = (b.alpha, b.sigma, b.half_log_snr, b.t)
        if on_sigma and isinstance(b.schedule, Flow):
            with np.errstate(divide="ignore"):
                found = (np.ones(b.n + 1), b.sigma, -np.log(b.sigma), b.t)
        return cls(*(np.asarray(v, float).tolist() for v in found), b.schedule, b.stored)


# (places of the outputs beside the newest, integrals, the h of the gain(h) in them, number of
# outputs asked for with the newest) -> weights of those outputs, in place of the exact ones; and
# what all weights together have too much, where they do not add up to the integral of 1
Weigh = Callable[[list[float], list[float], float, int], list[float]]


def halved(places: list[float], integrals: list[float], h: float, asked: int) -> list[float]:
    """Half of the whole weight for the one difference of a step that is asked for two outputs, as
    published: "midpoint" of DPM-Solver, bh2 of UniPC. The exact weights otherwise.
    """
    if asked == 2 == len(places) + 1:
        return [0.5 * integrals[0] / places[0]]
    return lagrange(places, integrals)


def plain(places: list[float], integrals: list[float], h: float, asked: int) -> list[float]:
    """As `halved`, with h for 1 - e^{-h}: bh1 of UniPC, SA-Solver of second order as published."""
    if asked == 2 == len(places) + 1:
        return [0.5 * integrals[0] * (h / gain(h)) / places[0]]
    return lagrange(places, integrals)


def published(
    places: list[float], integrals: list[float], h: float, asked: int, less: float = 0.0
) -> list[float]:
    """DPM-Solver of third order as implementations have it: half of the weight of D2, which leaves
    a step of second order. less: what is taken off that.
    """
    if len(places) == 1:
        return lagrange(places, integrals)
    r0, r1 = -places[0], places[0] - places[1]
    k = (integrals[1] * r0 + 0.5 * integrals[2] - less) / (r0 + r1)  # of D10 - D11
    of_10, of_11 = (integrals[1] + k) / r0, -k / r1
    return [of_11 - of_10, -of_11]


def implemented(own: Weigh | None, wrong: bool = False) -> Weigh:
    """As diffusers weighs DPM-Solver: a variant's own weight where two outputs are asked for, those
    `published` of three. wrong: 1/2 taken off where it is added, as in its SDE in data form, which
    leaves a step of first order.
    """

    def weigh(places: list[float], integrals: list[float], h: float, asked: int) -> list[float]:
        if asked == 2:
            return own(places, integrals, h, asked) if own else lagrange(places, integrals)
        return published(places, integrals, h, asked, integrals[0] / gain(h) if wrong else 0.0)

    return weigh


# how DPM-Solver's variants weigh the one older output
VARIANTS: dict[str, Weigh | None] = {"midpoint": halved, "heun": None}


def rows(
    b: Builder,
    form: Form | Sequence[Form],
    order: int | Sequence[int],
    *,
    low: bool = False,
    s_noise: float = 1.0,
    weigh: Weigh | None = None,
    correct: Callable[[Levels, int, Lin], Lin] | None = None,
    twice: bool = False,
    reach: int = 0,
    on_sigma: bool = False,
) -> list[int]:
    """The rows of every step, of order `order` at most; returns the orders reached. One form, or
    order, for all steps, or one for each.

    low      order n - i at most in step i, counted from 0
    correct  (levels, i, noise of the step before) -> x at point i, i from 1, corrected; X where it
             is not. twice: the model is asked again there
    reach    where x is corrected, the outputs of so many points more than the last, and the noise
             of the step there, stay until then, read or not
    on_sigma as `Levels.of` has it
    """
    at, reached, noise = Levels.of(b, on_sigma), [], ZERO
    forms = [form] * b.n if isinstance(form, Form) else form
    if correct:
        at = at._replace(known={}, more=2)
    if forms[0].variable == "time":
        at = at._replace(over_time=over_time(at, forms[0].carry, order))
    for i, form in enumerate(forms):
        most = order if isinstance(order, int) else order[i]
        here, words = correct(at, i, noise) if correct and i else X, {}
        if reach and here is not X:
            words = {"reads": noise, "spares": [f"m{j}" for j in range(max(0, i - 1 - reach), i)]}
        if twice and here is not X:
            b.row(b.t[i], to=b.t[i], x=here)
            here = X
        noise = s_noise * b.noise(i) if form.eta else ZERO
        most = min(most, b.n - i) if low else most
        x, found = predicted(at, form, i, most, weigh=weigh, here=here, noise=noise)
        reached.append(found)
        words["anchor"] = here if correct and b.inpaint else None
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": carried(at, form, i)}, **words)
    return reached


def carried(at: Levels, form: Form, i: int) -> Lin:
    """What point i's output is carried as, over x and m there."""
    if form.carry == at.stored or (form.carry == "v" and at.stored == "flow"):
        return M
    scale = at.alpha[i] if form.carry == "eps" else at.alpha[i] + at.sigma[i]
    return (X - scale * M) / at.sigma[i]


def predicted(
    at: Levels,
    form: Form,
    i: int,
    order: int,
    *,
    weigh: Weigh | None = None,
    here: Lin = X,
    noise: Lin = ZERO,
) -> tuple[Lin, int]:
    """(x', order reached) of the step from point i, where x is `here`, over the outputs of points
    i, i - 1, ..., `order` of them at most. A step of length 0 changes nothing.
    """
    if at.half_log_snr[i] == at.half_log_snr[i + 1]:
        return here, 1
    order = min(order, i + 1)
    seen = history(at, form, i, order)
    newest = carried(at, form, i)
    x = first(at, form, i, here, newest, noise)
    if len(seen) == 1:
        return x, 1
    places = [place(at, form, i, j) for j in seen[1:]]
    older = [R(f"m{j}") for j in seen[1:]]
    w = weights(at, form, i, integrals(at, form, i, len(seen)), places, order, weigh)
    return added(x, w, older, newest), len(seen)


def corrected(
    at: Levels,
    form: Form,
    i: int,
    order: int,
    predictor: int,
    *,
    weigh: Weigh | None = None,
    noise: Lin = ZERO,
    edited: bool = False,
) -> Lin:
    """x at point i, predicted from the corrected x of the point before by a step that was asked for
    `predictor` outputs, corrected: over the outputs of points i - 1, i - 2, ..., `order` of them at
    most, and of point i itself. order 0: of point i alone, the implicit step of first order.

    Both are one step with two sets of weights, so that what they differ by is added to x. edited: x
    may be another than was predicted; the step is made again from R("anchor"), the corrected x of
    the point before, with the noise that it drew.
    """
    last, newest, own = i - 1, R(f"m{i - 1}"), carried(at, form, i)
    if edited and not order:
        return first(at, form, last, BASE, own, noise)
    predictor = min(predictor, i)
    older = history(at, form, last, max(order, predictor))[1:]
    seen, before = ([j for j in older if j > last - most] for most in (order, predictor))
    places = [place(at, form, last, j) for j in older]
    total = integrals(at, form, last, len(older) + 2)
    w = [total[0]]
    if order:
        w = weights(at, form, last, total, [1.0, *places[: len(seen)]], order + 1, weigh)
    if edited:
        x, older = first(at, form, last, BASE, newest, noise), seen
    else:
        x, off = X, weights(at, form, last, total, places[: len(before)], predictor, weigh)
        w[1:] = [a - b for a, b in zip_longest(w[1:], off, fillvalue=0.0)]
    return added(x, w, [own, *(R(f"m{j}") for j in older)], newest)


def history(at: Levels, form: Form, i: int, order: int) -> list[int]:
    """The points whose outputs a step from point i reads, newest first: i, i - 1, ...

    A step to sigma = 0 has no limit of higher order in lambda: it reads the newest alone. A point
    whose variable is infinite drops out: as its place goes to infinity its weight goes to 0, and
    the rest become those of one order less. So does one at the level of the next.
    """
    level = at.half_log_snr
    if at.sigma[i + 1] == 0.0 and form.variable == "lambda":
        order = 1
    far = form.variable == "lambda" or (form.carry, form.variable) == ("eps", "level")
    seen = [i]
    for j in range(i - 1, max(-1, i - order), -1):
        if level[j] != level[j + 1] and not (far and math.isinf(level[j])):
            seen.append(j)
    return seen


def place(at: Levels, form: Form, i: int, j: int) -> float:
    """Where the output of point j stands, in steps of the variable from point i to i + 1."""
    level = at.half_log_snr
    if form.variable == "lambda":
        return (level[j] - level[i]) / (level[i + 1] - level[i])
    if form.variable == "time":
        return (at.t[j] - at.t[i]) / (at.t[i + 1] - at.t[i])
    if form.variable == "index":
        return float(j - i)
    if form.carry == "eps":  # rho_j - rho_i = rho_i expm1(lambda_i - lambda_j)
        return math.expm1(level[i] - level[j]) / math.expm1(level[i] - level[i + 1])
    # s_j - s_i = s_i (1 - s_j) expm1(lambda_i - lambda_j), for j before i from the other end
    s = lambda k: at.sigma[k] / (at.alpha[k] + at.sigma[k])
    r = lambda k: at.alpha[k] / (at.alpha[k] + at.sigma[k])
    back = -s(j) * r(i) * math.expm1(level[j] - level[i])
    return back / (s(i) * r(i + 1) * math.expm1(level[i] - level[i + 1]))


def weights(
    at: Levels,
    form: Form,
    i: int,
    total: list[float],
    places: list[float],
    asked: int,
    weigh: Weigh | None = None,
) -> list[float]:
    """w_k of the step from point i, of these `integrals`, for outputs at these places beside the
    newest at 0, of as many as were asked for; in the units of x'.
    """
    if weigh is None or not places:
        return lagrange(places, total)
    h = at.half_log_snr[i + 1] - at.half_log_snr[i]
    return weigh(places, total, -h if form.carry == "eps" else (1.0 + form.eta) * h, asked)


def lagrange(places: Sequence[float], integrals: Sequence[float]) -> list[float]:
    """w_k = ∫ ℓ_k, ℓ_k the polynomial that is 1 at place k and 0 at 0 and at the others, from the
    integrals of v^j, as many as are needed or more.
    """
    if len(places) == 1:
        return [integrals[1] / places[0]]
    if len(places) == 2:
        a, b = places
        first, second = integrals[1:3]
        return [(second - b * first) / (a * (a - b)), (second - a * first) / (b * (b - a))]
    if len(places) == 3:
        a, b, c = places
        first, second, third = integrals[1:4]
        return [
            (third - (b + c) * second + b * c * first) / (a * (a - b) * (a - c)),
            (third - (a + c) * second + a * c * first) / (b * (b - a) * (b - c)),
            (third - (a + b) * second + a * b * first) / (c * (c - a) * (c - b)),
        ]
    found = []
    for k, own in enumerate(places):
        basis = [0.0, 1.0 / own]  # lowest power first
        for other in (*places[:k], *places[k + 1 :]):
            scale = 1.0 / (own - other)
            pairs = zip([0.0, *basis], [*basis, 0.0], strict=True)
            basis = [scale * (lower - other * same) for lower, same in pairs]
        found.append(sum([c * total for c, total in zip(basis, integrals, strict=False)]))
    return found


def integrals(at: Levels, form: Form, i: int, count: int) -> list[float]:
    """∫ v^j over the step from point i against the measure of what is carried, j = 0..count-1 and
    maybe more, v the variable in steps from there; in the units of x'.
    """
    if at.known is None:
        return _integrals(at, form, i, count)
    own, found = at.known.get(i, (None, ()))
    if own is not form or len(found) < count:
        found = _integrals(at, form, i, count + at.more)
        at.known[i] = form, found
    return found


def _integrals(at: Levels, form: Form, i: int, count: int) -> list[float]:
    h = at.half_log_snr[i + 1] - at.half_log_snr[i]
    if form.carry == "x0":
        return [at.alpha[i + 1] * each for each in moments((1.0 + form.eta) * h, count)]
    if form.carry == "eps" and form.variable == "lambda":
        return [(1.0 + form.eta) * at.sigma[i + 1] * each for each in moments(-h, count)]
    if form.variable == "time":
        return at.over_time[i][:count]
    total = (1.0 + form.eta) * whole(at, form, i)
    return [total / (j + 1) for j in range(count)]


def whole(at: Levels, form: Form, i: int) -> float:
    """n_t (u_t - u_s) of the step from point i: u = rho, n = alpha, or u = s where v is carried."""
    gone = at.alpha[i + 1] * at.sigma[i] * gain(at.half_log_snr[i + 1] - at.half_log_snr[i])
    return -gone / (at.alpha[i] if form.carry == "eps" else at.alpha[i] + at.sigma[i])


def first(at: Levels, form: Form, i: int, here: Lin, newest: Lin, noise: Lin = ZERO) -> Lin:
    """The first-order step from point i, where x is `here` and `newest` is carried; with noise."""
    alpha, sigma = at.alpha[i + 1], at.sigma[i + 1]
    h, eta = at.half_log_snr[i + 1] - at.half_log_snr[i], form.eta
    if at.stored == "flow":
        a = (alpha + sigma) / (at.alpha[i] + at.sigma[i])
        a = 1.0 if abs(a - 1.0) <= ROUNDING else a
        return (a * here).plus(whole(at, form, i), newest)
    if sigma == 0.0 and at.stored == "x0":
        return alpha * M
    renewed = 0.0
    if form.carry == "eps" and eta and at.alpha[i]:
        renewed = alpha * at.sigma[i] / at.alpha[i] * math.sqrt(eta * gain(2.0 * h))
    if form.carry == "eps" and (here != X or at.stored == "eps"):
        x = ((alpha / at.alpha[i]) * here).plus((1.0 + eta) * whole(at, form, i), newest)
        return x + renewed * noise if renewed and noise else x
    if renewed:
        kept = alpha / at.alpha[i] * (math.exp(-h) - eta * gain(h))
        return kept * X + ((1.0 + eta) * alpha * gain(h)) * M + renewed * noise
    kept = sigma / at.sigma[i] * (math.exp(-eta * h) if eta else 1.0)
    x = (kept * here).plus(alpha * gain((1.0 + eta) * h), M if here == X else newest)
    return x.plus(sigma * math.sqrt(gain(2.0 * eta * h)), noise) if eta and noise else x


def added(x: Lin, w: Sequence[float], others: Sequence[Lin], newest: Lin) -> Lin:
    """x + sum_k w_k·(other_k - newest), and what w has more, of the newest."""
    x, n = Lin(x), len(others)
    for weight, other in (*zip(w, others, strict=False), (sum(w[n:]) - sum(w[:n]), newest)):
        for name, c in other.items():
            x[name] = x.get(name, 0.0) + weight * c
    return x
