"""The cases of benchmark.py: each one times two or more alternatives in turns and returns rows with their ratios."""

from __future__ import annotations

import copy
import itertools
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from models.heads.anchor_free import AnchorFreeDetect
from models.inference.runtime import Runtime, to_input
from models.run.setup import Run, loader_niceness, setup
from models.run.step import Group, compute, groups_of
from models.weights.checkpoint import load_checkpoint
from models.weights.transfer import with_classes
from models.yolo import DetectionModel
from my_tools.benchmarking.engines import TARGETS, engine_calls
from train import prepare, train_epoch, train_group
from utils.boxes import xywhn2xyxy
from utils.data.augment import augment_hsv, flip_left_right, letterbox, random_perspective
from utils.data.dataset import DetectionDataset
from utils.data.images import read_image
from utils.data.labels import LabelIndex, index_split
from utils.data.loader import close_loader, collate, create_loader
from utils.data.mosaic import lay_out
from utils.evaluation.scoring import Settings, results_of
from utils.settings.config import load_hyp
from utils.settings.dataset import DataConfig
from utils.settings.options import TrainOptions, effective_hyp
from utils.system.background import calls_at_a_time, side_by_side
from utils.system.console import progress, quiet
from utils.system.opencv import cv2
from utils.system.profiling import REST, time_in_turns
from val import collect, in_pieces

STEPS = 20  # batches per turn
EVALUATED = 32  # batch size in val.py
INFERRED = 640  # image size in pixels of the inference cases
AS_DETECTED, END_TO_END = "as detect.py runs it", "end to end"  # in a row's `what`, after the model's name and a comma
FORMS = {"fused": "fuse", "shuffle-free": "deploy"}


@dataclass(frozen=True)
class Conditions:
    """The settings of all cases; weights: a trained model, for the cases that need one."""

    data: DataConfig
    cfgs: Sequence[str]
    weights: Path | None
    imgsz: int
    batch_size: int
    rounds: int
    device: torch.device
    workers: int
    amp: str


@dataclass(frozen=True)
class Row:
    """One comparison with a yardstick (baseline): median times, and the median and quartiles of the per-round ratios.

    ratio: the speed-up over the yardstick (`fast` True), or the fraction of its time (`fast` False). target: the ratio
    to reach, None for rows without one.
    """

    case: str
    what: str
    yardstick: str
    ms: float
    yardstick_ms: float
    ratio: float
    low: float
    high: float
    fast: bool
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.fast else self.ratio <= self.target


def compared(
    case: str, what: str, yardstick: str, seconds: np.ndarray, per: Sequence[float], fast: bool = False,
    target: float | None = None,
) -> Row:  # fmt: skip
    """Build a row from seconds (rounds, 2) of `what` and its yardstick; per: units of work in each of the two."""
    times = seconds / np.asarray(per)
    ratios = times[:, 1] / times[:, 0] if fast else times[:, 0] / times[:, 1]
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    ms, yardstick_ms = np.median(times, 0) * 1e3
    return Row(case, what, yardstick, float(ms), float(yardstick_ms), float(middle), float(low), float(high), fast,
               target)  # fmt: skip


def turns(what: str) -> Callable[[range], Iterable[int]]:
    """Return a progress bar over the rounds of a measurement."""
    return partial(progress, desc=what)


def training_run(c: Conditions, cfg: str, folder: str, batches: int | None = None) -> Run:
    """Set up a training with this number of batches per epoch (None: STEPS), as train.py does."""
    opt = TrainOptions.from_flags({
        "cfg": cfg, "data": str(c.data.yaml_file), "imgsz": c.imgsz, "batch_size": c.batch_size, "amp": c.amp,
        "device": str(c.device), "workers": c.workers, "noplots": True, "noautoanchor": True, "noval": True,
        "epochs": 1000})  # fmt: skip
    data = prepare(opt)
    hyp = {**effective_hyp(opt), "warmup_epochs": 0.0}  # in the warm-up, the optimizer makes more steps than later
    run = setup(opt, hyp, data, folder=Path(folder))
    old = run.loader.dataset
    images = np.arange((batches or STEPS) * opt.batch_size)
    index = old.index.take(images % len(old.index))  # repeats a dataset with fewer images
    dataset = DetectionDataset(index, opt.imgsz, opt.batch_size, run.hyp, stride=int(run.model.stride.max()))
    run.loader = create_loader(dataset, opt.batch_size, opt.workers, True, c.device.type == "cuda", whole=False,
                               niceness=loader_niceness(opt, c.device))  # fmt: skip
    return run


def training(c: Conditions) -> list[Row]:
    """Time complete training (data loading, steps, EMA) against plain training steps of the same network."""
    return list(itertools.chain.from_iterable(train_one(c, cfg) for cfg in c.cfgs))


def train_one(c: Conditions, cfg: str) -> list[Row]:
    """Return the rows of `training` for one model."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        run = training_run(c, cfg, folder)
        plain = plain_steps(run.model, (c.batch_size, 3, run.opt.imgsz, run.opt.imgsz), STEPS // 2)
        gpu, stop = c.device.type == "cuda", SimpleNamespace(requested=False)
        batch = next(iter(run.loader))

        def whole() -> None:
            train_epoch(run, stop)
            run.state.epoch, run.state.batch = run.state.epoch + 1, 0

        def steps() -> None:
            for group in groups_of(run, [batch] * STEPS):
                train_group(run, group, stop)
            run.state.epoch, run.state.batch = run.state.epoch + 1, 0

        name = Path(cfg).stem
        seconds = time_in_turns([whole, plain, steps], c.rounds, budget=1e9, least=c.rounds, each=turns(name), before=1)
        target = {"yolov5_shufflenet": 2.2, "yolov5s": 2.3}.get(name)
        few, many = STEPS // 2 * c.batch_size, STEPS * c.batch_size
        yardstick = f"{'bfloat16' if gpu else 'float32'} NCHW step alone"
        rows = [compared("train", f"{name}, {END_TO_END}", yardstick, seconds[:, :2], (many, few), True, target),
                compared("train", f"{name}, its steps with one batch", END_TO_END, seconds[:, [2, 0]], (many, many))]
        rows += shares(c, run)
        run.close()
    return rows


def plain_steps(model: DetectionModel, shape: Sequence[int], steps: int) -> Callable[[], None]:
    """Return a function that makes plain training steps with a copy of a network, on a random batch of this shape.

    A step is forward, backward and SGD, in float32 and NCHW (on a GPU in bfloat16), without data loading and loss.
    """
    twin = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4, momentum=0.9)
    device = next(model.parameters()).device
    x = torch.rand(*shape, device=device)

    def plain() -> None:
        for _ in range(steps):
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                loss = sum(y.square().mean() for y in twin(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return plain


def shares(c: Conditions, run: Run) -> list[Row]:
    """Time the loss (with its gradients), and the optimizer with the EMA, as fractions of a whole step.

    All three are computed in this process, by all threads.
    """
    batch = next(iter(run.loader))
    if run.parallel:
        run.parallel.close()
        run.parallel = None
    run.model.train()
    with torch.no_grad(), run.precision.autocast():
        maps = [m.detach().requires_grad_() for m in run.model(to_input(batch[0], c.device))]

    def step() -> None:
        computed = compute(run, Group([batch], True))[0]
        if not run.parallel:
            computed.loss.backward()
        update()

    def loss() -> None:
        run.train_loss(maps, batch[1])[0].backward()

    def update() -> None:
        nn.utils.clip_grad_norm_(run.model.parameters(), max_norm=10.0)
        run.state.optimizer.step()
        run.state.optimizer.zero_grad()
        run.state.ema.update(run.model)

    def update_alone() -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        update()

    parameters = list(run.model.parameters())
    gradients = [torch.zeros_like(p) for p in parameters]
    name = Path(run.opt.cfg).stem
    seconds = time_in_turns([loss, update_alone, step], max(c.rounds, 10), budget=1e9, each=turns(f"{name}, shares"))
    return [compared("share", f"{name}, loss and targets", "a whole step", seconds[:, [0, 2]], (1, 1), target=0.08),
            compared("share", f"{name}, optimizer and EMA", "a whole step", seconds[:, [1, 2]], (1, 1),
                     target=0.05)]  # fmt: skip


def loading(c: Conditions) -> list[Row]:
    """Time the loader's batches, built in one process, against a straightforward mosaic."""
    hyp = load_hyp("hyp.scratch-low")
    index = index_split(c.data, "train")
    dataset = DetectionDataset(index, c.imgsz, c.batch_size, hyp)
    keys = create_loader(dataset, c.batch_size, 0, shuffle=True).batch_sampler
    batches = itertools.chain.from_iterable(iter(keys) for _ in itertools.count())
    rng = np.random.default_rng(0)

    def ours() -> None:
        collate(dataset.__getitems__(next(batches)))

    def usual() -> None:
        torch.stack([usual_mosaic(index, int(i), c.imgsz, hyp, rng) for i in rng.integers(len(index), size=4)])

    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    seconds = time_in_turns([ours, usual], max(c.rounds, 20), budget=1e9, each=turns("loader"))
    cv2.setNumThreads(threads)
    return [compared("loader", f"{c.imgsz} px, one process", "four letterboxed images, one warp", seconds,
                     (c.batch_size, 4), True, 2.5)]  # fmt: skip


def usual_mosaic(
    index: LabelIndex, i: int, imgsz: int, hyp: dict[str, float], rng: np.random.Generator
) -> Tensor:
    """Build a training image the usual way: four letterboxed images on a canvas of twice the side, then one warp."""
    tiles, labels = [], []
    yc, xc = (int(v) for v in rng.uniform(imgsz // 2, 2 * imgsz - imgsz // 2, 2))
    corners = [(xc - imgsz if k % 2 == 0 else xc, yc - imgsz if k < 2 else yc) for k in range(4)]
    for k, corner in zip([i, *rng.integers(len(index), size=3)], corners, strict=True):
        im = read_image(index.file(k))
        h, w = im.shape[:2]
        im, ratio, pad = letterbox(im, (imgsz, imgsz), auto=False)
        tiles.append(im)
        values = index.labels(k)
        boxes = xywhn2xyxy(values[:, 1:], w * ratio[0], h * ratio[1], *pad) + np.tile(corner, 2)
        labels.append(np.concatenate((values[:, :1], boxes.clip(0, 2 * imgsz)), 1))
    canvas = lay_out(tiles, corners, [(imgsz, imgsz)] * 4, imgsz)
    im, boxes = random_perspective(canvas, np.concatenate(labels), hyp, rng, (imgsz, imgsz))
    im = augment_hsv(im, rng, hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"])
    if rng.random() < hyp["fliplr"]:
        im, boxes = flip_left_right(im, boxes)
    return torch.from_numpy(np.ascontiguousarray(im[..., ::-1].transpose(2, 0, 1)))


def evaluation(c: Conditions) -> list[Row]:
    """Time an evaluation at confidence 0.001 against its forward passes alone."""
    index = index_split(c.data, "val")
    untrained = DetectionModel(c.cfgs[0], nc=c.data.nc)
    untrained.names = c.data.names
    fire_everywhere(untrained)
    rows = evaluate_one(c, index, "trained", load_trained(c), 1.3) if c.weights else []
    return rows + evaluate_one(c, index, "untrained, firing everywhere", Runtime(untrained, c.device), 3.0)


def evaluate_one(c: Conditions, index: LabelIndex, what: str, runtime: Runtime, target: float) -> list[Row]:
    """Return the rows of `evaluation` for one model."""
    dataset = DetectionDataset(index, c.imgsz, EVALUATED, rect=True, pad=0.5, stride=runtime.stride)
    loader = create_loader(dataset, EVALUATED, c.workers, shuffle=False, pin_memory=c.device.type == "cuda")
    batches = [images for images, *_ in loader]

    def predict(images: Tensor) -> tuple[Tensor, None]:
        return runtime.predict(images), None

    def whole(by_size: bool) -> None:
        settings = Settings(by_size=by_size)
        results_of(collect(predict, loader, runtime.names, c.device, settings), runtime.names, settings)

    def forward(at_a_time: int) -> None:
        for _ in side_by_side(partial(in_pieces, predict, stop=threading.Event()), batches, at_a_time, len(batches)):
            pass

    calls = [partial(whole, False), partial(whole, True), partial(forward, calls_at_a_time(c.device)),
             partial(forward, 1)]  # fmt: skip
    seconds = time_in_turns(calls, c.rounds, budget=1e9, least=c.rounds, each=turns(what), before=1)
    close_loader(loader)
    per, name = (len(index),) * 2, f"{what}, {c.imgsz} px"
    alike, alone = "its forward passes, run the same way", "its forward passes, one by one"
    return [compared("val", name, alike, seconds[:, [0, 2]], per, target=target),
            compared("val", f"{name}, and COCO's AP by size", alike, seconds[:, [1, 2]], per),
            compared("val", name, alone, seconds[:, [0, 3]], per)]  # fmt: skip


@torch.no_grad()
def fire_everywhere(model: DetectionModel) -> None:
    """Give an untrained head high scores everywhere, as in the first epochs of a training."""
    head = model.model[-1]
    for conv in (m for m in head.modules() if isinstance(m, nn.Conv2d) and m.bias is not None):
        conv.bias.zero_()
    if isinstance(head, AnchorFreeDetect):
        head.initialize_boxes()


def load_trained(c: Conditions) -> Runtime:
    """Load the trained model, with the classes of the dataset."""
    content = load_checkpoint(c.weights)
    return Runtime(with_classes(content, c.weights, c.data.names, c.data.yaml_file.name), c.device)


def inference(c: Conditions) -> list[Row]:
    """Time one image of INFERRED px, as detect.py runs it and with fewer optimizations, against the plain network."""
    return list(itertools.chain.from_iterable(infer_one(c, cfg) for cfg in c.cfgs))


def infer_one(c: Conditions, cfg: str) -> list[Row]:
    """Return the rows of `inference` for one model."""
    model = DetectionModel(cfg).to(c.device).eval()
    image = torch.randint(0, 256, (1, 3, INFERRED, INFERRED), dtype=torch.uint8)
    x = image.to(c.device) / 255
    last = x.contiguous(memory_format=torch.channels_last)
    runtimes = {what: Runtime(copy.deepcopy(model), c.device, amp=amp)
                for what, amp in ((AS_DETECTED, "auto"), ("as val.py runs it", "off"))}  # fmt: skip
    calls = {what: partial(runtime.predict, image) for what, runtime in runtimes.items()}
    for name, form in FORMS.items():
        twin = getattr(copy.deepcopy(model), form)()
        calls[f"{name}, NCHW"] = partial(twin, x)
        calls[f"{name}, channels-last"] = partial(copy.deepcopy(twin).to(memory_format=torch.channels_last), last)
    name = Path(cfg).stem
    with engine_calls(copy.deepcopy(model), image) as engines, torch.inference_mode():
        calls |= engines
        seconds = time_in_turns([*calls.values(), partial(model, x)], max(c.rounds * 5, 20), budget=120,
                                each=turns(name), rest=REST)  # fmt: skip
    targets = {("yolov5_shufflenet", AS_DETECTED): 0.45, **TARGETS}
    return [compared("infer", f"{name}, {what}", "eager float32 NCHW", seconds[:, [k, -1]], (1, 1),
                     target=targets.get((name, what))) for k, what in enumerate(calls)]  # fmt: skip
