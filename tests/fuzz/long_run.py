"""Fuzz one reader for a chosen time, guided by code coverage. Requires `pip install atheris`.

    python tests/fuzz/long_run.py labels -max_total_time=600

Arguments after the feed's name go to libFuzzer. The corpus and the files that crash are saved in runs/fuzz/<feed>.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import atheris
import torch  # noqa: F401  imported before the hook, which would otherwise instrument torch too

with atheris.instrument_imports(include=["utils", "models", "fuzz", "yaml", "pickletools"]):
    from fuzz.feeds import FEEDS


def main() -> None:
    """Write the valid files as the corpus and run libFuzzer."""
    if len(sys.argv) < 2 or sys.argv[1] not in FEEDS:
        sys.exit(f"name one of {', '.join(FEEDS)}")
    name = sys.argv.pop(1)
    feed, seeds = FEEDS[name]
    corpus = ROOT / "runs/fuzz" / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for k, data in enumerate(seeds()):
        (corpus / f"seed{k}").write_bytes(data)
    alone = any(not word.startswith("-") for word in sys.argv[1:])  # run only the given files
    limits = [f"-artifact_prefix={corpus.parent}/", "-timeout=30", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *([] if alone else [str(corpus)]), *limits, *sys.argv[1:]], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
