"""Initialization of a backbone with the weights of torchvision's ShuffleNetV2, trained on ImageNet classification.

The weights of conv1 and the stages are copied block by block; conv5 and fc are not used in a detector. For the same
input tensor, the backbone in eval mode then computes the same output as torchvision's stages. The input range differs:
torchvision's weights were trained on normalised images (mean and standard deviation of ImageNet), ours are in [0, 1].
The weights are not corrected for that, because the batch norm after the first convolution adapts within a few batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from models.common import CRM, InvertedResidual
from models.weights.checkpoint import load_tensors
from models.weights.foreign import fold_eps
from models.weights.shufflenet_layout import as_torchvision, is_authors_layout
from models.weights.transfer import Transfer
from models.yolo import DetectionModel
from utils.errors import UserError
from utils.files import ROOT
from utils.system.console import LOGGER
from utils.system.distributed import locked
from utils.system.processes import is_main

TORCHVISION = "torchvision"  # as a value of --weights
TORCHVISION_EPS = 1e-5  # of every batch norm in torchvision's model
# torchvision's name -> output channels of conv1 and of stages 2, 3 and 4
VARIANTS = {
    "shufflenet_v2_x0_5": (24, 48, 96, 192),
    "shufflenet_v2_x1_0": (24, 116, 232, 464),
    "shufflenet_v2_x1_5": (24, 176, 352, 704),
    "shufflenet_v2_x2_0": (24, 244, 488, 976),
}
COUNTER = "num_batches_tracked"  # of batch norms; missing in files from before PyTorch 0.4.1, and not needed


def start_backbone(model: DetectionModel, file: str = "", verbose: bool = False) -> Transfer:
    """Load the backbone of `model` from `file` or, if it is empty, from torchvision, which may download the weights.

    verbose: print how many tensors of each layer were loaded. Raises UserError if the weights cannot be obtained or do
    not fit.
    """
    if file:
        return load_backbone(model, load_tensors(file), file, verbose)
    variant = variant_of(_widths(_shapes(model)))
    if not variant:
        raise UserError(f"--weights {TORCHVISION}: {_config(model)} does not have one of torchvision's backbones; "
                        f"choose --cfg {', '.join(map(_config_for, VARIANTS))}")  # fmt: skip
    return load_backbone(model, download_weights(variant), TORCHVISION, verbose)


def load_backbone(model: DetectionModel, state: Mapping[str, Tensor], where: str, verbose: bool = False) -> Transfer:
    """Copy conv1 and the stages of a ShuffleNetV2 state dict into `model`; prints what was loaded.

    state: in torchvision's layout, or in that of the network's authors, which is converted. The key prefix `module.`,
    which training on several GPUs adds, is removed. Raises UserError, naming the config that would fit, unless every
    block fits.
    """
    state = {k.removeprefix("module."): v for k, v in state.items()}
    if is_authors_layout(state):
        try:
            state, _ = as_torchvision(state)
        except UserError as e:
            raise UserError(f"{where}: {e}") from e
    if misfit := _misfit(model, state):
        raise UserError(f"{where}: {misfit}")
    places = _places(model)
    chosen = {ours: _as_ours(theirs, state) for theirs, ours in places.items() if theirs in state}
    if bad := [theirs for theirs, ours in places.items() if ours in chosen and not chosen[ours].isfinite().all()]:
        raise UserError(f"{where}: is damaged, or its training failed: values of {bad[0]} are not finite")
    model.load_state_dict(chosen, strict=False)
    result = Transfer(whole=list(chosen), left=[k for k in model.state_dict() if k not in chosen])
    name = variant_of(_widths(_shapes(model))) or "a ShuffleNetV2 of other widths"
    blocks = sum(k.endswith("branch2.0.weight") for k in places)
    LOGGER.info(f"{where}: {name}, {blocks} blocks, {len(chosen)} of {len(places)} tensors of conv1 and stages loaded; "
                "the other layers start untrained" + (f"\n{result.table(model)}" if verbose else ""))  # fmt: skip
    return result


def _as_ours(key: str, state: Mapping[str, Tensor]) -> Tensor:
    """Return one of torchvision's tensors for our network: weights of batch norms are adapted to our eps."""
    variance = state.get(f"{key.removesuffix('.weight')}.running_var")
    if not key.endswith(".weight") or variance is None:
        return state[key]
    return fold_eps(state[key].float(), variance.float(), TORCHVISION_EPS)


def _places(model: DetectionModel) -> dict[str, str]:
    """Map torchvision's keys of conv1 and the stages to ours; empty if the backbone has no such blocks."""
    rows, keys = len(model.yaml["backbone"]), list(model.state_dict())
    prefixes, stage, block = {}, 1, 0
    for name, m in model.model[:rows].named_modules():
        if isinstance(m, CRM) and name == "0":
            prefixes["model.0.conv1."] = "conv1."
        if isinstance(m, InvertedResidual):
            stage, block = (stage + 1, 0) if m.stride > 1 else (stage, block + 1)
            prefixes[f"model.{name}."] = f"stage{stage}.{block}."
    return {theirs + key.removeprefix(ours): key
            for ours, theirs in prefixes.items() for key in keys if key.startswith(ours)}  # fmt: skip


def _shapes(model: DetectionModel) -> dict[str, torch.Size]:
    """Return the shapes of the backbone's tensors, with torchvision's names as keys."""
    own = model.state_dict()
    return {theirs: own[ours].shape for theirs, ours in _places(model).items()}


def _widths(shapes: Mapping[str, torch.Size]) -> tuple[int, ...]:
    """Return the output channels of conv1 and of stages 2, 3 and 4; empty if it is not a ShuffleNetV2."""
    last = [shapes.get(f"stage{stage}.0.branch2.5.weight", ()) for stage in (2, 3, 4)]
    first = shapes.get("conv1.0.weight", ())
    if any(len(shape) != 4 for shape in (first, *last)):
        return ()
    return (first[0], *(2 * shape[0] for shape in last))


def variant_of(widths: Iterable[int]) -> str:
    """Return torchvision's name of the ShuffleNetV2 with these output channels (as in VARIANTS), or ""."""
    return next((name for name, known in VARIANTS.items() if known == tuple(widths)), "")


def _config_for(variant: str) -> str:
    return f"yolov5_shufflenet_{variant.removeprefix('shufflenet_v2_')}.yaml"


def _config(model: DetectionModel) -> str:
    return model.yaml.get("yaml_file") or "this model"


def _misfit(model: DetectionModel, state: Mapping[str, Tensor]) -> str:
    """Return why a state dict does not fit this model, as the predicate of a sentence; empty if it fits."""
    ours, theirs = _shapes(model), {k: v.shape for k, v in state.items()}
    widths, variant = _widths(theirs), variant_of(_widths(theirs))
    if not widths:
        return "is not a state dict of torchvision's ShuffleNetV2, with its conv1 and stages 2 to 4"
    if widths != _widths(ours):
        fit = f"fits --cfg {_config_for(variant)}" if variant else "fits none of our configs"
        return f"contains a ShuffleNetV2 of widths {'-'.join(map(str, widths))}, which {fit}, not {_config(model)}"
    parts = {k for k in theirs if k.startswith(("conv1.", "stage"))}
    if odd := sorted(k for k in parts ^ ours.keys() if not k.endswith(COUNTER)):
        place = f"{odd[0]} is missing" if odd[0] in ours else f"{odd[0]} is unexpected"
        return f"does not fit {_config(model)}: {place}"
    if odd := sorted(k for k in parts & ours.keys() if theirs[k] != ours[k]):
        shapes = [" x ".join(map(str, of[odd[0]])) for of in (theirs, ours)]
        return f"does not fit {_config(model)}: {odd[0]} is {shapes[0]}, it should be {shapes[1]}"
    return ""


def download_weights(variant: str) -> Mapping[str, Tensor]:
    """Return torchvision's state dict of a variant, downloaded and cached by torchvision's own weights API.

    Raises UserError if torchvision does not work or the file cannot be downloaded.
    """
    advice = f"download the file yourself and train with --backbone-weights FILE --cfg {_config_for(variant)}"
    try:
        from torchvision.models import get_model_weights  # here, because nothing else needs a working torchvision

        weights = get_model_weights(variant).DEFAULT
    except Exception as e:  # a torchvision built for another version of torch can raise almost any exception
        raise UserError(f"--weights {TORCHVISION}: torchvision does not work here ({_reason(e)}); reinstall it, or "
                        f"give a {variant} file with --backbone-weights") from e  # fmt: skip
    try:
        with locked(ROOT):  # with several processes, one downloads the file and the others then find it
            return weights.get_state_dict(progress=is_main(), check_hash=True, map_location="cpu", weights_only=True)
    except Exception as e:  # network, disk and a damaged file each raise exceptions of their own
        raise UserError(f"--weights {TORCHVISION}: {weights.url} could not be downloaded and read ({_reason(e)}); "
                        f"{advice}") from e


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
