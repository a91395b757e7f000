"""bandit reports nothing, apart from the exceptions that pyproject.toml lists with reasons."""

from __future__ import annotations

import pytest
from helpers import run_script

pytest.importorskip("bandit", reason="needs bandit")


@pytest.mark.slow
def test_bandit() -> None:
    done = run_script("-m", "bandit", "-q", "-r", ".", "-c", "pyproject.toml")
    assert done.returncode == 0, done.stdout
