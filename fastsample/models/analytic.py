"""Data laws whose denoiser is known exactly: a point, a Gaussian, a mixture of Gaussians, in any
dimension.

For x = alpha·x0 + sigma·eps and x0 ~ sum_k w_k N(m_k, diag c_k):

    u_k  = alpha²c_k + sigma²  [K, D]
    r_k  = softmax_k( ln w_k - ½ sum_d (x - alpha·m_k)²/u_k - ½ sum_d ln u_k )
    x0   = E[x0|x]  = sum_k r_k (m_k + alpha·c_k/u_k (x - alpha·m_k))
    eps  = E[eps|x] = sum_k r_k sigma/u_k (x - alpha·m_k)

with r_k the posterior weight of component k; x = alpha·x0 + sigma·eps holds for both means too.

Neither half is divided by alpha or sigma, so both stay finite and exact at alpha = 0 (x0 = the mean
of the data) and at sigma = 0 (x0 = x/alpha). All arithmetic is float64, whatever the dtype of x;
NumPy arrays and torch tensors give results of their own kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from fastsample.kernels.narrow import hosted
from fastsample.model import PREDICTIONS, Model
from fastsample.models.words import levels, spoken

_TINY = 1e-150  # floor of u: with c = 0 and sigma = 0 the nearest component wins instead of 0/0


def _float64(x: Any) -> Callable[[Any], Any]:
    """The function that makes a value float64, of x's kind and where x lies, or on the host where
    that has no float64.
    """
    if isinstance(x, torch.Tensor):
        place = {"dtype": torch.float64, "device": hosted(x).device}
        return lambda value: torch.as_tensor(hosted(value), **place)
    return lambda value: np.asarray(value, np.float64)


class GaussianMixture:
    """x0 ~ sum_k w_k N(m_k, diag std_k²).

    means     [K, *shape]; samples are [B, *shape], shape may be empty
    weights   [K], > 0, normalised here
    std       >= 0: a number, [K], or [K, *shape]
    """

    def __init__(self, means: Any, weights: Any, std: Any) -> None:
        means, weights, std = (np.asarray(value, np.float64) for value in (means, weights, std))
        if means.ndim < 1 or len(means) < 1 or weights.shape != (len(means),):
            shapes = f"means {list(means.shape)}, weights {list(weights.shape)}"
            raise ValueError(
                f"GaussianMixture: {shapes}; [K, *shape] and [K], K >= 1, are accepted"
            )
        if not (np.isfinite(means).all() and np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError(
                "GaussianMixture: a mean or weight is not finite, or a weight <= 0; finite means, "
                "weights > 0 are accepted"
            )
        if std.ndim and std.shape not in ((len(means),), means.shape):
            shapes = f"std {list(std.shape)} for means {list(means.shape)}"
            raise ValueError(f"GaussianMixture: {shapes}; a number, [K] or [K, *shape] is accepted")
        if not (np.isfinite(std).all() and (std >= 0).all()):
            raise ValueError(
                "GaussianMixture: a std is negative or not finite; finite numbers >= 0 are accepted"
            )
        self.shape = means.shape[1:]
        self.weights = weights / weights.sum()
        self.means = means.reshape(len(means), -1)  # [K, D]
        if std.ndim:
            std = std.reshape(len(means), -1)  # [K, 1] or [K, D]
        self.stds = np.array(np.broadcast_to(std, self.means.shape))
        # [D, D], columns: the axes in which the covariance is diagonal; None: the coordinates.
        self.basis = None

    def denoise(self, x: Any, alpha: Any, sigma: Any) -> Any:
        """E[x0|x] [B, *shape], of x's kind and dtype.

        x [B, *shape]; alpha and sigma numbers or [B].
        """
        return self.posterior(x, alpha, sigma)[0]

    def posterior(self, x: Any, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        """E[x0|x] and E[eps|x], both of x's shape, kind and dtype.

        x [B, *shape]; alpha and sigma >= 0, not both 0, numbers or [B].
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"{type(self).__name__}: x is {list(x.shape)}; [B, "
                f"{', '.join(map(str, self.shape))}] is accepted"
            )
        xp, number = torch if isinstance(x, torch.Tensor) else np, _float64(x)
        flat = self._turned(number(x).reshape(-1, 1, self.means.shape[1]), number)  # [B, 1, D]
        alpha, sigma = (number(value).reshape(-1, 1, 1) for value in (alpha, sigma))
        means, c = number(self.means), number(self.stds) ** 2
        u = xp.clip(alpha**2 * c + sigma**2, _TINY, None)  # [B or 1, K, D]
        away = flat - alpha * means  # [B, K, D]
        log_r = number(np.log(self.weights)) - 0.5 * (away**2 / u + xp.log(u)).sum(-1)
        r = xp.exp(log_r - xp.amax(log_r, 1)[:, None])
        r = (r / r.sum(1)[:, None])[:, :, None]
        halves = (r * (means + alpha * c / u * away)).sum(1), (r * (sigma / u * away)).sum(1)
        halves = [self._turned(half, number, back=True) for half in halves]
        if xp is torch:
            return tuple(half.reshape(x.shape).to(x) for half in halves)
        return tuple(half.reshape(x.shape).astype(x.dtype) for half in halves)

    def _turned(self, x: Any, number: Callable, back: bool = False) -> Any:
        """x [..., D] in the axes of the basis, or back from them."""
        if self.basis is None:
            return x
        basis = number(self.basis)
        return x @ (basis.T if back else basis)

    def std(self) -> float:
        """RMS over coordinates of the std of x0: sigma_data for edm and trigflow predictions."""
        mean = self.weights @ self.means
        return float(np.sqrt((self.weights @ (self.stds**2 + (self.means - mean) ** 2)).mean()))

    def model(self, schedule: Any, prediction: str = "x0") -> Model:
        """fs.Model with exact predictions, for NumPy and torch.

        fn sees x itself and the schedule's own t, also for edm and trigflow.
        """
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"{type(self).__name__}.model: prediction = {prediction!r}; one of "
                f"{', '.join(PREDICTIONS)} is accepted"
            )
        spread = getattr(schedule, "sigma_data", None) or self.std() or 0.5
        plain = {"time": np.asarray, "input_scale": np.ones_like}
        return Model(
            partial(self._predicted, schedule, levels(schedule), prediction, spread),
            schedule=schedule,
            prediction=prediction,
            sigma_data=spread,
            model_id=f"analytic-{type(self).__name__}",
            **(plain if prediction in ("edm", "trigflow") else {}),
        )

    def _predicted(
        self, schedule: Any, torch_levels: Callable, prediction: str, spread: float, x: Any, t: Any
    ) -> Any:
        """The prediction [B, *shape] at the schedule's own t, of x's kind and dtype."""
        is_torch = isinstance(x, torch.Tensor)
        if is_torch:
            alpha, sigma = torch_levels(torch.as_tensor(t, device=x.device).reshape(-1))
        else:
            alpha, sigma = np.reshape(schedule.alpha(t), -1), np.reshape(schedule.sigma(t), -1)
        halves = self.posterior(x, alpha, sigma)
        x0, eps = hosted(halves) if is_torch else halves
        column = (-1,) + (1,) * (x.ndim - 1)
        alpha, sigma = (value.reshape(column) for value in (alpha, sigma))
        out = spoken(prediction, x0, eps, alpha, sigma, spread)
        return out.to(x) if is_torch else out.astype(x.dtype)

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """n draws of x0, float64 [n, *shape]; the same seed gives the same draws."""
        generator = np.random.default_rng(seed)
        chosen = generator.choice(len(self.weights), size=n, p=self.weights)
        unit = generator.standard_normal((n, self.means.shape[1]))
        flat = self.means[chosen] + self.stds[chosen] * unit
        return self._turned(flat, np.asarray, back=True).reshape(n, *self.shape)


class Gaussian(GaussianMixture):
    """x0 ~ N(mean, diag std²) or N(mean, cov).

    mean    [*shape], shape may be empty; samples are [B, *shape]
    std     >= 0: a number or [*shape]
    cov     [D, D], D = elements of mean: symmetric, no negative eigenvalue

    One of std and cov is given.
    """

    def __init__(self, mean: Any, std: Any = None, *, cov: Any = None) -> None:
        mean = np.asarray(mean, np.float64)
        if (std is None) == (cov is None):
            raise ValueError(
                "Gaussian: both or neither of std and cov were given; one of them is accepted"
            )
        if cov is None:
            std = np.broadcast_to(np.asarray(std, np.float64), mean.shape)
            super().__init__(mean[None], [1.0], std[None])
            return
        cov = np.asarray(cov, np.float64)
        if cov.shape != (mean.size, mean.size) or not np.allclose(cov, cov.T, rtol=1e-12, atol=0.0):
            raise ValueError(
                f"Gaussian: cov {list(cov.shape)} for {mean.size} coordinates; a symmetric [D, D] "
                "is accepted"
            )
        c, basis = np.linalg.eigh(cov)
        if c[0] < -1e-12 * c[-1]:
            raise ValueError(
                f"Gaussian: cov has the eigenvalue {c[0]:g}; eigenvalues >= 0 are accepted"
            )
        super().__init__(mean[None], [1.0], np.sqrt(np.maximum(c, 0.0)).reshape(mean.shape)[None])
        self.basis, self.means = basis, self.means @ basis

    def ode(
        self, x: Any, alpha: float, sigma: float, alpha_end: float = 1.0, sigma_end: float = 0.0
    ) -> Any:
        """Where the probability-flow ODE takes x from (alpha, sigma) to (alpha_end, sigma_end), on
        any schedule: along each axis of the covariance (x - alpha·m)/sqrt(alpha²c + sigma²) is
        constant.

        x [B, *shape], NumPy or torch -> the same.
        """
        number = _float64(x)
        flat = self._turned(number(x).reshape(-1, self.means.shape[1]), number)
        mean, c = number(self.means[0]), number(self.stds[0]) ** 2
        wider = ((alpha_end**2 * c + sigma_end**2) / (alpha**2 * c + sigma**2)) ** 0.5
        flat = alpha_end * mean + wider * (flat - alpha * mean)
        flat = self._turned(flat, number, back=True).reshape(x.shape)
        return flat.to(x) if isinstance(x, torch.Tensor) else flat.astype(x.dtype)


class Point(Gaussian):
    """x0 is always this one.   x0 [*shape]"""

    def __init__(self, x0: Any) -> None:
        super().__init__(x0, 0.0)


def ring() -> GaussianMixture:
    """Eight round Gaussians in the plane: means on the unit circle, weights 1 to 8 of 36, standard
    deviation 0.1.
    """
    angle = np.arange(8) * (np.pi / 4)
    return GaussianMixture(np.stack([np.cos(angle), np.sin(angle)], 1), np.arange(1.0, 9.0), 0.1)


def waves(seed: int = 0) -> GaussianMixture:
    """Sixteen images [3,32,32], equally likely, each with a standard deviation of 0.1 about it:

        m = 0.5/rms · sum_{i,j < 8} c_ij cos(pi (r+1/2) i/32) cos(pi (s+1/2) j/32),
        c_ij ~ N(0, 1)/(1 + i + j)

    at row r and column s, one c a channel and image, rms over all of them. As in photographs, most
    of the difference is in the lowest frequencies: components part at many noise levels, not one.
    """
    frequency, place = np.arange(8), (np.arange(32) + 0.5) * (np.pi / 32)
    c = np.random.default_rng(seed).standard_normal((16, 3, 8, 8))
    c /= 1 + frequency[:, None] + frequency
    waves = np.cos(place[:, None] * frequency)  # [32, 8]
    means = waves @ c @ waves.T
    return GaussianMixture(means * (0.5 / np.sqrt((means**2).mean())), np.ones(16), 0.1)
