"""The checkpoints of a run, best.pt and last.pt: written after each epoch, and read by `--resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.run.setup import Run
from models.weights.checkpoint import load_checkpoint, save_checkpoint, weights_content
from utils.errors import UserError
from utils.files import find_file, git_commit, newest
from utils.settings.options import TrainOptions
from utils.system.console import quoted, shown
from utils.system.distributed import gather
from utils.system.processes import is_main, world_size

# flags that do not affect the trained weights (--data only if images, labels and class names are the same, --teacher
# only if it is the same model), and --parts, which another machine may need
CHANGEABLE = ("cache", "data", "device", "noplots", "parts", "teacher", "tensorboard", "workers")
METRICS = ("precision", "recall", "mAP50", "mAP50-95")


def save_weights(run: Run, path: Path, epoch: int) -> None:
    """Write a "weights" checkpoint for a finished epoch, with the EMA weights in half precision."""
    if is_main():
        save_checkpoint(path, weights_content(run.state.ema.ema, run.opt.imgsz, **_facts(run, epoch)))


def save_state(run: Run, finished: bool = False) -> None:
    """Write last.pt, from which a resumed run continues exactly as without interruption. All processes must call it.

    finished: best.pt has been evaluated too, so the run is complete.
    """
    state = run.state.content()
    if is_main():
        facts = _facts(run, run.state.epoch - 1)
        content = weights_content(run.state.ema.ema, run.opt.imgsz, half=False, **facts)
        content["kind"] = "training"
        content["training"] = {**state, "data": run.digest, "amp": run.precision.amp, "finished": finished,
                               "several_batches": run.parallel is not None and run.parallel.several,
                               "teacher": run.teaching.teacher.digest if run.teaching.teacher else ""}  # fmt: skip
        save_checkpoint(run.last, content)
    gather(None)  # all processes wait: if one exited during the write, torchrun would stop the writing process


def resume_command(run: Run) -> str:
    """Return a hint with the command that resumes a run, or an empty string if there is no last.pt."""
    start = "python" if world_size() == 1 else f"torchrun --standalone --nproc_per_node {world_size()}"
    return f"to resume: {start} train.py --resume {quoted(shown(run.last))}" if run.last.exists() else ""


def _facts(run: Run, epoch: int) -> dict[str, Any]:
    figures = run.state.rows[-1][4:8] if run.state.rows else [0.0] * 4
    metrics = dict(zip(METRICS, map(float, figures), strict=True))
    return {"metrics": metrics, "epoch": epoch, "options": run.opt.plain(), "hyp": run.hyp, "commit": git_commit()}


def open_resumed(flags: TrainOptions) -> tuple[TrainOptions, dict[str, Any], Path]:
    """Return the options, checkpoint and folder of the run to resume. Raises UserError if it cannot be resumed.

    The flags in CHANGEABLE override the run's own options; no others may be given.
    """
    if others := sorted(set(flags.given) - set(CHANGEABLE) - {"resume"}):
        raise UserError(f"--resume uses the options of the run itself: leave out --{others[0].replace('_', '-')} "
                        f"(only {', '.join(f'--{flag}' for flag in CHANGEABLE)} can be changed)")  # fmt: skip
    file = Path(flags.resume) if isinstance(flags.resume, str) else newest("train/*/weights/last.pt")
    if file is None:
        raise UserError("--resume: there is no last.pt in runs/train; give its path")
    if file.is_dir():
        file = file / "weights" / "last.pt"
    content = load_checkpoint(file, training=True)
    if content["training"].get("finished"):
        raise UserError(f"{file}: this run is finished ({content['epoch'] + 1} epochs); start a new one with "
                        f"--weights {file} to continue training")  # fmt: skip
    if (count := len(content["training"].get("processes", [0]))) != world_size():
        raise UserError(f"{file}: this run had {count} process{'es' if count > 1 else ''}, but now there "
                        f"{'are' if world_size() > 1 else 'is'} {world_size()}: start train.py with "
                        + (f"torchrun --standalone --nproc_per_node {count}" if count > 1 else "python"))  # fmt: skip
    if file.resolve().parent.name != "weights":
        raise UserError(f"{file}: is not in a run's folder; --resume needs runs/train/<name>/weights/last.pt")
    folder = file.resolve().parents[1]
    for part in (*folder.glob(".*.part"), *folder.glob("weights/.*.part")):
        part.unlink(missing_ok=True)  # incomplete files of a killed process
    changed = {k: getattr(flags, k) for k in set(CHANGEABLE) & set(flags.given)}
    # a run of an earlier version, without this option, computed each batch as a whole
    opt = TrainOptions.from_flags({"parts": 1, **content["options"], **changed})
    if "data" not in changed:
        _check_data(opt.data)
    if opt.teacher and not Path(opt.teacher).exists():
        raise UserError(f"--resume: the teacher of this run, {opt.teacher}, does not exist any more; give its new path "
                        "with --teacher")  # fmt: skip
    return opt, content, folder


def _check_data(name: str) -> None:
    """Raise UserError if the dataset yaml of a run to be resumed does not exist any more."""
    try:
        find_file(name, ("data",), "--data")
    except UserError:
        raise UserError(f"--resume: the dataset yaml of this run, {name}, does not exist any more; give its new path "
                        "with --data") from None  # fmt: skip
