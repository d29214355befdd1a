"""Tables, pictures, the state of an installation: what people read.

Pictures need matplotlib (extra `demo`), image grids nothing.
"""

from __future__ import annotations

import io
import os
import platform
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .files import make_folder, write_whole
from .plan import Plan
from .plan.text import printable

# Okabe & Ito's eight colours, told apart with any colour vision; every line has its marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
ANY = "by hand, any solver"  # the demonstration's name of the best schedule made by hand


# -- tables ----------------------------------------------------------------------------------------
def table(header: Sequence[str], rows: Sequence[Sequence[Any]], markdown: bool = False) -> str:
    """A table as text, the first column to the left, others to the right; format floats before."""
    lines = [[printable(cell) for cell in line] for line in (header, *rows)]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(
            f"table: a row has another length than the header's {len(header)}; rows of equal "
            "length are needed"
        )
    if markdown:
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        rule = ["---", *["---:"] * (len(header) - 1)]
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    cells = lambda line: [cell.rjust(w) for cell, w in zip(line, others, strict=True)]
    out = ["  ".join([line[0].ljust(first), *cells(line[1:])]) for line in lines]
    return "\n".join([out[0], "-" * len(out[0]), *out[1:]])


# -- images ----------------------------------------------------------------------------------------
def image_grid(images: Any, columns: int | None = None, pad: int = 2) -> np.ndarray:
    """uint8 [H,W] or [H,W,3] from images [B,C,H,W] or [B,H,W] in [-1,1] with C = 1 or 3; values
    outside are clipped, NaN is shown black.
    """
    x = _float32(images)
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise ValueError(
            f"image_grid: images of shape {list(np.shape(images))}; [B,C,H,W] with C = 1 or 3, or "
            "[B,H,W], is accepted"
        )
    B, C, H, W = x.shape
    columns = columns or int(np.ceil(np.sqrt(B)))
    rows = -(-B // columns)
    pixels = np.rint(np.clip(np.nan_to_num(x, nan=-1.0), -1, 1) * 127.5 + 127.5).astype(np.uint8)
    sheet = np.full((rows * (H + pad) + pad, columns * (W + pad) + pad, C), 255, np.uint8)
    for b in range(B):
        top, left = pad + (b // columns) * (H + pad), pad + (b % columns) * (W + pad)
        sheet[top : top + H, left : left + W] = pixels[b].transpose(1, 2, 0)
    return sheet[..., 0] if C == 1 else sheet


def png(pixels: np.ndarray) -> bytes:
    """A PNG file (RFC 2083) of uint8 [H,W] (grey) or [H,W,3] (RGB)."""
    height, width = pixels.shape[:2]
    filters = np.zeros((height, 1), np.uint8)  # filter 0 before each line
    lines = np.hstack([filters, np.ascontiguousarray(pixels).reshape(height, -1)])
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for body in (b"IHDR" + head, b"IDAT" + zlib.compress(lines.tobytes(), 9), b"IEND"):
        data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data


def save_images(path: str | Path, images: Any, columns: int | None = None, zoom: int = 3) -> None:
    """Write images [B,C,H,W] in [-1,1] as one PNG, each pixel zoom x zoom, whole or not at all."""
    sheet = image_grid(images, columns)
    write_whole(path, png(sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)))


def npy(images: Any) -> bytes:
    """A .npy file (format 1.0) of a tensor or array, float32."""
    data = io.BytesIO()
    np.save(data, _float32(images), allow_pickle=False)
    return data.getvalue()


def _float32(images: Any) -> np.ndarray:
    x = images.detach().float().cpu().numpy() if hasattr(images, "detach") else images
    return np.asarray(x, np.float32)


# -- pictures --------------------------------------------------------------------------------------
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
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for k, (label, curve) in enumerate(curves.items()):
        style = {"color": COLOURS[k % 8], "marker": MARKERS[k % 8], "markersize": 5}
        if label in dashed:
            style |= {"color": "#000000", "linestyle": "--"}
        axes.plot(*zip(*sorted(curve.items()), strict=True), linewidth=1.5, label=label, **style)
    axes.set_xticks(sorted(set().union(*curves.values())))
    axes.legend(frameon=False, fontsize=9)
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
    axes.set_title(title, loc="left", fontsize=11)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_yticks([(k + 0.5) * high for k in range(len(rows))], rows)
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


# -- installation ----------------------------------------------------------------------------------
# What of each extra `doctor` looks for.
EXTRAS = {
    "demo": ("matplotlib", "safetensors", "tqdm"),
    "optimize": ("scipy", "cma"),
    "bench": ("diffusers",),
}


def doctor() -> list[tuple[str, str]]:
    """What is installed, which backend runs where and why, and the command that supplies what is
    missing: [(what, finding)].
    """
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    lines = [("python", f"{platform.python_version()} on {machine}")]
    names = ("fastsample", "numpy", "torch", "k-diffusion")
    lines += [(name, _version(name) or f"missing; pip install {name}") for name in names]
    for extra, names in EXTRAS.items():
        remedy = f"missing, for the extra {extra}; pip install 'fastsample[{extra}]'"
        lines += [(name, _version(name) or remedy) for name in names]
    if _version("torch"):
        lines += _backends()
    return lines


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        from . import __version__

        return f"{__version__}, from its source tree" if name == "fastsample" else None


def _backends() -> list[tuple[str, str]]:
    import torch

    from .kernels import native
    from .kernels.backend import KERNELS, STATES, select

    if native.MISSING:
        remedy = "make native in the source tree, or reinstall where a C++ compiler is"
        built = f"missing: {native.MISSING}; {remedy}"
    else:
        built = ", ".join(f"{k} {v}" for k, v in native._C.build_info().items())
    lines = [("threads", f"{torch.get_num_threads()} in torch"), ("native code", built)]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for kernel, device, dtype in product(KERNELS, devices, STATES):
        choice = select(kernel, device, dtype)
        lines.append((f"{kernel}, {device}, {str(dtype)[6:]}", f"{choice.name} ({choice.reason})"))
    if len(devices) == 1:
        lines.append(("cuda", "no device that torch can use"))
    return lines


# -- the demonstration -----------------------------------------------------------------------------
FIGURES = ("PSNR dB", "quartiles dB", "class accuracy", "Fréchet distance", "seconds")


def demo(
    model: Any,
    search_noise: Any,
    search_words: Mapping,
    noise: Any,
    words: Mapping,
    out: Path,
    progress: bool = False,
    *,
    budgets: Sequence[int] = (4, 5, 6, 8),
    grid: int = 40,
    teacher_nfe: int = 50,
    at_least: float = 60.0,
) -> dict[str, Any]:
    """Search schedules for the embedded model, run them beside the usual ones on unseen noises,
    print the table, draw the pictures.

    search_noise, noise: unit noise [B,1,28,28]; search_words, words: their model words. As many of
    the unseen noises as were searched with are held out for the search's own comparison, so sample
    b of both should have the same words. Writes plans, samples.png, schedules.png and
    error_vs_evaluations.png to `out`. Returns {"rows", "search", "agreement", "target"}: table
    rows, a Search, dB, end points.
    """
    from . import metrics

    make_folder(out)
    teacher, agreement, target = metrics.find_teacher(
        model, noise, nfe=teacher_nfe, at_least=at_least, **words
    )
    name = f"{teacher.note['solver']}, {teacher.nfe} evaluations"
    agrees = f"agree to {agreement:.1f} dB PSNR with those at twice as many"
    print(f"teacher: {name}; its end points {agrees}")
    options = {"held_out": noise[: len(search_noise)], "progress": progress, **search_words}
    search = _demo_search(model, search_noise, max(budgets), grid, options)
    search.save(out)
    plans = _demo_plans(model, search, budgets)
    judge = _demo_judge(model, noise, words, target)
    scores = {label: {m: judge(plan) for m, plan in row.items()} for label, row in plans.items()}
    rows = [_demo_row("teacher", judge(teacher)), *_demo_rows(search, scores, budgets)]
    judged = "the Fréchet distance is on the embedded classifier's features"
    print(f"{len(noise)} noises the search never saw; {judged}")
    print(table(("method", "evaluations", *FIGURES), rows))
    _demo_beside(search, budgets, len(options["held_out"]))
    _demo_pictures(out, plans, scores, target, agreement)
    print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}")
    return {"rows": rows, "search": search, "agreement": agreement, "target": target}


def _demo_search(model: Any, noise: Any, budget: int, grid: int, options: Mapping) -> Any:
    """The search, and what it tells of itself."""
    from .optimize import oss

    search = oss(model, noise, budget, solver="euler", teacher=grid, **options)
    spent = f"{search.nfe:g} evaluations for each of {search.samples} noises"
    print(f"OSS: {spent}, {search.seconds:.1f} s; every budget from this one search")
    print(search.about_teacher())
    return search


def _demo_plans(model: Any, search: Any, budgets: Sequence[int]) -> dict[str, dict[int, Plan]]:
    """{method: {evaluations: plan}}; the best by hand are chosen on noises they are judged on too,
    which favours them.
    """
    from . import grids, solvers

    euler, schedule = solvers.euler, model.schedule
    return {
        "Karras": {m: euler(model, grids.karras(schedule, m)) for m in budgets},
        "log-uniform": {m: euler(model, grids.exponential(schedule, m)) for m in budgets},
        ANY: {m: search.compared[m].plan for m in budgets},
        # Without the amplitude.
        "OSS, times alone": {m: euler(model, search.grid[search.indices[m]]) for m in budgets},
        "OSS": {m: search.plans[m] for m in budgets},
    }


def _demo_judge(model: Any, noise: Any, words: Mapping, target: Any) -> Callable[[Plan], Any]:
    """plan -> its `metrics.Score` on these noises, with the two figures of the classifier."""
    from . import metrics
    from .models.classifier import class_accuracy, frechet_distance

    judges = {
        "accuracy": lambda x: class_accuracy(x, words["cond"]["label"])[0],
        "distance": frechet_distance,
    }
    return lambda plan: metrics.score(plan, model, noise, target, judges=judges, **words)


def _demo_rows(search: Any, scores: Mapping, budgets: Sequence[int]) -> list[tuple[str, ...]]:
    """The rows of every budget, one per method; the best by hand under the names of its plan."""
    rows = []
    for m in budgets:
        best = search.compared[m]
        for label, row in scores.items():
            by_hand = f"by hand, {best.solver} ({best.grid})"
            rows.append(_demo_row(by_hand if label == ANY else f"{label}, Euler", row[m]))
    return rows


def _demo_row(label: str, score: Any) -> tuple[str, ...]:
    psnr = ("-", "-")  # the teacher against itself
    if np.isfinite(score.psnr):
        low, _, high = score.quartiles
        psnr = (f"{score.psnr:.2f}", f"{low:.1f} .. {high:.1f}")
    judged = (f"{100 * score.judged['accuracy']:.1f} %", f"{score.judged['distance']:.2f}")
    return (label, str(score.nfe), *psnr, *judged, f"{score.seconds:.2f}")


def _demo_beside(search: Any, budgets: Sequence[int], held_out: int) -> None:
    """What the table does not say: how each plan found stands, and what else OSS moves."""
    chosen = f"chosen on the {held_out} noises held out of the search"
    print(f"OSS beside the best of any solver by hand, {chosen}:")
    print("\n".join(f"  {m} evaluations: {search.compared[m]}" for m in sorted(search.compared)))
    scales = ", ".join(f"{m}: {search.plans[m].note['found']['amplitude']:.3f}" for m in budgets)
    alone = "times alone: the same times without that"
    print(f"OSS also scales the noise it starts from ({scales}); {alone}")


def _demo_pictures(
    out: Path, plans: Mapping, scores: Mapping, target: Any, agreement: float
) -> None:
    budgets = sorted(plans["OSS"])
    shown = {"teacher": target}
    for m in sorted({budgets[0], budgets[len(budgets) // 2], budgets[-1]}):
        for label in ("Karras", ANY, "OSS"):
            score = scores[label][m]
            shown[f"{label}, {m} ({score.psnr:.1f} dB)"] = score.end
    title = "The same noises, by schedule and number of evaluations (PSNR to the teacher)"
    samples_picture(out / "samples.png", shown, title)
    drawn = {f"OSS, {m} evaluations": plans["OSS"][m] for m in budgets}
    usual = f"Karras, {budgets[-1]} evaluations"
    drawn[usual] = plans["Karras"][budgets[-1]]
    title = "Where the schedules ask the model"
    schedules_picture(out / "schedules.png", drawn, title, dashed=[usual])
    solvers = dict.fromkeys(plans[ANY][m].note["found"]["solver"] for m in budgets)
    legend = lambda label: f"{label} ({', '.join(solvers)})" if label == ANY else label
    psnr = lambda row: {m: score.psnr for m, score in row.items()}
    curves = {legend(label): psnr(row) for label, row in scores.items()}
    agrees = f"(the teacher agrees with its double to {agreement:.0f} dB)"
    title = f"Euler beside any solver, on unseen noises {agrees}"
    error_picture(out / "error_vs_evaluations.png", curves, title)
