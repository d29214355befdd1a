"""The example that searches F5-TTS's list of steps: its lists are what its loop and ours take, and
better on fresh noise than the list pruned by hand.
"""

import pytest
import torch

import fastsample as fs
from examples import tts_steps


def test_the_found_lists_beat_those_pruned_by_hand(capsys):
    table = tts_steps.main(["--steps", "5", "--noises", "4"])
    for row in table.values():
        assert row["found"] > max(row["even"], row["EPSS"])
        assert row["with coefficients"] > row["found"] + 10
    said = capsys.readouterr().out.splitlines()
    assert said[2].split()[0] == "5" and len(said) == 3


def test_no_noises_are_refused_before_anything_runs(capsys):
    for n in ("0", "-1"):
        with pytest.raises(SystemExit, match="2"):
            tts_steps.main(["--noises", n])
        assert f"--noises is {n}; a whole number of at least 1" in capsys.readouterr().err


def test_a_list_is_the_same_run_in_f5s_loop_and_as_a_plan():
    voices, random = tts_steps.Voices(), torch.Generator().manual_seed(2)
    model = tts_steps.model_of(voices)
    steps, text = [0, 3, 9, 20, 32], torch.tensor([0, 2])
    noise = torch.randn(2, tts_steps.FRAMES, tts_steps.CHANNELS, generator=random)
    times = (1 - tts_steps.swayed(torch.tensor(steps))).tolist()
    plan = fs.solvers.euler(model, [*times[:-1], 0.0])
    assert tts_steps.indices(plan) == steps
    none = {"text": torch.full((2,), tts_steps.SENTENCES)}
    got = fs.Sampler(plan, model)(noise=noise, cond={"text": text}, uncond=none, guidance=3.0)
    want = tts_steps.by_f5(voices, noise, text, steps)
    assert tts_steps.decibels(got, want) > 110


def test_the_toys_velocity_is_the_mean_of_what_it_says():
    """E[x1 - noise | x] of a sentence in each axis: the means' and cov/var of what differs."""
    voices, t = tts_steps.Voices(), torch.tensor([0.6])
    x = torch.randn(1, tts_steps.FRAMES, tts_steps.CHANNELS, generator=torch.manual_seed(1))
    rows, columns = voices.axes
    assert torch.allclose(rows @ rows.T, torch.eye(tts_steps.FRAMES).double())
    away = (rows @ x.double() @ columns.T) - 0.6 * voices.means[1]
    gain = (0.6 * voices.c - 0.4) / (0.36 * voices.c + 0.16)
    want = rows.T @ (voices.means[1] + gain * away) @ columns
    assert torch.allclose(voices.velocity(x, t, torch.tensor([1])).double(), want, 1e-5, 1e-5)


def test_a_number_of_steps_without_a_list_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        tts_steps.main(["--steps", "8"])
    assert stop.value.code == 2 and "invalid choice: 8" in capsys.readouterr().err
