"""Suggestions for misspelt words."""

from __future__ import annotations

import pytest

from utils.errors import did_you_mean


@pytest.mark.parametrize(("word", "hint"), [("batchsize", "batch_size"), ("CONV", "Conv"), ("qqq", "")])
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["batch_size", "Conv"]) == (f" (did you mean '{hint}'?)" if hint else "")
