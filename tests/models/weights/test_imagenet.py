"""torchvision's ShuffleNetV2 as backbone: equal outputs, where weights come from, and what wrong ones are told.

Nothing is downloaded here: torchvision's models are randomly initialised, and its downloads are led to a file.
"""

from __future__ import annotations

import copy
import functools
import io
import logging
import sys
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import with_random_norms
from torch import Tensor, nn

import train
import utils.training.evolve
from models.run.start import build_model
from models.weights.checkpoint import load_checkpoint
from models.weights.imagenet import VARIANTS, load_backbone, start_backbone
from models.yolo import Model
from utils.errors import UserError
from utils.settings.config import load_hyp
from utils.settings.dataset import DataConfig
from utils.settings.options import TrainOptions

torchvision = pytest.importorskip("torchvision", reason="needs a torchvision that loads", exc_type=Exception)

SMALL = "shufflenet_v2_x0_5"
URL = "https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth"
NAMES = {0: "red", 1: "blue"}


def config(variant: str) -> str:
    return f"yolov5_shufflenet_{variant[-4:]}.yaml"


@functools.cache
def built(cfg: str) -> Model:
    return Model(cfg, nc=2).eval()


def fresh(cfg: str) -> Model:
    """A network as it is without any weights given; a copy is much faster than building it again."""
    return copy.deepcopy(built(cfg))


def randomised(variant: str) -> nn.Module:
    """torchvision's model, its batch norms with weights and statistics for which their eps matters."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, variant)(weights=None).eval()
    return with_random_norms(model)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return randomised(SMALL).state_dict()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: dict[str, Tensor]) -> list[str]:
    """The addresses asked for; what comes from them is the state dict above."""
    urls = []

    def fetch(url: str, file: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        assert hash_prefix
        urls.append(url)
        torch.save(state, file)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    return urls


def maps(model: Model, x: Tensor) -> list[Tensor]:
    """P3, P4 and P5 of our backbone."""
    outputs = []
    for layer in model.model[:7]:
        x = layer(x)
        outputs.append(x)
    return outputs[2::2]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_outputs_equal_those_of_torchvisions_stages(variant: str, caplog: pytest.LogCaptureFixture) -> None:
    theirs = randomised(variant)
    ours = fresh(config(variant))
    head = {k: v.clone() for k, v in ours.state_dict().items() if int(k.split(".")[1]) > 6}
    with caplog.at_level(logging.INFO, logger="yolov5"):
        load_backbone(ours, theirs.state_dict(), "random.pth")
    x = torch.rand(2, 3, 64, 64)
    y = theirs.maxpool(theirs.conv1(x))
    for stage, found in zip((theirs.stage2, theirs.stage3, theirs.stage4), maps(ours, x), strict=True):
        y = stage(y)
        assert found.shape == y.shape and (found - y).abs().max() <= 1e-5 * y.abs().max()
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in head.items())
    assert f"random.pth: {variant}, 16 blocks, 330 of 330 tensors of conv1 and stages loaded; the other" in caplog.text


@pytest.mark.parametrize(
    ("variant", "parameters", "widths"),
    [
        ("shufflenet_v2_x0_5", 895_041, [24, 48, 96, 192]),
        ("shufflenet_v2_x1_0", 1_584_901, [24, 116, 232, 464]),
        ("shufflenet_v2_x1_5", 2_614_081, [24, 176, 352, 704]),
        ("shufflenet_v2_x2_0", 4_257_029, [24, 244, 488, 976]),
    ],
)
def test_configs(variant: str, parameters: int, widths: list[int]) -> None:
    model = Model(config(variant)).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters and model.stride.tolist() == [8, 16, 32]
    x = torch.zeros(1, 3, 64, 64)
    assert [model.model[0](x).shape[1], *(m.shape[1] for m in maps(model, x))] == widths


def zipped(state: dict[str, Tensor], file: Path) -> None:
    torch.save(state, file)


def old_form(state: dict[str, Tensor], file: Path) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=False)


def data_parallel(state: dict[str, Tensor], file: Path) -> None:
    torch.save({f"module.{k}": v for k, v in state.items()}, file)


def without_counters(state: dict[str, Tensor], file: Path) -> None:
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, file)


@pytest.mark.parametrize(
    ("save", "taken"), [(zipped, 330), (old_form, 330), (data_parallel, 330), (without_counters, 275)]
)
def test_files(save: Callable, taken: int, state: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(state, tmp_path / "a.pth")
    model = fresh(config(SMALL))
    with caplog.at_level(logging.INFO, logger="yolov5"):
        result = start_backbone(model, str(tmp_path / "a.pth"), verbose=True)
    assert len(result.whole) == taken and f"{taken} of 330 tensors" in caplog.text
    assert len(result.whole) + len(result.left) == len(model.state_dict())
    assert torch.equal(model.model[6][2].branch2[5].weight, state["stage4.3.branch2.5.weight"])
    row = next(line for line in caplog.text.splitlines() if line.split()[:2] == ["4", "InvertedResidual"])
    assert int(row.split()[2]) + int(row.split()[-1]) == 7 * 18


def changed(key: str, tensor: Tensor | None) -> Callable[[dict], dict]:
    """The state dict with a tensor added, replaced or (None) left out."""
    return lambda state: {k: v for k, v in {**state, key: tensor}.items() if v is not None}


@pytest.mark.parametrize(
    ("cfg", "make", "message"),
    [
        (config("shufflenet_v2_x1_0"), dict, "widths 24-48-96-192, which fits --cfg yolov5_shufflenet_x0_5.yaml, not "
         "yolov5_shufflenet_x1_0.yaml"),
        ("yolov5n.yaml", dict, "fits --cfg yolov5_shufflenet_x0_5.yaml, not yolov5n.yaml"),
        (config(SMALL), lambda _: torchvision.models.shufflenet_v2_x2_0(weights=None).state_dict(),
         "widths 24-244-488-976, which fits --cfg yolov5_shufflenet_x2_0.yaml"),
        (config(SMALL), lambda _: torchvision.models.ShuffleNetV2([4, 8, 4], [24, 32, 64, 128, 256], 2).state_dict(),
         "widths 24-32-64-128, which fits none of our configs"),
        (config(SMALL), lambda _: torchvision.models.resnet18(weights=None).state_dict(),
         "is not a state dict of torchvision's ShuffleNetV2"),
        (config(SMALL), lambda _: {"conv1.0.weight": torch.ones(24)}, "is not a state dict of torchvision's"),
        (config(SMALL), changed("stage3.7.branch2.0.weight", None), ": stage3.7.branch2.0.weight is missing"),
        (config(SMALL), changed("stage3.8.branch2.0.weight", torch.ones(1)), "stage3.8.branch2.0.weight is unexpected"),
        (config(SMALL), changed("stage2.1.branch2.3.weight", torch.ones(24, 1, 5, 5)),
         "stage2.1.branch2.3.weight is 24 x 1 x 5 x 5, it should be 24 x 1 x 3 x 3"),
        (config(SMALL), changed("conv1.1.bias", torch.full((24,), torch.nan)), "conv1.1.bias are not finite"),
        (config(SMALL), lambda _: {"model": {}}, "is not a state dict"),
        (config(SMALL), None, "no such file"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(
    cfg: str, make: Callable | None, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    if make:
        torch.save(make(state), tmp_path / "a.pth")
    model = fresh(cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as e:
        start_backbone(model, str(tmp_path / "a.pth"))
    assert "\n" not in str(e.value) and "a.pth: " in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "urls"), [({}, []), ({"backbone_weights": "a.pth"}, []), ({"weights": "torchvision"}, [URL])]
)
def test_only_the_flag_downloads(
    flags: dict, urls: list[str], fetched: list[str], state: dict[str, Tensor], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(state, "a.pth")
    opt = TrainOptions(cfg=config(SMALL), **flags)
    model = build_model(opt, load_hyp("hyp.scratch-low.yaml"), NAMES, None)
    assert fetched == urls
    taken = torch.equal(model.model[0].conv1[0].weight, state["conv1.0.weight"])
    assert taken == bool(flags)
    if fetched:
        start_backbone(model)
    assert fetched == urls  # torchvision keeps what it fetched


@pytest.mark.parametrize("cfg", ["", "yolov5n.yaml"])
def test_a_config_of_other_widths_is_told_before_the_download(cfg: str, fetched: list[str]) -> None:
    opt = TrainOptions(weights="torchvision", cfg=cfg)
    with pytest.raises(UserError, match="does not have one of torchvision's backbones; choose --cfg") as e:
        build_model(opt, load_hyp("hyp.scratch-low.yaml"), NAMES, None)
    assert all(config(variant) in str(e.value) for variant in VARIANTS) and not fetched


class Attack:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


class Response(io.BytesIO):
    """What urlopen returns for a page without a length."""

    def info(self) -> Message:
        return Message()


def no_route(*_) -> None:
    raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize(
    ("answer", "reason"), [(no_route, "no route to host"), (lambda _: Response(b"a web page"), "invalid hash value")]
)
def test_a_download_that_fails_is_one_line(
    answer: Callable, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", answer)
    with pytest.raises(UserError, match=reason) as e:
        start_backbone(fresh(config(SMALL)))
    assert URL in str(e.value) and "--backbone-weights FILE" in str(e.value) and "\n" not in str(e.value)
    assert not list((tmp_path / "hub/checkpoints").iterdir())


def test_what_torchvision_kept_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub/checkpoints" / URL.rpartition("/")[2]
    kept.parent.mkdir(parents=True)
    torch.save(Attack(tmp_path / "ran"), kept)
    with pytest.raises(UserError, match="could not be downloaded and read"):
        start_backbone(fresh(config(SMALL)))
    assert not (tmp_path / "ran").exists()


def test_a_broken_torchvision_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UserError, match="torchvision does not work here .*--backbone-weights"):
        start_backbone(fresh(config(SMALL)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"weights": "best.pt", "backbone_weights": "a.pth"}, "--weights and --backbone-weights both initialize"),
        ({"weights": "torchvision", "backbone_weights": "a.pth"}, "--weights and --backbone-weights both initialize"),
        ({"resume": "runs", "backbone_weights": "a.pth"}, "--resume .*leave out --backbone-weights"),
        ({"resume": "runs", "weights": "torchvision"}, "--resume .*leave out --weights"),
    ],
)
def test_flags_that_exclude_each_other(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train.run(**flags)


@pytest.mark.slow
def test_training_starts_from_a_file(
    yolo_set: Path, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    file = tmp_path / "a.pth"
    torch.save(state, file)
    words = ("--cfg", config(SMALL), "--backbone-weights", file, "--data", yolo_set, "--imgsz", 64, "--epochs", 1,
             "--batch-size", 4, "--workers", 0, "--freeze", 7, "--noplots", "--project", tmp_path / "runs",
             "--device", "cpu", "--amp", "off")  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    with caplog.at_level(logging.INFO, logger="yolov5"):
        train.main(train.parse_opt())
    assert f"{file}: shufflenet_v2_x0_5, 16 blocks, 330 of 330 tensors" in caplog.text
    trained = load_checkpoint(tmp_path / "runs/exp/weights/last.pt")["model"]
    torch.testing.assert_close(trained["model.6.2.branch2.5.weight"], state["stage4.3.branch2.5.weight"])


def test_every_generation_of_an_evolution_starts_from_it(
    yolo_set: Path, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.save(state, tmp_path / "a.pth")
    taken = []

    def generation(opt: TrainOptions, hyp: dict[str, float], data: DataConfig) -> tuple:
        first = build_model(opt, hyp, data.names, None).model[0].conv1[0]
        taken.append(torch.equal(first.weight, state["conv1.0.weight"]))
        return SimpleNamespace(state=SimpleNamespace(rows=[[0.0] * 20])), None

    monkeypatch.setattr(train, "train_and_finish", generation)
    monkeypatch.setattr(utils.training.evolve, "plot_evolve", lambda *_: None)
    train.run(cfg=config(SMALL), backbone_weights=str(tmp_path / "a.pth"), data=str(yolo_set), evolve=2,
              project=str(tmp_path))  # fmt: skip
    assert taken == [True, True]
