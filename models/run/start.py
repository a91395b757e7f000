"""What a training starts from: the hyper-parameters that suit the model, and the network with its initial weights."""

from __future__ import annotations

from models.inference.runtime import check_channels
from models.weights.checkpoint import check_fit, load_checkpoint, model_from_checkpoint
from models.weights.imagenet import TORCHVISION, start_backbone
from models.weights.transfer import transfer_weights
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.settings.config import load_hyp, load_model_cfg
from utils.settings.options import DEFAULT_HYP, HEAD_HYPS, TrainOptions
from utils.system.console import LOGGER

DEFAULT_CFG = "models/yolov5_shufflenet.yaml"


def choose_hyp(opt: TrainOptions) -> None:
    """Choose the hyp file that suits the head of the model, its optimizer and schedule, unless given as flags."""
    head = head_name(opt)
    if "hyp" not in opt.given and head in HEAD_HYPS:
        opt.hyp = HEAD_HYPS[head]
        LOGGER.info(f"--hyp {opt.hyp}: the default of {head}")
    opt.hyp = opt.hyp or DEFAULT_HYP
    hyp = load_hyp(opt.hyp)
    if head in HEAD_HYPS:
        if hyp["box"] < 1:
            LOGGER.warning(f"--hyp {opt.hyp} is for heads with anchors, as its gain 'box' of {hyp['box']:g} shows; the "
                           f"one for {head} is {HEAD_HYPS[head]}")  # fmt: skip
        if hyp["label_smoothing"] or opt.label_smoothing or hyp["cls_pw"] != 1:
            LOGGER.warning(f"label_smoothing and cls_pw have no effect on {head}, whose class targets are IoUs")
    if opt.optimizer == "auto":
        opt.optimizer = hyp.get("optimizer") or "SGD"
    opt.cos_lr = opt.cos_lr or bool(hyp["cos_lr"])


def head_name(opt: TrainOptions) -> str:
    """Return the name of the head of the model that `--cfg` or `--weights` describes, empty if it has none."""
    if opt.cfg or opt.weights in ("", TORCHVISION):
        cfg = load_model_cfg(opt.cfg or DEFAULT_CFG)
    else:
        cfg = load_checkpoint(opt.weights)["yaml"]
    row = (cfg.get("head") or [None])[-1]
    return str(row[2]) if isinstance(row, list) and len(row) > 2 else ""


def build_model(
    opt: TrainOptions, hyp: dict[str, float], names: dict[int, str], content: dict | None
) -> DetectionModel:
    """Build the network of a run.

    content: checkpoint of a run to be resumed. Otherwise the config is --cfg or that of --weights, and the tensors of
    --weights that fit are loaded. From torchvision's weights, or --backbone-weights, only the backbone is loaded.
    """
    if content:
        return freeze(model_from_checkpoint(content, "last.pt"), opt)
    from_imagenet = opt.weights == TORCHVISION or bool(opt.backbone_weights)
    weights = load_checkpoint(opt.weights) if opt.weights and not from_imagenet else None
    if weights and not opt.cfg:
        check_fit(weights, opt.weights)
    cfg = opt.cfg or (weights["yaml"] if weights else DEFAULT_CFG)
    anchors = round(hyp["anchors"])
    model = DetectionModel(cfg, ch=None if opt.cfg else 3, nc=len(names), anchors=anchors or None)
    check_channels(model.yaml, f"--cfg {opt.cfg}")
    model.names = names
    if opt.noautoanchor and model.model[-1].anchor_rows() and isinstance(model.yaml["anchors"], int):
        raise UserError("the hyp file or the model yaml gives only a number of anchors: leave out --noautoanchor")
    if weights:
        transfer_weights(model, weights, opt.weights, anchors=not opt.cfg and not anchors,
                         fresh_head=opt.fresh_head, verbose=opt.verbose)  # fmt: skip
    if from_imagenet:
        start_backbone(model, opt.backbone_weights, opt.verbose)
    return freeze(model, opt)


def freeze(model: DetectionModel, opt: TrainOptions) -> DetectionModel:
    """Exclude the layers listed by `--freeze` from training. Returns the model."""
    model.requires_grad_(True)
    if not opt.frozen_layers:
        return model
    if max(opt.frozen_layers) >= len(model.model) - 1:
        raise UserError(f"--freeze {' '.join(map(str, opt.freeze))}: this model has layers 0 to {len(model.model) - 1},"
                        " the last of which must be trained")  # fmt: skip
    for i in opt.frozen_layers:
        model.model[i].requires_grad_(False)
    LOGGER.info(f"--freeze: layers {', '.join(map(str, opt.frozen_layers))} are not trained")
    return model
