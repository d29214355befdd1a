"""Direct loops of the stochastic solvers (loops.py says what a loop is), each in its paper's own
frame: y = x/alpha and rho = sigma/alpha, as k-diffusion, a flow's sigma, or lambda; stages, noises
and states stand under their own names.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fastsample.schedules import EDM

from . import derivations as d
from .linear import extended, mp
from .loops import _frame, _slope
from .marginals import level


# -- ancestral steps of two stages -----------------------------------------------------------------
def split(s, t, eta):
    """(rho_down, rho_up) of k-diffusion's ancestral step; the limits for rho = infinity."""
    if s.alpha == 0:
        up = min(t.rho, eta * t.rho)
    else:
        up = min(t.rho, eta * mp.sqrt(t.rho**2 * (s.rho**2 - t.rho**2) / s.rho**2))
    return mp.sqrt(t.rho**2 - up**2), up


def ancestral(points, x, ask, draw, *, stage, method, form, eta=1.0, nudged=False):
    """dpmpp_2s_ancestral ("2s") and dpm_2_ancestral ("2"), form "ve" in y and rho, "rf" in x and a
    flow's sigma.
    """
    step = _flow_step if form == "rf" else _ve_step
    for s, t in pairwise(points):
        x, m = ask(x, s)
        if t.sigma == 0:
            x = t.alpha * m
        else:
            x = step(s, t, x, m, ask, draw, stage, method, mp.mpf(eta), nudged)
    return x


def _ve_step(s, t, x, m, ask, draw, stage, method, eta, nudged):
    down, up = split(s, t, eta)
    if s.alpha == 0:  # y = x/alpha at rho = infinity: x is all noise
        return t.alpha * m + (t.alpha * down / s.sigma) * x + (t.alpha * up) * draw()
    y = (1 / s.alpha) * x
    if down == 0:
        return t.alpha * m + (t.alpha * up) * draw()
    mid = stage((s.lam - mp.log(down)) / 2)
    slope = (1 / s.rho) * (y - m)
    late = ask(mid.alpha * (y + (mid.rho - s.rho) * slope), mid)
    inner, second = (1 / mid.alpha) * late[0], late[1]
    y = y.through((s.rho / mid.rho) * inner)  # a plan comes back to it from the stage
    if method == "2":
        y = y + (down - s.rho) * ((1 / mid.rho) * (inner - second))
    else:  # from rho to down along the straight line to the second prediction
        y = (down / s.rho) * y + (1 - down / s.rho) * second
    return t.alpha * (y + up * draw() if up else y)


def _flow_step(s, t, x, m, ask, draw, stage, method, eta, nudged):
    down = t.sigma * (1 + (t.sigma / s.sigma - 1) * eta)
    q = t.alpha / (1 - down)
    up = mp.sqrt(t.sigma**2 - (q * down) ** 2)
    if method == "2":
        sigma = mp.sqrt(s.sigma * down)
        mid = stage(mp.log((1 - sigma) / sigma))
        guess = x + (mid.sigma - s.sigma) * ((1 / s.sigma) * (x - m))
        guess, second = ask(guess, mid)
        x = x + (down - s.sigma) * ((1 / mid.sigma) * (guess - second))
    elif s.alpha == 0 and not nudged:
        x = (down / s.sigma) * x + (1 - down / s.sigma) * m
    else:
        lam = mp.log((1 - down) / down)
        # ComfyUI asks at sigma = .9999
        mid = stage((s.lam + lam) / 2 if s.alpha else mp.log(mp.mpf("0.0001") / mp.mpf("0.9999")))
        share = mid.sigma / s.sigma
        guess, second = ask(share * x + (1 - share) * m, mid)
        x = x.through((1 / share) * guess)  # a plan comes back to it from the stage
        x = (down / s.sigma) * x + (1 - down / s.sigma) * second
    return q * x + up * draw() if up else q * x


# -- stages with one noise that grows along the step -----------------------------------------------
def staged(points, x, ask, draw, *, stage, shares, tables, keeps, path=None):
    """Runge-Kutta stages with noise, x_j = (k sigma_j/sigma) x + alpha_j sum w m + sigma_j z_j.

    shares: h_j/h of the stages before the last. keeps(s, p) -> k from s to p. tables(H) -> the
    weights of every stage, H_j = h_j - ln k_j. z_j has variance 1 - k_j^2 and is what is left of
    z_{j-1} with new noise; path(s, stage, t) -> the share of the last noise that the first made up.
    """
    for s, t in pairwise(points):
        x, m = ask(x, s)
        h = d.step(s, t)
        if h == mp.inf:
            k = keeps(s, t) if t.sigma else mp.mpf(0)
            x = (k * t.sigma / s.sigma) * x + t.alpha * (1 - (k and 0)) * m
            if k < 1 and t.sigma:
                x = x + (t.sigma * mp.sqrt(1 - k**2)) * draw()
            continue
        base, seen, z, before, first, middle = x, [m], None, mp.mpf(1), None, None
        for j in range(len(shares) + 1):
            last = j == len(shares)
            p = t if last or shares[j] == 1 else stage(s.lam + shares[j] * h)
            k = keeps(s, p)
            own = [mp.mpf(w) for w in tables(s, t, shares)[j]]
            guess = (k * p.sigma / s.sigma) * base
            for w, value in zip(own, seen, strict=False):
                guess = guess + (p.alpha * w) * value
            if k < before:
                n = draw()
                if z is not None and last and path is not None:
                    q = path(s, middle, t)
                    z = mp.sqrt(1 - k**2) * (mp.sqrt(q) * first + mp.sqrt(1 - q) * n)
                elif z is None:
                    z, first = mp.sqrt(1 - k**2) * n, n
                else:
                    z = (k / before) * z + mp.sqrt(1 - (k / before) ** 2) * n
            if z is not None:
                guess = guess + p.sigma * z
            before, middle = k, p
            if last:
                x = guess
            else:
                guess, value = ask(guess, p)
                seen.append(value)
                if k:  # a plan comes back to it from the stage
                    base = base.through((s.sigma / (k * p.sigma)) * guess)
    return x


def phi1(H):
    """H phi_1(-H)."""
    return -mp.expm1(-H)


def phi2(H):
    """H phi_2(-H)."""
    return (mp.expm1(-H) + H) / H


def even(eta):
    """k = e^{-eta h}; nothing is left over an infinite h."""
    eta = mp.mpf(eta)
    return lambda s, p: mp.exp(-eta * d.step(s, p)) if eta else mp.mpf(1)


def karras(eta):
    """k = rho_down/rho' of k-diffusion's split."""
    return lambda s, p: split(s, p, mp.mpf(eta))[0] / p.rho


def seeds_2(points, x, ask, draw, *, stage, eta=1.0, r=0.5, variant="phi_1"):
    r, rate = mp.mpf(r), 1 + mp.mpf(eta)

    def tables(s, t, shares):
        H = rate * d.step(s, t)
        second = (phi1(H) / 2 if variant == "phi_1" else phi2(H)) / r
        return [[phi1(r * H)], [phi1(H) - second, second]]

    words = {"stage": stage, "shares": [r], "tables": tables, "keeps": even(eta)}
    return staged(points, x, ask, draw, **words)


def seeds_3(points, x, ask, draw, *, stage, eta=1.0):
    # as floats, which the plan's arguments are
    r1, r2, rate = mp.mpf(1.0 / 3.0), mp.mpf(2.0 / 3.0), 1 + mp.mpf(eta)

    def tables(s, t, shares):
        H = rate * d.step(s, t)
        a, b = r2 / r1 * phi2(r2 * H), phi2(H) / r2
        return [[phi1(r1 * H)], [phi1(r2 * H) - a, a], [phi1(H) - b, 0, b]]

    words = {"stage": stage, "shares": [r1, r2], "tables": tables, "keeps": even(eta)}
    return staged(points, x, ask, draw, **words)


def dpmpp_sde(points, x, ask, draw, *, stage, eta=1.0, r=0.5, path=None):
    """With k-diffusion's weights: 1 - rho_down/rho of each stage, and the mean over 1/(2r)."""
    r = mp.mpf(r)

    def tables(s, t, shares):
        alpha, sigma = level(EDM(), s.lam + r * d.step(s, t))
        mid = type(s)(None, alpha, sigma)
        one, two = (1 - split(s, p, mp.mpf(eta))[0] / s.rho for p in (mid, t))
        return [[one], [two * (1 - 1 / (2 * r)), two / (2 * r)]]

    words = {"stage": stage, "shares": [r], "tables": tables, "keeps": karras(eta)}
    return staged(points, x, ask, draw, **words, path=path)


def brownian(form):
    """The part of a Brownian path over (s, t) that its part over (s, stage) is."""
    clock = (lambda p: p.sigma) if form == "rf" else (lambda p: p.rho)
    return lambda s, mid, t: (clock(s) - clock(mid)) / (clock(s) - clock(t))


# -- ER-SDE ----------------------------------------------------------------------------------------
def er_sde(points, x, ask, draw, *, order=3, eta=None, published=False):
    """phi_t int phi'/phi^2 P(rho) drho, P through the predictions at rho; or, published, D_0 with
    the slope and curvature of ComfyUI's differences, by its sums of 200 points.
    """
    if eta is None:
        phi = lambda rho: rho * (mp.exp(rho ** mp.mpf(0.3)) + 10)
        density = lambda rho: (  # rho phi'/phi^2, the integrand over ln rho
            (mp.exp(rho ** mp.mpf(0.3)) * (1 + mp.mpf(0.3) * rho ** mp.mpf(0.3)) + 10)
            * rho
            / phi(rho) ** 2
        )
    else:
        power = 1 + mp.mpf(eta)
        phi, density = (lambda rho: rho**power), (lambda rho: power * rho**-power)
    history, values = [], []
    for s, t in pairwise(points):
        x, m = ask(x, s)
        if t.sigma == 0:
            x = t.alpha * m
            continue
        history, values = [s, *history][:order], [m, *values][:order]
        history = [p for p in history if p.alpha]
        if not history:  # from rho = infinity: nothing is left of x, but by the ODE
            x = t.alpha * m + t.sigma * (draw() if eta != 0 else (1 / s.sigma) * x)
            continue
        r = phi(t.rho) / phi(s.rho)
        x = (t.alpha / s.alpha * r) * x
        weigh = _er_published if published else _er_exact
        for w, value in zip(weigh(history, t, phi, density), values, strict=False):
            x = x + (t.alpha * w) * value
        up = t.rho**2 - (s.rho * r) ** 2
        if eta != 0:
            x = x + (t.alpha * mp.sqrt(up)) * draw()
    return x


def _er_exact(history, t, phi, density):
    """By Gauss-Legendre on panels of ln rho no wider than 1/2, in monomials of rho."""
    low, high = mp.log(t.rho), mp.log(history[0].rho)
    count = 1 + int(2 * (high - low))
    half, power = (high - low) / (2 * count), [mp.mpf(0)] * len(history)
    with mp.workdps(25):
        for k in range(count):
            for node, weight in zip(*np.polynomial.legendre.leggauss(14), strict=True):
                rho = mp.exp(low + half * (2 * k + 1 + mp.mpf(node)))
                value = half * mp.mpf(weight) * density(rho)
                for j in range(len(history)):
                    power[j], value = power[j] + value, value * rho
    basis = [d.lagrange([p.rho for p in history], k, mp.mpf(0)) for k in range(len(history))]
    return [phi(t.rho) * sum(c * i for c, i in zip(b, power, strict=True)) for b in basis]


def _er_published(history, t, phi, density):
    s, dt = history[0], t.rho - history[0].rho
    at = extended(t.rho) - extended(dt) * np.arange(200) / 200  # long double will do
    inverse = 1 / (at * (np.exp(at ** np.longdouble(0.3)) + 10))
    total = lambda values: (
        mp.mpf(float(values.sum())) + float(values.sum() - np.longdouble(float(values.sum())))
    )
    area = -dt / 200 * total(inverse)
    first = -dt / 200 * total((at - extended(s.rho)) * inverse)
    slope, curve = dt + phi(t.rho) * area, dt**2 / 2 + phi(t.rho) * first
    weights = [1 - phi(t.rho) / phi(s.rho), mp.mpf(0), mp.mpf(0)]
    if len(history) > 1:
        gap = s.rho - history[1].rho
        weights[0], weights[1] = weights[0] + slope / gap, weights[1] - slope / gap
    if len(history) > 2:
        older, half = history[1].rho - history[2].rho, (s.rho - history[2].rho) / 2
        for k, difference in enumerate([1 / gap, -1 / gap - 1 / older, 1 / older]):
            weights[k] += curve * difference / half
    return weights[: len(history)]


# -- first order -----------------------------------------------------------------------------------
def ddpm(points, x, ask, draw, *, large=False, published=False):
    """The posterior of x_t' given x_t and x0 in the chain q(x_t|x_t') = N(r x_t', beta), by Bayes;
    large: with the variance beta. published: noise in every step but from t = 0.
    """
    for s, t in pairwise(points):
        x, m = ask(x, s)
        r = s.alpha / t.alpha
        beta = s.sigma**2 - r**2 * t.sigma**2
        trust = r * t.sigma**2 / s.sigma**2
        x = trust * x + (t.alpha * (1 - r * trust)) * m
        variance = beta if large else t.sigma**2 * beta / s.sigma**2
        if (s.t > 0) if published else t.sigma:
            x = x + mp.sqrt(max(variance, mp.mpf(1e-10) ** 2 if published else 0)) * draw()
    return x


def tcd(points, x, ask, draw, *, lower):
    """DDIM to lower(t) -> Point, then the forward kernel up to t."""
    for s, t in pairwise(points):
        x, m = ask(x, s)
        p = lower(t)
        x = p.alpha * m + (p.sigma / s.sigma) * (x - s.alpha * m)
        if p is not t:
            up = t.sigma**2 - (t.alpha / p.alpha * p.sigma) ** 2
            x = (t.alpha / p.alpha) * x + mp.sqrt(up) * draw()
    return x


def flow_sde(points, x, ask, draw, *, a=0.7):
    """Euler-Maruyama in a flow's time s with the velocity, as the paper states it."""
    a = mp.mpf(a)
    for start, end in pairwise(points):
        x, m = ask(x, start)
        n, target = start.alpha + start.sigma, end.alpha + end.sigma
        s, ds = start.sigma / n, end.sigma / target - start.sigma / n
        y = (1 / n) * x
        v = (1 / s) * (y - m)
        if end.sigma == 0:
            x = end.alpha * m
            continue
        rest = start.alpha / n if start.alpha else end.alpha / target
        g = a * mp.sqrt(s / rest)
        y = y + ds * (v + (g**2 / (2 * s)) * (y + (1 - s) * v))
        x = target * (y + (g * mp.sqrt(-ds)) * draw() if g else y)
    return x


# -- Heun and Euler that go back up ----------------------------------------------------------------
def restart(points, x, ask, draw, *, stage, frame, places, s_noise=1.0):
    """Heun; at point i of `places`, {i: [(half log-SNRs from the highest down, times)]}, noise up
    and Heun steps down again.
    """

    def heun(x, s, t, lam=None):
        x, m = ask(x, s)
        if t is not None and t.sigma == 0:
            return t.alpha * m, t
        p = t if lam is None else stage(lam)
        y, slope = trapezoid(x, m, s, frame)
        scale, u = _frame(p, frame)
        first = _frame(s, frame)[1]
        guess, late = ask(scale * (y + (u - first) * slope), p)
        _, other = trapezoid(guess, late, p, frame)
        return scale * (y + ((u - first) / 2) * (slope + other)), p

    for i, (s, t) in enumerate(pairwise(points), 1):
        x, _ = heun(x, s, t)
        for lams, times in places.get(i, ()):
            for _ in range(times):
                top = stage(lams[0])
                up = top.alpha * mp.sqrt(top.rho**2 - t.rho**2)
                x, p = (top.alpha / t.alpha) * x + (mp.mpf(s_noise) * up) * draw(), top
                for lam in lams[1:]:
                    x, p = heun(x, p, None, lam)
                x, p = heun(x, p, t)
    return x


def trapezoid(x, m, p, frame):
    """(y, dy/du) at a point."""
    y = (1 / _frame(p, frame)[0]) * x
    return y, _slope(y, m, p, frame)


def alphafold(points, x, ask, draw, *, stage, gamma=0.8, low=1.0, noise=1.003, scale=1.5):
    """Algorithm 18 of AlphaFold 3's supplement, without its random rotations, in y and rho."""
    for s, t in pairwise(points):
        hat = s
        if t.rho > low:
            hat = stage(s.lam - mp.log(1 + mp.mpf(gamma)))
            up = mp.mpf(noise) * mp.sqrt(hat.rho**2 - s.rho**2)
            x = hat.alpha * ((1 / s.alpha) * x + up * draw())
        x, m = ask(x, hat)
        y = (1 / hat.alpha) * x
        delta = (1 / hat.rho) * (y - m)
        x = t.alpha * (y + (mp.mpf(scale) * (t.rho - hat.rho)) * delta)
    return x
