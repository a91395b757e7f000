"""With a protection removed, the attacks against it succeed. This shows that the attacks can fail the tests."""

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
import utils.data.label_rows
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
    """Python's own expat parser, which expands entities."""

    def __init__(self, target: object, encoding: str | None) -> None:
        super().__init__(target=target, encoding=encoding)


# protection: how to remove it, and the attacks that then succeed
WITHOUT: dict[str, tuple[Callable[[Patch], None], tuple[str, ...]]] = {
    "the restricted checkpoint reader": (
        lambda p: p.setattr(models.weights.checkpoint, "read_torch_zip", torch_load),
        ("checkpoint: a pickle that calls `os.system`", "checkpoint: a pickle that calls `eval`",
         "checkpoint: a pickle that calls `open`"),
    ),
    "the safe yaml loader": (
        lambda p: p.setattr(utils.settings.config, "parse_yaml", yaml.unsafe_load),
        ("model yaml: a YAML tag that calls os.system", "model yaml: a YAML tag that creates an object",
         "data yaml: a YAML tag that calls os.system", "data yaml: an impossible date (2001-99-99)"),
    ),
    "defusedxml": (
        lambda p: p.setattr(utils.voc.annotation, "DefusedXMLParser", PlainParser),
        ("VOC XML: a parameter entity",),
    ),
    "the check of member names in a zip": (
        lambda p: p.setattr(utils.archive, "unsafe", lambda info: ""),
        ("zip: `../` at the start of a name", "zip: an absolute path", "zip: backslashes"),
    ),
    "the limit on the compression ratio of a zip": (
        lambda p: p.setattr(utils.archive, "MAX_RATIO", 10**9),
        ("zip: a zip bomb (compressed 1,000 to 1)",),
    ),
    "the check of label caches": (
        lambda p: p.setattr(utils.data.labels, "_is_sound", lambda *args: True),
        ("label cache: /etc/shadow as the path of every image", "label cache: all label values set to 10^6",
         "label cache: labels with negative coordinates"),
    ),
    "the check of URL schemes": (
        lambda p: p.setattr(utils.system.download, "_check_scheme", lambda url: None),
        ("--source: a `file:` URL",),
    ),
    "the check of labels": (
        lambda p: p.setattr(utils.data.label_rows, "_checked_row", lambda values, nc, number: tuple(values)),
        ("label: a box outside the image", "label: NaN", "label: infinity", "label: a class index of 10^9"),
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
    monkeypatch.chdir(folder)  # the commands of the attacks create their file here
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
