"""Attacks through yaml files: models, datasets, hyperparameters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from security.zoo import Attack

from models.yolo import DetectionModel
from utils.data.labels import list_images
from utils.settings.config import load_hyp, load_model_cfg
from utils.settings.dataset import load_data
from utils.settings.options import TrainOptions

SPLITS = "train: images\nval: images\n"
HEAD = "nc: 2\nanchors: 3\nhead:\n  - [[-1], 1, Detect, [nc, anchors]]\nbackbone:\n"


def laughs(link: str, levels: int) -> str:
    """Return a "billion laughs" yaml, in which each line refers nine times to the line before.

    link: the value of a line; {} is replaced by the aliases.
    """
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{i}: &a{i} {link.format(','.join([f'*a{i - 1}'] * 9))}" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


def model(text: str, folder: Path) -> Any:
    (folder / "model.yaml").write_text(text)
    return DetectionModel(load_model_cfg(folder / "model.yaml"))


def row(text: str, folder: Path) -> Any:
    return model(f"{HEAD}  - {text}\n", folder)


def data(text: str | bytes, folder: Path) -> Any:
    (folder / "data.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_data(folder / "data.yaml")


def missing(text: str, folder: Path) -> Any:
    """Load a dataset whose images are missing; in this case YOLOv5 runs the `download:` entry of the yaml."""
    return data(f"{SPLITS}names: [a]\n{text}", folder).existing("train")


def defaults(text: str, folder: Path) -> Any:
    return TrainOptions().with_defaults(data(f"{SPLITS}names: [a]\ndefaults: {text}", folder).defaults, "data.yaml")


def images(text: str, folder: Path) -> Any:
    return list_images(data(text, folder).train)


def hyp(text: str, folder: Path) -> Any:
    (folder / "hyp.yaml").write_text(text)
    return load_hyp(folder / "hyp.yaml")


def _all(surface: str, feed: Any, cases: dict[str, tuple[str, str]]) -> list[Attack]:
    return [Attack(surface, what, partial(feed, text), answer) for what, (text, answer) in cases.items()]


ATTACKS = [
    *_all(
        "model yaml",
        model,
        {
            "a YAML tag that calls os.system": (
                "!!python/object/apply:os.system ['touch ran']",
                "constructor for the tag",
            ),
            "a YAML tag that imports a module": ("nc: !!python/module:os", "constructor for the tag"),
            "a YAML tag that creates an object": ("nc: !!python/object/new:os.system [ls]", "constructor for the tag"),
            "Python code as the activation": (
                f"activation: __import__('os').system('touch ran')\n{HEAD}  - [-1, 1, Conv, [8]]",
                "unknown activation",
            ),
            "lists nested 20,000 deep": ("nc: " + "[" * 20000, "values are nested too deeply"),
            "10^9 classes": (
                HEAD.replace("nc: 2", "nc: 1000000000") + "  - [-1, 1, Conv, [8]]",
                "whole number from 1 to",
            ),
            "a `width_multiple` of 10^300": (
                "width_multiple: 1.0e+300\n" + HEAD + "  - [-1, 1, Conv, [8]]",
                "width_multiple",
            ),
            "a number with 10,000 digits": (f"nc: {'9' * 10000}", "a number of 10000 characters"),
            "10^9 anchors": (
                HEAD.replace("anchors: 3", "anchors: 1000000000") + "  - [-1, 1, Conv, [8]]",
                "anchors must",
            ),
        },
    ),
    *_all(
        "model yaml, layer row",
        row,
        {
            "Python code as the module name": (
                "[-1, 1, \"__import__('os').system('touch ran')\", [8]]",
                "unknown module",
            ),
            "os.system as the module name": ("[-1, 1, os.system, [touch ran]]", "unknown module"),
            "an attribute of nn.Module as the module name": ("[-1, 1, nn.Module.__subclasses__, []]", "unknown module"),
            "Python code as the number of channels": ('[-1, 1, Conv, ["exit()", 3, 2]]', "must be the output width"),
            "10^9 channels": ("[-1, 1, Conv, [1000000000, 3, 2]]", "must be the output width"),
            "10^9 repeats": ("[-1, 1000000000, Conv, [8, 3, 2]]", "repeats is"),
            "60 layers of 60,000 channels": ("[-1, 60, Conv, [60000, 3, 1]]", "it needs [0-9,]+ parameters"),
            "a kernel of 10^6 x 10^6": ("[-1, 1, Conv, [8, 1000001, 2]]", "it needs [0-9,]+ parameters"),
            "Python code as the activation of a layer": (
                "[-1, 1, Conv, [8, 3, 2, 1, 1, 1, \"__import__('os').system('touch ran')\"]]",
                "'act' is wrong: unknown activation",
            ),
            "Python code as the argument of an activation": (
                "[-1, 1, Conv, [8, 3, 2, 1, 1, 1, \"nn.LeakyReLU(open('ran', 'w'))\"]]",
                "'act' is wrong: unknown activation",
            ),
            "an activation of 10^6 characters": (
                f"[-1, 1, Conv, [8, 3, 2, 1, 1, 1, 'nn.ReLU({'True,' * 200000})']]",
                "layer 0",
            ),
            "a kernel of 10^6 x 10^6 as a pair": (
                "[-1, 1, Conv, [8, [1000001, 1000003], 2]]",
                "it needs [0-9,]+ parameters",
            ),
            "a pair of 10^5 values as the kernel": (
                f"[-1, 1, Conv, [8, [{','.join(['3'] * 100000)}], 2]]",
                "argument 'k' is",
            ),
            "padding of 10^9": ("[-1, 1, Conv, [8, 3, 2, 1000000000]]", "layer 0"),
            "upsampling by a factor of 10^6": ("[-1, 1, nn.Upsample, [None, 1000000, nearest]]", "is too large"),
            "concatenation along dimension 10^6": ("[[-1, -1], 1, Concat, [1000000]]", "layer 0"),
            "an input from 10^9 layers earlier": ("[-1000000000, 1, Conv, [8, 3, 2]]", "is not an earlier layer"),
            "100,000 input layers": (f"[[{','.join(['-1'] * 100000)}], 1, Concat, [1]]", "layer 0"),
        },
    ),
    *_all(
        "data yaml",
        data,
        {
            "a YAML tag that calls os.system": (
                "names: !!python/object/apply:os.system ['touch ran']",
                "constructor for the tag",
            ),
            "aliases that expand to 10^8 values": (laughs("[{}]", 10) + SPLITS, "more than 200000 values"),
            "merge keys that expand to 10^8 values": (laughs("{{<<: [{}]}}", 10) + SPLITS, "more than 200000 values"),
            "a list that contains itself": (SPLITS + "names: &a [*a]", "contains itself"),
            "an impossible date (2001-99-99)": (SPLITS + "names: [a]\nhint: 2001-99-99", "cannot be read"),
            "10^9 classes": (SPLITS + "nc: 1000000000", "whole number from 1 to 65536"),
            "a dictionary as a class name": (SPLITS + "names: [{a: b}]", "must be one word"),
            "a class name with a line break": (SPLITS + 'names: ["cat\\nerror: all is well"]', "line end or control"),
            "a class name with a terminal escape sequence": (SPLITS + 'names: ["cat\\e[2J"]', "line end or control"),
            "bytes that are not UTF-8 text": (b"names: [\xff\xfe\x00]", "not a text file in UTF-8"),
            "a NUL character": (b"names: [a\0b]", "not valid yaml"),
            "a misspelt key with a shell command": (SPLITS + "names: [a]\ndownloads: rm -rf /", "unknown key 'downl"),
            "10^6 keypoints": (SPLITS + "names: [a]\nkpt_shape: [1000000, 3]", "kpt_shape"),
        },
    ),
    *_all(
        "data yaml",
        images,
        {
            "/etc/passwd as the list of images": ("path: /etc\ntrain: passwd\nnames: [a]", "no images"),
            "/dev/zero as the list of images": ("path: /dev\ntrain: zero\nnames: [a]", "is not a regular file"),
        },
    ),
    *_all(
        "data yaml",
        defaults,
        {
            "/etc/shadow as the hyperparameter file": (
                "{hyp: /etc/shadow}",
                "must lead to a file in data/hyps|does not exist",
            ),
            "an image size of 10^6 pixels": ("{imgsz: 1000000}", "the largest is 16384"),
        },
    ),
    *_all(
        "data yaml",
        missing,
        {
            "a Python script under `download:`": (
                "download: |\n  import os\n  os.system('touch ran')\n",
                "'download:' is not run",
            ),
            "a shell command under `download:`": ("download: bash -c 'touch ran'", "'download:' is not run"),
            "a URL under `download:`": ("download: https://example.org/x.zip", "'download:' is not run"),
            "a `hint:` with a terminal escape sequence": ('hint: "\\e[2Jall is well"', "does not exist"),
        },
    ),
    *_all(
        "hyperparameters",
        hyp,
        {
            "Python code instead of a number": ("lr0: __import__('os').system('touch ran')", "must be a number"),
            "NaN": ("lr0: .nan", "must be a number"),
            "infinity": ("lr0: .inf", "must be a number"),
            "a list instead of a number": ("lr0: [1, 2]", "must be a number"),
        },
    ),
]
