"""Evolution of hyper-parameters: each generation is one training run, with a mutation of one of the best earlier ones.

`evolve.csv` has one row per generation; generation 0 uses the given hyper-parameters. `hyp_evolve.yaml` holds the best
ones so far, for use as `--hyp`. The values of a generation depend only on the earlier rows and the seed, so that an
interrupted evolution can be resumed with the same results.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from utils.draw.plots import plot_evolve
from utils.errors import UserError, did_you_mean
from utils.evaluation import metrics
from utils.files import ROOT, atomic_write, increment_path, newest
from utils.settings.config import CHOICES, HYPERPARAMETERS, load_yaml, save_yaml
from utils.settings.dataset import DataConfig
from utils.settings.options import TrainOptions, effective_hyp
from utils.system.console import LOGGER, quoted, shown
from utils.system.processes import world_size
from utils.training.logs import COLUMNS

RESULTS = COLUMNS[4:11]  # P, R, mAP50, mAP50-95 and the three losses on the val split
PARENTS = 5  # number of best rows from which a parent is chosen
CHANGE = 0.8  # probability that a value changes
SIGMA = 0.2  # standard deviation of the random factor; it is multiplied by the parameter's own gain
FACTORS = (0.3, 3.0)
DIGITS = 5
TRIES = 100
# flags of the evolution, if given, that are repeated in the train.py command suggested at its end
SAME_FLAGS = ("data", "cfg", "weights", "backbone_weights", "teacher", "imgsz", "batch_size", "optimizer")

# key: (gain, lowest, highest). The gain scales SIGMA; it is small for parameters that only work in a narrow range.
# Training works between the two limits. A value of 0 switches a feature off and stays 0.
EVOLVED: dict[str, tuple[float, float, float]] = {
    "lr0": (1.0, 1e-5, 0.1),
    "lrf": (1.0, 0.001, 1.0),
    "momentum": (0.3, 0.6, 0.98),
    "weight_decay": (1.0, 1e-6, 0.01),
    "warmup_epochs": (1.0, 0.1, 10.0),
    "warmup_momentum": (0.5, 0.1, 0.95),
    "warmup_bias_lr": (1.0, 0.001, 0.2),
    "box": (1.0, 0.005, 0.5),
    "cls": (1.0, 0.02, 5.0),
    "cls_pw": (0.5, 0.3, 3.0),
    "obj": (1.0, 0.1, 5.0),
    "obj_pw": (0.5, 0.3, 3.0),
    "anchor_t": (0.5, 2.0, 8.0),
    "fl_gamma": (1.0, 0.1, 3.0),
    "label_smoothing": (1.0, 0.001, 0.2),
    "hsv_h": (1.0, 0.001, 0.1),
    "hsv_s": (1.0, 0.01, 0.9),
    "hsv_v": (1.0, 0.01, 0.9),
    "degrees": (1.0, 0.1, 45.0),
    "translate": (1.0, 0.01, 0.6),
    "scale": (1.0, 0.01, 0.95),
    "shear": (1.0, 0.05, 10.0),
    "perspective": (1.0, 1e-6, 0.001),
    "flipud": (1.0, 0.01, 0.5),  # flip probabilities; above 0.5 most images would be flipped
    "fliplr": (1.0, 0.01, 0.5),
    "mosaic": (1.0, 0.05, 1.0),
    "mixup": (1.0, 0.01, 1.0),
    "dfl": (1.0, 0.1, 10.0),
}


@dataclass(frozen=True)
class Row:
    """One generation: its results in the order of RESULTS, and the hyper-parameters it was trained with."""

    results: tuple[float, ...]
    hyp: dict[str, float]

    @property
    def fitness(self) -> float:
        """The score by which generations are compared (`utils.evaluation.metrics.fitness`); 0 for a failed training."""
        value = float(metrics.fitness(np.array(self.results)))
        return value if math.isfinite(value) else 0.0


def read_rows(csv_file: Path) -> list[Row]:
    """Read evolve.csv, generation 0 first; return an empty list if the file does not exist.

    Raises UserError with file and line if the file is damaged.
    """
    try:
        with open(csv_file, encoding="utf-8", newline="") as f:
            reader = csv.reader(f)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UserError(f"{csv_file}: cannot be read ({e.strerror})") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{csv_file}:1: is not a CSV text file; remove it to restart the evolution") from e
    header = lines[0][1] if lines else []
    if tuple(header[: len(RESULTS)]) != RESULTS:
        raise UserError(f"{csv_file}:1: the columns must begin with {','.join(RESULTS)}; remove the file to restart")
    keys = header[len(RESULTS) :]
    for key in keys:
        if key not in HYPERPARAMETERS:
            raise UserError(f"{csv_file}:1: unknown hyper-parameter '{key}'{did_you_mean(key, HYPERPARAMETERS)}")
    if len(set(keys)) < len(keys):
        raise UserError(f"{csv_file}:1: a hyper-parameter has two columns; remove one of them")
    return [_parse(cells, header, f"{csv_file}:{number}") for number, cells in lines[1:] if cells]


def _parse(cells: list[str], header: list[str], where: str) -> Row:
    if len(cells) != len(header):
        raise UserError(f"{where}: {len(cells)} values for {len(header)} columns; delete the line to train it again")
    values = [_number(cell, name, where) for cell, name in zip(cells, header, strict=True)]
    hyp = dict(zip(header[len(RESULTS) :], values[len(RESULTS) :], strict=True))
    for key, value in hyp.items():
        _, low, high = HYPERPARAMETERS[key]
        if not low <= value <= high:
            raise UserError(f"{where}: {key} is {value:g}, it must be a number from {low:g} to {high:g}")
    return Row(tuple(map(float, values[: len(RESULTS)])), hyp)


def _number(cell: str, name: str, where: str) -> float:
    try:
        return int(cell) if cell.lstrip("-").isdecimal() else float(cell)
    except ValueError:
        raise UserError(f"{where}: {name} is '{cell}', not a number; delete the line to train it again") from None


def best_row(rows: Sequence[Row]) -> int:
    """Return the index of the row with the highest fitness, the first one in a tie."""
    return max(range(len(rows)), key=lambda i: rows[i].fitness)


def next_hyp(rows: Sequence[Row], base: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    """Return the hyper-parameters of the next generation: `base` for the first one, later those of a mutated parent.

    The parent is one of the best PARENTS rows, chosen at random with their fitness as weight. Only values that are in
    EVOLVED and not 0 change; all others are as in `base`. Changed values are clipped to their limits and rounded to
    DIGITS significant digits.
    """
    if not rows:
        return dict(base)
    ranked = sorted(rows, key=lambda row: -row.fitness)[:PARENTS]
    weights = np.array([row.fitness for row in ranked])
    total = weights.sum()
    parent = ranked[rng.choice(len(ranked), p=weights / total if total > 0 else None)].hyp
    hyp = {key: parent.get(key, value) if key in EVOLVED else value for key, value in base.items()}
    for _ in range(TRIES):
        child = _mutate(hyp, rng)
        if child != hyp:
            return child
    return hyp  # no value can change


def _mutate(hyp: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    child = dict(hyp)
    for key, (gain, low, high) in EVOLVED.items():
        # drawn for every key, so that a value of 0 does not shift the random numbers of the others
        changes, factor = rng.random() < CHANGE, 1 + SIGMA * gain * rng.standard_normal()
        if changes and child.get(key):
            value = child[key] * min(max(factor, FACTORS[0]), FACTORS[1])
            if child[key] > high:  # losses of some heads have larger gains
                high = min(FACTORS[1] * child[key], HYPERPARAMETERS[key][2])
            child[key] = float(f"{min(max(value, low), high):.{DIGITS}g}")
    return child


def add_row(folder: Path, row: Row, fixed: Mapping[str, Any] = MappingProxyType({})) -> list[Row]:
    """Add a generation to the folder's evolve.csv, write hyp_evolve.yaml, and return all rows, rounded as in the file.

    Raises UserError if evolve.csv is damaged or has other columns, or if a file cannot be written.
    """
    file = folder / "evolve.csv"
    rows = [*read_rows(file), Row(tuple(float(f"{v:.{DIGITS}g}") for v in row.results), dict(row.hyp))]
    keys = list(rows[0].hyp)
    if sorted(keys) != sorted(row.hyp):
        different = sorted(set(keys) ^ set(row.hyp))[0]
        raise UserError(f"{file}: has other hyper-parameters than this run ({different}): choose another --name")
    try:
        with atomic_write(file, "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow([*RESULTS, *keys])
            writer.writerows([*r.results, *(r.hyp[k] for k in keys)] for r in rows)
    except OSError as e:
        raise UserError(f"{file}: cannot be written ({e.strerror})") from e
    _write_best(folder / "hyp_evolve.yaml", rows, fixed)
    return rows


def _write_best(file: Path, rows: Sequence[Row], fixed: Mapping[str, Any] = MappingProxyType({})) -> None:
    at = best_row(rows)
    figures = "".join(f"# {name:<21} {value:g}\n" for name, value in zip(RESULTS, rows[at].results, strict=True))
    head = f"# Best generation: {at} (of {len(rows)}, the first is 0), fitness {rows[at].fitness:.5g}\n{figures}\n"
    try:
        with atomic_write(file, "w") as f:
            f.write(head + yaml.safe_dump({**rows[at].hyp, **fixed}, sort_keys=False))
    except OSError as e:
        raise UserError(f"{file}: cannot be written ({e.strerror})") from e


def evolve(
    folder: Path, generations: int, base: Mapping[str, float], seed: int,
    train_once: Callable[[dict[str, float], int], Sequence[float]],
) -> Path:  # fmt: skip
    """Train until the folder's evolve.csv has `generations` rows, old ones included; return hyp_evolve.yaml's path.

    `train_once(hyp, generation)` trains with these hyper-parameters and returns the values of RESULTS. If it raises
    UserError, the generation gets fitness 0, except in generation 0, where the error is raised, because it comes from
    the user's input and not from a mutation. After KeyboardInterrupt, the next call repeats the generation. Also draws
    evolve.png. Raises UserError for fewer than one generation, for a folder that cannot be used, or if evolve.csv was
    begun with values other than `base`.
    """
    if generations < 1:
        raise UserError(f"--evolve {generations}: give the number of generations, at least 1")
    increment_path(folder, exist_ok=True)
    rows = read_rows(folder / "evolve.csv")
    # what does not change: texts, such as the assigner, and values that an earlier version did not know
    fixed = {key: value for key, value in base.items() if key in CHOICES or rows and _is_new(key, value, rows[0].hyp)}
    base = {key: value for key, value in base.items() if key not in fixed}
    _check_same_start(rows, base, folder / "evolve.csv")
    _check_same_texts(rows, fixed, folder / "hyp_evolve.yaml")
    if rows:
        LOGGER.info(f"{folder / 'evolve.csv'} has {len(rows)} of {generations} generations")
        _write_best(folder / "hyp_evolve.yaml", rows, fixed)  # outdated if interrupted between writing the two files
    for generation in range(len(rows), generations):
        hyp = next_hyp(rows, base, np.random.default_rng([seed, generation]))
        rows = add_row(folder, Row(_train(train_once, {**hyp, **fixed}, generation), hyp), fixed)
        at = best_row(rows)
        LOGGER.info(f"generation {generation} (last: {generations - 1}): fitness {rows[-1].fitness:.5g}; "
                    f"best {rows[at].fitness:.5g}, generation {at}")  # fmt: skip
    keys = [key for key in EVOLVED if rows[0].hyp.get(key)]
    values = np.array([[row.hyp[key] for key in keys] for row in rows], dtype=float)
    plot_evolve(values, keys, np.array([row.fitness for row in rows]), folder / "evolve.png")
    return folder / "hyp_evolve.yaml"


def _train(
    train_once: Callable[[dict[str, float], int], Sequence[float]], hyp: dict[str, float], generation: int
) -> tuple[float, ...]:
    try:
        results = tuple(map(float, train_once(dict(hyp), generation)))
    except UserError as e:
        if generation == 0 or isinstance(e.__cause__, MemoryError):  # not due to the hyper-parameters
            raise
        LOGGER.warning(f"generation {generation} failed and gets fitness 0: {e}")
        return (0.0,) * len(RESULTS)
    if len(results) != len(RESULTS):
        raise ValueError(f"train_once must return {len(RESULTS)} values, it returned {len(results)}")
    return results


def _is_new(key: str, value: float, known: Mapping[str, float]) -> bool:
    """Whether a value is the default of a hyper-parameter that the rows of an older version lack."""
    return key not in known and key in HYPERPARAMETERS and value == HYPERPARAMETERS[key][0]


def _check_same_start(rows: Sequence[Row], base: Mapping[str, float], file: Path) -> None:
    """Raise UserError if generation 0 was not trained with `base`, as its rows would not apply to this evolution."""
    if not rows or rows[0].hyp == dict(base):
        return
    key = next(k for k in (*base, *rows[0].hyp) if rows[0].hyp.get(k) != base.get(k))
    raise UserError(f"{file}: was begun with other hyper-parameters ({key} {rows[0].hyp.get(key)}, now "
                    f"{base.get(key)}): give the same --hyp, or another --name")  # fmt: skip


def _check_same_texts(rows: Sequence[Row], fixed: Mapping[str, Any], best: Path) -> None:
    """Raise UserError if generations were trained with other texts, such as another assigner, than now."""
    before = load_yaml(best) if rows and best.is_file() else fixed
    if odd := [key for key in CHOICES if (before.get(key) or "") != (fixed.get(key) or "")]:
        was, now = (known.get(odd[0]) or "not given" for known in (before, fixed))
        raise UserError(f"{best}: was begun with other hyper-parameters ({odd[0]} {was}, now {now}): give the same "
                        "--hyp, or another --name")  # fmt: skip


def run_evolution(
    opt: TrainOptions, prepare: Callable[[TrainOptions], DataConfig],
    train: Callable[[TrainOptions, dict[str, float], DataConfig], Sequence[float]],
) -> None:  # fmt: skip
    """Run `--evolve`: train repeatedly with mutated hyper-parameters; the results are in runs/evolve/<name>.

    prepare(options) loads the dataset config; train(options, hyp, data) returns the values of RESULTS. Raises UserError
    for options that cannot be used, and KeyboardInterrupt with the command that resumes the evolution.
    """
    if world_size() > 1:
        raise UserError("--evolve runs in one process; with several GPUs, start one per GPU, each with its own --name")
    opt, folder = open_evolution(opt) if opt.resume_evolve else (opt, None)
    data, base = prepare(opt), effective_hyp(opt)
    if not data.val:
        raise UserError(f"--evolve compares results on the val split, and {data.yaml_file} has none")
    if folder is None:
        project = ROOT / "runs/evolve" if "project" not in opt.given else Path(opt.project)
        folder = increment_path(project / opt.name, opt.exist_ok)
        save_yaml(folder / "opt.yaml", opt.plain())
    quiet = replace(opt, project=str(folder), name="generation", exist_ok=True, nosave=True, noval=True, noplots=True)
    try:
        best = evolve(folder, opt.evolve, base, opt.seed, lambda hyp, _: train(replace(quiet), hyp, data))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; to go on: python train.py --evolve {opt.evolve} --resume-evolve "
                                f"{quoted(shown(folder))}") from None  # fmt: skip
    same = {flag: getattr(opt, flag) for flag in SAME_FLAGS}
    words = " ".join(f"--{flag.replace('_', '-')} {quoted(str(value))}" for flag, value in same.items() if value)
    LOGGER.info(f"\nbest      {shown(best)}\nplot      {shown(folder / 'evolve.png')}\n"
                f"next      python train.py {words} --hyp {quoted(shown(best))}")  # fmt: skip


def open_evolution(flags: TrainOptions) -> tuple[TrainOptions, Path]:
    """Return options and folder of the evolution to resume; of the flags given now, only --evolve is used."""
    newest_csv = newest("evolve/*/evolve.csv")
    folder = Path(flags.resume_evolve) if isinstance(flags.resume_evolve, str) else newest_csv and newest_csv.parent
    if folder is None or not (folder / "opt.yaml").is_file():
        raise UserError("--resume-evolve: give the folder of an evolution, such as runs/evolve/exp")
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)  # unfinished files of a killed process
    kept = {k: v for k, v in load_yaml(folder / "opt.yaml").items() if k != "evolve"}
    return TrainOptions.from_flags({**kept, "evolve": flags.evolve}), folder
