"""Direct loops of the Runge-Kutta solvers, as oracle.loops has them; where a plan comes to a state
from another one, `through` says so.

Classical tableaux are written here a second time, exponential ones as the papers print them,
without phi functions; all tableaux are held to their order conditions in test_tableaux.py.
"""

from __future__ import annotations

from itertools import pairwise

from . import derivations as d
from . import loops
from .linear import mp
from .marginals import Point, level

# (c, a, b)
CLASSICAL = {
    "midpoint": ([0, 0.5], [[0.5]], [0, 1]),
    "rk4": (
        [0, 0.5, 0.5, 1],
        [[0.5], [0, 0.5], [0, 0, 1]],
        [mp.mpf(k) / 6 for k in (1, 2, 2, 1)],
    ),
}


def rk(points, x, ask, draw, *, stage, name, frame):
    """y' = y + (u_t - u_s) sum_j b_j f_j in the slopes of a frame; Euler where a stage would stand
    at sigma = 0.
    """
    nodes, rows, weights = CLASSICAL[name]
    for s, t in pairwise(points):
        x, m = ask(x, s)
        (scale, u), (scale_t, u_t) = loops._frame(s, frame), loops._frame(t, frame)
        y, width = (1 / scale) * x, u_t - u
        slopes = [loops._slope(y, m, s, frame)]
        if t.sigma == 0 and 1 in nodes:
            x = scale_t * (y + width * slopes[0])
            continue
        for c, row in zip(nodes[1:], rows, strict=True):
            at = u + mp.mpf(c) * width
            mid = t if c == 1 else stage(-mp.log(at if frame == "rho" else at / (1 - at)))
            there = loops._frame(mid, frame)[0]
            guess = there * loops.combine(1, y, [width * mp.mpf(a) for a in row], slopes)
            x, scale = guess.through((there / scale) * x), there  # a plan comes from there
            guess, m = ask(x, mid)
            slopes.append(loops._slope((1 / there) * guess, m, mid, frame))
        end = scale_t * loops.combine(1, y, [width * mp.mpf(b) for b in weights], slopes)
        x = end.through((scale_t / scale) * x)
    return x


def exponential(points, x, ask, draw, *, stage, nodes, step, limit=True):
    """In y = x/alpha, dy/dlambda = -y + x0: step(z) -> the printed rows (factor of y, factors of
    every x0) of the stages and of the end, z = -h.

    From alpha = 0, h = 1e30 stands for infinity: a stage below node 1 is the beginning. Of first
    order to sigma = 0, and from alpha = 0 without a limit.
    """
    for s, t in pairwise(points):
        x, m = ask(x, s)
        h, at, base, values = d.step(s, t), s, x, [m]
        if t.sigma == 0 or not (s.alpha or limit):
            x = (t.sigma / s.sigma) * x + (t.alpha * d.gain(s, t)) * m
            continue
        h = h if s.alpha else mp.mpf(10) ** 30
        for c, (lead, row) in zip([*nodes, None], step(-h), strict=True):
            if not s.alpha and c not in (1, None):
                values.append(m)
                continue
            p = t if c in (1, None) else stage(s.lam + c * h)
            to = p.alpha / s.alpha * lead if s.alpha else t.sigma / s.sigma
            before, x = x, loops.combine(to, base, [p.alpha * h * w for w in row], values)
            x = x.through((p.sigma / at.sigma) * before)  # a plan comes from there
            if c is not None:
                at, (_, late) = p, ask(x, p)
                values.append(late)
    return x


def etdrk3(z):
    """The rows (factor of y, factors of every x0) of the stages and of the end: Cox and Matthews
    2002, eq. 23-25, with c h = z and F = h x0.
    """
    half, whole = mp.exp(z / 2), mp.exp(z)
    return [
        (half, [(half - 1) / z]),
        (whole, [-(whole - 1) / z, 2 * (whole - 1) / z]),
        (
            whole,
            [
                (-4 - z + whole * (4 - 3 * z + z**2)) / z**3,
                4 * (2 + z + whole * (-2 + z)) / z**3,
                (-4 - 3 * z - z**2 + whole * (4 - z)) / z**3,
            ],
        ),
    ]


def etdrk4(z):
    """Cox and Matthews 2002, eq. 26-29."""
    half, whole = mp.exp(z / 2), mp.exp(z)
    first, _, third = etdrk3(z)[2][1]
    middle = 2 * (2 + z + whole * (-2 + z)) / z**3
    g = (half - 1) / z
    return [
        (half, [g]),
        (half, [0, g]),
        # half·a_n + g (2 F(b_n) - F(u_n))
        (whole, [half * g - g, 0, 2 * g]),
        (whole, [first, middle, middle, third]),
    ]


def res_3s(z):
    """Hochbruck and Ostermann 2005, the family with gamma, at c_2 = 1/2, c_3 = 1, where gamma = 4;
    phi_2 in closed form.
    """
    phi1 = lambda v: (mp.exp(v) - 1) / v
    phi2 = lambda v: (mp.exp(v) - 1 - v) / v**2
    late = 4 * mp.mpf("0.5") * phi2(z / 2) + phi2(z) / mp.mpf("0.5")
    share = phi2(z) / (4 * mp.mpf("0.5") + 1)
    return [
        (mp.exp(z / 2), [phi1(z / 2) / 2]),
        (mp.exp(z), [phi1(z) - late, late]),
        (mp.exp(z), [phi1(z) - 5 * share, 4 * share, share]),
    ]


def lawson4(z):
    """RK4 on e^lambda·y, brought back to y: f_j = e^{c_j h}·x0_j, everything times e^{-c_k h}."""
    c, a, b = CLASSICAL["rk4"]
    factor = [mp.exp(-mp.mpf(v) * z) for v in (*c, 1)]
    rows = [*a, b]
    return [
        (1 / to, [mp.mpf(w) * f / to for w, f in zip(row, factor, strict=False)])
        for to, row in zip(factor[1:], rows, strict=True)
    ]


def dpm_solver(points, x, ask, draw, *, stage, orders, noise=False, variant="dpmsolver", r=None):
    """DPM-Solver in single steps of orders(n) (Lu et al. 2022a, algorithms 1 and 2; 2022b, app. B);
    of first order where h is infinite.
    """
    for order, (s, t) in zip(orders(len(points) - 1), pairwise(points), strict=True):
        x, m = ask(x, s)
        if order == 1 or d.step(s, t) == mp.inf:
            x = (t.sigma / s.sigma) * x + (t.alpha * d.gain(s, t)) * m
        else:
            share = r or {2: [0.5], 3: [mp.mpf(1) / 3, mp.mpf(2) / 3]}[order]
            x = _dpm_step(order, s, t, x, m, ask, stage, noise, variant, *map(mp.mpf, share))
    return x


def dpm_fast(points, x, ask, draw, *, stage, schedule, orders, eta):
    """k-diffusion's dpm_solver_fast with eta: a step in noise form to sigma_down, no lower than the
    end, and noise back up, in sigma/alpha; on Flow with the rectified-flow form's sigma_down.
    """
    for order, (s, t) in zip(orders(len(points) - 1), pairwise(points), strict=True):
        x, m = ask(x, s)
        if type(schedule).__name__ == "Flow":
            down = t.sigma * (1 + (t.sigma / s.sigma - 1) * mp.mpf(eta))
            rho = down / (1 - down)
        else:
            gone = t.rho / s.rho
            rho = mp.sqrt(max(0, t.rho**2 - (mp.mpf(eta) * t.rho) ** 2 * (1 - gone**2)))
        rho = max(rho, points[-1].rho)
        if order == 1 or not (s.alpha and rho):
            x = (t.alpha * rho / s.sigma) * (x - s.alpha * m) + t.alpha * m
        else:
            low = Point(None, *level(schedule, -mp.log(rho)))
            share = {2: [0.5], 3: [mp.mpf(1) / 3, mp.mpf(2) / 3]}[order]
            x = _dpm_step(order, s, low, x, m, ask, stage, True, "dpmsolver", *map(mp.mpf, share))
            x = (t.alpha / low.alpha) * x
        if t.rho > rho:
            x = x + t.alpha * mp.sqrt(t.rho**2 - rho**2) * draw()
    return x


def _dpm_step(order, s, t, x, m, ask, stage, noise, variant, r1, r2=None):
    """In expm1, as the authors' code has it, over eps or x0."""
    h, base, at = d.step(s, t), x, s
    z = h if noise else -h

    def said(x, m, p):
        return (1 / p.sigma) * x - (p.alpha / p.sigma) * m if noise else m

    def first(p, c):
        keep, part = (p.alpha / s.alpha, p.sigma) if noise else (p.sigma / s.sigma, p.alpha)
        return keep * base - part * mp.expm1(c * z) * own

    def line(p, c):
        return -(p.sigma if noise else p.alpha) * (mp.expm1(c * z) / (c * z) - 1)

    def through(x, p, before):  # a plan comes from there
        return x.through((p.sigma / at.sigma) * before)

    own, mid = said(x, m, s), stage(s.lam + r1 * h)
    x = through(first(mid, r1), mid, x)
    asked, late = ask(x, mid)
    at, other = mid, said(asked, late, mid)
    if order == 2:
        half = -(t.sigma if noise else t.alpha) * mp.expm1(z) / 2
        weight = half if variant == "dpmsolver" else line(t, 1)
        return through(first(t, 1) + weight / r1 * (other - own), t, x)
    mid = stage(s.lam + r2 * h)
    x = through(first(mid, r2) + r2 / r1 * line(mid, r2) * (other - own), mid, x)
    asked, late = ask(x, mid)
    at, last = mid, said(asked, late, mid)
    one, two = (1 / r1) * (other - own), (1 / r2) * (last - own)
    if variant == "dpmsolver":
        return through(first(t, 1) + line(t, 1) * two, t, x)
    D1 = (1 / (r2 - r1)) * (r2 * one - r1 * two)
    D2 = (2 / (r2 - r1)) * (two - one)
    phi3 = (mp.expm1(z) / z - 1) / z - mp.mpf(1) / 2
    return through(
        first(t, 1) + line(t, 1) * D1 - ((t.sigma if noise else t.alpha) * phi3) * D2, t, x
    )


def walk(points, x, ask, draw, *, order, noise=False, variant="dpmsolver"):
    """diffusers' walk over the grid: every step starts again at the first point of its group and
    reads the outputs from there on; a last step of first order, and one to sigma = 0 or from
    alpha = 0 is a group of its own.
    """
    n, group = len(points) - 1, []
    for i, (s, t) in enumerate(pairwise(points)):
        way, (x, m) = x, ask(x, s)
        said = (1 / s.sigma) * x - (s.alpha / s.sigma) * m if noise and s.alpha else m
        last = t.sigma == 0 or (n % order == 0 and i == n - 1)
        if i % order == 0 or last or (group and not group[0][0].alpha):
            group, base = [], x
        group.append((s, said))
        if d.step(s, t) == mp.inf:
            x = (t.sigma / s.sigma) * x + (t.alpha * d.gain(s, t)) * m
            continue
        start, own = group[0]
        h = t.lam - start.lam
        z, part = (h, t.sigma) if noise else (-h, t.alpha)
        x = (t.alpha / start.alpha if noise else t.sigma / start.sigma) * base
        x = x - part * mp.expm1(z) * own
        share = [(p.lam - start.lam) / h for p, _ in group[1:]]
        slopes = [(1 / c) * (y - own) for c, (_, y) in zip(share, group[1:], strict=True)]
        line = -part * (mp.expm1(z) / z - 1)
        if len(group) == 2:
            x = x + (line if variant == "taylor" else -part * mp.expm1(z) / 2) * slopes[0]
        elif len(group) == 3 and variant == "dpmsolver":
            x = x + line * slopes[1]
        elif len(group) == 3:
            wide = share[1] - share[0]
            bend = (2 / wide) * (slopes[1] - slopes[0])
            slope = (1 / wide) * (share[1] * slopes[0] - share[0] * slopes[1])
            x = x + line * slope - part * ((mp.expm1(z) / z - 1) / z - mp.mpf(1) / 2) * bend
        if len(group) > 1:
            x = x.through((t.sigma / s.sigma) * way)
    return x


def dpm_2(points, x, ask, draw, *, stage, frame, end=-mp.inf, churn=0.0):
    """k-diffusion's sample_dpm_2: the slope at the middle of ln u for the whole step; Euler to
    u' = 0.
    """
    for s, t in pairwise(points):
        hat = loops.churned(s, len(points) - 1, stage, churn, 0, mp.inf, end)
        if hat is not s:
            up = hat.alpha * mp.sqrt(hat.rho**2 - s.rho**2)
            x = (hat.alpha / s.alpha) * x + up * draw()
        x, m = ask(x, hat)
        (scale, u), (scale_t, u_t) = loops._frame(hat, frame), loops._frame(t, frame)
        y = (1 / scale) * x
        slope = loops._slope(y, m, hat, frame)
        if u_t == 0:
            x = scale_t * (y + (u_t - u) * slope)
            continue
        middle = mp.exp((mp.log(u) + mp.log(u_t)) / 2)
        mid = stage(-mp.log(middle if frame == "rho" else middle / (1 - middle)))
        scale_m, u_m = loops._frame(mid, frame)
        x = scale_m * (y + (u_m - u) * slope)
        asked, m = ask(x, mid)
        slope = loops._slope((1 / scale_m) * asked, m, mid, frame)
        x = (scale_t * (y + (u_t - u) * slope)).through((scale_t / scale_m) * x)
    return x


def heunpp2(points, x, ask, draw, *, frame):
    """ComfyUI's heunpp2: Euler looks one and two levels ahead, and the slopes there count as their
    levels over the first one's.
    """
    n, top = len(points) - 1, loops._frame(points[0], frame)[1]
    for i, (s, t) in enumerate(pairwise(points)):
        x, m = ask(x, s)
        (scale, u), (scale_t, u_t) = loops._frame(s, frame), loops._frame(t, frame)
        base = y = (1 / scale) * x
        slopes, shares = [loops._slope(y, m, s, frame)], []
        before = scale
        for p in points[i + 1 : min(i + 3, n)]:
            there, level = loops._frame(p, frame)
            y = y + (level - u) * slopes[-1]
            x = (there * y).through((there / before) * x)
            asked, m = ask(x, p)
            y, before = (1 / there) * asked, there
            slopes.append(loops._slope(y, m, p, frame))
            shares.append(level / top)
            u = level
        width = u_t - loops._frame(s, frame)[1]
        late = [share / len(slopes) for share in shares]
        end = loops.combine(1, base, [width * w for w in (1 - sum(late), *late)], slopes)
        x = (scale_t * end).through((scale_t / before) * x) if late else scale_t * end
    return x
