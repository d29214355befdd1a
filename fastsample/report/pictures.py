"""Pictures by matplotlib (extra `demo`): samples, schedules, errors."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_whole
from ..plan import Plan
from ..plan.text import printable
from .images import image_grid

# Okabe & Ito's eight colours, told apart with any colour vision; every line has its marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
PLAIN = {"parse_math": False}  # a name is no formula, whatever stands in it


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        why = "report: pictures need matplotlib; pip install 'fastsample[demo]'"
        raise ImportError(why) from None
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no screen
    return figure


def _save(figure: Any, path: str | Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", bbox_inches="tight", pad_inches=0.1)
    write_whole(path, data.getvalue())


def _curves(
    path: str | Path, title: str, curves: Mapping, dashed: Sequence[str] = (), **words: str
) -> None:
    """A line for each of {label: {evaluations: value}}, in black dashes for labels in `dashed`;
    words: labels and scale of the axes.
    """
    figure = _figure(7.6, 4.6)
    axes = figure.add_subplot(**words)
    axes.set_title(printable(title), loc="left", fontsize=11, **PLAIN)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for k, (label, curve) in enumerate(curves.items()):
        style = {"color": COLOURS[k % 8], "marker": MARKERS[k % 8], "markersize": 5}
        if label in dashed:
            style |= {"color": "#000000", "linestyle": "--"}
        axes.plot(*zip(*sorted(curve.items()), strict=True), linewidth=1.5, **style)
    axes.set_xticks(sorted(set().union(*curves.values())))
    # with handles a label may begin with an underscore
    legend = axes.legend(axes.lines, [*map(printable, curves)], frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set(**PLAIN)
    _save(figure, path)


def samples_picture(
    path: str | Path, rows: Mapping[str, Any], title: str, columns: int = 12
) -> None:
    """One row of images per method, from the same noises in the same columns.

    rows: {label: images [B,C,H,W] in [-1,1]}.
    """
    columns = min(columns, *(len(images) for images in rows.values()))
    sheet = np.concatenate([image_grid(images[:columns], columns) for images in rows.values()])
    high, wide = len(sheet) / len(rows), sheet.shape[1]
    width, labels, heading = 0.62 * columns, 0.1 * max(map(len, rows)) + 0.3, 0.5
    figure = _figure(width + labels, width * len(sheet) / wide + heading)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, **PLAIN)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks([(k + 0.5) * high for k in range(len(rows))], rows, **PLAIN)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=10)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def schedules_picture(
    path: str | Path, plans: Mapping[str, Plan], title: str, dashed: Sequence[str] = ()
) -> None:
    """Where each plan asks the model: sigma/alpha (log scale) against the number of the evaluation.

    plans: {label: Plan}; dashed: labels drawn in black dashes, to compare with.
    """
    curves = {}
    for label, plan in plans.items():
        alpha, sigma = plan.alpha[plan.call >= 0], plan.sigma[plan.call >= 0]
        level = np.divide(sigma, alpha, out=np.full(plan.nfe, np.nan), where=alpha > 0)
        curves[label] = dict(enumerate(level, 1))
    y = "noise level sigma / alpha where the model is asked"
    _curves(path, title, curves, dashed, xlabel="evaluation", ylabel=y, yscale="log")


def error_picture(path: str | Path, curves: Mapping[str, Mapping[int, float]], title: str) -> None:
    """PSNR to the teacher's end points against evaluations. curves: {label: {evaluations: dB}}."""
    x, y = "model evaluations per sample", "PSNR to the teacher's end points (dB)"
    _curves(path, title, curves, xlabel=x, ylabel=y)
