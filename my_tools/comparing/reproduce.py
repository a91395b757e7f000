"""Reproduce the articles' experiments: train several configs one after another under the same conditions.

`my_tools/compare.py --reproduce voc` calls this and then compares the trained models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import train
from models.run.setup import scan
from models.run.start import choose_hyp, head_name
from models.run.state import data_digest
from models.weights.checkpoint import load_checkpoint
from models.yolo import DetectionModel
from utils.data.augment import make_divisible
from utils.errors import UserError
from utils.files import MODEL_FOLDERS, find_file
from utils.settings.config import HYPERPARAMETERS, load_model_cfg
from utils.settings.dataset import load_data
from utils.settings.options import HEAD_HYPS, TrainOptions, effective_hyp
from utils.system.console import LOGGER, shown


@dataclass(frozen=True)
class Experiment:
    """An experiment of an article: its model yaml files, dataset and flags of train.py."""

    models: tuple[str, ...]
    data: str
    flags: Mapping[str, Any]


# flags and model yaml keys that an existing run must share with the requested training
FLAGS = ("epochs", "imgsz", "batch_size", "optimizer", "seed", "amp", "weights", "single_cls")
STRUCTURE = ("backbone", "head", "depth_multiple", "width_multiple", "channel_multiple", "activation")

EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType({
    "voc": Experiment(
        ("yolov5_shufflenet.yaml", "yolov5_stem_shufflenet.yaml", "yolov5l_slimneck.yaml"), "VOC.yaml",
        MappingProxyType({"epochs": 300, "imgsz": 640, "batch_size": 16, "hyp": "hyp.scratch-low.yaml"}),
    ),
})  # fmt: skip


def train_all(name: str, models: Sequence[str], flags: Mapping[str, Any], folder: Path) -> list[Path]:
    """Train each model of an experiment into folder/train/<config>, one after another; returns these run folders.

    models: model yaml files to train instead of the experiment's. flags: of train.py, which override the experiment's;
    with another `data`, the experiment's flags are not used, only these and the defaults in that data yaml. All models
    have the same seed, and so the same order of images. A finished run is not repeated, an interrupted one is resumed.
    Raises UserError, before any training, for models that do not exist and for existing runs with other settings.
    """
    experiment = EXPERIMENTS[name]
    given = {k: v for k, v in flags.items() if v is not None}
    settings = {**({} if given.get("data", experiment.data) != experiment.data else experiment.flags), **given}
    settings.setdefault("data", experiment.data)
    # check everything before the first training starts
    cfgs = [find_file(m, MODEL_FOLDERS, "--models") for m in models or experiment.models]
    if len({c.stem for c in cfgs}) < len(cfgs):
        raise UserError("--models: two models have the same name")
    data = load_data(settings["data"])
    for cfg in cfgs:
        DetectionModel(cfg, nc=data.nc)
    runs = [(folder / "train" / cfg.stem, _flags_for(cfg, settings, "hyp" in given)) for cfg in cfgs]
    begun = any(_last(run).is_file() for run, _ in runs)
    digest = data_digest(*scan(data)) if begun else ""
    states = [state_of(run, wanted, digest) for run, wanted in runs]
    for number, ((run, wanted), state) in enumerate(zip(runs, states, strict=True), 1):
        LOGGER.info(f"\n{run.name}, {number} of {len(runs)}: {state}")
        if state != "finished":
            _train(run, wanted, resume=state == "to be resumed")
    return [run for run, _ in runs]


def _flags_for(cfg: Path, settings: Mapping[str, Any], own_hyp: bool) -> dict[str, Any]:
    """Return the flags for a model: without the experiment's hyp file if it does not suit the head (own_hyp: given)."""
    wanted = {**settings, "cfg": str(cfg)}
    if not own_hyp and head_name(TrainOptions.from_flags({"cfg": str(cfg)})) in HEAD_HYPS:
        wanted.pop("hyp", None)
    return wanted


def _last(run: Path) -> Path:
    return run / "weights" / "last.pt"


def _train(run: Path, wanted: Mapping[str, Any], resume: bool) -> None:
    changeable = {k: wanted[k] for k in ("device", "workers", "cache") if k in wanted}
    try:
        if resume:
            train.run(resume=str(run / "weights" / "last.pt"), **changeable)
        else:
            train.run(**wanted, project=str(run.parent), name=run.name, exist_ok=True)
    except KeyboardInterrupt as e:
        reason = str(e).split(";")[0] or "interrupted"
        raise KeyboardInterrupt(f"{reason}; to resume, run the same command again") from None


def state_of(run: Path, wanted: Mapping[str, Any], digest: str) -> str:
    """Return the state of a run: `finished`, `to be resumed` or `to be trained`.

    digest: the fingerprint of the present images and labels. Raises UserError if the run was trained with other
    settings than `wanted`: flags, hyperparameters, model, images or labels.
    """
    if not _last(run).is_file():
        return "to be trained"
    content = load_checkpoint(_last(run), training=True)
    for what, theirs, ours in conditions(content, wanted, digest):
        if theirs != ours:
            now = f"{theirs}, now it is {ours}" if what.startswith("--") else "as it was before a change"
            raise UserError(f"{shown(run)} was trained with {what} {now}: choose another --name, or use the settings "
                            "of that run")  # fmt: skip
    return "finished" if content["training"].get("finished") else "to be resumed"


def conditions(content: Mapping[str, Any], wanted: Mapping[str, Any], digest: str) -> list[tuple[str, Any, Any]]:
    """Return the settings that a training depends on: (name, value in the last.pt `content`, value in `wanted`)."""
    options = TrainOptions.from_flags(wanted)
    options.with_defaults(load_data(options.data).defaults, options.data)
    choose_hyp(options)
    options.imgsz = make_divisible(options.imgsz, int(max(content["stride"])))  # as train.py does
    theirs, ours = content["options"], options.plain()
    found = [(f"--{key.replace('_', '-')}", theirs.get(key), ours[key]) for key in FLAGS]
    found.append(("--data", *(_path(o["data"], "data") for o in (theirs, ours))))
    hyp = effective_hyp(options)
    # runs of older versions lack what has been added since
    before = {key: default for key, (default, _, _) in HYPERPARAMETERS.items()} | content["hyp"]
    found += [(f"--hyp with {key}", before.get(key), value) for key, value in hyp.items()]
    cfg = load_model_cfg(options.cfg)
    found += [(f"the {key} of the model yaml", content["yaml"].get(key), cfg.get(key)) for key in STRUCTURE]
    return [*found, (f"{Path(options.data).name}'s set of images and labels", content["training"].get("data"), digest)]


def _path(name: str, folder: str) -> str:
    try:
        return str(find_file(name, (folder,), "--data"))
    except UserError:
        return name
