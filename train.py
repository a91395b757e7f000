"""Train a detector.

    python train.py                                                        # the default dataset, a few minutes
    python train.py --cfg models/yolov5_shufflenet.yaml --data VOC.yaml    # PASCAL VOC, prepared by voc2yolo.py
    python train.py --resume                                               # continue the newest run
    torchrun --nproc_per_node 2 train.py --data VOC.yaml                   # one process on each of two GPUs
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

from utils.settings.flags import read_first
from utils.settings.train_flags import train_parser


def parse_opt() -> argparse.Namespace:
    """Read the command line; `utils/settings/train_flags.py` lists the flags."""
    return train_parser(__doc__).parse_args()


if __name__ == "__main__":
    OPT = read_first(parse_opt)  # before the slow import of torch: --help and flag errors appear at once

import numpy as np
import torch
from torch import Tensor, nn

from models.inference.runtime import Runtime
from models.run.resume import open_resumed, resume_command, save_state, save_weights
from models.run.setup import Run, eval_loader, setup
from models.run.start import choose_hyp
from models.run.step import Computed, Group, accumulated, compute, groups_of, warmed_up
from models.weights.checkpoint import load_checkpoint, model_from_checkpoint
from utils.data.dataset import Batch
from utils.data.images import write_image
from utils.data.loader import LoaderError, batches_of
from utils.draw.boxes import draw_batch
from utils.draw.plots import plot_results
from utils.errors import UserError, no_memory
from utils.evaluation.coco import usable_annotations
from utils.evaluation.metrics import fitness
from utils.evaluation.scoring import Part
from utils.files import ROOT, atomic_write
from utils.settings.dataset import DataConfig, load_data
from utils.settings.options import TrainOptions, effective_hyp
from utils.system.background import one_torch_thread
from utils.system.console import LOGGER, progress, quoted, run_script, shown
from utils.system.distributed import disconnect, gather, highest, locked, lost_process_is_told, spread, total
from utils.system.processes import is_main, rank, world_size
from utils.system.signals import StopRequest
from utils.training.evolve import run_evolution
from utils.training.image_weights import image_weights
from utils.training.logs import COLUMNS, progress_header, results_row, write_results
from utils.training.loss_checks import BadLoss
from utils.training.optim import lr_factor, set_rates
from utils.training.tensorboard import PICTURES, TensorBoardLog, require_package
from utils.voc.default_set import prepare_shapes
from val import Results, Settings, evaluate, results_table

PICTURED_BATCHES = 3


class Stopped(Exception):
    """Raised after the current batch if the user has asked to stop."""


class CutShort(Exception):
    """Raised during an evaluation if the user has asked to stop; the other processes do not know it yet."""


def train(run: Run, stop: StopRequest) -> None:
    """Run the training loop: each epoch trains on all batches, evaluates, and writes a checkpoint."""
    opt, state = run.opt, run.state
    board = TensorBoardLog(run.folder, state.epoch) if opt.tensorboard and is_main() else None
    if not opt.nosave and not state.epoch and not state.batch:
        save_state(run)  # from here on, an interrupted run can be resumed
    while not state.done:
        train_epoch(run, stop)
        epoch, last = state.epoch, state.epoch == opt.epochs - 1
        results = validate(run, stop) if run.val_loader is not None and (not opt.noval or last) else None
        state.done = state.stopper(epoch, float(fitness(results.summary)) if results else 0.0) or last
        record(run, results, board)
        state.epoch, state.batch = epoch + 1, 0
        start = time.perf_counter()
        if state.stopper.best_epoch == epoch and not opt.nosave or state.done and opt.nosave:
            save_weights(run, run.best, epoch)  # before last.pt: if killed in between, repeat the epoch
        if opt.save_period > 0 and epoch % opt.save_period == 0:
            save_weights(run, run.folder / "weights" / f"epoch{epoch}.pt", epoch)
        if not opt.nosave or state.done:
            save_state(run)
        spend(run, "save", start)
        if state.done and not last:
            LOGGER.info(f"stopped early: no improvement in {opt.patience} epochs, the best was epoch "
                        f"{state.stopper.best_epoch} (--patience 0 disables early stopping)")  # fmt: skip
    if board:
        board.close()
    if highest(int(stop.requested), run.device):
        raise Stopped


def train_epoch(run: Run, stop: StopRequest) -> None:
    """Train on the remaining batches of the epoch. Raises Stopped after a batch if the user has asked to stop."""
    state, loader = run.state, run.loader
    run.model.train()
    loader.batch_sampler.epoch, loader.batch_sampler.start = state.epoch, state.batch
    if not state.batch:
        state.losses = torch.zeros_like(state.losses)
        state.seconds.update(data=0.0, step=0.0, val=0.0)
        state.optimizer.zero_grad()
    if run.opt.image_weights and state.class_maps:
        loader.batch_sampler.weights = image_weights(loader.dataset.index, state.class_maps)
    LOGGER.info(progress_header(shown_parts(run)))
    start = shown_at = time.perf_counter()
    with progress(total=len(loader), initial=state.batch) as bar:
        for group in groups_of(run, batches_of(loader)):
            start = spend(run, "data", start)
            stopping = train_group(run, group, stop)
            bar.update(len(group.batches))
            if run.device.type == "cpu" or state.batch == len(loader) or start - shown_at > 1:  # synchronizes a GPU
                images, targets, *_ = group.batches[-1]
                show_progress(run, bar, len(targets), images.shape[-1])
                shown_at = start
            start = spend(run, "step", start)
            if stopping or state.batch == len(loader):
                if bad := run.checks.last():
                    refuse_loss(run, bad)
            if stopping:
                raise Stopped


def train_group(run: Run, group: Group, stop: StopRequest) -> bool:
    """Train on a group of batches that are computed at once. Return whether to stop."""
    with one_torch_thread(bool(run.parallel and run.parallel.helpers)):
        computed = compute(run, group)
        return any([train_batch(run, batch, one, stop) for batch, one in zip(group.batches, computed, strict=True)])


def train_batch(run: Run, batch: Batch, computed: Computed, stop: StopRequest) -> bool:
    """Check the loss of a batch; every few batches, step the optimizer. Return whether to stop."""
    opt, hyp, state, (images, _, paths, _) = run.opt, run.hyp, run.state, batch
    loss, parts, targets = computed
    step = state.batch + state.epoch * len(run.loader)
    lr = hyp["lr0"] * lr_factor(opt.epochs, hyp["lrf"], opt.cos_lr)(state.epoch)
    set_rates(state.optimizer, warmed_up(run, step), lr, hyp)
    bad = run.checks.add(loss, (state.batch, images, targets, paths))
    signal = highest(2 if bad else int(stop.requested), run.device)
    if signal == 2:
        refuse_loss(run, bad)
    if run.parallel is None:
        # with several processes, each loss is one share of the total, and gradients are averaged, not summed
        state.scaler.scale(loss * world_size()).backward()
    if step - state.last_step >= accumulated(run, step):
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.learner.parameters(), max_norm=10.0, foreach=run.device.type != "mps")
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.ema.update(run.model)
        state.last_step = step
    state.losses = (state.losses * state.batch + parts) / (state.batch + 1)
    state.batch += 1
    if step < PICTURED_BATCHES and not opt.noplots and is_main():
        write_image(run.folder / f"train_batch{step}.jpg", draw_batch(images, targets.numpy(), paths, run.names))
    return signal == 1


def refuse_loss(run: Run, bad: BadLoss | None) -> None:
    """Save the batch whose loss is not finite, to be inspected, and raise UserError."""
    if bad is None:
        raise UserError("stopped because the loss of another process is not finite")
    number, images, targets, paths = bad.batch
    name = "bad_batch" + (f"_{rank()}" if rank() else "")
    write_image(run.folder / f"{name}.jpg", draw_batch(images, targets.numpy(), paths, run.names))
    with atomic_write(run.folder / f"{name}.npz") as f:
        np.savez(f, images=images.numpy(), targets=targets.numpy(), paths=np.array(paths))
    format_advice = "" if run.precision.dtype == torch.float32 else ", with --amp off"
    raise UserError(
        f"the loss is {bad.value} in epoch {run.state.epoch}, batch {number}: train with a lower learning rate "
        f"(lr0, now {run.hyp['lr0']:g}, in a copy of {run.opt.hyp}){format_advice}, and look at the labels in "
        f"{shown(run.folder / name)}.jpg"
    )


def show_progress(run: Run, bar: progress, instances: int, size: int) -> None:
    """Show the epoch, GPU memory and mean losses so far in the progress bar."""
    state = run.state
    memory = torch.cuda.memory_reserved() / 1e9 if run.device.type == "cuda" else 0
    where = (f"{state.epoch}/{run.opt.epochs - 1}", f"{memory:.3g}G")
    losses = (state.losses * world_size()).tolist()[: len(shown_parts(run))]
    bar.set_description(("%11s" * 2 + "%11.4g" * (len(losses) + 2)) % (*where, *losses, instances, size))


def shown_parts(run: Run) -> tuple[str, ...]:
    """Return the names of the losses that the progress bar shows."""
    return (*run.train_loss.parts, "teach") if run.teaching.teacher else run.train_loss.parts


def spend(run: Run, kind: str, start: float) -> float:
    """Add the seconds since `start` to the total of `kind`; return the current time."""
    now = time.perf_counter()
    run.state.seconds[kind] = run.state.seconds.get(kind, 0.0) + now - start
    return now


def validate(run: Run, stop: StopRequest) -> Results:
    """Evaluate the EMA weights on the validation images; each process evaluates its share of them.

    Raises Stopped if the user asks to stop; the epoch is then saved as trained, and a resumed run repeats only this.
    """
    def forward(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        if stop.requested:
            raise CutShort
        return runtime.forward(images)

    def parts_of_all(part: Part | None) -> list[Part]:
        parts = gather(part)
        if any(p is None for p in parts):
            raise Stopped
        return parts

    start = time.perf_counter()
    spread(list(run.state.ema.ema.buffers()))  # use the main process's batch norm statistics on all
    runtime = Runtime(copy.deepcopy(run.state.ema.ema), run.device)
    settings = Settings(single_cls=run.opt.single_cls, writes=is_main(), by_size=False)
    try:
        results = evaluate(forward, run.val_loader, run.names, run.device, settings, run.val_loss, parts_of_all)
    except CutShort:
        parts_of_all(None)
    run.state.class_maps = [float(results.summary[3])] * len(run.names)
    for c, ap in zip(results.classes, results.ap.mean(1), strict=True):
        run.state.class_maps[int(c)] = float(ap)
    LOGGER.info(results_table(results, run.names).splitlines()[1])
    spend(run, "val", start)
    return results


def record(run: Run, results: Results | None, board: TensorBoardLog | None) -> None:
    """Add the epoch to results.csv and TensorBoard, and warn if data loading is the bottleneck."""
    state = run.state
    rates = [g["lr"] for g in state.optimizer.param_groups]
    figures = [*results.summary, *results.losses] if results else [0.0] * 7
    losses, times = total(state.losses).tolist()[:3], [state.seconds[kind] for kind in ("data", "step", "val")]
    row = results_row(state.epoch, [*losses, *map(float, figures), *(rates + [0.0] * 3)[:3], *times])
    state.rows.append(row)
    data, step = times[:2]
    if state.epoch == 1 and data > step:  # epoch 0 includes the start of the worker processes
        LOGGER.warning(f"the model waited {data:.0f} s of {data + step:.0f} s for images: try more --workers (now "
                       f"{run.loader.num_workers}), --cache ram or smaller image files")  # fmt: skip
    if is_main():
        write_results(run.folder / "results.csv", state.rows)
        if board:
            board.add(state.epoch, COLUMNS[1:], row[1:])


def finish(run: Run) -> Results | None:
    """Plot the curves, evaluate best.pt on the val split and on a separate test split, and print the paths."""
    state, plots = run.state, not run.opt.noplots
    if plots and is_main():
        plot_results(run.folder / "results.csv", run.folder / "results.png")
    data, step, val, save = *np.array(state.rows)[:, -3:].sum(0), state.seconds.get("save", 0.0)
    LOGGER.info(f"\n{len(state.rows)} epochs in {data + step + val + save:.0f} s: {step:.0f} s training, {data:.0f} s "
                f"waiting for images, {val:.0f} s validating, {save:.0f} s saving")  # fmt: skip
    results = None
    gather(None)  # wait for all processes: best.pt is then written
    if run.val_loader is not None and run.best.exists():
        content = load_checkpoint(run.best)
        runtime = Runtime(model_from_checkpoint(content, run.best), run.device)
        LOGGER.info(f"\n{run.best.name} is from epoch {content['epoch']}")
        results = score(run, runtime, "val", run.val_loader, plots)
        if run.data.test and run.data.test != run.data.val and any(p.exists() for p in run.data.test):
            results = score_test(run, runtime) or results
    if run.opt.tensorboard and is_main():
        board = TensorBoardLog(run.folder, len(state.rows))
        for name in PICTURES:
            if (run.folder / name).exists():
                board.image(name, run.folder / name)
        board.close()
    save_state(run, finished=True)
    LOGGER.info(f"\nweights   {shown(run.best)}  ({run.best.stat().st_size / 2**20:.1f} MiB)\n"
                f"results   {shown(run.folder)}\n"
                f"next      python detect.py --weights {quoted(shown(run.best))} --source data/images")  # fmt: skip
    return results


def score_test(run: Run, runtime: Runtime) -> Results | None:
    """Evaluate best.pt on the test split. An unusable split gives only a warning, as the training is complete."""
    try:
        loader = eval_loader(run, "test", runtime.stride)
    except UserError as e:
        LOGGER.warning(f"the test split was skipped: {e}")
        return None
    return score(run, runtime, "test", loader, plots=False)


def score(run: Run, runtime: Runtime, split: str, loader: torch.utils.data.DataLoader, plots: bool) -> Results:
    """Evaluate best.pt on a split and print the table."""
    annotations = usable_annotations(run.data, split, loader.dataset.index, needed=False)
    settings = Settings(single_cls=run.opt.single_cls, folder=run.folder, plots=plots, writes=is_main(),
                        annotations=annotations)  # fmt: skip
    LOGGER.info(f"\n{split} split:")
    results = evaluate(lambda im: (runtime.predict(im), None), loader, run.names, run.device, settings, gather=gather)
    LOGGER.info(results_table(results, run.names, per_class=len(run.names) <= 30))
    return results


def run(**kwargs: object) -> Results | None:
    """Train with options named like the flags, such as run(data="VOC.yaml", epochs=10); return the final metrics.

    Raises UserError for bad input, KeyboardInterrupt after Ctrl-C.
    """
    opt = TrainOptions.from_flags(kwargs)
    opt.check_together()
    if opt.tensorboard:
        require_package()
    if opt.evolve:
        return run_evolution(opt, prepare, lambda *args: train_and_finish(*args)[0].state.rows[-1][4:11])
    content = folder = None
    if opt.resume:
        opt, content, folder = open_resumed(opt)
    data = prepare(opt, resumed=bool(content))
    return train_and_finish(opt, content["hyp"] if content else effective_hyp(opt), data, content, folder)[1]


def prepare(opt: TrainOptions, resumed: bool = False) -> DataConfig:
    """Load the dataset yaml, and draw the default dataset if it is missing.

    Its `defaults:`, and the hyper-parameters that suit the head, are applied to the options of a run that is not
    resumed.
    """
    data = load_data(opt.data)
    if taken := opt.with_defaults(data.defaults, str(data.yaml_file)):
        LOGGER.info(f"defaults from {data.yaml_file.name}: {' '.join(taken)}")
    if not resumed:
        choose_hyp(opt)
    with locked(ROOT):
        prepare_shapes(data.yaml_file)
    return data


def train_and_finish(
    opt: TrainOptions, hyp: dict[str, float], data: DataConfig, content: dict | None = None, folder: Path | None = None
) -> tuple[Run, Results | None]:
    """Train a run until it ends or the user stops it."""
    with lost_process_is_told():
        training = setup(opt, hyp, data, content, folder)
    state = training.state
    try:
        if content:
            with lost_process_is_told():
                state.restore(content["training"], content["model"])
            LOGGER.info(f"resuming {shown(training.folder)} in epoch {state.epoch}, after {state.batch} batches")
        with lost_process_is_told(lambda: resume_command(training)):
            with StopRequest() as stop:
                try:
                    train(training, stop)
                except Stopped:
                    save_state(training)
                    where = f"epoch {state.epoch}, after batch {state.batch} of {len(training.loader)}"
                    raise KeyboardInterrupt(f"stopped in {where}, and saved; {resume_command(training)}") from None
                except LoaderError as e:
                    if world_size() == 1:  # saving needs all processes, and only this one failed
                        save_state(training)
                    raise UserError(f"{e}; {resume_command(training)}") from e
            results = None if opt.evolve else finish(training)
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt(str(e) or f"interrupted; {resume_command(training)}") from None
    except Exception as e:
        if not (told := no_memory(e)):
            raise
        if training.parallel:
            told += ", or --parts 1, which needs less memory"
        raise UserError(f"{told}; {resume_command(training)}") from e
    finally:
        training.close()
    disconnect()
    return training, results


def main(opt: argparse.Namespace) -> None:
    """Run with the options of the command line."""
    run(**vars(opt))


if __name__ == "__main__":
    run_script(main, OPT)
