"""What breaks under a training is told in a line, and nothing is lost: each scenario as a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.scenarios import SCENARIOS, NotHere

pytest.importorskip("resource", reason="processes are killed and disks mounted as POSIX systems allow")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("what", SCENARIOS)
def test_scenario(what: str, tmp_path: Path) -> None:
    try:
        assert SCENARIOS[what](tmp_path)
    except NotHere as e:
        pytest.skip(str(e))
