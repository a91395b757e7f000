"""Train a detector.

    python train.py                                                        # a small drawn data set, a few minutes
    python train.py --cfg models/yolov5_shufflenet.yaml --data VOC.yaml    # PASCAL VOC, prepared by voc2yolo.py
    python train.py --resume                                               # go on with the newest run
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from models.checkpoint import load_checkpoint, model_from_checkpoint, save_checkpoint, transfer_weights, weights_content
from models.runtime import Runtime, check_img_size, to_input
from models.yolo import DetectionModel, coarse_stride_warning, model_summary
from my_tools.default_set import prepare_shapes
from utils.anchors import check_anchors
from utils.config import DataConfig, load_data, load_hyp, load_yaml, save_yaml
from utils.console import LOGGER, progress, quoted, run_script, shown
from utils.dataset import DetectionDataset, create_loader
from utils.device import describe_device, seed_everything, select_device
from utils.draw import draw_batch
from utils.errors import UserError
from utils.files import find_file, git_commit, increment_path, newest
from utils.images import write_image
from utils.labels import LabelIndex, label_path, load_labels
from utils.logs import ResultsLog
from utils.loss import ComputeLoss, scaled_gains
from utils.metrics import fitness
from utils.optim import EarlyStopping, ModelEMA, create_optimizer, lr_factor, set_rates, warmup_steps
from utils.options import OPTIMIZERS, TrainOptions
from utils.plots import plot_labels, plot_results
from val import Results, Settings, evaluate, results_table

PROGRESS_HEADER = ("\n" + "%11s" * 7) % ("Epoch", "GPU_mem", "box_loss", "obj_loss", "cls_loss", "Instances", "Size")
PICTURED_BATCHES = 3
DEFAULT_CFG = "models/yolov5_shufflenet.yaml"


@dataclass
class Run:
    """Everything a training run works with."""

    opt: TrainOptions
    hyp: dict[str, float]
    data: DataConfig
    names: dict[int, str]
    folder: Path
    device: torch.device
    model: DetectionModel
    ema: ModelEMA
    optimizer: Optimizer
    loader: DataLoader
    val_loader: DataLoader | None
    stopper: EarlyStopping
    log: ResultsLog
    start_epoch: int = 0
    last_step: int = -1  # number of the batch after which the weights were last changed
    seconds: float = 0.0

    @property
    def last(self) -> Path:
        return self.folder / "weights" / "last.pt"

    @property
    def best_file(self) -> Path:
        return self.folder / "weights" / "best.pt"


def train(run: Run) -> None:
    """The training loop: epochs of batches, an evaluation and a checkpoint after each."""
    opt, hyp = run.opt, run.hyp
    schedule = lr_factor(opt.epochs, hyp["lrf"], opt.cos_lr)
    run.model.hyp = scaled_gains(hyp, run.model.model[-1], opt.imgsz)
    compute_loss = ComputeLoss(run.model)
    for epoch in range(run.start_epoch, opt.epochs):
        start = time.perf_counter()
        losses = train_epoch(run, epoch, hyp["lr0"] * schedule(epoch), compute_loss)
        results, final = None, epoch == opt.epochs - 1
        if run.val_loader and (not opt.noval or final):
            results = validate(run, compute_loss)
            LOGGER.info(results_table(results, run.names).splitlines()[1])
        score = float(fitness(results.summary)) if results else 0.0
        stop = run.stopper(epoch, score)
        run.seconds += time.perf_counter() - start
        rates = [g["lr"] for g in run.optimizer.param_groups]
        figures = [*results.summary, *results.losses] if results else [0.0] * 7
        run.log.add([epoch, *losses, *map(float, figures[:4]), *figures[4:], *(rates + [0.0] * 3)[:3]])
        if not opt.nosave or final or stop:
            save(run, epoch, figures[:4], finished=final or stop)
        if stop:
            LOGGER.info(f"no better epoch in {opt.patience}: stopped; the best was epoch {run.stopper.best_epoch} "
                        "(--patience 0 never stops)")  # fmt: skip
            break


def train_epoch(run: Run, epoch: int, lr: float, compute_loss: ComputeLoss) -> list[float]:
    """One pass over the training images; returns the mean of the three losses."""
    opt, hyp, batches = run.opt, run.hyp, len(run.loader)
    warmup = warmup_steps(hyp["warmup_epochs"], batches, opt.epochs)
    per_step = max(hyp["nbs"] / opt.batch_size, 1.0)
    run.model.train()
    run.loader.sampler.epoch = epoch
    mean = torch.zeros(3, device=run.device)
    run.optimizer.zero_grad()
    LOGGER.info(PROGRESS_HEADER)
    bar = progress(run.loader, total=batches)
    for i, (images, targets, paths, _) in enumerate(bar):
        step = i + epoch * batches
        part = min(step / warmup, 1.0) if warmup else 1.0
        set_rates(run.optimizer, part, lr, hyp)
        accumulate = max(round(1 + part * (per_step - 1)), 1)
        loss, parts = compute_loss(run.model(to_input(images, run.device)), targets.to(run.device))
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} in epoch {epoch}, batch {i}: train with a lower learning rate (lr0, now "
                f"{hyp['lr0']:g}, in a copy of {opt.hyp}) and look at the labels in train_batch0.jpg"
            )
        loss.backward()
        if step - run.last_step >= accumulate:
            nn.utils.clip_grad_norm_(run.model.parameters(), max_norm=10.0, foreach=run.device.type != "mps")
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.ema.update(run.model)
            run.last_step = step
        mean = (mean * i + parts) / (i + 1)
        memory = torch.cuda.memory_reserved() / 1e9 if run.device.type == "cuda" else 0
        where = (f"{epoch}/{opt.epochs - 1}", f"{memory:.3g}G")
        bar.set_description(("%11s" * 2 + "%11.4g" * 5) % (*where, *mean.tolist(), len(targets), images.shape[-1]))
        if step < PICTURED_BATCHES and not opt.noplots:
            picture = draw_batch(images, targets.numpy(), paths, run.names)
            write_image(run.folder / f"train_batch{step}.jpg", picture)
    return mean.tolist()


def validate(run: Run, compute_loss: ComputeLoss) -> Results:
    """Score the smoothed weights on the validation images."""
    def forward(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return run.ema.ema(to_input(images, run.device))

    settings = Settings(single_cls=run.opt.single_cls)
    return evaluate(forward, run.val_loader, run.names, run.device, settings, compute_loss)


def save(run: Run, epoch: int, figures: list[float], finished: bool) -> None:
    """Write last.pt, to resume from, and best.pt if this epoch is the best."""
    metrics = dict(zip(("precision", "recall", "mAP50", "mAP50-95"), map(float, figures), strict=True))
    facts = {"metrics": metrics, "epoch": epoch, "options": run.opt.plain(), "hyp": run.hyp, "commit": git_commit()}
    run.ema.ema.names = run.names
    best = run.stopper.best_epoch == epoch or run.opt.nosave  # with --nosave the last epoch is all there is
    # best.pt first: a run cut off between the two files resumes from an epoch before and writes both again
    if best:
        save_checkpoint(run.best_file, weights_content(run.ema.ema, run.opt.imgsz, **facts))
    content = weights_content(run.ema.ema, run.opt.imgsz, half=False, **facts)
    content["kind"] = "training"
    content["training"] = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "ema_updates": run.ema.updates,
        "rows": run.log.rows,
        "seconds": run.seconds,
        "last_step": run.last_step,
        "finished": finished,
        **run.stopper.state(),
    }
    save_checkpoint(run.last, content)


def finish(run: Run) -> Results | None:
    """Draw the curves, score best.pt on the val split and, if it is another, the test split; say what is where."""
    if not run.opt.noplots:
        plot_results(run.log.path, run.folder / "results.png")
    LOGGER.info(f"\n{len(run.log.rows)} epochs in {run.seconds:.0f} s")
    results = None
    if run.val_loader and run.best_file.exists():
        content = load_checkpoint(run.best_file)
        runtime = Runtime(model_from_checkpoint(content, run.best_file), run.device)
        LOGGER.info(f"\n{run.best_file.name} is of epoch {content['epoch']}")
        results = score(run, runtime, "val", run.val_loader, plots=not run.opt.noplots)
        if run.data.test and run.data.test != run.data.val and any(p.exists() for p in run.data.test):
            results = score(run, runtime, "test", eval_loader(run, "test", runtime.stride), plots=False)
    command = f"python detect.py --weights {quoted(shown(run.best_file))} --source data/images"
    LOGGER.info(f"\nweights   {shown(run.best_file)}  ({run.best_file.stat().st_size / 2**20:.1f} MiB)\n"
                f"pictures  {shown(run.folder)}\nnext      {command}")  # fmt: skip
    return results


def score(run: Run, runtime: Runtime, split: str, loader: DataLoader, plots: bool) -> Results:
    """Evaluate best.pt on a split and print the table."""
    settings = Settings(single_cls=run.opt.single_cls, folder=run.folder, plots=plots)
    LOGGER.info(f"\n{split} split:")
    results = evaluate(lambda im: (runtime.predict(im), None), loader, run.names, run.device, settings)
    LOGGER.info(results_table(results, run.names, per_class=len(run.names) <= 30))
    return results


def setup(opt: TrainOptions, resumed: dict | None, folder: Path | None) -> Run:
    """Build everything a run needs, from the options alone or with the state of a checkpoint."""
    data = load_data(opt.data)
    if taken := opt.with_defaults(data.defaults, str(data.yaml_file)):
        LOGGER.info(f"defaults from {data.yaml_file.name}: {' '.join(taken)}")
    hyp = resumed["hyp"] if resumed else load_hyp(opt.hyp)
    device = select_device(opt.device)
    prepare_shapes(data.yaml_file)
    train_parts, val_parts = data.existing("train"), data.existing("val") if data.val else ()
    seed_everything(opt.seed)
    names = {0: "object"} if opt.single_cls else data.names
    if resumed and list(resumed["names"].values()) != list(names.values()):
        raise UserError(f"--resume: the class names in {data.yaml_file} have changed since this run began")
    model = build_model(opt, hyp, len(names), resumed).to(device, memory_format=torch.channels_last)
    opt.imgsz = check_img_size(opt.imgsz, int(model.stride.max()))[0]
    LOGGER.info(f"{model_summary(model, opt.imgsz)}\n{describe_device(device)}, seed {opt.seed}, {opt.hyp}")
    if warning := coarse_stride_warning(model):
        LOGGER.warning(warning)
    warn_of_missing(data, "train")
    index = load_labels(train_parts, data.nc, "train: ")
    val_index = load_labels(val_parts, data.nc, "val: ") if val_parts else None
    if not len(index.values):
        raise UserError(f"train: not one object in {len(index)} images; label files are looked for in "
                        f"{label_path(index.file(0)).parent}")  # fmt: skip
    if not opt.noautoanchor and not resumed:
        check_anchors(index, model.model[-1], hyp["anchor_t"], opt.imgsz, opt.seed)
    if folder is None:
        folder = increment_path(Path(opt.project) / opt.name, opt.exist_ok)
        (folder / "weights").mkdir(exist_ok=True)
        write_settings(opt, hyp, index, names, folder)
    LOGGER.info(f"results go to {shown(folder)}")
    return assemble(opt, hyp, data, names, folder, device, model, index, val_index)


def build_model(opt: TrainOptions, hyp: dict[str, float], nc: int, resumed: dict | None) -> DetectionModel:
    """The network: resumed, from --cfg, from --weights, or from --cfg with the tensors of --weights that fit."""
    if resumed:
        model = model_from_checkpoint(resumed, "last.pt")
        model.load_state_dict(resumed["training"]["model"])
        return model
    content = load_checkpoint(opt.weights) if opt.weights else None
    cfg = opt.cfg or (content["yaml"] if content else DEFAULT_CFG)
    anchors = round(hyp["anchors"])
    model = DetectionModel(cfg, nc=nc, anchors=anchors or None)
    if opt.noautoanchor and isinstance(model.yaml["anchors"], int):
        raise UserError("--noautoanchor: the hyp file or the model yaml gives a number of anchors only; leave it out")
    if content:
        transfer_weights(model, content, opt.weights, anchors=not opt.cfg and not anchors)
    return model


def assemble(
    opt: TrainOptions, hyp: dict[str, float], data: DataConfig, names: dict[int, str], folder: Path,
    device: torch.device, model: DetectionModel, index: LabelIndex, val_index: LabelIndex | None,
) -> Run:  # fmt: skip
    """Put optimizer, smoothed weights and loaders around a model."""
    accumulate = max(round(hyp["nbs"] / opt.batch_size), 1)
    decay = hyp["weight_decay"] * opt.batch_size * accumulate / hyp["nbs"]
    optimizer = create_optimizer(model, opt.optimizer, hyp["lr0"], hyp["momentum"], decay)
    stride = int(model.stride.max())
    train_set = DetectionDataset(index, opt.imgsz, opt.batch_size, hyp, opt.rect, stride, cache=opt.cache,
                                 single_cls=opt.single_cls, seed=opt.seed)  # fmt: skip
    pin = device.type == "cuda"
    loader = create_loader(train_set, opt.batch_size, opt.workers, shuffle=not opt.rect, pin_memory=pin)
    run = Run(opt, hyp, data, names, folder, device, model, ModelEMA(model), optimizer, loader, None,
              EarlyStopping(opt.patience), ResultsLog(folder / "results.csv"))  # fmt: skip
    if val_index is not None:
        run.val_loader = eval_loader(run, "val", stride, val_index)
    return run


def eval_loader(run: Run, split: str, stride: int, index: LabelIndex | None = None) -> DataLoader:
    """A loader over a split as val.py sees it: letterboxed, batches of like proportions."""
    index = index or load_labels(run.data.existing(split), run.data.nc, f"{split}: ")
    batch = run.opt.batch_size * 2
    dataset = DetectionDataset(index, run.opt.imgsz, batch, rect=True, pad=0.5, stride=stride, cache=run.opt.cache,
                               single_cls=run.opt.single_cls)  # fmt: skip
    return create_loader(dataset, batch, run.opt.workers, shuffle=False, pin_memory=run.device.type == "cuda")


def warn_of_missing(data: DataConfig, split: str) -> None:
    """Warn of parts of a split that the yaml lists and the disk lacks."""
    missing = [str(p) for p in getattr(data, split) if not p.exists()]
    if missing:
        LOGGER.warning(f"{data.yaml_file.name} lists {', '.join(missing)}, which is not there: training without it")


def write_settings(opt: TrainOptions, hyp: dict, index: LabelIndex, names: dict[int, str], folder: Path) -> None:
    """opt.yaml, hyp.yaml, environment.yaml, labels.jpg: what the run was asked for and what it learns from."""
    save_yaml(folder / "opt.yaml", opt.plain())
    save_yaml(folder / "hyp.yaml", hyp)
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "commit": git_commit()}
    save_yaml(folder / "environment.yaml", {**versions, "data": load_yaml(find_file(opt.data, ("data",), "--data"))})
    if not opt.noplots:
        plot_labels(index.values, names, folder / "labels.jpg")


def restore(run: Run, content: dict) -> None:
    """Put a run back to where its last.pt was written."""
    state = content["training"]
    run.optimizer.load_state_dict(state["optimizer"])
    run.ema.ema.load_state_dict(content["model"])
    run.ema.updates = state["ema_updates"]
    run.stopper.best_fitness, run.stopper.best_epoch = state["best_fitness"], state["best_epoch"]
    run.log.rows = state["rows"]
    run.seconds, run.last_step = state["seconds"], state["last_step"]
    run.start_epoch = content["epoch"] + 1


def open_resumed(flags: TrainOptions) -> tuple[TrainOptions, dict, Path]:
    """The options, checkpoint and folder of the run to go on with. Raises UserError if it is finished.

    Of the flags given now, those that do not change what is learnt take the place of the run's own.
    """
    changeable = {"device", "workers", "cache", "noplots"}
    if others := sorted(set(flags.given) - changeable - {"resume"}):
        raise UserError(f"--resume goes on with the run's own options: leave out --{others[0].replace('_', '-')} "
                        f"(only {', '.join(sorted(changeable))} can change)")  # fmt: skip
    file = Path(flags.resume) if isinstance(flags.resume, str) else newest("train/*/weights/last.pt")
    if file is None:
        raise UserError("--resume: there is no last.pt in runs/train; give its path")
    content = load_checkpoint(file, training=True)
    if content["training"]["finished"]:
        raise UserError(f"{file}: this run is finished ({content['epoch'] + 1} epochs); start a new one with "
                        f"--weights {file} to train on")  # fmt: skip
    if file.resolve().parent.name != "weights":
        raise UserError(f"{file}: lies in no run folder; --resume takes runs/train/<name>/weights/last.pt")
    changed = {k: getattr(flags, k) for k in changeable & set(flags.given)}
    options = TrainOptions.from_flags({**content["options"], **changed})
    return options, content, file.resolve().parents[1]


def run(**kwargs: object) -> Results | None:
    """Train with options named as the flags, such as run(data="VOC.yaml", epochs=10); returns the final figures.

    Raises UserError for bad input.
    """
    opt, content, folder = TrainOptions.from_flags(kwargs), None, None
    if opt.resume:
        opt, content, folder = open_resumed(opt)
    training = setup(opt, content, folder)
    if content:
        restore(training, content)
        LOGGER.info(f"resuming {shown(folder)} at epoch {training.start_epoch}")
    train(training)
    return finish(training)


def parse_opt() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a detector. In brackets: the defaults; those of the data yaml (`defaults:`) come before them"
    )
    add = parser.add_argument
    add("--weights", default=None, help="checkpoint to start from; from scratch if left out")
    add("--cfg", default=None, help=f"model yaml, also looked for in models/ ({DEFAULT_CFG})")
    add("--data", default=None, help="data yaml, also looked for in data/ (shapes.yaml)")
    add("--hyp", default=None, help="hyper-parameters, also looked for in data/hyps/ (hyp.scratch-low.yaml)")
    add("--epochs", type=int, default=None, help="(100)")
    add("--batch-size", "--batch", type=int, default=None, help="(16)")
    add("--imgsz", "--img", "--img-size", type=int, default=None, help="side of the images in pixels (640)")
    add("--rect", action="store_true", default=None, help="batches of like proportions, without mosaic")
    add("--resume", nargs="?", const=True, default=None, help="go on with the newest run, or with this last.pt")
    add("--nosave", action="store_true", default=None, help="write checkpoints at the end only")
    add("--noval", action="store_true", default=None, help="evaluate after the last epoch only")
    add("--noautoanchor", action="store_true", default=None, help="leave the anchors as they are")
    add("--noplots", action="store_true", default=None, help="draw no pictures")
    add("--cache", nargs="?", const="ram", default=None, help="keep decoded images in ram (default) or on disk")
    add("--device", default=None, help="cpu, mps, or a GPU's number")
    add("--single-cls", action="store_true", default=None, help="treat all classes as one")
    add("--optimizer", default=None, help=f"{', '.join(OPTIMIZERS)} (SGD)")
    add("--workers", type=int, default=None, help="loader processes at most (8)")
    add("--project", default=None, help="results go to project/name (runs/train)")
    add("--name", default=None, help="(exp)")
    add("--exist-ok", action="store_true", default=None, help="use project/name even if it exists")
    add("--cos-lr", action="store_true", default=None, help="learning rate along a cosine")
    add("--patience", type=int, default=None, help="epochs without improvement before stopping, 0: never (100)")
    add("--seed", type=int, default=None, help="(0)")
    return parser.parse_args()


def main(opt: argparse.Namespace) -> None:
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, parse_opt())
