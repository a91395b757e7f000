"""The Markdown page of the case `gpu` of benchmark.py, made from its rows and other figures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from my_tools.benchmarking.cases import AS_DETECTED, Conditions, Row
from my_tools.benchmarking.gpu_infer import BATCHES, COMPILED, COMPILED_GRAPH, FUSED, GRAPH, low_format
from utils.system.device import cpu_info, describe_device

Facts = Mapping[tuple[str, str], Mapping[str, Any]]
LOOP = "train.py"
AUGMENT, COMPILE = f"{LOOP} --gpu-augment", f"{LOOP} --compile"
BOTH = f"{LOOP} --compile --gpu-augment"
AGAIN = "one batch again and again"
WAYS = (LOOP, AUGMENT, COMPILE, BOTH)


def machine(device: torch.device) -> str:
    """Return one line on the machine and its software."""
    words = [describe_device(device)]
    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()
        words.append(f"CUDA {torch.version.cuda}, cuDNN {cudnn}")
    words.append(f"{cpu_info().get('model name', 'CPU')}, {os.cpu_count()} cores")
    return "; ".join(words)


def markdown(c: Conditions, rows: Iterable[Row], facts: Facts, failures: Sequence[str]) -> str:
    """Return the page."""
    by_name = {row.what: row for row in rows}
    models = [Path(cfg).stem for cfg in c.cfgs]
    parts = [
        f"{machine(c.device)}. Training at {c.imgsz} px in batches of {c.batch_size}.",
        training(models, by_name, facts, c.batch_size), steps(models, by_name, facts), loader(facts),
        inference(models, by_name, low_format(c.device)), nms(by_name, facts), waits(models, facts),
        kernels(models, facts),
        "Not measured:\n\n" + "\n".join(f"- {line}" for line in failures) if failures else "",
    ]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"


def table(head: Sequence[str], lines: Sequence[Sequence[str]], text: int = 1) -> str:
    """Return a Markdown table, empty without lines; all but the first `text` columns are numbers."""
    if not lines:
        return ""
    rule = ["---"] * text + ["---:"] * (len(head) - text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def number(value: float | None, digits: int = 1) -> str:
    """Return a number as text, `-` for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def training(models: Sequence[str], rows: Mapping[str, Row], facts: Facts, batch: int) -> str:
    """Return the table of images per second."""
    lines = []
    for model in models:
        of = {way: rows.get(f"{model}, {way}") for way in (*WAYS, f"{LOOP}, {AGAIN}", f"{COMPILE}, {AGAIN}")}
        found = [row for row in of.values() if row]
        if not found:
            continue
        memory = [facts.get((model, way), {}).get("memory") for way in (LOOP, COMPILE)]
        cells = [f"{1e3 * batch / row.ms:,.0f} ({row.ratio:.2f})" if row else "-" for row in of.values()]
        lines.append([model, f"{1e3 * batch / found[0].yardstick_ms:,.0f}", *cells,
                      " / ".join(number(gib) for gib in memory)])  # fmt: skip
    shown = table(["model", "bare step, images/s", *WAYS, "steps, one batch", "steps, one batch, --compile",
                   "GiB without / with --compile"], lines)  # fmt: skip
    return shown and (f"{shown}\n\nImages per second, and in brackets as a part of the bare step's: forward, backward "
                      "and SGD with autocast, channels-last, on random data that is on the device.")  # fmt: skip


def steps(models: Sequence[str], rows: Mapping[str, Row], facts: Facts) -> str:
    """Return the table of what a step consists of."""
    lines = []
    for model in models:
        for way in ("bare step", *WAYS):
            own, row = facts.get((model, way), {}), rows.get(f"{model}, {way}")
            p = own.get("profile")
            if not p or not p["kernels"]:
                continue
            ms = row.ms if row else None
            if way == "bare step" and (row := rows.get(f"{model}, {LOOP}")):
                ms = row.yardstick_ms
            idle = None if ms is None else 100 * max(1 - p["busy_ms"] / ms, 0)
            waits = ", ".join(f"{name.removeprefix('cuda')} {n:.1f}" for name, n in p["waits"].items()) or "none"
            lines.append([model, way, number(ms), number(p["busy_ms"]), number(idle, 0), number(own.get("data_ms")),
                          number(p["kernels"], 0), number(p["small"], 0), number(p["copies_ms"], 2),
                          number(p["pageable"], 0), f"{waits} ({number(p['waits_ms'])} ms)"])  # fmt: skip
    shown = table(["model", "way", "step, ms", "kernels run, ms", "GPU waits, %", "waiting for data, ms", "kernels",
                   "under 10 us", "copies, ms", "copies not pinned", "calls that wait"], lines, 2)  # fmt: skip
    return shown and f"{shown}\n\nA step in numbers; the profile is of steps with one batch again and again."


def loader(facts: Facts) -> str:
    """Return the table of the loader's speed."""
    lines = [[name, way, number(own["images"], 0), number(own["megabytes"], 0)]
             for (name, way), own in facts.items() if "images" in own]  # fmt: skip
    return table(["alone", "workers", "images/s", "MB a batch"], lines, 2)


def inference(models: Sequence[str], rows: Mapping[str, Row], low: torch.dtype) -> str:
    """Return the table of milliseconds per batch."""
    ways = (AS_DETECTED, "detect.py --half", FUSED.format(str(low).removeprefix("torch.")), GRAPH, COMPILED,
            COMPILED_GRAPH)  # fmt: skip
    lines = []
    for model in models:
        for count in BATCHES:
            of = [rows.get(f"{model}, batch {count}, {way}") for way in ways]
            if found := [row for row in of if row]:
                cells = [f"{row.ms:.2f} ({row.ratio:.2f})" if row else "-" for row in of]
                best = count * 1e3 / min(row.ms for row in found)
                lines.append([model, str(count), f"{found[0].yardstick_ms:.2f}", *cells, number(best, 0)])
    shown = table(["model", "batch", "eager float32", *ways, "images/s, fastest"], lines)
    return shown and f"{shown}\n\nMilliseconds for a batch, and in brackets the part of the eager network's time."


def nms(rows: Mapping[str, Row], facts: Facts) -> str:
    """Return the table of NMS."""
    lines = [[what, number(own["boxes"], 0), number(own["candidates"], 0),
              *(number(row.ms, 2) if row else "-" for row in (rows.get(what),
                rows.get(f"{what}, torchvision's on the device"))),
              number(rows[what].yardstick_ms, 2) if what in rows else "-"]
             for (kind, what), own in facts.items() if kind == "NMS"]  # fmt: skip
    return table(["", "boxes an image", "candidates", "of predictions on the device, ms", "torchvision's, ms",
                  "of predictions on the CPU, ms"], lines)  # fmt: skip


def waits(models: Sequence[str], facts: Facts) -> str:
    """Return the lines of code that wait for the GPU."""
    found = [(model, facts.get((model, LOOP), {}).get("lines")) for model in models]
    told = [f"- {model}: " + (", ".join(f"{line} ({n:g} a step)" for line, n in lines.items()) or "none")
            for model, lines in found if lines is not None]  # fmt: skip
    return "Lines of `train.py`'s step that wait for the GPU:\n\n" + "\n".join(told) if told else ""


def kernels(models: Sequence[str], facts: Facts) -> str:
    """Return the kernels that take the most time."""
    lines = [[model, f"`{name[:80].replace('|', '/')}`", number(n, 0), number(ms, 2)] for model in models
             for name, n, ms in facts.get((model, LOOP), {}).get("profile", {}).get("top", ())]  # fmt: skip
    return table(["model", "kernel", "a step", "ms a step"], lines, 2)
