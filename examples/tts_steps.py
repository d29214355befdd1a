"""Which few of 32 steps should a flow-matching speech model take? F5-TTS's users prune the list by
hand (EPSS, Zheng et al. 2025, arXiv:2505.19931: 7 of 32, found by ear); here it is searched.

    python -m examples.tts_steps                # error by number of evaluations, and the lists
    python -m examples.tts_steps --steps 5 7    # of these numbers

F5-TTS's loop, in its own words: noise at t = 0, a mel spectrogram [frames, channels] at t = 1,

    x <- x + (t' - t)·v        v = pred + strength·(pred - null)        t = k/32 + sway(k/32)

Euler steps of odeint over a list of k, guided, times moved towards the noise by sway sampling
(s = -1: t + s·(cos(pi·t/2) - 1 + t)). The network is a toy of that shape whose velocity is exact:
spectrograms of a few sentences, with a prompt that is given and of which no error counts. Yours
goes where `Voices.velocity` stands.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

import fastsample as fs

FRAMES, CHANNELS, PROMPT, SENTENCES = 48, 20, 12, 3
STRENGTH, SWAY, WHOLE = 2.0, -1.0, 32
# Four of F5-TTS 1.1's lists of steps of 32, by their number (Apache-2.0; get_epss_timesteps)
EPSS = {
    5: [0, 2, 4, 8, 16, 32],
    6: [0, 2, 4, 6, 8, 16, 32],
    7: [0, 2, 4, 6, 8, 16, 24, 32],
    10: [0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32],
}


class Voices:
    """Mel spectrograms x1 [F,C] of a sentence s: m_s + what differs each time it is said, a
    Gaussian that is smooth over frames and channels.

    x = (1 - t)·noise + t·x1        velocity(x [B,F,C], t [B], text [B]) = E[x1 - noise | x]

    text: a sentence, or SENTENCES for none, which may be any of them. In the axes of a cosine
    transform all is independent; c are the variances there, u those of x.
    """

    def __init__(self, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        size = 1.0 + torch.arange(FRAMES)[:, None] / 2 + torch.arange(CHANNELS)
        self.c = (24.0 / size.double()) ** 2  # [F, C], a log mel's: larger than the noise
        means = torch.randn(SENTENCES, FRAMES, CHANNELS, generator=random, dtype=torch.float64)
        self.means = 1.5 * means * self.c.sqrt() * (size < 6)
        self.axes = _cosines(FRAMES), _cosines(CHANNELS)

    def velocity(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        (rows, columns), t = self.axes, t.double().view(-1, 1, 1, 1)
        u = t**2 * self.c + (1 - t) ** 2
        away = (rows @ x.double() @ columns.T)[:, None] - t * self.means  # [B, S, F, C]
        said = (text[:, None] == torch.arange(SENTENCES)) | (text[:, None] == SENTENCES)
        likely = -0.5 * (away**2 / u).sum((2, 3))
        r = torch.where(said, likely, -math.inf).softmax(1)[:, :, None, None]
        x1, noise = self.means + t * self.c / u * away, (1 - t) / u * away
        return (rows.T @ (r * (x1 - noise)).sum(1) @ columns).to(x.dtype)


def _cosines(n: int) -> Tensor:
    """The orthonormal cosine transform [n, n], a row a frequency."""
    place, frequency = torch.arange(n).double() + 0.5, torch.arange(n).double()[:, None]
    waves = torch.cos(math.pi / n * frequency * place) * math.sqrt(2 / n)
    return torch.cat([waves[:1] * math.sqrt(0.5), waves[1:]])


def swayed(k: Tensor) -> Tensor:
    """Times t of steps k of 32, as F5-TTS moves them."""
    t = k.double() / WHOLE
    return t + SWAY * (torch.cos(math.pi / 2 * t) - 1 + t)


def by_f5(voices: Voices, noise: Tensor, text: Tensor, steps: list[float]) -> Tensor:
    """F5-TTS's own loop over a list of steps of 32."""
    x, none = noise, torch.full_like(text, SENTENCES)
    times = swayed(torch.tensor(steps))
    for t, after in zip(times[:-1], times[1:], strict=True):
        pred, null = (voices.velocity(x, t.expand(len(x)), said) for said in (text, none))
        x = x + (after - t).float() * (pred + STRENGTH * (pred - null))
    return x


def model_of(voices: Voices) -> fs.Model:
    """The same network the other way round: noise at t = 1, so -v at 1 - t."""
    return fs.Model(
        lambda x, t, text: -voices.velocity(x, 1 - t, text),
        schedule=fs.schedules.Flow(),
        prediction="flow",
        time=1,
        model_id="tts-steps-toy",
    )


def heard() -> Tensor:
    """What counts [F, 1]: all frames but the prompt's."""
    return (torch.arange(FRAMES) >= PROMPT).float()[:, None]


def indices(plan: fs.Plan) -> list[int]:
    """The steps of 32 that a plan of such times takes, 0 and 32 among them."""
    fine = 1 - swayed(torch.arange(WHOLE + 1))
    times = torch.tensor([*plan.note["times"]], dtype=torch.float64)
    return (times[:, None] - fine).abs().argmin(1).tolist()


def decibels(x: Tensor, target: Tensor) -> float:
    """Signal to error over what counts, the mean of each sample's own."""
    power = lambda v: (heard() * v.double().square()).sum((1, 2))
    return float((10 * (power(target) / power(x - target)).log10()).mean())


def main(argv: list[str] | None = None) -> dict[int, dict[str, float]]:
    """Prints, and returns by number of evaluations, the dB of each list on noise of its own."""
    parser = argparse.ArgumentParser(prog="python -m examples.tts_steps", description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[*EPSS], choices=[*EPSS])
    parser.add_argument("--noises", type=int, default=12, help="that a list is searched on")
    args = parser.parse_args(argv)
    if args.noises < 1:
        parser.error(f"--noises is {args.noises}; a whole number of at least 1 is accepted")
    voices, random = Voices(), torch.Generator().manual_seed(0)
    model, n = model_of(voices), args.noises
    noise = torch.randn(2 * n, FRAMES, CHANNELS, generator=random)
    text = torch.arange(2 * n) % SENTENCES
    seen, fresh, said = noise[:n], noise[n:], text[n:]
    words = {"cond": {"text": text[:n]}, "uncond": {"text": torch.full((n,), SENTENCES)}}
    words |= {"guidance": 1 + STRENGTH, "weight": heard()}
    grid = [*(1 - swayed(torch.arange(WHOLE))).tolist(), 0.0]  # cos(pi/2) rounds to no 0
    found = fs.optimize.oss(
        model, seen, max(args.steps), solver="euler", start="fixed", grid=grid, **words
    )
    words |= {"teacher": found.teacher, "grid": grid}
    free = fs.optimize.fit(model, seen, max(args.steps), **words)
    every = {"cond": {"text": said}, "uncond": {"text": torch.full((n,), SENTENCES)}}
    run = lambda plan: fs.Sampler(plan, model)(noise=fresh, guidance=1 + STRENGTH, **every)
    target = run(found.teacher)
    table = {}
    print("signal to error in dB, of a fine run, on noise that no list was searched on")
    print("evaluations   even   EPSS   found   with coefficients   found steps of 32")
    for m in args.steps:
        steps = indices(found.plans[m])
        even = [WHOLE * k / m for k in range(m + 1)]
        lists = {"even": even, "EPSS": EPSS[m], "found": steps}
        row = {name: decibels(by_f5(voices, fresh, said, k), target) for name, k in lists.items()}
        row["with coefficients"] = decibels(run(free.plans[m]), target)
        table[m] = row
        print(f"{m:11d}  {row['even']:5.1f}  {row['EPSS']:5.1f}   {row['found']:5.1f}  ", end="")
        print(f"{row['with coefficients']:18.1f}   {', '.join(map(str, steps))}")
    return table


if __name__ == "__main__":
    main()
