"""Several batches, or parts of one, at once: the same result whoever computes them, and lost helper processes."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import nn

from models.inference.runtime import to_input
from models.run import parallel, step
from models.run.parallel import Batch, Job, ParallelSteps, ProcessLost, number_of_parts, tasks_of
from models.yolo import DetectionModel
from utils.losses.compute_loss import ComputeLoss, scaled_gains
from utils.settings.config import load_hyp
from utils.system.precision import Precision

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="helper processes are forked on Linux only")
CPU = torch.device("cpu")
CFG = {"nc": 2, "depth_multiple": 1, "width_multiple": 1, "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
       "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "InvertedResidual", [32, 2]],
                    [-1, 1, "InvertedResidual", [32, 2]]],
       "head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]]}  # fmt: skip


def small_model() -> DetectionModel:
    model = DetectionModel(copy.deepcopy(CFG)).to(memory_format=torch.channels_last).train()
    model.hyp = scaled_gains(load_hyp("hyp.scratch-low"), model.model[-1], 64)
    return model


def a_batch(images: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 64, 64, 3), np.uint8)).permute(0, 3, 1, 2)
    labels = [[k, rng.integers(2), *rng.uniform(0.3, 0.7, 2), *rng.uniform(0.2, 0.5, 2)] for k in range(images)
              for _ in range(1 + k % 3)]  # fmt: skip
    return pixels, torch.tensor(np.array(labels), dtype=torch.float32)


def steps_of(model: nn.Module, count: int, dtype: torch.dtype = torch.float32, helpers: bool = True) -> ParallelSteps:
    def prepare(images: torch.Tensor, seed: tuple[int, ...]) -> torch.Tensor:
        return to_input(images, CPU, dtype)

    cores = parallel.granted_cores
    parallel.granted_cores = lambda: count if helpers else 1
    try:
        return ParallelSteps(model, ComputeLoss(model), Precision(dtype, CPU, ""), count, 8 * 3 * 64 * 64, prepare,
                             several=True)  # fmt: skip
    finally:
        parallel.granted_cores = cores


def learnt(model: nn.Module, steps: ParallelSteps, batches: int = 3) -> list[torch.Tensor]:
    """The losses, gradients, weights and statistics after some batches with plain gradient descent."""
    found = []
    try:
        for k in range(batches):
            loss, terms = steps([Batch(*a_batch(seed=k), ())])[0]
            found += [loss.clone(), terms.clone(), *(p.grad.clone() for p in model.parameters())]
            with torch.no_grad():
                for p in model.parameters():
                    p -= 1e-3 * p.grad
                    p.grad = None
    finally:
        steps.close()
    return [*found, *(v.clone() for v in model.state_dict().values())]


@pytest.mark.parametrize(
    ("batch", "cores", "expected"),
    [(16, 1, 1), (16, 2, 2), (16, 4, 4), (16, 8, 4), (16, 16, 1), (64, 16, 16), (8, 2, 2), (7, 2, 1), (1, 2, 1)],
)
def test_the_number_of_parts(batch: int, cores: int, expected: int) -> None:
    assert number_of_parts(batch, cores) == expected


def test_without_helpers_where_torch_has_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, automatic differentiation refuses to work in forked processes once it has been used."""
    monkeypatch.setattr(parallel, "_has_accelerator", lambda: True)
    assert number_of_parts(16, 2) == 1
    steps = steps_of(small_model(), 2)
    assert not steps.helpers and steps([Batch(*a_batch(), ())])[0][0].isfinite()


@pytest.mark.parametrize(
    ("sizes", "parts", "tasks"),
    [
        ([16], 2, ((0, 0, 8), (0, 8, 16))),
        ([13], 3, ((0, 0, 4), (0, 4, 8), (0, 8, 13))),
        ([9], 4, ((0, 0, 4), (0, 4, 9))),  # small batches have fewer parts
        ([3], 2, ((0, 0, 3),)),
        ([16], 1, ((0, 0, 16),)),
        ([16, 9], 2, ((0, 0, 16), (1, 0, 9))),  # several batches are not split
    ],
)
def test_tasks(sizes: list[int], parts: int, tasks: tuple) -> None:
    assert tasks_of(sizes, parts) == tasks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_does_not_matter_which_process_computes_a_part(dtype: torch.dtype) -> None:
    model = small_model()
    alone, helped = copy.deepcopy(model), copy.deepcopy(model)
    one, two = steps_of(alone, 2, dtype, helpers=False), steps_of(helped, 2, dtype)
    assert not one.helpers and len(two.helpers) == 1
    for a, b in zip(learnt(alone, one), learnt(helped, two), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_at_once_give_what_one_after_the_other_gives(dtype: torch.dtype) -> None:
    model = small_model()
    batches = [Batch(*a_batch(seed=k), ()) for k in range(2)]
    found = []
    for groups in ([batches], [[b] for b in batches]):
        twin = copy.deepcopy(model)
        steps = steps_of(twin, 2, dtype)
        losses = [t for group in groups for pair in steps(group, parts=1) for t in pair]
        steps.close()
        found.append([*losses, *(p.grad for p in twin.parameters()), *twin.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = sum(ComputeLoss(model)(model(to_input(b.images, CPU, dtype)), b.targets)[0] for b in batches)
    loss.backward()
    for a, p in zip(found[0][4:], model.parameters(), strict=False):
        assert torch.allclose(a, p.grad, rtol=0.02, atol=1e-3 * float(p.grad.abs().max()))
    for key, value in model.state_dict().items():
        if "running" in key:
            assert torch.allclose(found[0][-len(model.state_dict()) + list(model.state_dict()).index(key)], value,
                                  rtol=1e-4, atol=1e-6), key  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "count", "accumulate", "groups"),
    [
        (2, 8, 4, "AA BB | CC DD"),
        (2, 7, 4, "AA BB | CC d"),  # the epoch ends within a pair
        (2, 6, 3, "AA b | CC d"),  # the optimizer makes a step after b
        (2, 3, 1, "a | b | c"),
        (4, 8, 4, "AAAA | BBBB"),
        (4, 7, 4, "AAAA | BBB"),
        (4, 6, 4, "AAAA | b c"),
        (2, 5, None, "a b c d e"),  # no memory for several batches
    ],
)
def test_groups_do_not_depend_on_where_an_epoch_is_resumed(
    parts: int, count: int, accumulate: int | None, groups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capitals stand for batches that are not split; bars for steps of the optimizer."""
    monkeypatch.setattr(step, "accumulated", lambda run, number: accumulate or 4)
    steps = SimpleNamespace(parts=parts, several=accumulate is not None)
    for start in range(count):
        state = SimpleNamespace(epoch=0, batch=0, last_step=-1)
        run = SimpleNamespace(parallel=steps, state=state, loader=range(count))
        state.batch, state.last_step = start, start // accumulate * accumulate - 1 if accumulate else -1
        found = ""
        for group in step.groups_of(run, [(k,) for k in range(start, count)]):
            assert [batch for batch, in group.batches] == list(range(state.batch, state.batch + len(group.batches)))
            found += ("A" if group.whole else "a") * len(group.batches)
            state.batch += len(group.batches)
            if accumulate and state.batch % accumulate == 0:
                state.last_step = state.batch - 1
        expected = "".join("A" if c.isupper() else "a" for c in groups if c.isalpha())
        assert found == expected[start:]


def test_without_batch_norm_the_parts_add_up_to_the_whole_batch() -> None:
    model = small_model()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    images, targets = a_batch()
    whole = copy.deepcopy(model)
    loss, terms = ComputeLoss(whole)(whole(to_input(images, CPU)), targets)
    loss.backward()
    steps = steps_of(model, 2)
    of_parts, terms_of_parts = steps([Batch(images, targets, ())])[0]
    steps.close()
    assert torch.allclose(of_parts, loss) and torch.allclose(terms_of_parts[:3], terms, rtol=1e-4)
    assert terms_of_parts[3] == 0  # there is no teacher
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_statistics_are_the_mean_over_the_parts() -> None:
    model = small_model()
    images, targets = a_batch()
    twins = [copy.deepcopy(model) for _ in range(2)]
    for k, twin in enumerate(twins):
        twin(to_input(images[4 * k : 4 * k + 4], CPU))
    steps = steps_of(model, 2)
    steps([Batch(images, targets, ())])
    steps.close()
    for (key, value), a, b in zip(model.state_dict().items(), *(t.state_dict().values() for t in twins), strict=True):
        if "running" in key:
            assert torch.allclose(value, (a + b) / 2, atol=1e-6), key
        elif "num_batches" in key:
            assert value == 1


def test_gradients_are_added_over_batches_and_to_restored_ones() -> None:
    model = small_model()
    steps = steps_of(model, 2, helpers=False)
    batch = a_batch()
    frozen = model.state_dict()["model.0.bn.running_mean"].clone()
    steps([Batch(*batch, ())])
    once = [p.grad.clone() for p in model.parameters()]
    model.load_state_dict({**model.state_dict(), "model.0.bn.running_mean": frozen})
    steps([Batch(*batch, ())])
    for p, g in zip(model.parameters(), once, strict=True):
        assert torch.allclose(p.grad, 2 * g, rtol=1e-4, atol=1e-6)
        p.grad = g.clone()  # as restored from last.pt
    steps([Batch(*batch, ())])
    for p, g in zip(model.parameters(), once, strict=True):
        assert torch.allclose(p.grad, 2 * g, rtol=1e-4, atol=1e-6)
    steps.close()


def test_frozen_weights_get_no_gradient_and_stay() -> None:
    model = small_model()
    model.model[0].requires_grad_(False)
    before = model.model[0].conv.weight.clone()
    learnt_by = steps_of(model, 2)
    learnt_by([Batch(*a_batch(), ())])
    learnt_by.close()
    assert model.model[0].conv.weight.grad is None and model.model[1].conv.weight.grad.abs().sum() > 0
    assert torch.equal(model.model[0].conv.weight, before)


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_helper_is_told(busy: bool) -> None:
    steps = steps_of(small_model(), 2)
    os.kill(steps.helpers[0].process.pid, signal.SIGKILL)
    if not busy:
        steps.helpers[0].process.join()
    with pytest.raises(ProcessLost, match="a process that computes batches was killed"):
        for _ in range(200):
            steps([Batch(*a_batch(), ())])
    steps.close()


def test_an_error_in_a_helper_reaches_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    main = os.getpid()
    compute = ParallelSteps.compute

    def failing(self: ParallelSteps, job: Job, task: int) -> None:
        if os.getpid() != main:
            raise ValueError("in the helper")
        compute(self, job, task)

    monkeypatch.setattr(ParallelSteps, "compute", failing)
    steps = steps_of(small_model(), 2)
    with pytest.raises(ValueError, match="in the helper"):
        for _ in range(200):  # the main process may take all tasks of some jobs
            steps([Batch(*a_batch(), ())])
    steps.close()


def test_helpers_end_with_the_main_process(tmp_path: Path) -> None:
    code = ("import os, signal\nfrom tests.models.run.test_parallel import small_model, steps_of\n"
            "print(steps_of(small_model(), 2).helpers[0].process.pid, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)")  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text():
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail("the helper process is still there after 5 seconds")
