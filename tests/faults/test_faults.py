"""Each fault scenario as a test: a fault during training gives a one-line message and loses no work."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.scenarios import SCENARIOS, NotHere

pytest.importorskip("resource", reason="kills processes and mounts disks, which needs a POSIX system")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("what", SCENARIOS)
def test_scenario(what: str, tmp_path: Path) -> None:
    try:
        assert SCENARIOS[what](tmp_path)
    except NotHere as e:
        pytest.skip(str(e))
