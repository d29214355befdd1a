"""What a calibration gained, in words and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastsample.optimize import Search

POOR = 45.0  # dB: a search warns below it
WIDTH, LINE, LEFT, MARGIN = 960, 40, 470, 20
INK, GREY, COLOURS = (20, 20, 20), (150, 150, 150), {True: (14, 124, 123), False: (178, 190, 195)}


class Line(NamedTuple):
    """How near one schedule comes to the teacher, in dB; ours: is it the one that was kept?"""

    label: str
    psnr: float
    ours: bool


def lines(search: Search, evaluations: int, before: float | None) -> list[Line]:
    """Every schedule that was judged, the connected one first."""
    found = [] if before is None else [Line("before: connected SAMPLER and SIGMAS", before, False)]
    kept = search.plans[evaluations].note["found"]["method"]
    for rung in search.rungs:
        if evaluations in rung.psnr:
            label = rung.name
            if label == "by hand":
                said = rung.plans[evaluations].note["found"]
                label = f"best by hand: {said['solver']}, {said['grid']}"
            found.append(Line(label, rung.psnr[evaluations][0], rung.name == kept))
    return found


def words(search: Search, evaluations: int, name: str, found: Sequence[Line]) -> str:
    """The same in words, with what stopped the search."""
    judges = search.plans[evaluations].note["found"]["held_out"]["samples"]
    told = [f"plan {name}: {evaluations} evaluations, on {judges} noises it was not made with"]
    told += [f"{'->' if line.ours else '  '} {line.psnr:6.1f} dB  {line.label}" for line in found]
    told.append("dB to the teacher's end points; 6 dB more is half the error")
    told.append(search.about_teacher())
    if search.agreement is not None and search.agreement < POOR:
        told.append(
            f"that is less than {POOR:g} dB, too far off to be a target: effort thorough, which "
            "takes more steps, or a guider that answers alike when it is asked the same again"
        )
    told.append(f"{search.nfe * search.samples:,.0f} evaluations of one sample")
    if search.stopped == "time_limit":
        told.append("the time limit was reached: more minutes go on from here to a better plan")
    return "\n".join(told)


def drawn(found: Sequence[Line], title: str) -> Tensor:
    """Bars of dB as an IMAGE [1,H,W,3] in 0..1."""
    height = 2 * MARGIN + LINE * (len(found) + 1)
    image = Image.new("RGB", (WIDTH, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    pen.text((MARGIN, MARGIN), title, INK, font)
    finite = [line.psnr for line in found if np.isfinite(line.psnr)]
    room = WIDTH - LEFT - MARGIN - 70
    for i, line in enumerate(found):
        top = MARGIN + LINE * (i + 1)
        share = np.clip(line.psnr / max([*finite, 1.0]), 0.0, 1.0) if finite else 0.0
        end = LEFT + int(room * np.nan_to_num(share))
        pen.rectangle((LEFT, top + 6, max(end, LEFT + 1), top + LINE - 8), COLOURS[line.ours])
        pen.text((MARGIN, top + 10), shortened(pen, font, line.label), INK, font)
        pen.text((max(end, LEFT + 1) + 8, top + 10), f"{line.psnr:.1f} dB", INK, font)
    pen.line((LEFT, MARGIN + LINE, LEFT, height - MARGIN), GREY)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]


def shortened(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, label: str) -> str:
    """The label as far as there is room for it."""
    room, short = LEFT - MARGIN - 10, label
    while pen.textlength(short, font) > room:
        short = short.rstrip(".")[:-1] + "..."
    return short
