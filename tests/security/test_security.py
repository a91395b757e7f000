"""No code from data: every attack gets the expected answer, and none runs code, reads a secret or writes elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import ROOT
from security.guard import guarded
from security.table import ATTACKS, table
from security.zoo import REFUSED, Attack

from utils.errors import UserError


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_attack(attack: Attack, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder, secret = tmp_path / "folder", tmp_path / "secret/secret.txt"
    folder.mkdir()
    secret.parent.mkdir()
    secret.write_text("secret")
    error = ""
    with guarded(folder, secret):
        try:
            attack.run(folder)
        except UserError as e:
            error = str(e)
    told = capfd.readouterr()
    assert bool(error) == (attack.outcome == REFUSED), error or f"accepted; output: {told.out}"
    assert len(error) < 800 and "\n" not in error
    assert re.search(attack.answer, error or told.out), error or told.out
    assert "\x1b" not in told.out + told.err and "\nerror: all is well" not in told.out + told.err
    assert not [p for p in (tmp_path / "ran", folder / "ran", ROOT / "ran", Path("ran")) if p.exists()]


def test_the_page_has_the_table() -> None:
    assert len(ATTACKS) >= 60 and table() in (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
