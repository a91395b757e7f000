"""Mixed precision: the number format of forward passes, and the reason for its choice."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from utils.errors import UserError, did_you_mean
from utils.system.device import cpu_info

FORMATS = {"off": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # values of --amp other than auto


@dataclass(frozen=True)
class Precision:
    """The number format of forward passes; in training, weights, loss and optimizer stay in float32.

    dtype: float32, float16 (gradients are then scaled) or bfloat16. reason: why it was chosen, a phrase to print.
    """

    dtype: torch.dtype
    device: torch.device
    reason: str

    @property
    def amp(self) -> str:
        """The value of `--amp` that selects this format."""
        return next(amp for amp, dtype in FORMATS.items() if dtype == self.dtype)

    def autocast(self) -> AbstractContextManager:
        """Return the context manager for a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler, enabled for float16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def choose_precision(amp: str, device: torch.device) -> Precision:
    """Return the training precision for a value of `--amp`. Raises UserError if the device does not support it."""
    if amp not in (known := ("auto", *FORMATS)):
        raise UserError(f"--amp {amp}{did_you_mean(amp, known)}: one of {', '.join(known)}")
    if amp == "off":
        return Precision(torch.float32, device, "float32 (--amp off)")
    if amp == "fp16":
        if device.type != "cuda":
            raise UserError("--amp fp16 is for CUDA GPUs; on this device use --amp bf16 or off")
        return Precision(torch.float16, device, "float16 with scaled gradients (--amp fp16)")
    if amp == "bf16":
        if device.type == "mps":
            raise UserError("--amp bf16 is for CPUs and CUDA GPUs; on this device use --amp off")
        return Precision(torch.bfloat16, device, "bfloat16 (--amp bf16)")
    return _automatic(device)


def inference_precision(amp: str, device: torch.device) -> Precision:
    """Return the precision for inference: 'auto' is bfloat16 on CPUs with bfloat16 units, else float32.

    Raises UserError for a format that the device does not support.
    """
    if amp == "auto" and device.type != "cpu":
        return Precision(torch.float32, device, "float32 (--half for float16)")
    if amp == "fp16" and device.type != "cpu":
        return Precision(torch.float16, device, "float16")
    return choose_precision(amp, device)


def _automatic(device: torch.device) -> Precision:
    if device.type == "cpu":
        units = cpu_bf16_units()
        if units:
            return Precision(torch.bfloat16, device, f"bfloat16, as this CPU has {units} (--amp off for float32)")
        return Precision(torch.float32, device, "float32, as this CPU has no bfloat16 units")
    if device.type == "cuda":
        return _automatic_cuda(device)
    return Precision(torch.float32, device, f"float32 (mixed precision is not used on {device.type})")


def _automatic_cuda(device: torch.device) -> Precision:
    major, _ = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if major >= 8:
        return Precision(torch.bfloat16, device, f"bfloat16, as {name} supports it (--amp off for float32)")
    # the GTX 16 series gives NaN in half precision convolutions (yolov5 issue 7908)
    if major == 7 and "GTX 16" not in name:
        return Precision(torch.float16, device, f"float16 with scaled gradients, as {name} has no bfloat16")
    return Precision(torch.float32, device, f"float32, as {name} has no fast half precision")


def cpu_bf16_units() -> str:
    """Return the bfloat16 instruction sets of this CPU that torch's oneDNN uses, or an empty string."""
    if not torch.backends.mkldnn.is_available():
        return ""
    flags = cpu_info().get("flags", "").split()
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"}
    return " and ".join(unit for flag, unit in known.items() if flag in flags)
