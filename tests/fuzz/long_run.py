"""Fuzz one reader for as long as one likes, guided by which lines it reaches: needs `pip install atheris`.

    python tests/fuzz/long_run.py labels -max_total_time=600

Flags behind the feed's name are libFuzzer's. What it keeps, and what crashes, goes to runs/fuzz/<feed>.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import atheris
import torch  # noqa: F401  before the hook, which would instrument it too

with atheris.instrument_imports(include=["utils", "models", "fuzz", "yaml", "pickletools"]):
    from fuzz.feeds import FEEDS


def main() -> None:
    """Write the good files as a corpus, and hand over to libFuzzer."""
    if len(sys.argv) < 2 or sys.argv[1] not in FEEDS:
        sys.exit(f"name one of {', '.join(FEEDS)}")
    name = sys.argv.pop(1)
    feed, seeds = FEEDS[name]
    corpus = ROOT / "runs/fuzz" / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(seeds()):
        (corpus / f"seed{k}").write_bytes(data)
    alone = any(not word.startswith("-") for word in sys.argv[1:])  # files to run, and nothing else
    limits = [f"-artifact_prefix={corpus.parent}/", "-timeout=30", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *([] if alone else [str(corpus)]), *limits, *sys.argv[1:]], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
