"""What --amp means on which machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.system import precision
from utils.system.precision import choose_precision, inference_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amp", "device", "dtype"),
    [
        ("off", "cpu", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
        ("off", "cuda", torch.float32),
        ("bf16", "cuda", torch.bfloat16),
        ("fp16", "cuda", torch.float16),
        ("auto", "mps", torch.float32),
    ],
)
def test_formats(amp: str, device: str, dtype: torch.dtype) -> None:
    assert choose_precision(amp, torch.device(device)).dtype == dtype


@pytest.mark.parametrize(
    ("flags", "dtype", "said"),
    [
        ("fpu avx512f amx_bf16 amx_tile avx512_bf16", torch.bfloat16, "this CPU has AMX and AVX-512"),
        ("fpu avx512_bf16", torch.bfloat16, "this CPU has AVX-512"),
        ("fpu avx2 avx512f", torch.float32, "no bfloat16 units"),
    ],
)
def test_auto_on_a_cpu_asks_its_flags(
    flags: str, dtype: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *a, **k: f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    chosen = choose_precision("auto", CPU)
    assert chosen.dtype == dtype and said in chosen.reason


@pytest.mark.parametrize(
    ("capability", "name", "dtype"),
    [((9, 0), "H100", torch.bfloat16), ((7, 5), "RTX 2080", torch.float16), ((7, 5), "GTX 1660", torch.float32),
     ((6, 1), "GTX 1080", torch.float32)],
)  # fmt: skip
def test_auto_on_a_gpu(capability: tuple, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: name)
    assert precision._automatic(torch.device("cuda")).dtype == dtype


@pytest.mark.parametrize(
    ("amp", "device", "message"),
    [("fp16", "cpu", "--amp fp16 is for CUDA GPUs"), ("bf16", "mps", "--amp bf16"),
     ("bf15", "cpu", "did you mean 'bf16'")],
)  # fmt: skip
@pytest.mark.parametrize("choose", [choose_precision, inference_precision])
def test_what_a_device_cannot_do(choose: Callable, amp: str, device: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        choose(amp, torch.device(device))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("amp", "device", "units", "dtype", "said"),
    [
        ("auto", "cpu", "AMX", torch.bfloat16, "bfloat16, as this CPU has AMX"),
        ("auto", "cpu", "", torch.float32, "float32, as this CPU has no bfloat16 units"),
        ("auto", "cuda", "", torch.float32, "float32"),  # where training would take bfloat16
        ("auto", "mps", "AMX", torch.float32, "float32"),
        ("off", "cpu", "AMX", torch.float32, "float32 (--amp off)"),
        ("off", "cuda", "", torch.float32, "float32 (--amp off)"),
        ("off", "mps", "", torch.float32, "float32 (--amp off)"),
        ("bf16", "cpu", "", torch.bfloat16, "bfloat16 (--amp bf16)"),
        ("bf16", "cuda", "", torch.bfloat16, "bfloat16 (--amp bf16)"),
        ("fp16", "cuda", "", torch.float16, "float16"),
    ],
)
def test_where_nothing_is_trained(
    amp: str, device: str, units: str, dtype: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_bf16_units", lambda: units)
    chosen = inference_precision(amp, torch.device(device))
    assert (chosen.dtype, chosen.device.type) == (dtype, device) and chosen.reason.startswith(said)


def test_autocast_and_scaler() -> None:
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for amp, dtype in (("off", torch.float32), ("bf16", torch.bfloat16)):
        chosen = choose_precision(amp, CPU)
        with chosen.autocast():
            assert layer(x).dtype == dtype
        assert not chosen.scaler().is_enabled()
