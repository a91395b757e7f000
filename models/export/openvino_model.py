"""An OpenVINO network that several threads may call at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

FEW = 4  # calls with another number of threads before the network is compiled for it, which takes 0.2 s
OFTEN = 24  # images of one shape before the network is compiled for it, which makes it 15 to 45 % faster
MOST_SHAPES = 4  # that it is compiled for; all others share one form

Key = tuple[np.dtype, int, tuple[int, ...] | None]


class _Compiled(NamedTuple):
    """A compiled network and its idle inference requests; a request is for one call at a time."""

    network: Any
    idle: list[Any]


class OpenVinoModel:
    """A network on the CPU, compiled for the input dtypes, thread counts and image shapes that it is called with.

    A call uses as many threads as torch has in the calling thread. Until the form that fits a call best is compiled,
    another one is used, with the same results. dynamic: whether the network takes any shape; threads: of the form that
    is compiled first.
    """

    def __init__(
        self, openvino: ModuleType, core: Any, network: Any, bf16: bool, dynamic: bool, threads: int
    ) -> None:  # fmt: skip
        self.openvino, self.core, self.network, self.dynamic = openvino, core, network, dynamic
        self.precision, self.total = "bf16" if bf16 else "f32", torch.get_num_threads()
        self._made: dict[Key, _Compiled] = {}
        self._calls: Counter[Any] = Counter()
        self._fixed: set[tuple[int, ...]] = set()
        self._compiling = threading.Lock()
        self._compile((np.dtype(np.uint8), threads, None))  # a network that cannot be compiled raises its error here

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run the network on images (b, 3, h, w), float32 in [0, 1] or uint8; return its output as float32."""
        network, idle = self._form(images.dtype, torch.get_num_threads(), images.shape)
        try:
            request = idle.pop()
        except IndexError:
            request = network.create_infer_request()
        request.infer({0: images})
        found = request.get_output_tensor(0).data.astype(np.float32)  # a copy, as the next call writes over it
        idle.append(request)
        return found

    def expect(self, shape: Sequence[int]) -> None:
        """Compile the network for a shape (b, 3, h, w) at the next call with it."""
        if self.dynamic and len(self._fixed) < MOST_SHAPES:
            self._fixed.add(tuple(shape))

    def _form(self, element: np.dtype, threads: int, shape: tuple[int, ...]) -> _Compiled:
        """Return the compiled network for a call. One thread at a time compiles; others use what there is meanwhile."""
        self._calls[shape] += 1
        if self._calls[shape] == OFTEN:
            self.expect(shape)
        wanted: Key = element, threads, shape if shape in self._fixed else None
        if wanted in self._made:
            return self._made[wanted]
        usable = [key for key in list(self._made) if key[0] == element and key[2] is None]
        spare = self._made[min(usable, key=lambda key: key[1] != threads)] if usable else None
        self._calls[threads] += 1
        if spare and wanted[2] is None and self._calls[threads] <= FEW:
            return spare
        if not self._compiling.acquire(blocking=spare is None):
            return spare
        try:
            return self._made.get(wanted) or self._compile(wanted)
        finally:
            self._compiling.release()

    def _compile(self, key: Key) -> _Compiled:
        element, threads, shape = key
        network = self.network.clone()
        if shape:
            network.reshape(list(shape))
        if element == np.uint8:  # detect.py and val.py pass uint8, a quarter of float32's memory
            steps = self.openvino.preprocess.PrePostProcessor(network)
            steps.input().tensor().set_element_type(self.openvino.Type.u8)
            steps.input().preprocess().convert_element_type(self.openvino.Type.f32).scale(255.0)
            network = steps.build()
        streams = max(self.total // threads, 1)
        # threads that are bound to cores would have to wait there for the threads that read and write images
        compiled = self.core.compile_model(network, "CPU", {
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT", "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.total, "INFERENCE_PRECISION_HINT": self.precision,
            "ENABLE_CPU_PINNING": False})  # fmt: skip
        self._made[key] = _Compiled(compiled, [])
        return self._made[key]
