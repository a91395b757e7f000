"""Setup of a training run, from its options or from the checkpoint of a run to be resumed."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from models.blocks.memory import replace_strided_depthwise
from models.inference.runtime import check_img_size, to_input
from models.run.parallel import ParallelSteps, can_fork, number_of_parts
from models.run.shared_network import has_running_means
from models.run.start import build_model
from models.run.state import TrainState, data_digest
from models.run.sync_bn import synchronise_batch_norms
from models.run.teacher import Teacher
from models.run.teaching import PARTS, Pupil, Teaching
from models.run.unlabelled import with_unlabelled
from models.weights.checkpoint import save_checkpoint
from models.weights.imagenet import TORCHVISION
from models.yolo import DetectionModel, coarse_stride_warning, model_summary
from utils.data.dataset import DetectionDataset, rescale
from utils.data.labels import LabelIndex, index_split, label_path
from utils.data.loader import close_loader, create_loader
from utils.draw.plots import plot_labels
from utils.errors import UserError, shorten
from utils.files import find_file, git_commit, increment_path
from utils.losses.anchor_free_loss import AnchorFreeLoss
from utils.losses.compute_loss import ComputeLoss, loss_of, scaled_gains
from utils.settings.config import load_yaml, save_yaml
from utils.settings.dataset import DataConfig
from utils.settings.options import TrainOptions
from utils.system.console import LOGGER, quoted, shown
from utils.system.device import describe_device, keep_freed_memory, seed_everything, select_device
from utils.system.distributed import connect, gather, locked, total
from utils.system.precision import Precision, choose_precision
from utils.system.processes import is_main, local_rank, local_world_size, rank, world_size
from utils.training.anchors import adapt_anchors, warn_of_unfit
from utils.training.autobatch import check_train_batch_size, memory_suffices
from utils.training.loss_checks import LossChecks
from utils.training.optim import EarlyStopping, ModelEMA, create_optimizer


@dataclass
class Run:
    """All objects of a training run.

    network: the model as it is called, wrapped for several processes or compiled. teaching: how it is called.
    parallel: computes batches with several processes on a CPU; None: each batch is computed in this process.
    """

    opt: TrainOptions
    hyp: dict[str, float]
    data: DataConfig
    digest: str
    folder: Path
    precision: Precision
    network: nn.Module
    state: TrainState
    loader: DataLoader
    val_loader: DataLoader | None
    train_loss: ComputeLoss | AnchorFreeLoss
    val_loss: ComputeLoss | AnchorFreeLoss
    checks: LossChecks
    teaching: Teaching
    parallel: ParallelSteps | None = None

    @property
    def model(self) -> DetectionModel:
        """The model itself, without wrappers."""
        return self.state.model

    def close(self) -> None:
        """End the processes that load images and compute batches."""
        close_loader(self.loader)
        close_loader(self.val_loader)
        if self.parallel:
            self.parallel.close()

    @property
    def names(self) -> dict[int, str]:
        """Class names {index: name}."""
        return self.model.names

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.precision.device

    @property
    def last(self) -> Path:
        """Path of last.pt."""
        return self.folder / "weights" / "last.pt"

    @property
    def best(self) -> Path:
        """Path of best.pt."""
        return self.folder / "weights" / "best.pt"


def setup(opt: TrainOptions, hyp: dict[str, float], data: DataConfig, content: dict | None = None,
          folder: Path | None = None) -> Run:  # fmt: skip
    """Build a run. content, folder: checkpoint and folder of a run to be resumed.

    Raises UserError if options, data and checkpoint do not fit together.
    """
    device = training_device(opt)
    names = {0: "object"} if opt.single_cls else data.names
    seed_everything(opt.seed)
    model = build_model(opt, hyp, names, content)  # before the scan, so that a wrong file name is reported at once
    if content:
        check_names(content, names, data)
    precision = choose_precision(content["training"].get("amp", "off") if content else opt.amp, device)
    opt.imgsz = check_img_size(opt.imgsz, int(model.stride.max()))[0]
    teacher = find_teacher(opt, names, model, precision)
    index, val_index = scan(data)
    if content and (teacher.digest if teacher else "") != content["training"].get("teacher", ""):
        raise UserError(f"--resume: --teacher {opt.teacher} is not the model that has taught this run until now")
    index = with_unlabelled(index, data, teacher, opt.imgsz, [i for i in (val_index,) if i is not None])
    digest = data_digest(index, val_index)
    if content:
        check_unchanged(content, digest, data, folder)
        note_moved_data(content, opt.data, folder)
    if opt.batch_size != -1:
        check_batch_size(opt, len(index))
    if opt.image_weights and opt.rect:
        raise UserError("--image-weights draws images at random, but --rect sorts them by shape: choose one")
    if opt.image_weights and (opt.noval or val_index is None):
        raise UserError("--image-weights uses the validation of each epoch: it needs a val split and excludes --noval")
    model = model.to(device, memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
        if precision.dtype == torch.bfloat16:
            replace_strided_depthwise(model)
    LOGGER.info(f"{model_summary(model, opt.imgsz)}\n{describe_device(device)}, {world_size()} process"
                f"{'es' if world_size() > 1 else ''}, {precision.reason}, seed {opt.seed}, {opt.hyp}")  # fmt: skip
    if warning := coarse_stride_warning(model):
        LOGGER.warning(warning)
    has_anchors = bool(model.model[-1].anchor_rows())
    if has_anchors and not opt.noautoanchor and not content:
        learnt = model.model[-1].anchors.clone()
        adapt_anchors(index, model.model[-1], hyp["anchor_t"], opt.imgsz, opt.seed)
        if opt.weights not in ("", TORCHVISION) and not torch.equal(learnt, model.model[-1].anchors):
            LOGGER.warning("the head from --weights was trained with other anchors; --noautoanchor keeps them")
    if has_anchors and not content:
        warn_of_unfit(index, model.model[-1], hyp["anchor_t"], opt.imgsz, chosen=opt.noautoanchor)
    connect(device)  # as late as possible: a label scan may take longer than the timeout between processes
    if opt.batch_size == -1:
        opt.batch_size = automatic_batch_size(model, opt, precision, len(index))
        check_batch_size(opt, len(index))
    model.hyp = scaled_gains(hyp, model.model[-1], opt.imgsz)
    opt.parts = parts_of_batches(opt, model, device, warn=not content)
    folder = folder or new_folder(opt, hyp, model, index)
    LOGGER.info(f"results go to {shown(folder)}")
    several = several_at_once(opt, content, lambda n: memory_suffices(model, opt.imgsz, n, precision.autocast))
    return assemble(opt, hyp, data, digest, folder, precision, model, teacher, index, val_index, several)


def training_device(opt: TrainOptions) -> torch.device:
    """Return the device of this process, from `--device`. With several processes, each one uses its own GPU of it."""
    name = opt.device
    if world_size() > 1 and name != "cpu" and torch.cuda.is_available():
        listed = name.split(",") if name else [str(i) for i in range(torch.cuda.device_count())]
        if local_world_size() > len(listed):
            raise UserError(f"--device {name}: {len(listed)} GPUs for {local_world_size()} processes; use one per GPU")
        name = listed[local_rank()]
    device = select_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def scan(data: DataConfig) -> tuple[LabelIndex, LabelIndex | None]:
    """Read the labels of the train and val splits. Raises UserError if the train split has no objects."""
    train_parts = data.existing("train")
    if data.val:
        data.existing("val")
    if missing := [str(p) for p in data.train if not p.exists()]:
        LOGGER.warning(f"{data.yaml_file.name}: {', '.join(missing)} does not exist, training without it")
    with locked(train_parts[0].parent):  # one process scans, the others then read its label cache
        index = index_split(data, "train")
        val_index = index_split(data, "val") if data.val else None
    if not len(index.values):
        raise UserError(f"train: no objects in {len(index)} images; label files are expected in "
                        f"{label_path(index.file(0)).parent}")  # fmt: skip
    return index, val_index


def check_names(content: dict[str, Any], names: dict[int, str], data: DataConfig) -> None:
    """Raise UserError if the classes have changed since a run to be resumed began."""
    if list(content["names"].values()) != list(names.values()):
        raise UserError(f"--resume: the class names in {data.yaml_file} have changed since this run began, or it is "
                        "the yaml of another dataset")  # fmt: skip


def check_unchanged(content: dict[str, Any], digest: str, data: DataConfig, folder: Path) -> None:
    """Raise UserError if the images or labels have changed since a run to be resumed began."""
    if content["training"].get("data") != digest:
        weights = quoted(shown(folder / "weights/last.pt"))
        raise UserError(f"--resume: the images or labels of {data.yaml_file} have changed since this run began; to "
                        f"train on the new ones, start a new run with --weights {weights}")  # fmt: skip


def note_moved_data(content: dict[str, Any], data: str, folder: Path) -> None:
    """Write the new path of the dataset yaml, if it has moved, to opt.yaml and last.pt, for the next `--resume`."""
    if data == content["options"].get("data") or not is_main():
        return
    content["options"]["data"] = data
    save_yaml(folder / "opt.yaml", content["options"])
    save_checkpoint(folder / "weights" / "last.pt", content)
    LOGGER.info(f"--data {data}: has the same images, labels and class names; this run uses it from now on")


def automatic_batch_size(model: DetectionModel, opt: TrainOptions, precision: Precision, images: int) -> int:
    """Return the batch size for `--batch-size -1`: the largest that every process can hold, times their number."""
    share = images // world_size()
    size = min(gather(check_train_batch_size(model, opt.imgsz, precision.device, share, precision.autocast)))
    return max(size // 4 * 4, 4) * world_size() if opt.quad else size * world_size()


def check_batch_size(opt: TrainOptions, images: int) -> None:
    """Raise UserError if the batch size does not fit the number of processes and images, or `--quad`."""
    world = world_size()
    if opt.batch_size % world or images < world:
        raise UserError(f"--batch-size {opt.batch_size} is for all {world} processes together and must be a multiple "
                        f"of {world}, with at least {world} images")  # fmt: skip
    if opt.quad and (opt.batch_size % (4 * world) or images < 4 * world):
        raise UserError(f"--quad combines four images into one: --batch-size must be a multiple of {4 * world}, with "
                        "at least as many images in the dataset")  # fmt: skip


def new_folder(opt: TrainOptions, hyp: dict[str, float], model: DetectionModel, index: LabelIndex) -> Path:
    """Create the run's folder with opt.yaml, hyp.yaml, model.yaml, environment.yaml, labels.jpg; returns its path."""
    folder = Path()
    if is_main():
        folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok)
        (folder / "weights").mkdir(exist_ok=True)
        save_yaml(folder / "opt.yaml", opt.plain())
        save_yaml(folder / "hyp.yaml", hyp)
        save_yaml(folder / "model.yaml", {k: v for k, v in model.yaml.items() if k not in ("ch", "yaml_file")})
        versions = {"python": platform.python_version(), "torch": str(torch.__version__), "commit": git_commit()}
        content = load_yaml(find_file(opt.data, ("data",), "--data"))
        save_yaml(folder / "environment.yaml", {**versions, "data": content})
        if not opt.noplots:
            plot_labels(index.values, model.names, folder / "labels.jpg")
    return Path(gather(str(folder))[0])


def assemble(
    opt: TrainOptions, hyp: dict[str, float], data: DataConfig, digest: str, folder: Path, precision: Precision,
    model: DetectionModel, teacher: Teacher | None, index: LabelIndex, val_index: LabelIndex | None, several: bool,
) -> Run:  # fmt: skip
    """Create the optimizer, EMA weights, losses and loaders for a model and return the run."""
    world, stride, device = world_size(), int(model.stride.max()), precision.device
    accumulate = max(round(hyp["nbs"] / opt.batch_size), 1)
    decay = hyp["weight_decay"] * opt.batch_size * accumulate / hyp["nbs"]
    ema = ModelEMA(model)
    if opt.sync_bn and world > 1:
        synchronise_batch_norms(model, device)
    learner = Pupil(model, teacher.channels) if teacher else model
    optimizer = create_optimizer(learner, opt.optimizer, hyp["lr0"], hyp["momentum"], decay)
    network = learner
    if world > 1:
        network = share_gradients(learner, device)
    if opt.compile:
        network = torch.compile(network)
    train_set = DetectionDataset(index, opt.imgsz, opt.batch_size, hyp, opt.rect, stride, cache=opt.cache,
                                 single_cls=opt.single_cls, seed=opt.seed, quad=opt.quad,
                                 colours=not opt.gpu_augment,
                                 mosaics=max(opt.epochs - round(hyp.get("close_mosaic", 0)), 0))  # fmt: skip
    loader = create_loader(train_set, opt.batch_size, opt.workers, shuffle=not opt.rect,
                           pin_memory=device.type == "cuda", rank=rank(), world=world, whole=False,
                           niceness=loader_niceness(opt, device))  # fmt: skip
    state = TrainState(model, ema, optimizer, precision.scaler(), EarlyStopping(opt.patience),
                       torch.zeros(PARTS, device=device), learner=learner)  # fmt: skip
    run = Run(opt, hyp, data, digest, folder, precision, network, state, loader, None,
              loss_of(model, total if world > 1 else None), loss_of(model),
              LossChecks(device.type == "cuda"), Teaching(teacher))  # fmt: skip
    if val_index is not None:
        run.val_loader = eval_loader(run, "val", stride, val_index)
    if opt.parts > 1:  # last, as it starts processes
        run.parallel = parallel_steps(run, several)
    return run


def find_teacher(
    opt: TrainOptions, names: dict[int, str], model: DetectionModel, precision: Precision
) -> Teacher | None:
    """Return the teacher that `--teacher` names, if any, and tell what it knows. Raises UserError if it is unfit."""
    if not opt.teacher:
        return None
    teacher = Teacher(opt.teacher, names, model.stride.tolist(), precision)
    if teacher.size and (opt.multi_scale or opt.rect or teacher.size != [opt.imgsz] * 2):
        raise UserError(f"--teacher {opt.teacher}: takes only images of {teacher.size[1]}x{teacher.size[0]} px; train "
                        "with this --imgsz, without --multi-scale and --rect, or export it with --dynamic")  # fmt: skip
    unknown = [name for name, known in zip(names.values(), teacher.known.tolist(), strict=True) if not known]
    LOGGER.info(f"--teacher {shown(teacher.path)}: knows {len(names) - len(unknown)} of {len(names)} classes"
                + (f", not {shorten(', '.join(unknown))}" if unknown else ""))  # fmt: skip
    teacher(torch.zeros(1, 3, opt.imgsz, opt.imgsz, device=precision.device))  # fails here rather than in a helper
    teacher.close()
    return teacher


def parts_of_batches(opt: TrainOptions, model: DetectionModel, device: torch.device, warn: bool = True) -> int:
    """Return how many batches, or parts of a batch, are computed at once: `--parts`, or as many as suit the cores.

    warn: tell if `--parts` has no effect.
    """
    if device.type != "cpu" or world_size() > 1 or opt.compile or opt.gpu_augment:
        if warn and opt.parts > 1:
            LOGGER.warning(f"--parts {opt.parts} is for a CPU and one process, without --compile and --gpu-augment: "
                           "each batch is computed as a whole")  # fmt: skip
        return 1
    images = opt.batch_size // 4 if opt.quad else opt.batch_size
    parts = opt.parts or (number_of_parts(images, torch.get_num_threads()) if has_running_means(model) else 1)
    if parts > 1 and not can_fork():
        LOGGER.warning(f"--parts {parts}: several processes are only used on Linux, and where torch has no GPU; here, "
                       "all cores compute one part after the other")  # fmt: skip
    return parts


def several_at_once(opt: TrainOptions, content: dict | None, suffices: Callable[[float], bool]) -> bool:
    """Return whether several whole batches are computed at once: as in the run to be resumed, or if memory suffices.

    suffices: whether it does for a number of images.
    """
    if opt.parts == 1:
        return False
    same = content and content["options"].get("parts") == opt.parts
    largest = opt.batch_size * (2.25 if opt.multi_scale else 1)  # 1.5 times the side
    several = content["training"].get("several_batches", False) if same else suffices(opt.parts * largest)
    if can_fork():
        what = ("whole batches where the optimizer waits for several, otherwise parts of one" if several
                else "parts of each batch, as there is not enough memory for several batches")  # fmt: skip
        LOGGER.info(f"{opt.parts} processes compute {what} (--parts 1: all cores work on each operation)")
    return several


def loader_niceness(opt: TrainOptions, device: torch.device) -> int:
    """Return by how much to lower the priority of the processes that load images; they must not delay the model."""
    if device.type != "cpu":
        return 0
    return 5 if opt.parts > 1 else 19


def parallel_steps(run: Run, several: bool) -> ParallelSteps:
    """Return the object that computes batches with several processes; the model moves to memory that they share."""
    opt, precision, stride = run.opt, run.precision, int(run.model.stride.max())

    def prepare(images: Tensor, seed: tuple[int, ...]) -> Tensor:
        if not opt.multi_scale:
            return to_input(images, precision.device, precision.dtype)
        return rescale(to_input(images, precision.device), opt.imgsz, stride, np.random.default_rng(seed))

    values = opt.batch_size * 3 * opt.imgsz**2
    return ParallelSteps(run.state.learner, run.train_loss, precision, opt.parts, values, prepare,
                         4.0 if opt.quad else 1.0, several, run.teaching)  # fmt: skip


def share_gradients(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap a network for several processes: gradients are averaged, batch norm statistics are not synchronised."""
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None,
                                   gradient_as_bucket_view=True, **{buffers: False})  # fmt: skip


def eval_loader(run: Run, split: str, stride: int, index: LabelIndex | None = None) -> DataLoader:
    """Return a loader for this process's share of a split, as in val.py: letterboxed, similar shapes in a batch."""
    if index is None:
        with locked(run.data.existing(split)[0].parent):
            index = index_split(run.data, split)
    batch = run.opt.batch_size * 2
    dataset = DetectionDataset(index, run.opt.imgsz, batch, rect=True, pad=0.5, stride=stride, cache=run.opt.cache,
                               single_cls=run.opt.single_cls)  # fmt: skip
    return create_loader(dataset, batch, run.opt.workers, shuffle=False, pin_memory=run.device.type == "cuda",
                         rank=rank(), world=world_size())  # fmt: skip
