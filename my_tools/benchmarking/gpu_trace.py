"""What happened in a training step, from a trace of torch's profiler: kernels, copies, and waits of the host."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from utils.files import ROOT

SMALL = 10.0  # microseconds: about as long as the launch of a kernel takes
# calls in which the host waits for the GPU, or that can take as long
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMalloc", "cudaFree", "cudaHostAlloc")
TOP = 6  # kernels to list


@dataclass(frozen=True)
class StepProfile:
    """Averages of one step.

    kernels: number; small: number of those shorter than SMALL. busy_ms: time in which at least one kernel ran;
    copies_ms: time of copies between host and device, pageable: number of those whose host memory is not pinned.
    waits: number of calls that wait for the GPU, by name; waits_ms: their time. top: (name, number, ms) of the kernels
    that took the most time.
    """

    kernels: float = 0.0
    small: float = 0.0
    busy_ms: float = 0.0
    copies_ms: float = 0.0
    pageable: float = 0.0
    waits_ms: float = 0.0
    waits: Mapping[str, float] = field(default_factory=dict)
    top: Sequence[tuple[str, float, float]] = ()


def profile_steps(call: Callable[[], object], steps: int, device: torch.device) -> StepProfile:
    """Profile `call`, which runs `steps` steps. On a CPU the result has no kernels."""
    gpu = device.type == "cuda"
    # without the operators of the host, which would slow it down and make the GPU wait
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as recorded:
            call()
            if gpu:
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8", errors="replace"), strict=False)
    return read_trace(events["traceEvents"] if isinstance(events, dict) else events, steps)


def read_trace(events: Iterable[Mapping[str, Any]], steps: int) -> StepProfile:
    """Average the events of a trace in Chrome's format (times in microseconds) over `steps` steps."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {"kernel": [], "copy": [], "host": []}
    kinds = {"kernel": "kernel", "gpu_memcpy": "copy", "cuda_runtime": "host", "cuda_driver": "host"}
    for event in events:
        kind = kinds.get(str(event.get("cat", "")).lower())
        if kind and "ts" in event and "dur" in event:
            by_kind[kind].append(event)
    kernels, copies = by_kind["kernel"], by_kind["copy"]
    waits = [e for e in by_kind["host"] if e["name"] in WAITS]
    counts, times = Counter[str](), Counter[str]()
    for e in kernels:
        counts[e["name"]] += 1
        times[e["name"]] += e["dur"] / 1e3
    return StepProfile(
        len(kernels) / steps, sum(e["dur"] < SMALL for e in kernels) / steps, union(kernels) / 1e3 / steps,
        sum(e["dur"] for e in copies) / 1e3 / steps, sum("pageable" in e["name"].lower() for e in copies) / steps,
        sum(e["dur"] for e in waits) / 1e3 / steps,
        {name: n / steps for name, n in Counter(e["name"] for e in waits).items()},
        [(name, counts[name] / steps, ms / steps) for name, ms in times.most_common(TOP)],
    )  # fmt: skip


def union(events: Iterable[Mapping[str, Any]]) -> float:
    """Return the time in which at least one of the events was running, in their unit."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted((e["ts"], e["ts"] + e["dur"]) for e in events):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total


def waiting_lines(call: Callable[[], object], steps: int) -> dict[str, float]:
    """Return the lines of code that make the host wait for the GPU, with the number of times per step.

    Finds what torch reports as synchronizing, in the thread of the caller; waiting for an event is not reported.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    lines = Counter(f"{_shown(w.filename)}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    return {line: n / steps for line, n in lines.most_common()}


def _shown(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return "/".join(path.parts[-3:])
