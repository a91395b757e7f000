"""yaml as data: what it holds, and what it may not ask for."""

from __future__ import annotations

import pytest
import yaml
from helpers import ROOT

from utils.settings.safe_yaml import MOST_LEVELS, YamlError, parse_yaml

MOST = 1000  # values, in these tests


@pytest.mark.parametrize(
    "file", [*ROOT.glob("models/*.yaml"), *ROOT.glob("data/**/*.yaml")], ids=lambda f: f.name
)
def test_every_shipped_file_is_read_as_yaml_does(file) -> None:
    text = file.read_text(encoding="utf-8")
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x {k: 1}\nb: {<<: *x, l: 2}", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
        ("[" * MOST_LEVELS + "]" * MOST_LEVELS, None),
        (f"[{'1,' * (MOST - 2)}1]", [1] * (MOST - 1)),
    ],
    ids=["empty", "alias", "merge", "nested", "long"],
)
def test_what_is_taken(text: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.settings.safe_yaml.MOST_VALUES", MOST)
    found = parse_yaml(text)
    assert found == value if value is not None or not text else isinstance(found, list)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("a: 1\nb: [", "expected the node content", 2),
        ("a: 1\nb: &x\n  - *x", "contains itself", 2),
        ("a: &x {b: *x}", "contains itself", 1),
        ("[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1), "nested levels", 1),
        (f"a:\n  [{'1,' * MOST}1]", "more than 1000 values", 2),
        ("- !!python/name:os.system", "constructor for the tag", 1),
        ("- !!int nine", "cannot be read", 0),
        (f"a: 1\nb: 0x{'f' * 5000}", "a number of 5002 characters", 2),
        (f"a: 1{':0' * 100}", "a number of 201 characters", 1),
        ("a: 1\n---\nb: 2", "but found another document", 2),
    ],
)
def test_what_is_not(text: str, message: str, line: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.settings.safe_yaml.MOST_VALUES", MOST)
    with pytest.raises(YamlError, match=message) as e:
        parse_yaml(text)
    assert e.value.line == line and "\n" not in str(e.value)
