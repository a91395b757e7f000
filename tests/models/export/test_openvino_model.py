"""The forms that OpenVINO compiles a network in, while it is called with several shapes, dtypes and thread counts."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.export import openvino_model
from models.export.engines import openvino_core
from models.export.openvino_model import FEW, MOST_SHAPES, OFTEN, OpenVinoModel

U8, F32 = np.dtype(np.uint8), np.dtype(np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> OpenVinoModel:
    """A dynamic model on two threads whose compiled forms are their keys."""

    def compiled(self: OpenVinoModel, key: tuple) -> tuple:
        self._made[key] = key
        return key

    monkeypatch.setattr(OpenVinoModel, "_compile", compiled)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return OpenVinoModel(SimpleNamespace(), None, None, False, True, 1)


def shape(k: int) -> tuple[int, ...]:
    return 1, 3, 32 * (k + 1), 64


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_other_thread_counts_have_a_form_of_their_own_after_a_few_calls(model: OpenVinoModel, threads: int) -> None:
    used = [model._form(U8, threads, shape(0)) for _ in range(FEW + 2)]
    assert used == [(U8, 1, None)] * (FEW if threads > 1 else FEW + 2) + [(U8, threads, None)] * 2 * (threads > 1)


def test_another_dtype_is_compiled_at_once(model: OpenVinoModel) -> None:
    assert model._form(F32, 2, shape(0)) == (F32, 2, None)


def test_shapes_that_come_often_have_a_form_of_their_own(model: OpenVinoModel) -> None:
    used = [[model._form(U8, 1, shape(k)) for _ in range(OFTEN)] for k in range(MOST_SHAPES + 1)]
    assert all(form == (U8, 1, None) for forms in used for form in forms[:-1])
    assert [forms[-1][2] for forms in used] == [*(shape(k) for k in range(MOST_SHAPES)), None]


def test_a_fixed_size_has_no_forms_of_shapes(model: OpenVinoModel) -> None:
    model.dynamic = False
    assert {model._form(U8, 1, shape(0)) for _ in range(2 * OFTEN)} == {(U8, 1, None)}


def test_others_do_not_wait_for_the_thread_that_compiles(model: OpenVinoModel) -> None:
    model._fixed.add(shape(0))
    with model._compiling:
        assert model._form(U8, 1, shape(0)) == (U8, 1, None)
    assert model._form(U8, 1, shape(0)) == (U8, 1, shape(0))


@pytest.mark.parametrize("bf16", [False, True])
def test_all_forms_give_the_same(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    ops = openvino.opset8
    x = ops.parameter([-1, 3, -1, -1], np.float32)
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    y = ops.relu(ops.convolution(x, ops.constant(weight), [2, 2], [1, 1], [1, 1], [1, 1]))
    monkeypatch.setattr(openvino_model, "OFTEN", 3)
    model = OpenVinoModel(openvino, openvino_core(), openvino.Model([y], [x]), bf16, True, 1)
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 32, 48), np.uint8)
    found: list[Any] = [model(images) for _ in range(5)]
    threads = [threading.Thread(target=lambda: found.append(model(images))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(model._made) == 2 and len(found) == 8 and all(np.array_equal(found[0], f) for f in found)
    assert found[0].shape == (1, 8, 16, 24) and found[0].dtype == np.float32
