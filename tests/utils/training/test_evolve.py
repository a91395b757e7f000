"""Evolution: who is parent, what changes and how far, what is on disk, and going on after an interruption."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.settings.config import HYPERPARAMETERS, load_hyp
from utils.training import evolve as module
from utils.training.evolve import EVOLVED, RESULTS, Row, add_row, best_row, evolve, next_hyp, read_rows

BASE = {key: default for key, (default, _, _) in HYPERPARAMETERS.items()}
SMALL = {key: BASE[key] for key in ("lr0", "momentum", "nbs", "box")}
FIXED = ("anchors", "nbs", "iou_t", "copy_paste", "close_mosaic", "cos_lr", "teacher_cls", "teacher_box",
         "teacher_feature")  # fmt: skip


def row(fitness: float, **hyp: float) -> Row:
    """A row whose mAP50 and mAP50-95 are both `fitness`, so that this is its fitness."""
    return Row((0.5, 0.5, fitness, fitness, 0.1, 0.2, 0.3), {**BASE, **hyp})


def figures(hyp: dict[str, float], generation: int) -> Sequence[float]:
    """A training that is best at lr0 0.003."""
    score = 0.6 * math.exp(-(math.log(hyp["lr0"] / 0.003) ** 2))
    return (0.5, 0.4, score, score / 2, 0.05, 0.06, 0.07)


def test_evolved_parameters_lie_within_what_hyp_files_may_hold() -> None:
    assert not set(EVOLVED) & set(FIXED)
    assert sorted({*EVOLVED, *FIXED}) == sorted(HYPERPARAMETERS)
    for key, (gain, low, high) in EVOLVED.items():
        _, hard_low, hard_high = HYPERPARAMETERS[key]
        assert hard_low <= low < high <= hard_high and low > 0 and 0 < gain <= 1, key


def test_generation_0_is_the_base() -> None:
    base = {**BASE, "lr0": 0.0123456789}
    assert next_hyp([], base, np.random.default_rng(0)) == base


@pytest.mark.parametrize("seed", range(20))
def test_mutation_stays_in_bounds(seed: int) -> None:
    parent = {**BASE, "mixup": 0.1, "momentum": 0.97, "lr0": 2e-5}
    child = next_hyp([Row((0.0,) * 7, parent)], parent, np.random.default_rng(seed))
    assert child != parent and list(child) == list(parent)
    for key, value in child.items():
        if key in FIXED or parent[key] == 0:
            assert value == parent[key], key
            continue
        _, low, high = EVOLVED[key]
        assert low <= value <= high, key
        assert 0.299 < value / parent[key] < 3.001, key
        assert value == float(f"{value:.5g}"), key


def test_mutation_is_of_the_size_it_says() -> None:
    parent = {"lr0": 0.01, "momentum": 0.8, "nbs": 64}
    rows = [Row((0.0,) * 7, parent)]
    children = [next_hyp(rows, parent, np.random.default_rng([1, i])) for i in range(1000)]
    factors = np.array([[c["lr0"] / 0.01, c["momentum"] / 0.8] for c in children])
    # either changes with probability 0.8, and what changes neither is drawn again
    np.testing.assert_allclose((factors != 1).mean(0), 0.8 / 0.96, atol=0.04)
    spread = [f[f != 1].std() for f in factors.T]
    np.testing.assert_allclose(spread, [0.2, 0.06], rtol=0.1)


def test_what_cannot_change_is_given_back() -> None:
    parent = {"nbs": 64, "degrees": 0.0}
    assert next_hyp([Row((0.0,) * 7, parent)], parent, np.random.default_rng(0)) == parent


@pytest.mark.parametrize(
    ("fitness", "shares"),
    [
        ((0.4,), (1,)),
        ((0.1, 0.3), (0.25, 0.75)),
        ((0.0, 0.5, 0.0), (0, 1, 0)),
        ((0.0, 0.0), (0.5, 0.5)),
        ((0.1, 0.2, 0.2, 0.1, 0.2, 0.2, 0.2), (0, 0.2, 0.2, 0, 0.2, 0.2, 0.2)),
        ((float("nan"), 0.2), (0, 1)),
    ],
)
def test_parents_are_the_fittest(
    fitness: tuple[float, ...], shares: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FACTORS", (1.5, 1.5))  # the parent shows in its child
    parents = [0.001 * 1.4**i for i in range(len(fitness))]
    rows = [row(f, lr0=lr0) for f, lr0 in zip(fitness, parents, strict=True)]
    children = [next_hyp(rows, BASE, np.random.default_rng([2, i]))["lr0"] for i in range(600)]
    from_parent = [[math.isclose(c, lr0 * k, rel_tol=1e-3) for k in (1, 1.5)] for c in children for lr0 in parents]
    counts = np.array(from_parent).any(1).reshape(len(children), -1)
    np.testing.assert_array_equal(counts.sum(1), 1)
    np.testing.assert_allclose(counts.mean(0), shares, atol=0.07)


def test_values_that_do_not_evolve_come_from_the_base() -> None:
    child = next_hyp([row(0.5, nbs=32)], {**BASE, "nbs": 128}, np.random.default_rng(0))
    assert child["nbs"] == 128


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    rows = [row(0.25, lr0=0.0123456789), row(0.5, lr0=1e-5, warmup_epochs=3), row(0.25)]
    for one in rows:
        written = add_row(tmp_path, one)
    assert read_rows(tmp_path / "evolve.csv") == written == rows
    assert isinstance(written[0].hyp["nbs"], int)
    text = (tmp_path / "hyp_evolve.yaml").read_text()
    assert text.startswith("# Best generation: 1 (of 3") and "# metrics/mAP_0.5       0.5\n" in text
    assert load_hyp(tmp_path / "hyp_evolve.yaml") == rows[1].hyp
    header = (tmp_path / "evolve.csv").read_text().splitlines()[0].split(",")
    assert tuple(header) == (*RESULTS, *BASE)


def test_results_have_five_digits(tmp_path: Path) -> None:
    (written,) = add_row(tmp_path, Row((1 / 3, 1.0, 123456.7, float("nan"), 0.0, 0.0, 0.0), SMALL))
    assert written.results[:3] == (0.33333, 1.0, 123460.0) and math.isnan(written.results[3])
    assert written.fitness == 0 and read_rows(tmp_path / "evolve.csv")[0].results[:3] == written.results[:3]


def test_no_file_has_no_rows_and_the_first_of_equals_is_best(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "evolve.csv") == []
    assert best_row([row(0.1), row(0.3), row(0.3), row(float("nan"))]) == 1


HEADER, GOOD = ",".join((*RESULTS, "lr0", "box")), "0.5,0.5,0.4,0.3,0.1,0.1,0.1,0.01,0.05"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "csv:1: the columns must begin with metrics/precision"),
        (f"a,b\n{GOOD}\n", "csv:1: the columns must begin"),
        (f"{HEADER}x\n{GOOD}\n", "csv:1: unknown hyper-parameter 'boxx'.*did you mean 'box'"),
        (f"{HEADER},lr0\n{GOOD},0.1\n", "csv:1: a hyper-parameter has two columns"),
        (f"{HEADER}\n{GOOD}\n0.5,0.4\n", "csv:3: 2 values for 9 columns"),
        (f"{HEADER}\n{GOOD}\n\n{GOOD}e+\n", "csv:4: box is '0.05e\\+', not a number"),
        (f"{HEADER}\n{GOOD}9,\n", "csv:2: 10 values for 9 columns"),
        (f"{HEADER}\n{GOOD.replace('0.01', '-1')}\n", "csv:2: lr0 is -1, it must be a number from"),
        (f"{HEADER}\n{GOOD.replace('0.01', 'nan')}\n", "csv:2: lr0 is nan"),
        (b"\xff\xfe\x00", "csv:1: is not a CSV text file"),
    ],
)
def test_damaged_rows(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "evolve.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as e:
        read_rows(file)
    assert "\n" not in str(e.value)


def test_spaces_around_the_columns_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "evolve.csv"
    file.write_text("\n".join(line.replace(",", ",   ") for line in (HEADER, GOOD)))
    assert read_rows(file) == [Row((0.5, 0.5, 0.4, 0.3, 0.1, 0.1, 0.1), {"lr0": 0.01, "box": 0.05})]


def test_evolve_gets_better(tmp_path: Path) -> None:
    file = evolve(tmp_path / "exp", 40, BASE, 0, figures)
    rows = read_rows(tmp_path / "exp/evolve.csv")
    assert len(rows) == 40 and rows[0].hyp == BASE
    assert rows[best_row(rows)].fitness > 3 * rows[0].fitness
    assert load_hyp(file) == rows[best_row(rows)].hyp
    assert (tmp_path / "exp/evolve.png").read_bytes().startswith(b"\x89PNG")


def interrupted(error: type[BaseException]) -> Callable[[dict[str, float], int], Sequence[float]]:
    def train_once(hyp: dict[str, float], generation: int) -> Sequence[float]:
        if generation == 3:
            raise error("stop")
        return figures(hyp, generation)

    return train_once


def test_interrupted_evolution_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    evolve(tmp_path / "whole", 6, SMALL, 5, figures)
    with pytest.raises(KeyboardInterrupt):
        evolve(tmp_path / "cut", 6, SMALL, 5, interrupted(KeyboardInterrupt))
    assert len(read_rows(tmp_path / "cut/evolve.csv")) == 3
    (tmp_path / "cut/hyp_evolve.yaml").unlink()  # as if cut off between the two files
    asked = []
    evolve(tmp_path / "cut", 6, SMALL, 5, lambda hyp, g: asked.append(g) or figures(hyp, g))
    assert asked == [3, 4, 5]
    for name in ("evolve.csv", "hyp_evolve.yaml"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    evolve(tmp_path / "other", 6, SMALL, 6, figures)
    assert (tmp_path / "other/evolve.csv").read_bytes() != (tmp_path / "whole/evolve.csv").read_bytes()


def test_texts_stay_and_large_gains_are_not_cut(tmp_path: Path) -> None:
    """Anchor-free heads need an assigner, and a box gain above the usual limit."""
    seen = []
    base = {**SMALL, "box": 7.5, "assigner": "task_aligned"}
    best = evolve(tmp_path, 6, base, 5, lambda hyp, g: seen.append(hyp) or figures(hyp, g))
    assert all(hyp["assigner"] == "task_aligned" and hyp["box"] > 1 for hyp in seen)
    assert load_hyp(best)["assigner"] == "task_aligned" and len({hyp["box"] for hyp in seen}) > 1
    with pytest.raises(UserError, match="assigner task_aligned, now simota"):
        evolve(tmp_path, 7, {**base, "assigner": "simota"}, 5, figures)
    children = [next_hyp([Row(figures(base, 0), base)], base, np.random.default_rng(k)) for k in range(200)]
    assert min(c["box"] for c in children) < 7.5 < max(c["box"] for c in children)


def test_an_evolution_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Its rows lack hyper-parameters that have been added since; they keep their defaults."""
    evolve(tmp_path, 2, SMALL, 5, figures)
    seen = []
    now = {**SMALL, "close_mosaic": 0, "dfl": 1.5}
    evolve(tmp_path, 4, now, 5, lambda hyp, g: seen.append(hyp) or figures(hyp, g))
    assert len(read_rows(tmp_path / "evolve.csv")) == 4 and {hyp["dfl"] for hyp in seen} == {1.5}
    with pytest.raises(UserError, match="was begun with other hyper-parameters"):
        evolve(tmp_path, 5, {**SMALL, "close_mosaic": 3}, 5, figures)


def test_finished_evolution_trains_no_more(tmp_path: Path) -> None:
    evolve(tmp_path, 2, SMALL, 0, figures)
    (tmp_path / "hyp_evolve.yaml").unlink()
    assert load_hyp(evolve(tmp_path, 2, SMALL, 0, interrupted(AssertionError)))["nbs"] == 64
    assert len(read_rows(tmp_path / "evolve.csv")) == 2


def test_failed_generation_counts_with_fitness_0(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evolve(tmp_path, 5, SMALL, 0, interrupted(UserError))
    rows = read_rows(tmp_path / "evolve.csv")
    assert [r.fitness > 0 for r in rows] == [True, True, True, False, True]
    assert "generation 3 failed" in caplog.text and "stop" in caplog.text


def test_lack_of_memory_ends_the_evolution(tmp_path: Path) -> None:
    """It is not due to the hyper-parameters."""
    def trained(hyp: dict[str, float], generation: int) -> Sequence[float]:
        if generation == 2:
            raise UserError("there is not enough memory") from MemoryError()
        return figures(hyp, generation)

    with pytest.raises(UserError, match="not enough memory"):
        evolve(tmp_path, 5, SMALL, 0, trained)
    assert len(read_rows(tmp_path / "evolve.csv")) == 2


def failing(hyp: dict[str, float], generation: int) -> Sequence[float]:
    raise UserError("no such data set")


@pytest.mark.parametrize(
    ("generations", "train_once", "base", "message"),
    [
        (0, figures, BASE, "--evolve 0"),
        (3, failing, BASE, "no such data set"),  # an error before any mutation is the user's, not a mutation's
        (3, figures, {**BASE, "box": 0.07}, "begun with other hyper-parameters \\(box 0.05, now 0.07\\)"),
    ],
)
def test_evolve_refuses(
    tmp_path: Path, generations: int, train_once: Callable, base: dict[str, float], message: str
) -> None:
    if base != BASE:
        add_row(tmp_path, row(0.1))
    before = read_rows(tmp_path / "evolve.csv")
    with pytest.raises(UserError, match=message):
        evolve(tmp_path, generations, base, 0, train_once)
    assert read_rows(tmp_path / "evolve.csv") == before


def test_rows_of_another_kind_are_not_added(tmp_path: Path) -> None:
    add_row(tmp_path, row(0.1))
    before = (tmp_path / "evolve.csv").read_bytes()
    with pytest.raises(UserError, match="has other hyper-parameters than this run \\(anchor_t\\)"):
        add_row(tmp_path, Row((0.1,) * 7, {k: v for k, v in BASE.items() if k != "anchor_t"}))
    assert (tmp_path / "evolve.csv").read_bytes() == before


def test_train_once_must_return_seven_figures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must return 7 values, it returned 2"):
        evolve(tmp_path, 1, BASE, 0, lambda hyp, generation: (0.1, 0.2))
