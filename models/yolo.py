"""The detector: `parse_model` builds the blocks of a model yaml, `DetectionModel` (alias `Model`) is the network.

    python models/yolo.py --cfg yolov5_shufflenet.yaml    # print a table of the layers and the totals
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.settings.flags import Parser, read_first


def parse_opt() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("Print the layers of a model config, with the shape and stride of their outputs, and its totals.")
    data, model = parser.group("data"), parser.group("model")
    data("--imgsz", "--img", "--img-size", type=int, default=640, metavar="PX", help="image size in pixels")
    data("--nc", type=int, metavar="N", shown="as in the yaml", help="number of classes")
    model("--cfg", default="yolov5_shufflenet.yaml", metavar="YAML",
          help="model yaml, also looked for in models/, models/hub/ and models/zoo/")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import torch
from torch import Tensor, nn

import models.common  # noqa: F401  registers the blocks
from models.blocks.fuse import fuse_batch_norms
from models.blocks.shuffle_free import unshuffle
from models.common import Conv
from models.heads.anchors import Detect  # noqa: F401  YOLOv5's import path
from models.heads.base import Head
from models.registry import MOST_PARAMETERS, check_arguments, check_size, find_block
from models.row_arguments import checked_arguments, named, parse_activation
from utils.data.augment import make_divisible
from utils.errors import UserError, shorten
from utils.settings.config import check_model_cfg, is_number, is_whole, load_model_cfg
from utils.system.console import LOGGER, run_script
from utils.system.profiling import count_gflops

for _room in (models.blocks, models.heads):  # importing a module registers its blocks
    for _file in pkgutil.iter_modules(_room.__path__, f"{_room.__name__}."):
        importlib.import_module(_file.name)

LARGEST_MAP = 2**29  # largest number of elements in the output of a layer
PROBE_SIZE = 256  # pixels: side of the empty image with which strides are determined; a multiple of every stride


def parse_model(d: dict[str, Any], ch: list[int]) -> tuple[nn.Sequential, list[int]]:
    """Build the layers of a model config.

    d: the content of a model yaml. ch: [input channels]. Returns the layers, each with the attributes `i, f, type, np`
    (index, from, block name, parameters), and the sorted indices of the layers whose output must be kept for a later
    layer. Raises UserError naming the yaml file, the layer and its row.
    """
    where = d.get("yaml_file") or "model config"
    try:
        activation = parse_activation(d.get("activation"))
    except ValueError as e:
        raise UserError(f"{where}: {e}") from None
    rows = [*d["backbone"], *d["head"]]
    layers, saved, widths = [], set(), list(ch)
    for i, row in enumerate(rows):
        try:
            layer, c_out = _build_layer(i, row, d, widths, last=i == len(rows) - 1)
        except (ValueError, TypeError, RuntimeError, OverflowError, IndexError, AttributeError) as e:
            raise UserError(f"{where}: layer {i} {shorten(row)}: {shorten(e)}") from e
        froms = [layer.f] if isinstance(layer.f, int) else layer.f
        saved.update(f % i for f in froms if f != -1)
        layers.append(layer)
        if sum(m.np for m in layers) > MOST_PARAMETERS:
            raise UserError(f"{where}: layers 0 to {i} have more than {MOST_PARAMETERS:,} parameters")
        widths = [c_out] if i == 0 else [*widths, c_out]
    model = nn.Sequential(*layers)
    if activation is not None:
        for m in model.modules():
            if isinstance(m, Conv) and m.default_act:
                m.act = copy.deepcopy(activation)
    return model, sorted(saved)


def _build_layer(i: int, row: Any, d: dict[str, Any], widths: list[int], last: bool) -> tuple[nn.Module, int]:
    """Build layer i; returns it and its output width.

    widths: output widths of the earlier layers; for i = 0 the channels of the input.
    """
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError("a row is [from, repeats, module, args]")
    source, repeats, name, args = row
    froms = source if isinstance(source, list) else [source]
    for f in froms:
        if not isinstance(f, int) or isinstance(f, bool) or not (-i <= f < i or (i == 0 and f == -1)):
            raise ValueError(f"'from' {f!r} is not an earlier layer")
    if not isinstance(repeats, int) or isinstance(repeats, bool) or not 1 <= repeats <= 1000:
        raise ValueError(f"repeats is {repeats!r}, it must be a whole number from 1 to 1000")
    if not isinstance(args, list):
        raise ValueError("args must be a list")
    block = find_block(str(name))
    if (block.channels == "head") != last:
        raise ValueError("a head such as Detect must be the last layer, and the last layer must be a head")
    if len(froms) > 1 and block.channels in ("out", "same"):
        raise ValueError(f"{name} takes one input, but 'from' lists {len(froms)}")
    n = max(round(repeats * d.get("depth_multiple", 1.0)), 1) if repeats > 1 else repeats
    args = [_argument(a, d) for a in args]
    c_in = [widths[f] for f in froms]
    if block.channels == "out":
        c_out = _width(args, d)
        args = [c_in[0], c_out, *([n] if block.repeats else []), *args[1:]]
        n = 1 if block.repeats else n
    elif block.channels == "head":
        args, c_out = [*_with_defaults(block.cls, args), c_in], 0
    else:
        c_out = sum(c_in)
    # in a stack, the second and later copies have c_out input channels
    stack = [[c_out, *args[1:]] if block.channels == "out" and k else args for k in range(n)]
    ours = (2 + block.repeats) * (block.channels == "out")  # leading arguments that are not from the row
    for a in stack:
        check_arguments(block.cls, a)
    stack = [checked_arguments(block.cls, a, ours) for a in stack]
    check_size(block.cls, stack, d["nc"] if block.channels == "head" else c_out, sum(c_in))
    try:
        copies = [block.cls(*a) for a in stack]
    except (TypeError, RuntimeError, AttributeError) as e:
        raise ValueError(f"{shorten(e)} (with {named(block.cls, stack[0], ours)})") from e
    layer = copies[0] if n == 1 else nn.Sequential(*copies)
    layer.i, layer.f, layer.type = i, source, str(name).removeprefix("nn.")
    layer.np = sum(p.numel() for p in layer.parameters())
    return layer, c_out


def _with_defaults(head: type[nn.Module], args: list[Any]) -> list[Any]:
    """Return the arguments of a head's row, followed by the defaults of those that are missing, up to `ch`."""
    missing = list(inspect.signature(head).parameters.values())[:-1][len(args) :]
    if any(p.default is inspect.Parameter.empty for p in missing):
        raise ValueError(f"missing a required argument: {missing[0].name}")
    return [*args, *(p.default for p in missing)]


def _argument(value: Any, d: dict[str, Any]) -> Any:
    """Replace the words None, True, False, nc and anchors in a yaml row by their values; return others unchanged."""
    if not isinstance(value, str):
        return value
    if value == "anchors":
        return _anchors(d)
    return {"None": None, "True": True, "False": False, "nc": d["nc"]}.get(value, value)


def _anchors(d: dict[str, Any]) -> list[list[float]]:
    """Return the anchors of a config; placeholders, which autoanchor replaces, if it gives only their number."""
    if "anchors" not in d:
        raise ValueError("the key 'anchors' is missing in this file")
    if not isinstance(d["anchors"], int):
        return d["anchors"]
    return [[float(v) for v in range(1, 2 * d["anchors"] + 1)]] * len(d["head"][-1][0])


def _width(args: list[Any], d: dict[str, Any]) -> int:
    """Return the output width of a row, scaled by width_multiple."""
    if not args or not isinstance(args[0], int) or isinstance(args[0], bool) or not 1 <= args[0] <= 65536:
        raise ValueError("the first argument must be the output width, a whole number from 1 to 65536")
    return make_divisible(args[0] * d.get("width_multiple", 1.0), d.get("channel_multiple", 8))


class DetectionModel(nn.Module):
    """A detector built from a model yaml, with YOLOv5's state-dict keys.

    Input: (b, ch, h, w) in [0, 1], h and w multiples of the largest stride. Output: as of `Head`.
    Attributes: `yaml` (the config), `names` {index: class name}, `stride`. Raises UserError if the config is wrong.
    """

    def __init__(
        self, cfg: str | Path | dict = "yolov5_shufflenet.yaml", ch: int | None = None, nc: int | None = None,
        anchors: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.yaml = copy.deepcopy(cfg) if isinstance(cfg, dict) else load_model_cfg(cfg)
        where = self.yaml.get("yaml_file") or "model config"
        self.yaml["ch"] = self.yaml.get("ch", 3) if ch is None else ch
        if nc:
            self.yaml["nc"] = nc
        if anchors:
            self.yaml["anchors"] = anchors
        check_model_cfg(self.yaml, where)
        self.model, self.save = parse_model(self.yaml, [self.yaml["ch"]])
        self.names = {i: str(i) for i in range(self.yaml["nc"])}
        _initialize_batch_norms(self)
        self._read_strides(where)
        self.model[-1].initialize_biases()

    @property
    def stride(self) -> Tensor:
        """Strides of the output maps in pixels, (nl,)."""
        return self.model[-1].stride

    def forward(self, x: Tensor, augment: bool = False) -> list[Tensor] | tuple[Tensor, list[Tensor] | None]:
        """Detect in (b, ch, h, w); returns the output of its head. augment: with test-time augmentation (eval mode)."""
        if augment:
            return self._forward_augmented(x)
        return self._forward_once(x)

    def _forward_once(self, x: Tensor) -> Any:
        return self.model[-1](self.head_maps(x))

    def head_maps(self, x: Tensor) -> list[Tensor]:
        """(b, ch, h, w) -> the maps (b, c_i, h_i, w_i) that the head reads."""
        outputs: list[Tensor | None] = []
        *body, head = self.model
        for m in body:
            x = m(_input_of(m, x, outputs))
            outputs.append(x if m.i in self.save else None)
        return _input_of(head, x, outputs)

    def _forward_augmented(self, x: Tensor) -> tuple[Tensor, None]:
        """Test-time augmentation: return the detections at scale 1, at 0.83 mirrored and at 0.67, concatenated."""
        height, width = x.shape[-2:]
        step = int(self.stride.max())
        found = []
        for scale, mirrored in ((1.0, False), (0.83, True), (0.67, False)):
            xi = x.flip(3) if mirrored else x
            if scale != 1.0:
                size = [int(height * scale), int(width * scale)]
                xi = nn.functional.interpolate(xi, size=size, mode="bilinear", align_corners=False)
                pad = [make_divisible(s * scale, step) - n for s, n in zip((height, width), size, strict=True)]
                xi = nn.functional.pad(xi, [0, pad[1], 0, pad[0]], value=114 / 255)
            y = self._forward_once(xi)[0].clone()
            y[..., :4] /= scale
            if mirrored:
                y[..., 0] = width - y[..., 0]
            found.append(y)
        return torch.cat(found, 1), None

    def fuse(self) -> DetectionModel:
        """Fold batch norms into convolutions, in place, for inference. Returns self."""
        fuse_batch_norms(self)
        return self

    def deploy(self) -> DetectionModel:
        """Fold batch norms and channel shuffles into convolutions, in place, for inference. Returns self.

        The outputs stay the same except for rounding; the state dict no longer matches the config.
        """
        fuse_batch_norms(self)
        widths = [shape[1] for shape in trace_shapes(self, PROBE_SIZE)]
        orders = unshuffle(self.model, self.save, widths)
        head: Head = self.model[-1]
        for level, f in enumerate(head.f):
            head.permute_inputs(level, orders[f % head.i])
        return self

    def _read_strides(self, where: str) -> None:
        """Run an empty image through the network, set the head's strides and convert its anchors to units of them."""
        head: Head = self.model[-1]
        # the meta device needs no memory, but its first use imports a compiler, which takes seconds
        probe = self if _stays_small(self.model) else copy.deepcopy(self).to("meta")
        probe.eval()  # keeps the running statistics of batch norms unchanged
        probe.model[-1].train()
        shapes = trace_shapes(probe, PROBE_SIZE, where)
        self.train()
        maps = [shapes[f % head.i] for f in head.f]
        for f, shape in zip(head.f, maps, strict=True):
            if PROBE_SIZE % shape[-1] or PROBE_SIZE % shape[-2] or shape[-1] != shape[-2]:
                raise UserError(
                    f"{where}: {head.type} cannot use layer {f}: its map is {shape[-2]}x{shape[-1]} for an image of "
                    f"{PROBE_SIZE}x{PROBE_SIZE}, so its stride is not a whole number"
                )
        head.set_strides([PROBE_SIZE / shape[-1] for shape in maps])


Model = DetectionModel


def _input_of(m: nn.Module, x: Tensor, outputs: Sequence[Tensor | None]) -> Tensor | list[Tensor]:
    """Return what a layer reads: x, the output of the layer before it, or outputs of earlier layers."""
    if m.f == -1:
        return x
    return outputs[m.f] if isinstance(m.f, int) else [x if f == -1 else outputs[f] for f in m.f]


def _stays_small(layers: nn.Module) -> bool:
    """Whether a PROBE_SIZE image surely needs little memory: no very wide layers, none that enlarge maps much."""
    for m in layers.modules():
        if isinstance(m, nn.MaxPool2d) and not (is_whole(m.kernel_size) and m.kernel_size <= 32):
            return False
        if isinstance(m, nn.Upsample) and (m.size is not None or not is_number(m.scale_factor) or m.scale_factor > 2):
            return False
        padding = m.padding if isinstance(m, nn.Conv2d) and isinstance(m.padding, tuple) else (0,)
        if isinstance(m, nn.Conv2d) and (m.out_channels > 2048 or max(padding) > max(m.kernel_size)):
            return False
    return True


def _initialize_batch_norms(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 1e-3
            m.momentum = 0.03


@torch.no_grad()
def trace_shapes(model: DetectionModel, imgsz: int, where: str = "model") -> list[tuple[int, ...]]:
    """Return the output shape of every layer for one image of imgsz x imgsz; for the head, that of its last map.

    Raises UserError naming the layer that cannot process its input.
    """
    shapes: list[tuple[int, ...]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        while not isinstance(output, Tensor):  # a head returns a list of maps, or a tuple that ends with it
            output = output[-1]
        if output.numel() > LARGEST_MAP:
            raise RuntimeError(f"its output of {' x '.join(map(str, output.shape[1:]))} is too large")
        shapes.append(tuple(output.shape))

    handles = [m.register_forward_hook(note) for m in model.model]
    p = next(model.parameters())
    try:
        model._forward_once(torch.zeros(1, model.yaml["ch"], imgsz, imgsz, device=p.device, dtype=p.dtype))
    except (RuntimeError, IndexError, TypeError, ValueError) as e:
        m = model.model[len(shapes)]
        came = ", ".join(f"{f}: {shapes[f]}" for f in ([m.f] if isinstance(m.f, int) else m.f) if shapes)
        raise UserError(f"{where}: layer {m.i} ({m.type}, from {shorten(m.f)}) cannot take its input "
                        f"({shorten(came)}): {shorten(e)}") from e  # fmt: skip
    finally:
        for h in handles:
            h.remove()
    return shapes


def layer_table(model: DetectionModel, imgsz: int = 640) -> str:
    """Return a table of the model as text: one row per layer, then the totals."""
    rows = [("", "from", "n", "params", "module", "output", "stride", "arguments")]
    shapes = trace_shapes(model, imgsz, model.yaml.get("yaml_file") or "model")
    yaml_rows = [*model.yaml["backbone"], *model.yaml["head"]]
    for m, shape, row in zip(model.model, shapes, yaml_rows, strict=True):
        head = isinstance(m, Head)
        out = "x".join(map(str, shape[1:])) if not head else f"{m.nl} maps x {m.na} x {m.no}"
        stride = "/".join(f"{s:g}" for s in m.stride) if head else f"{imgsz / shape[-1]:g}"
        rows.append((str(m.i), str(m.f), str(row[1]), f"{m.np:,}", m.type, out, stride, str(row[3])))
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(w) if k < 4 else c.ljust(w) for k, (c, w) in enumerate(zip(r, widths, strict=True)))
             for r in rows]  # fmt: skip
    return "\n".join([line.rstrip() for line in lines] + [model_summary(model, imgsz)])


def model_summary(model: DetectionModel, imgsz: int = 640) -> str:
    """Return the number of layers and parameters, the GFLOPs at imgsz and the strides as one line of text."""
    params = sum(p.numel() for p in model.parameters())
    strides = "/".join(f"{s:g}" for s in model.stride)
    name = Path(model.yaml.get("yaml_file") or "model").stem
    return (f"{name}: {len(model.model)} layers, {params:,} parameters, {count_gflops(model, imgsz):.2f} GFLOPs "
            f"at {imgsz} px, strides {strides}")  # fmt: skip


def coarse_stride_warning(model: DetectionModel) -> str:
    """Return a warning if the smallest stride is too large for small objects, otherwise an empty string."""
    finest = int(model.stride.min())
    if finest < 32:
        return ""
    strides = "/".join(f"{s:g}" for s in model.stride)
    name = model.yaml.get("yaml_file") or "this model"
    return f"{name} detects at strides {strides}: objects under about {finest} px are likely to be missed"


def main(opt: argparse.Namespace) -> None:
    """Print the layer table."""
    model = Model(opt.cfg, nc=opt.nc).eval()
    if opt.imgsz < 1 or opt.imgsz % int(model.stride.max()):
        raise UserError(f"--imgsz {opt.imgsz} is not a multiple of the largest stride, {int(model.stride.max())}")
    print(layer_table(model, opt.imgsz))
    if warning := coarse_stride_warning(model):
        LOGGER.warning(warning)


if __name__ == "__main__":
    run_script(main, OPT)
