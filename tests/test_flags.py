"""The command lines: flags in groups with their defaults, mistakes answered before anything heavy is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from helpers import ROOT

import export
from models.export.exporters import FORMATS
from my_tools import compare_formats
from utils.errors import did_you_mean
from utils.settings.flags import GROUPS, Parser
from utils.settings.options import AMP_CHOICES, TrainOptions, ValOptions
from utils.system.precision import FORMATS as NUMBER_FORMATS

SCRIPTS = ["train", "val", "detect", "export", "models.yolo"]
SCRIPTS += [f"my_tools.{file.stem}" for file in sorted((ROOT / "my_tools").glob("*.py")) if file.stem != "__init__"]


def parser_of(script: str, monkeypatch: pytest.MonkeyPatch) -> Parser:
    """The parser that a script's parse_opt makes."""
    made = []

    def keep(self: Parser, *args: object) -> argparse.Namespace:
        made.append(self)
        return argparse.Namespace()

    monkeypatch.setattr(Parser, "parse_args", keep)
    importlib.import_module(script).parse_opt()
    return made[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_in_groups_with_their_defaults(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(script, monkeypatch)
    assert [g.title for g in parser._action_groups[2:]] == list(GROUPS)
    assert all(not group._group_actions for group in parser._action_groups[:2])
    for action in parser._actions:
        assert action.dest == "help" or action.help.endswith(")") and " (" in action.help, action.dest
        shown = action.help.rpartition(" (")[2][:-1]
        if isinstance(action.default, (int, float)) and not isinstance(action.default, bool):
            assert shown.partition(";")[0] == str(action.default)
        assert action.default is not False or shown == "off"


@pytest.mark.parametrize(("script", "options"), [("train", TrainOptions), ("val", ValOptions)])
def test_flags_are_the_options(script: str, options: type, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(script, monkeypatch)
    assert {a.dest for a in parser._actions} - {"help"} == {f.name for f in fields(options)} - {"given"}
    types = {f.name: f.type for f in fields(options)}
    for a in parser._actions:
        assert a.type is not int or types[a.dest].startswith(("int", "tuple[int", "Sequence[int", "int | Sequence"))
        assert a.dest == "help" or a.default == (None if script == "train" else getattr(options, a.dest))


@pytest.mark.parametrize(
    ("flag", "near"),
    [("--epohcs", "--epochs"), ("--batchsize", "--batch-size"), ("--img_size", "--img-size"), ("--cgf", "--cfg"),
     ("--dest", ""), ("--lr", ""), ("--years", ""), ("--x", "")],
)  # fmt: skip
def test_only_near_flags_are_suggested(flag: str, near: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = parser_of("train", monkeypatch)._option_string_actions
    assert did_you_mean(flag, known) == (f" (did you mean '{near}'?)" if near else "")


def test_dest_is_not_years(monkeypatch: pytest.MonkeyPatch) -> None:
    assert did_you_mean("--dest", parser_of("my_tools.voc2yolo", monkeypatch)._option_string_actions) == ""


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_answered_without_anything_heavy(script: str, tmp_path: Path) -> None:
    for heavy in ("torch", "cv2", "matplotlib", "numpy"):
        (tmp_path / f"{heavy}.py").write_text(f"raise SystemExit('{heavy} was imported')\n")
    file = str(ROOT / f"{script.replace('.', '/')}.py")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "NO_COLOR": "1"}
    command = [sys.executable, file] + ["a.pt"] * (script == "my_tools.convert_weights")
    for words, code, answer in (("--help", 0, "more:"), ("--ephocs", 1, "error: unknown flag --ephocs")):
        done = subprocess.run([*command, words], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code and answer in (done.stderr or done.stdout), done.stderr
        assert done.stderr.count("\n") == code


def test_texts_that_name_formats_name_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    help_of = {a.dest: a.help for a in parser_of("export", monkeypatch)._actions}
    assert " ".join(FORMATS) in help_of["include"]
    for flag in ("half", "int8", "dynamic"):
        assert f": {' '.join(export.that_have(flag))}" in help_of[flag], flag
    assert (compare_formats.CHECKPOINT, *FORMATS) == compare_formats.ENGINES
    assert ("auto", *NUMBER_FORMATS) == AMP_CHOICES
