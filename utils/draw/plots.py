"""Plots of a dataset, a training run and an evaluation, written as image files."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from utils.draw.boxes import Annotator, colors, save_one_box  # noqa: F401  YOLOv5's scripts import them from here
from utils.errors import shorten
from utils.evaluation.metrics import Curves, smooth
from utils.files import atomic_write
from utils.system.console import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write a figure atomically, in the format given by the suffix of `path`."""
    path = Path(path)
    with atomic_write(path) as f:
        figure.savefig(f, format=path.suffix[1:], dpi=dpi)


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure; the size is in inches. matplotlib, which is slow to import, is imported here."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _label(name: str) -> str:
    """Shorten a name for a plot, and escape its dollar signs, which matplotlib would read as a formula."""
    return printable(shorten(name, 40)).replace("$", r"\$")


def plot_labels(values: np.ndarray, names: Mapping[int, str], path: Path) -> None:
    """Plot class counts, box outlines, centres and sizes of a dataset.

    values: (n, 5) class, cx, cy, w, h normalised.
    """
    from matplotlib import colormaps

    figure = _figure(9, 9)
    axes = figure.subplots(2, 2)
    counts = np.bincount(values[:, 0].astype(int), minlength=len(names))
    colours = colormaps["tab20"](np.arange(len(names)) % 20)
    axes[0, 0].bar(range(len(names)), counts, color=colours)
    axes[0, 0].set(ylabel="objects", title="objects per class")
    if len(names) <= 30:
        axes[0, 0].set_xticks(range(len(names)), [_label(n) for n in names.values()], rotation=90, fontsize=9)
    picture = np.zeros((300, 300))
    for _, _, _, w, h in values[:2000]:
        x1, y1 = int(150 - w * 150), int(150 - h * 150)
        x2, y2 = int(150 + w * 150), int(150 + h * 150)
        picture[[y1, min(y2, 299)], x1 : x2 + 1] += 1
        picture[y1 : y2 + 1, [x1, min(x2, 299)]] += 1
    axes[0, 1].imshow(np.log1p(picture), cmap="viridis", extent=(-0.5, 0.5, -0.5, 0.5))
    axes[0, 1].set(title="outlines of the boxes, centred", xlabel="fraction of the image")
    for axis, (x, y), title in ((axes[1, 0], (1, 2), "centres"), (axes[1, 1], (3, 4), "sizes")):
        axis.hist2d(values[:, x], values[:, y], bins=50, range=((0, 1), (0, 1)), cmap="Blues")
        axis.set(title=title, xlabel=("", "x", "", "width")[x], ylabel=("", "", "y", "", "height")[y])
    axes[1, 0].invert_yaxis()
    save_figure(figure, path, dpi=110)


def plot_results(csv_file: Path, path: Path) -> None:
    """Plot the columns of a results.csv over the epochs, with a smoothed line."""
    with open(csv_file, encoding="utf-8", newline="") as f:
        rows = list(csv.reader(f))
    header = [name.strip() for name in rows[0]]
    data = np.array([[float(v) for v in row] for row in rows[1:]], dtype=float).reshape(-1, len(header))
    order = [n for n in header if n.startswith("train/")] + [n for n in header if n.startswith("metrics/")]
    order += [n for n in header if n.startswith("val/")]
    figure = _figure(3 * math.ceil(len(order) / 2), 6)
    for axis, name in zip(figure.subplots(2, math.ceil(len(order) / 2)).ravel(), order, strict=False):
        y = data[:, header.index(name)]
        axis.plot(data[:, 0], y, marker=".", color="#4878a8", linewidth=1, markersize=5)
        if len(y) > 10 and np.isfinite(y).all():
            axis.plot(data[:, 0], smooth(y, 0.1), color="#e07b39", linewidth=2, label="smoothed")
        axis.set_title(name, fontsize=11)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch", fontsize=9)
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def plot_evolve(values: np.ndarray, names: Sequence[str], fitness: np.ndarray, path: Path) -> None:
    """Plot the fitness over the value of each hyperparameter.

    values: (n, k) of n generations; names: k hyperparameters; fitness: (n,). Points are coloured by generation. The
    best one is marked, and the title gives its value.
    """
    from matplotlib.ticker import MaxNLocator

    columns = min(6, max(len(names), 1))
    rows = max(math.ceil(len(names) / columns), 1)
    figure = _figure(2.6 * columns + 1, 2.3 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    best = int(fitness.argmax())
    for axis in grid.ravel()[len(names) :]:
        axis.axis("off")
    for axis, name, x in zip(grid.ravel(), names, values.T, strict=False):
        points = axis.scatter(x, fitness, c=np.arange(len(fitness)), cmap="viridis", s=16, alpha=0.8, linewidths=0)
        axis.plot(x[best], fitness[best], "+", color="#d03030", markersize=14, markeredgewidth=2)
        axis.set_title(f"{name} = {x[best]:.4g}", fontsize=10)
        axis.ticklabel_format(axis="x", scilimits=(-3, 4))
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in grid[:, 0]:
        axis.set_ylabel("fitness", fontsize=9)
    if len(names):
        bar = figure.colorbar(points, ax=grid, label="generation", shrink=0.6, aspect=40)
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
    save_figure(figure, path, dpi=110)


def plot_curves(curves: Curves, ap: np.ndarray, classes: np.ndarray, names: Mapping[int, str], folder: Path) -> None:
    """Write PR_curve.png, F1_curve.png, P_curve.png and R_curve.png; ap: (classes, t), the first column at IoU 0.5."""
    labels = [names.get(int(c), str(c)) for c in classes]
    with_ap = [f"{label} {value:.3f}" for label, value in zip(labels, ap[:, 0], strict=True)]
    mean = f"all classes {ap[:, 0].mean():.3f} mAP50" if len(ap) else "no labels"
    _curve_picture(curves.x, curves.pr, with_ap, mean, ("recall", "precision"), folder / "PR_curve.png")
    for name, y in (("F1", curves.f1), ("P", curves.p), ("R", curves.r)):
        mean_curve = smooth(y.mean(0), 0.05) if len(y) else np.zeros_like(curves.x)
        at = int(mean_curve.argmax())
        mean = f"all classes {mean_curve[at]:.2f} at {curves.x[at]:.3f}"
        title = {"F1": "F1", "P": "precision", "R": "recall"}[name]
        _curve_picture(curves.x, y, labels, mean, ("confidence", title), folder / f"{name}_curve.png")


def _curve_picture(
    x: np.ndarray, ys: np.ndarray, labels: Sequence[str], mean: str, axis_names: tuple[str, str], path: Path
) -> None:
    figure = _figure(9, 6)
    axis = figure.subplots()
    few = len(ys) <= 20
    for y, label in zip(ys, labels, strict=True):
        axis.plot(x, y, linewidth=1, label=_label(label) if few else None, color=None if few else "grey")
    if len(ys):
        axis.plot(x, ys.mean(0), linewidth=3, color="#1f4fa0", label=mean)
    axis.set(xlabel=axis_names[0], ylabel=axis_names[1], xlim=(0, 1), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    if len(ys):
        axis.legend(bbox_to_anchor=(1.02, 1), loc="upper left", fontsize=9)
    save_figure(figure, path)


def plot_confusion(matrix: np.ndarray, names: Mapping[int, str], path: Path) -> None:
    """Plot a confusion matrix (nc + 1, nc + 1), rows predicted, with each column normalised to a sum of 1."""
    shares = matrix / (matrix.sum(0, keepdims=True) + 1e-9)
    size = max(6.0, min(0.42 * len(matrix) + 3, 24.0))
    figure = _figure(size + 1, size)
    axis = figure.subplots()
    shown = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axis, shrink=0.8)
    if len(matrix) <= 31:
        labels = [*(_label(n) for n in names.values()), "background"]
        axis.set_xticks(range(len(matrix)), labels, rotation=90)
        axis.set_yticks(range(len(matrix)), labels)
        for i, j in np.argwhere(shares > 0.005):
            axis.text(j, i, f"{shares[i, j]:.2f}", ha="center", va="center", fontsize=7 if len(matrix) > 12 else 10,
                      color="white" if shares[i, j] > 0.5 else "black")  # fmt: skip
    axis.set(xlabel="true", ylabel="predicted", title="each column adds up to 1")
    save_figure(figure, path)


def plot_features(features: Tensor, path: Path, channels: int = 32) -> None:
    """Plot the first channels of one layer's output (c, h, w) in a grid."""
    maps = features[:channels].float().cpu().numpy()
    columns = 8
    rows = math.ceil(len(maps) / columns)
    figure = _figure(columns, rows)
    for axis in figure.subplots(rows, columns, squeeze=False).ravel():
        axis.axis("off")
    for axis, one in zip(figure.axes, maps, strict=False):
        axis.imshow(one)
    save_figure(figure, path)


def plot_study(curves: Mapping[str, np.ndarray], path: Path) -> None:
    """Plot mAP50-95 over the time per image, with one curve per model and one point per image size.

    curves: model name -> (sizes, 8): size in pixels, P, R, mAP50, mAP50-95, and milliseconds of pre-processing,
    network and NMS.
    """
    figure = _figure(9, 6)
    axis = figure.subplots()
    for name, rows in curves.items():
        time = rows[:, 6] + rows[:, 7]
        (line,) = axis.plot(time, rows[:, 4], marker="o", markersize=5, linewidth=2, label=_label(name))
        for x, y, size in zip(time, rows[:, 4], rows[:, 0], strict=True):
            axis.annotate(f"{size:.0f}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8,
                          color=line.get_color())  # fmt: skip
    axis.set(xlabel="ms per image, network and NMS", ylabel="mAP50-95", title="accuracy and speed by image size (px)")
    axis.set_xlim(left=0)
    axis.margins(y=0.12)
    axis.grid(alpha=0.3)
    if curves:
        axis.legend(loc="best")
    save_figure(figure, path)
