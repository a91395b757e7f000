"""What is printed in a terminal."""

from __future__ import annotations

import pytest

from utils.system.console import LOGGER


def test_messages_cannot_steer_the_terminal(capsys: pytest.CaptureFixture) -> None:
    LOGGER.warning("file \x1b]0;title\x07 \x1b[2J\nnext")
    assert capsys.readouterr().out == "WARNING: file \\x1b]0;title\\x07 \\x1b[2J\\nnext\n"
