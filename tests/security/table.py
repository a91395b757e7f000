"""Print all attacks as the table of docs/reliability.md: python tests/security/table.py"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (2, 1)]

from security import attacks_checkpoint, attacks_engines, attacks_files, attacks_names, attacks_yaml
from security.zoo import Attack

ATTACKS: Sequence[Attack] = [
    *attacks_yaml.ATTACKS,
    *attacks_checkpoint.ATTACKS,
    *attacks_engines.ATTACKS,
    *attacks_files.ATTACKS,
    *attacks_names.ATTACKS,
]


def table() -> str:
    """Return a Markdown table with one row for each surface and outcome."""
    rows: dict[tuple[str, str], list[str]] = {}
    for attack in ATTACKS:
        rows.setdefault((attack.surface, attack.outcome), []).append(attack.what)
    lines = ["| what is fed | with what | what happens |", "| --- | --- | --- |"]
    lines += [f"| {surface} | {'; '.join(whats)} | {outcome} |" for (surface, outcome), whats in rows.items()]
    return "\n".join(lines).replace("<", "&lt;")


if __name__ == "__main__":
    print(table())
