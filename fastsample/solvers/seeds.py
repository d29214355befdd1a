"""SEEDS and DPM-Solver++ (SDE): stages of an exponential Runge-Kutta step, with one noise that
grows from stage to stage.

With kappa_j of `_renoise` from the start of a step to its stage j, k_j = e^{-kappa_j} and
h_j = lambda_j - lambda (j = s the last, at lambda')::

    x_j = (k_j sigma_j/sigma)·x + alpha_j sum_i w_ji·m_i + sigma_j s_noise·z_j
    z_1 = sqrt(1 - k_1²)·n_1,  z_j = (k_j/k_{j-1}) z_{j-1} + sqrt(1 - k_j²/k_{j-1}²)·n_j

whose weights sum to 1 - e^{-H_j}, H_j = h_j + kappa_j. z is one Ornstein-Uhlenbeck noise along the
step, as the equation has it; n_1, n_2, .. are independent. With noise all are of weak order 2 and
strong order 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from ..plan import Plan
from ..plan.given import within
from ..schedules import Flow
from ._begin import begin, build, choice, number
from ._build import ZERO, Builder, Lin, M, R, X
from ._exponential import gain, phi
from ._renoise import Level, Step, ancestral, grown, rise
from ._start import solver

SEEDS = "Gonzalez, Fernandez, Tran, Gherbi, Hajri, Masmoudi 2023, SEEDS, arXiv:2305.14267"
DPM = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, arXiv:2211.01095"
# libraries whose two noises are increments of one Brownian path in their own sigma
BROWNIAN = ("k-diffusion", "diffusers", "comfyui")


class Scheme(NamedTuple):
    """shares        h_j/h of the stages before the last
    weights       [H_j] -> w_ji, row by row
    kappa         (level, level at the stage, eta) -> kappa_j; (.., level at the stage before) ->
                  kappa_j - kappa_{j-1}
    brownian      is the last noise that of a Brownian path (`BROWNIAN`)?
    """

    shares: tuple[float, ...]
    weights: Callable[[list[float]], list[list[float]]]
    kappa: Callable[..., float]
    citation: str
    brownian: bool = False


@solver(
    "A",
    comfyui="seeds_2, exp_heun_2_x0 (eta=0, r=1, variant=phi_2), exp_heun_2_x0_sde (r=1, "
    "variant=phi_2)",
)
def seeds_2(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    eta=1.0,
    s_noise=1.0,
    r=0.5,
    variant="phi_1",
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x_j = (k_j sigma_j/sigma)·x + alpha_j sum_i w_ji·m_i + sigma_j s_noise·z_j, z_j one noise
    that grows along the step, k_j = e^{-kappa_j}, with two stages: h_1 = r h, kappa = eta·h:
    w_1 = 1 - e^{-H_1} on m, then (1 - e^{-H})·[m + (m_1 - m)/(2r)] ("phi_1"), or
    (1 - e^{-H})·m + (H phi_2(-H)/r)·(m_1 - m) ("phi_2"), H = (1 + eta) h.

    0 < r <= 1; r = 1 asks at the next point, twice. eta >= 0, 0: an exponential Runge-Kutta method
    of second order (with "phi_1" dpmpp_2s); s_noise scales the noise, and other values than 1
    leave the schedule by design. Two evaluations a step, one in a step from alpha = 0 or to
    sigma = 0, which is of first order. Keeps one output. Gonzalez et al. 2023, arXiv:2305.14267,
    in data form, as ComfyUI has it. compat changes nothing here.
    """
    words = {"eta": eta, "s_noise": s_noise, "r": r, "variant": variant, "compat": compat}
    choice("seeds_2: variant", variant, ("phi_1", "phi_2"))
    _inside("seeds_2: r", r, 1.0)

    def weights(H: Sequence[float]) -> list[list[float]]:
        second = gain(H[1]) * 0.5 if variant == "phi_1" else H[1] * phi(2, -H[1])
        return [[gain(H[0])], [gain(H[1]) - second / r, second / r]]

    given = {"prediction": prediction, "start": start, "inpaint": inpaint, "clip": clip}
    return _plan("seeds_2", model, grid, words, given, Scheme((r,), weights, _even, SEEDS))


@solver("A", comfyui="seeds_3")
def seeds_3(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    eta=1.0,
    s_noise=1.0,
    r1=1.0 / 3.0,
    r2=2.0 / 3.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x_j = (k_j sigma_j/sigma)·x + alpha_j sum_i w_ji·m_i + sigma_j s_noise·z_j, z_j one noise
    that grows along the step, k_j = e^{-kappa_j}, with three stages: h_1 = r1 h, h_2 = r2 h,
    kappa = eta·h:
    w_1 = 1 - e^{-H_1} on m; then (1 - e^{-H_2})·m + (r2/r1) H_2 phi_2(-H_2)·(m_1 - m); then
    (1 - e^{-H})·m + (H phi_2(-H)/r2)·(m_2 - m), H_j = (1 + eta) h_j.

    0 < r1 < r2 < 1. eta >= 0, 0: an exponential Runge-Kutta method of third order with r2 = 2/3;
    s_noise scales the noise, and other values than 1 leave the schedule by design. Three
    evaluations a step, one in a step from alpha = 0 or to sigma = 0, which is of first order. Keeps
    two outputs. Gonzalez et al. 2023, arXiv:2305.14267, in data form, as ComfyUI has it. compat
    changes nothing here.
    """
    words = {"eta": eta, "s_noise": s_noise, "r1": r1, "r2": r2, "compat": compat}
    _inside("seeds_3: r2", r2, 1.0, below=True)
    _inside("seeds_3: r1", r1, float(r2), below=True)

    def weights(H: Sequence[float]) -> list[list[float]]:
        second = H[1] * phi(2, -H[1]) * r2 / r1
        third = H[2] * phi(2, -H[2]) / r2
        return [[gain(H[0])], [gain(H[1]) - second, second], [gain(H[2]) - third, 0.0, third]]

    given = {"prediction": prediction, "start": start, "inpaint": inpaint, "clip": clip}
    return _plan("seeds_3", model, grid, words, given, Scheme((r1, r2), weights, _even, SEEDS))


@solver(
    "A",
    diffusers="DPMSolverSDEScheduler",
    k_diffusion="sample_dpmpp_sde",
    comfyui="dpmpp_sde, dpmpp_sde_gpu",
)
def dpmpp_sde(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    eta=1.0,
    s_noise=1.0,
    r=0.5,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x_j = (k_j sigma_j/sigma)·x + alpha_j sum_i w_ji·m_i + sigma_j s_noise·z_j, z_j one noise
    that grows along the step, k_j² = max(0, 1 - eta² (1 - e^{-2 h_j})), with two stages: h_1 = r h,
    H_j = h_j - ln k_j:
    w_1 = 1 - e^{-H_1} on m, then (1 - e^{-H})·[m + (m_1 - m)/(2r)].

    0 < r <= 1. eta >= 0, 1: seeds_2, 0: dpmpp_2s; s_noise scales the noise, and other values than 1
    leave the schedule by design. Two evaluations a step, one in a step from alpha = 0 or to
    sigma = 0, which is of first order. Keeps one output. compat "k-diffusion", "diffusers" or
    "comfyui": the noise at lambda' is that of their Brownian path in rho = sigma/alpha (Flow: in
    sigma), sqrt(q)·n_1 + sqrt(1 - q)·n_2 with q = (rho - rho_1)/(rho - rho'), of the same variance.
    Lu et al. 2022, arXiv:2211.01095, in the form of k-diffusion's sample_dpmpp_sde.
    """
    words = {"eta": eta, "s_noise": s_noise, "r": r, "compat": compat}
    _inside("dpmpp_sde: r", r, 1.0)

    def weights(H: Sequence[float]) -> list[list[float]]:
        second = gain(H[1]) * 0.5 / r
        return [[gain(H[0])], [gain(H[1]) - second, second]]

    given = {"prediction": prediction, "start": start, "inpaint": inpaint, "clip": clip}
    scheme = Scheme((r,), weights, ancestral, DPM, brownian=compat in BROWNIAN)
    return _plan("dpmpp_sde", model, grid, words, given, scheme)


def _plan(name: str, model, grid, words: dict, given: dict, scheme: Scheme) -> Plan:
    eta, s_noise = (number(f"{name}: {word}", words[word]) for word in ("eta", "s_noise"))
    words = {k: v if isinstance(v, str) else float(v) for k, v in words.items()}
    b, orders = begin(model, grid, compat=words["compat"], **given), []
    draws, at = 1 + len(scheme.shares), Level.on(b)
    rises = [rise(s, t) for s, t in pairwise(at)]
    inner = [
        at[i].half_log_snr + share * h
        for i, h in enumerate(rises)
        for share in scheme.shares
        if share < 1.0 and 0.0 < h < math.inf
    ]
    middles = iter(Level.between(b, inner))
    for i, (s, t) in enumerate(pairwise(at)):
        noises = [s_noise * b.noise(i, j, of=draws) for j in range(draws)]
        orders.append(draws if 0.0 < rises[i] < math.inf else 1)
        if orders[-1] == 1:
            x = Step.of(s, t, scheme.kappa(s, t, eta)).over(noises[0])
            b.row(b.t[i], to=b.t[i + 1], x=x)
            continue
        end = (b.t[i + 1], t)
        path = [next(middles) if share < 1.0 else end for share in scheme.shares]
        _stages(b, i, scheme, [(b.t[i], s), *path, end], eta, noises)
    order, consistent = 1 if eta else max(orders), s_noise == 1.0 or not eta
    return build(b, name, words, orders, scheme.citation, order=order, consistent=consistent)


def _stages(
    b: Builder, i: int, scheme: Scheme, at: list[tuple], eta: float, noises: list[Lin]
) -> None:
    """The rows of step i, one a stage, whose times and levels are `at`."""
    (_, s), *later = at
    kappas = [0.0, *(scheme.kappa(s, level, eta) for _, level in later)]
    H = [rise(s, level) + kappa for (_, level), kappa in zip(later, kappas[1:], strict=True)]
    z = ZERO
    for j, row in enumerate(scheme.weights(H)):
        (time, _), (to, level) = at[j : j + 2]
        more = scheme.kappa(s, level, eta, at[j][1]) if j else kappas[1]
        z = grown(z, more, noises[j])
        if scheme.brownian and j and kappas[j + 1]:
            z = _brownian(b, [level for _, level in at], kappas[j + 1], noises)
        outputs = [*(R(f"m{i}.{k}") for k in range(j)), M]
        mean = sum((w * m for w, m in zip(row, outputs, strict=True) if w), ZERO)
        kept = math.exp(-kappas[j + 1]) * level.sigma / s.sigma
        x = (kept * (R("anchor") if j else X) if kept else ZERO) + level.alpha * mean
        keep = {f"m{i}.{j}": M} if j + 1 < len(later) else {}
        b.row(time, to=to, x=x + level.sigma * z, keep=keep, anchor=None if j else X)


def _brownian(b: Builder, path: Sequence[Level], kappa: float, noises: list[Lin]) -> Lin:
    """The noise over a step as the increment of a path that has grown by noises[0] at its stage."""
    start, stage, end = path
    before, after, whole = rise(start, stage), rise(stage, end), gain(rise(start, end))
    flow = isinstance(b.schedule, Flow)
    first = gain(before) / whole * (stage.alpha / end.alpha if flow else 1.0)
    second = gain(after) / whole * (stage.sigma / start.sigma if flow else math.exp(-before))
    spread = math.sqrt(gain(2.0 * kappa))
    return spread * (math.sqrt(first) * noises[0] + math.sqrt(second) * noises[1])


def _even(s: Level, t: Level, eta: float, after: Level | None = None) -> float:
    """kappa = eta·h: noise at an even rate in lambda."""
    return eta * rise(after or s, t) if eta else 0.0


def _inside(name: str, value, high: float, *, below: bool = False) -> None:
    """Refuse what is not a number above 0, up to or below high."""
    found = within(value, 0.0, high)
    if found is None or found == 0.0 or (below and found == high):
        raise ValueError(
            f"{name} = {value!r}; a number above 0 and {'below' if below else 'up to'} {high:g} is "
            "accepted"
        )
