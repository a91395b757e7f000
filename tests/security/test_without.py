"""The zoo bites: with a protection taken out, attacks on it come through. A test that cannot fail shows nothing."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as plain_xml
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from security.guard import guarded
from security.table import ATTACKS

import models.weights.checkpoint
import utils.archive
import utils.data.labels
import utils.files
import utils.settings.config
import utils.system.download
import utils.voc.annotation
from utils.errors import UserError

Patch = pytest.MonkeyPatch


def torch_load(path: Path) -> object:
    return torch.load(path, weights_only=False)


class PlainParser(plain_xml.XMLParser):
    """Expat as Python has it, entities and all."""

    def __init__(self, target: object, encoding: str | None) -> None:
        super().__init__(target=target, encoding=encoding)


# protection: how to take it out, and the beginnings of attacks that then come through
WITHOUT: dict[str, tuple[Callable[[Patch], None], tuple[str, ...]]] = {
    "the reader of checkpoints": (
        lambda p: p.setattr(models.weights.checkpoint, "read_torch_zip", torch_load),
        ("checkpoint: a pickle that calls os.system", "checkpoint: a pickle that calls eval",
         "checkpoint: a pickle that calls open"),
    ),
    "yaml as data": (
        lambda p: p.setattr(utils.settings.config, "parse_yaml", yaml.unsafe_load),
        ("model yaml: a tag that calls os.system", "model yaml: a tag that makes an object",
         "data yaml: a tag that calls os.system", "data yaml: a date that is none"),
    ),
    "defusedxml": (
        lambda p: p.setattr(utils.voc.annotation, "DefusedXMLParser", PlainParser),
        ("VOC xml: a parameter entity",),
    ),
    "what a zip may name": (
        lambda p: p.setattr(utils.archive, "unsafe", lambda info: ""),
        ("zip: ../ in a name", "zip: an absolute name", "zip: backslashes"),
    ),
    "how well a zip may pack": (
        lambda p: p.setattr(utils.archive, "MAX_RATIO", 10**9),
        ("zip: a bomb, 1,000 to 1",),
    ),
    "the check of caches": (
        lambda p: p.setattr(utils.data.labels, "_is_sound", lambda *args: True),
        ("label cache: the path of another file", "label cache: a class that is none",
         "label cache: labels outside the image"),
    ),
    "what may be downloaded": (
        lambda p: p.setattr(utils.system.download, "_check_scheme", lambda url: None),
        ("--source: a file: address",),
    ),
    "the check of labels": (
        lambda p: p.setattr(utils.data.labels, "_checked_row", lambda values, nc, number: tuple(values)),
        ("label: a box outside the image", "label: not a number", "label: infinity", "label: a class of 10^9"),
    ),
}  # fmt: skip
CASES = [(protection, attack) for protection, (_, attacks) in WITHOUT.items() for attack in attacks]


@pytest.mark.parametrize(("protection", "attack"), CASES)
def test_without(
    protection: str, attack: str, tmp_path: Path, monkeypatch: Patch, capfd: pytest.CaptureFixture
) -> None:
    (case,) = [a for a in ATTACKS if str(a) == attack]
    WITHOUT[protection][0](monkeypatch)
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)  # where the commands of the attacks leave their file
    came_through = ""
    try:
        with guarded(folder, tmp_path / "secret/secret.txt"):
            try:
                case.run(folder)
                came_through = "accepted" if case.outcome.startswith("refused") else ""
            except UserError:
                pass
    except Exception as e:
        came_through = f"{type(e).__name__}: {e}"
    assert came_through, json.dumps(os.listdir(folder)) + capfd.readouterr().out
