"""Direct sampling loops: each keeps its anchors and earlier states under their own names, nothing
eliminated, nothing folded.

Every loop is `loop(points, x, ask, draw, **options) -> x`, with `points` the grid
(oracle.marginals.Point), x a Lin at points[0], `ask(x, point) -> (x, x0)` the model (it may hand
back its own x, so a loop can follow another run row by row) and `draw()` unit noise. Loops that ask
between grid points take `stage(lam) -> Point`, which may round to a float time.
"""

from __future__ import annotations

from itertools import pairwise

from . import derivations as d
from .linear import mp
from .marginals import Point


def combine(a, x, weights, values):
    """a x + sum_k w_k m_k."""
    for w, m in zip(weights, values, strict=True):
        x, a = (a * x + w * m, 1) if a != 1 else (x + w * m, 1)
    return x if a == 1 else a * x


def ddim(points, x, ask, draw, *, eta=0.0):
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s n with s = eta sigma' sqrt(1 - e^{-2h})
    (Song et al. 2021a, eq. 12 and 16).
    """
    for s, t in pairwise(points):
        x, m = ask(x, s)
        up = min(t.sigma, mp.mpf(eta) * t.sigma * mp.sqrt(d.gain(s, t, 2)))
        down = mp.sqrt(t.sigma**2 - up**2)
        x = (down / s.sigma) * x + (t.alpha - s.alpha * down / s.sigma) * m
        if up:
            x = x + up * draw()
    return x


def euler(points, x, ask, draw):
    """dx/dsigma along the straight line from x to the prediction; the same map in every scaling of
    x, hence DDIM with eta = 0.
    """
    for s, t in pairwise(points):
        x, m = ask(x, s)
        eps = s.sigma
        x = (t.sigma / eps) * x + (t.alpha - s.alpha * t.sigma / eps) * m
    return x


def euler_ancestral(points, x, ask, draw, *, eta=1.0, form="ve"):
    """VE: step to sigma_down, add sigma_up n, in x/alpha (Karras' sigma). RF: step to sigma_d, then
    scale by q and add noise up to sigma'.
    """
    eta = mp.mpf(eta)
    for s, t in pairwise(points):
        x, m = ask(x, s)
        if form == "rf":
            down = t.sigma * (1 + (t.sigma / s.sigma - 1) * eta)
            q = t.alpha / (1 - down)
            a, b = q * down / s.sigma, q * (1 - down / s.sigma)
            up = mp.sqrt(t.sigma**2 - (down * q) ** 2)
        else:
            fall = (t.rho / s.rho) ** 2 if s.alpha else mp.mpf(0)
            # alpha' sigma_up: finite also where alpha = 0
            up = min(mp.mpf(1), eta * mp.sqrt(1 - fall)) * t.sigma
            down = mp.sqrt(t.sigma**2 - up**2)
            a, b = down / s.sigma, t.alpha - s.alpha * down / s.sigma
        x = a * x + b * m
        if up:
            x = x + up * draw()
    return x


def _frame(p: Point, frame: str) -> tuple:
    """(scale, u): y = x/scale moves along dy/du.

    rho: y = x/alpha, u = sigma/alpha; line: y = x/(alpha+sigma), u = sigma/(alpha+sigma).
    """
    if frame == "rho":
        return p.alpha, p.rho
    return p.alpha + p.sigma, p.sigma / (p.alpha + p.sigma)


def _slope(y, m, p: Point, frame: str):
    """dy/du from the state and the predicted x0: (y - x0)/u on both frames."""
    u = _frame(p, frame)[1]
    return (1 / u) * y - (1 / u) * m


def churned(p: Point, n: int, stage, churn, low, high, end):
    """The point with rho larger by 1 + gamma, but no noisier than lambda = end.

    gamma = min(S_churn/N, sqrt 2 - 1) where low <= rho <= high (Karras et al. 2022, algorithm 2).
    """
    gamma = min(mp.mpf(churn) / n, mp.sqrt(2) - 1) if low <= p.rho <= high else mp.mpf(0)
    lam = max(p.lam - mp.log(1 + gamma), end)
    return p if gamma == 0 or lam == p.lam else stage(lam)


def heun(
    points,
    x,
    ask,
    draw,
    *,
    stage=None,
    end=-mp.inf,
    frame="rho",
    churn=0.0,
    low=0.0,
    high=float("inf"),
    s_noise=1.0,
):
    """Trapezoid in u (Karras et al. 2022, algorithm 2), Euler to sigma' = 0; the churn adds noise
    up to the larger rho first.
    """
    n = len(points) - 1
    for s, t in pairwise(points):
        hat = churned(s, n, stage, churn, low, high, end)
        if hat is not s:
            up = mp.mpf(s_noise) * hat.alpha * mp.sqrt(hat.rho**2 - s.rho**2)
            x = (hat.alpha / s.alpha) * x + up * draw()
        s = hat
        x, m = ask(x, s)
        (scale_s, u_s), (scale_t, u_t) = _frame(s, frame), _frame(t, frame)
        y = (1 / scale_s) * x
        slope = _slope(y, m, s, frame)
        guess = scale_t * (y + (u_t - u_s) * slope)
        if t.sigma == 0:
            x = t.alpha * m
            continue
        guess, second = ask(guess, t)
        late = _slope((1 / scale_t) * guess, second, t, frame)
        x = scale_t * (y + ((u_t - u_s) / 2) * (slope + late))
    return x


def dpmpp_2s(points, x, ask, draw, *, stage, r=0.5):
    """DPM-Solver++(2S): one evaluation at lambda_s + r h between (Lu et al. 2022b, algorithm 1);
    first order where h is infinite.
    """
    r = mp.mpf(r)
    for s, t in pairwise(points):
        x, m = ask(x, s)
        a, g = t.sigma / s.sigma, d.gain(s, t)
        if d.step(s, t) == mp.inf:
            x = a * x + (t.alpha * g) * m
            continue
        mid = stage(s.lam + r * d.step(s, t))
        guess = (mid.sigma / s.sigma) * x + (mid.alpha * d.gain(s, mid)) * m
        guess, late = ask(guess, mid)
        x = a * x + (t.alpha * g) * m + (t.alpha * g / (2 * r)) * (late - m)
    return x


def multistep(points, x, ask, draw, weights, *, rate=1):
    """x' = a x + alpha' sum_k W_k m_k + c n, with weights(history, t) -> [W_k]; history holds the
    points asked at, newest first.
    """
    history, values = [], []
    for s, t in pairwise(points):
        x, m = ask(x, s)
        history, values = [s, *history][:4], [m, *values][:4]
        W = weights(history, t)
        a, c = d.transfer(s, t, rate)
        x = combine(a, x, [t.alpha * w for w in W], values[: len(W)])
        if c:
            x = x + c * draw()
    return x


def _ramp(points, fall_below: int):
    """used(history, t, order): the outputs a step to t uses; one to sigma = 0, and with fewer steps
    than fall_below at most the steps left.
    """
    n = len(points) - 1
    left = {id(t): n - i if n < fall_below else n for i, t in enumerate(points[1:])}
    return lambda history, t, order: history[: 1 if t.sigma == 0 else min(order, left[id(t)])]


def dpmpp_2m(points, x, ask, draw, *, kind="midpoint", eta=0.0, fall_below=0):
    """DPM-Solver++(2M), and with eta > 0 its SDE form: kind midpoint (algorithm 2 of Lu et al.
    2022b) or heun (exact two-node integral).

    fall_below: with fewer steps than that, the last is of order 1.
    """
    rate, ramp = 1 + mp.mpf(eta), _ramp(points, fall_below)

    def weights(history, t):
        used = ramp(history, t, 2)
        if len(used) == 2 and kind == "midpoint":
            return d.midpoint_weights(used[1], used[0], t, rate)
        return d.exact_weights([p.lam for p in used], used[0].lam, t.lam, rate)

    return multistep(points, x, ask, draw, weights, rate=rate)


def dpmpp_3m(points, x, ask, draw, *, half=False, second="exact", fall_below=0):
    """DPM-Solver++(3M): the exact three-node integral, or (half) with the published weight of the
    second difference.

    fall_below: with fewer steps than that, the last two are of order 2 and 1.
    """
    ramp = _ramp(points, fall_below)

    def weights(history, t):
        used = ramp(history, t, 3)
        if len(used) == 2 and second == "midpoint":
            return d.midpoint_weights(used[1], used[0], t)
        if len(used) == 3 and half:
            return d.half_third_weights(used, t)
        return d.exact_weights([p.lam for p in used], used[0].lam, t.lam)

    return multistep(points, x, ask, draw, weights)


def unipc(points, x, ask, draw, *, order=3, variant="bh2", corrector=True, fall=False):
    """UniPC-p: correct x_i with the prediction at x_i, from the kept corrected x_{i-1}; then
    predict x_{i+1} (Zhao et al. 2023, algorithm 1).

    bh1 gives the first corrector after alpha = 0 an infinite weight, so x stays as predicted there.
    fall: order at most the steps left.
    """
    history, values, anchor, used = [], [], None, 0
    n = len(points) - 1
    for i, (s, t) in enumerate(pairwise(points)):
        x, m = ask(x, s)
        if corrector and i and not (variant == "bh1" and used == 1 and history[0].alpha == 0):
            W = d.unipc_weights(history[:used], s, variant, True)
            a = d.transfer(history[0], s)[0]
            corrected = combine(a, anchor, [s.alpha * w for w in W], [*values[:used], m])
            corrected = corrected.through(x)  # a plan reaches it from x
        else:
            corrected = x
        history, values = [s, *history][:4], [m, *values][:4]
        used = min(order, i + 1, n - i if fall else order, 1 if t.sigma == 0 else order)
        W = d.unipc_weights(history[:used], t, variant, False)
        anchor = corrected
        x = combine(d.transfer(s, t)[0], anchor, [t.alpha * w for w in W], values[:used])
    return x


def lcm(points, x, ask, draw, *, scaling=None, sigma_data=0.5):
    """x' = alpha' D + sigma' n, at the end D (Luo et al. 2023, eq. 9 and algorithm 3).

    D = c_skip x + c_out x0 with s = scaling t, c_skip = sd^2/(s^2 + sd^2),
    c_out = s/sqrt(s^2 + sd^2); scaling None: D = x0.
    """
    sd = mp.mpf(sigma_data)
    for s, t in pairwise(points):
        x, m = ask(x, s)
        if scaling is None:
            out = mp.mpf(1) * m
        else:
            z = mp.mpf(scaling) * mp.mpf(s.t)
            out = (sd**2 / (z**2 + sd**2)) * x + (z / mp.sqrt(z**2 + sd**2)) * m
        x = t.alpha * out
        if t.sigma:
            x = x + t.sigma * draw()
    return x
