"""The charts of a comparison, as SVG to embed in a light or dark HTML page, and as PNG files."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from defusedxml.ElementTree import fromstring
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from utils.draw.place_labels import place_labels
from utils.report.comparison import COLUMNS, Comparison, Entry, pareto
from utils.report.content import known, present, short_labels

WIDTH = 4.6  # inches: at most the width of a phone, where 9 pt text stays legible
LOG_FROM = 20  # least ratio of the largest to the smallest value for a logarithmic axis
NARROW = 1.1  # an axis shows at least this factor above and below the middle of its values
TAIL = 25  # characters of a label in a legend
SERIES = 10
MAP, LOSSES = "metrics/mAP_0.5:0.95", ("train/box_loss", "train/obj_loss", "train/cls_loss")
TIMES = ("time/data", "time/step", "time/val")
COSTS = {"size_mib": "file size, MiB (checkpoints in half precision)", "gflops": "GFLOPs per image",
         "ms_1": "latency of one image, ms (median)"}  # fmt: skip

Point = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """The colours of a chart; series: SERIES colours that are distinguishable with common colour blindness."""

    ink: str
    soft: str
    grid: str
    paper: str
    series: tuple[str, ...]


# any two series colours of a style differ by 15 or more (CIE76) for normal, protan, deutan and tritan vision
LIGHT = Style("#1b1f24", "#59626d", "#dfe3e8", "#ffffff", tuple(
    "#005094 #bf3900 #1fab7c #b66eaf #d18700 #5711bb #5690ff #690c1b #64832c #493c4f".split()))  # fmt: skip
DARK = Style("#e6e9ed", "#a3acb7", "#333a43", "#14181d", tuple(
    "#618cd4 #dd6d35 #3ff9a1 #da82a3 #ffe91d #8b63ff #a8ffe4 #e7485d #c4df5c #b0c9ec".split()))  # fmt: skip
# placeholder colours, which are replaced by CSS variables of the page
_MARKED = Style("#000001", "#000002", "#000003", "#000004", tuple(f"#0001{k:02x}" for k in range(SERIES)))
_VARIABLES = {_MARKED.ink: "var(--ink)", _MARKED.soft: "var(--soft)", _MARKED.grid: "var(--grid)",
              _MARKED.paper: "var(--paper)", **{c: f"var(--s{k})" for k, c in enumerate(_MARKED.series)}}  # fmt: skip
MARKERS = "os^DvPXp*hd"  # their number is coprime to SERIES, so that pairs of colour and marker repeat late
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)), (0, (4, 1.2, 1.2, 1.2, 1.2, 1.2)))
# fonts for characters that matplotlib's own font lacks, used if they are installed
_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "SimHei",
          "WenQuanYi Zen Hei", "Malgun Gothic", "Arial Unicode MS")  # fmt: skip
_SETTINGS: Mapping[str, Any] = MappingProxyType({
    "svg.fonttype": "none", "svg.hashsalt": "comparison", "text.parse_math": False, "text.usetex": False,
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True,
    "axes.xmargin": 0.05, "axes.ymargin": 0.05, "axes.axisbelow": True, "axes.titlelocation": "left",
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0, "axes.linewidth": 0.8,
    "legend.frameon": False,
})  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A chart. name: file name without suffix; text: description for screen readers; draw: creates the figure."""

    name: str
    title: str
    note: str
    text: str
    draw: Callable[[Style], Figure]


def charts(comparison: Comparison) -> list[Chart]:
    """Return the charts for which the comparison has data."""
    entries = comparison.entries
    scored = [k for k, e in enumerate(entries) if e.results and len(e.results.classes)]
    curves = [(k, e.training.curves) for k, e in enumerate(entries) if e.training and len(e.training.curves)]
    made = [_trade_off(entries, key) for key in COSTS]
    made += [_recall_chart(entries, scored), _map_history(entries, curves), _map_by_time(entries, curves),
             _loss_history(entries, curves), _class_chart(entries, scored, comparison.names)]  # fmt: skip
    return [chart for chart in made if chart]


def svg(chart: Chart) -> str:
    """Return the chart as an SVG element that takes its colours and its font from the HTML page.

    The page must define the CSS variables --ink, --soft, --grid, --paper and --s0 to --s9. All ids begin with the
    chart's name.
    """
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    root = fromstring(_render(chart, _MARKED, format="svg", metadata=nothing, transparent=True))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):  # a style element would apply to the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rsplit("}", 1)[-1]
        element.attrib = {k.rsplit("}", 1)[-1]: _attribute(k, v, chart.name) for k, v in element.attrib.items()}
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": chart.text, "style": "stroke-linejoin: round; stroke-linecap: butt"}
    return ElementTree.tostring(root, encoding="unicode")


def png(chart: Chart) -> bytes:
    """Return the chart as a PNG file with a white background."""
    return _render(chart, LIGHT, format="png", dpi=180, metadata={"Software": None})


def _render(chart: Chart, style: Style, **options: Any) -> bytes:
    file = io.BytesIO()
    colours = {"text.color": style.ink, "axes.labelcolor": style.soft, "xtick.labelcolor": style.ink,
               "ytick.labelcolor": style.ink, "axes.titlecolor": style.soft, "axes.edgecolor": style.soft,
               "grid.color": style.grid, "figure.facecolor": style.paper, "axes.facecolor": style.paper}  # fmt: skip
    installed = {font.name for font in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(f for f in _FONTS if f in installed)]
    with matplotlib.rc_context({**_SETTINGS, **colours, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # characters that no installed font has
        chart.draw(style).savefig(file, **options)
    return file.getvalue()


def _attribute(name: str, value: str, prefix: str) -> str:
    """Adapt an attribute of matplotlib's SVG to a page with several charts: unique ids, the page's font and colours."""
    if name == "id":
        return f"{prefix}-{value}"
    if name.endswith("href") and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if name == "style":
        value = re.sub(r"font: ([^;]*?)([\d.]+px)[^;]*", r"font-size: \2", value)
        value = re.sub(r"font-family:[^;]*;?", "", value)
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    return re.sub(r"#000[01][0-9a-f]{2}\b", lambda m: _VARIABLES.get(m[0], m[0]), value)


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)  # this canvas can measure text
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.04)
    return figure


def _axes(figure: Figure, xlabel: str, ylabel: str, grid: str = "both") -> Axes:
    """Return axes with the name of the y axis written horizontally above it, which is easier to read on a phone."""
    axis = figure.subplots()
    axis.set_xlabel(xlabel)
    axis.set_title(ylabel)
    axis.grid(True, axis=grid, linewidth=0.7)
    return axis


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], where: str) -> None:
    """Add a legend above or below the axes, in two columns if the labels are short enough."""
    columns = 2 if max(map(len, labels)) <= TAIL and len(labels) > 1 else 1
    # matplotlib omits labels that begin with _, so the names are set afterwards
    legend = figure.legend(handles, ["x" * len(s) for s in labels], loc=f"outside {where} left", ncols=columns,
                           handlelength=2.2, columnspacing=1.2, borderaxespad=0.2)  # fmt: skip
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)


def _line(k: int, style: Style) -> dict[str, Any]:
    return {"color": style.series[k % SERIES], "linestyle": LINES[k % len(LINES)], "linewidth": 1.7}


def _trade_off(entries: Sequence[Entry], key: str) -> Chart | None:
    """Return the chart of mAP50-95 over a cost, or None for fewer than two models."""
    value = next(c.value for c in COLUMNS if c.key == key)
    points = [(k, float(value(e)), float(e.results.summary[3])) for k, e in enumerate(entries)
              if e.results and present(value(e)) and value(e) > 0]  # fmt: skip
    if len(points) < 2:
        return None
    labels = short_labels([e.label for e in entries], 22)
    listed = "; ".join(f"{labels[k]} {y:.3f} at {x:.3g}" for k, x, y in sorted(points, key=lambda p: p[1]))
    bars = any(known(entries[k].map) for k, _, _ in points)
    note = "Dashed: Pareto front; hollow: not on it." + " Error bars: 95 % bootstrap interval over the images." * bars
    return Chart(f"map_by_{key}", f"mAP50-95 by {COSTS[key].split(',')[0]}", note,
                 f"mAP50-95 against {COSTS[key]}. {listed}.",
                 partial(_draw_trade_off, entries, points, labels, key))  # fmt: skip


def _draw_trade_off(
    entries: Sequence[Entry], points: Sequence[tuple[int, float, float]], labels: Sequence[str], key: str, style: Style
) -> Figure:
    figure = _figure(3.2)
    axis = _axes(figure, COSTS[key], "mAP50-95")
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    front = pareto(xs, ys)
    if max(xs) > LOG_FROM * min(xs):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
    bars = []
    for n, (k, x, y) in enumerate(points):
        colour = style.series[k % SERIES]
        if known(entries[k].map):
            low, high = min(entries[k].map.low, y), max(entries[k].map.high, y)
            axis.plot((x, x), (low, high), color=colour, linewidth=1.2, alpha=0.7)
            bars.append((x, low, high))
        axis.plot(x, y, MARKERS[k % len(MARKERS)], markersize=7, color=colour, markeredgewidth=1.4, zorder=3,
                  markerfacecolor=colour if n in front else style.paper)  # fmt: skip
    axis.margins(0.1, 0.14)
    axis.autoscale_view()
    axis.autoscale(False)
    if max(xs) < NARROW * min(xs):  # an insignificant difference must not fill the chart
        middle = (max(xs) + min(xs)) / 2
        axis.set_xlim(middle * (2 - NARROW), middle * NARROW)
    lines = [((x, low), (x, high)) for x, low, high in bars]
    corners = _steps([(xs[i], ys[i]) for i in front], axis.get_xlim()[1])
    axis.plot(*zip(*corners, strict=True), color=style.soft, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
    lines += list(pairwise(corners))
    _label_points(figure, axis, points, labels, lines, style)
    return figure


def _steps(front: Sequence[Point], edge: float) -> list[Point]:
    """Return the corners of a step line through the points of a Pareto front, extended horizontally to x = `edge`."""
    corners = [front[0]]
    for x, y in front[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (edge, corners[-1][1])]


def _label_points(
    figure: Figure, axis: Axes, points: Sequence[tuple[int, float, float]], labels: Sequence[str],
    lines: Sequence[tuple[Point, Point]], style: Style,
) -> None:  # fmt: skip
    """Write the labels beside their points without overlaps, with a thin line to points that are farther away."""
    figure.draw_without_rendering()  # computes the layout
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    unit = 72 / figure.dpi
    place = axis.transData.transform
    centres = np.array([place((x, y)) for _, x, y in points]) * unit
    ground = {"facecolor": style.paper, "edgecolor": "none", "alpha": 0.75, "pad": 0.4}
    texts = [figure.text(0, 0, labels[k], fontsize=8, color=style.ink, zorder=5, bbox=ground) for k, _, _ in points]
    sizes = np.array([t.get_window_extent(renderer).size for t in texts]) * unit
    taken = [np.concatenate((place((min(a[0], b[0]), min(a[1], b[1]))), place((max(a[0], b[0]), max(a[1], b[1])))))
             * unit + (-1, -1, 1, 1) for a, b in lines]  # fmt: skip
    frame = np.array(axis.bbox.extents) * unit
    corners = place_labels(centres, sizes, frame, np.array(taken).reshape(-1, 4))
    size = np.array(figure.get_size_inches()) * 72
    for text, corner, extent, centre in zip(texts, corners, sizes, centres, strict=True):
        text.set_verticalalignment("center")
        text.set_position((corner + (0, extent[1] / 2)) / size)
        nearest = np.clip(centre, corner, corner + extent)
        if math.dist(nearest, centre) > 10:
            figure.add_artist(Line2D(*zip(*(np.array((centre, nearest)) / size), strict=True),
                                                      color=style.soft, linewidth=0.6, zorder=2))  # fmt: skip


def _recall_chart(entries: Sequence[Entry], scored: Sequence[int]) -> Chart | None:
    if not scored:
        return None
    labels = short_labels([e.label for e in entries], TAIL)
    listed = "; ".join(f"{labels[k]} {entries[k].results.summary[2]:.3f}" for k in scored)
    series = [(k, entries[k].results.curves.x[::5], entries[k].results.curves.pr.mean(0)[::5]) for k in scored]
    return Chart("precision_recall", "Precision-recall curve", "At IoU 0.5, mean over the classes.",
                 f"Precision over recall at IoU 0.5. mAP50, the area under each curve: {listed}.",
                 partial(_draw_curves, series, labels, "recall", "precision", (0, 1.02)))  # fmt: skip


def _history(curves: Sequence[tuple[int, Mapping[str, np.ndarray]]], columns: Sequence[str]) -> list[tuple]:
    """Return, for each run that has the columns, its index, the epochs, and the sum of the columns per epoch."""
    series = []
    for k, run in curves:
        if all(c in run for c in columns):
            y = np.sum([np.asarray(run[c], float) for c in columns], 0)
            series.append((k, np.asarray(run.get("epoch", np.arange(len(y))), float), y))
    series = [s for s in series if np.isfinite(s[2]).any()]
    return series if any(len(y) > 1 for _, _, y in series) else []  # a curve needs at least two points


def _map_history(entries: Sequence[Entry], curves: Sequence[tuple[int, Mapping]]) -> Chart | None:
    series = _history(curves, (MAP,))
    labels = short_labels([e.label for e in entries], TAIL)
    listed = "; ".join(f"{labels[k]} {np.nanmax(y):.3f} at epoch {x[np.nanargmax(y)]:.0f}" for k, x, y in series)
    return Chart("map_by_epoch", "Training: mAP50-95 by epoch", "On the validation images, during training.",
                 f"mAP50-95 by epoch. Best values: {listed}.",
                 partial(_draw_curves, series, labels, "epoch", "mAP50-95", (0, None))) if series else None  # fmt: skip


def _map_by_time(entries: Sequence[Entry], curves: Sequence[tuple[int, Mapping]]) -> Chart | None:
    series = []
    for k, run in curves:
        if all(c in run for c in TIMES):
            minutes = np.sum([np.asarray(run[c], float) for c in TIMES], 0).cumsum() / 60
            series += [(k, minutes, y) for _, _, y in _history([(k, run)], (MAP,))]
    labels = short_labels([e.label for e in entries], TAIL)
    listed = "; ".join(f"{labels[k]} {np.nanmax(y):.3f} after {x[np.nanargmax(y)]:.0f} min" for k, x, y in series)
    note = "On the validation images, during training; each on the machine on which it was trained."
    draw = partial(_draw_curves, series, labels, "minutes", "mAP50-95", (0, None))
    return Chart("map_by_time", "Training: mAP50-95 by time", note, f"mAP50-95 by time. Best values: {listed}.",
                 draw) if series else None  # fmt: skip


def _loss_history(entries: Sequence[Entry], curves: Sequence[tuple[int, Mapping]]) -> Chart | None:
    series = _history(curves, LOSSES)
    labels = short_labels([e.label for e in entries], TAIL)
    listed = "; ".join(f"{labels[k]} {y[np.isfinite(y)][-1]:.3g}" for k, x, y in series)
    return Chart("loss_by_epoch", "Training: loss by epoch", "Sum of box, objectness and class loss.",
                 f"Training loss by epoch. Final values: {listed}.",
                 partial(_draw_curves, series, labels, "epoch", "loss", (None, None))) if series else None  # fmt: skip


def _draw_curves(
    series: Sequence[tuple[int, np.ndarray, np.ndarray]], labels: Sequence[str], xlabel: str, ylabel: str,
    ylim: tuple[float | None, float | None], style: Style,
) -> Figure:  # fmt: skip
    rows = math.ceil(len(series) / (2 if max(len(labels[k]) for k, _, _ in series) <= TAIL else 1))
    figure = _figure(2.9 + 0.17 * rows)
    axis = _axes(figure, xlabel, ylabel)
    handles = []
    for k, x, y in series:
        # shift the markers of the runs, so that they do not cover each other
        some = np.linspace(0, len(x) - 1, 6)[:-1] + (k % 8 + 0.5) * (len(x) - 1) / 40
        handles += axis.plot(x, y, marker=MARKERS[k % len(MARKERS)], markersize=4.5, **_line(k, style),
                             markevery=sorted(set(some.round().astype(int).tolist())))  # fmt: skip
    if xlabel == "epoch":
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    elif xlabel == "minutes":
        axis.set_xlim(0, None)
    else:
        axis.set_xlim(0, 1)
    axis.set_ylim(*ylim)
    _legend(figure, handles, [labels[k] for k, _, _ in series], "lower")
    return figure


def _class_chart(entries: Sequence[Entry], scored: Sequence[int], names: Mapping[int, str]) -> Chart | None:
    """Return the chart of AP50-95 per class, or None if no model was evaluated."""
    if not scored:
        return None
    labels = short_labels([e.label for e in entries], TAIL)
    of_class = [dict(zip(r.classes.tolist(), r.ap.mean(1).tolist(), strict=True))
                for r in (entries[k].results for k in scored)]  # fmt: skip
    classes = sorted(set().union(*of_class))
    order = [c for c in names if c in classes] + [c for c in classes if c not in names]
    heads = short_labels([names.get(c, str(c)) for c in order], 16)
    values = np.array([[one.get(c, np.nan) for one in of_class] for c in order])
    listed = "; ".join(f"{head}: {labels[scored[int(np.nanargmax(row))]]} {np.nanmax(row):.3f}"
                       for head, row in zip(heads, values, strict=True))  # fmt: skip
    return Chart("map_by_class", "AP50-95 by class", "The bars of each class are in the order of the legend.",
                 f"AP50-95 by class. The best model of each class: {listed}.",
                 partial(_draw_classes, values, heads, [labels[k] for k in scored], scored))  # fmt: skip


def _draw_classes(
    values: np.ndarray, heads: Sequence[str], labels: Sequence[str], numbers: Sequence[int], style: Style
) -> Figure:
    """Draw the bar chart of AP50-95 values (classes, models)."""
    models = len(labels)
    thick, gap = max(3.6, 9 / models), 6.0  # points
    height = len(heads) * (max(models * thick, 9) + gap)
    figure = _figure((height + 60 + 13 * math.ceil(models / 2)) / 72)
    axis = _axes(figure, "AP50-95", "", "x")
    group = max(models * thick, 9) + gap
    middle = np.arange(len(heads)) * group
    handles = []
    for m in range(models):
        at = middle + (m - (models - 1) / 2) * thick
        handles.append(axis.barh(at, values[:, m], thick * 0.86, color=style.series[numbers[m] % SERIES]))
    axis.set_yticks(middle, heads)
    axis.set_ylim(middle[-1] + group / 2, middle[0] - group / 2)
    axis.set_xlim(left=0)
    axis.spines["left"].set_visible(False)
    _legend(figure, handles, labels, "upper")
    return figure
