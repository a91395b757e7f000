"""The embedded default data set: drawn and converted at its first use."""

from __future__ import annotations

from pathlib import Path

from my_tools import make_shapes, voc2yolo
from utils.console import LOGGER
from utils.files import DATASETS, ROOT

YAML = ROOT / "data" / "shapes.yaml"
FOLDER = DATASETS / "shapes"


def prepare_shapes(data_yaml: Path) -> None:
    """Make the set of data/shapes.yaml if that is the one asked for and it is not there yet.

    Both steps leave what is complete alone and complete what was interrupted.
    """
    if data_yaml.resolve() != YAML or (FOLDER / "annotations" / "instances_test.json").is_file():
        return
    LOGGER.info(f"drawing the default data set into {FOLDER} (once, a few seconds)")
    drawn = make_shapes.run()
    voc2yolo.run(source=[drawn], out=FOLDER, name="shapes", names=list(make_shapes.CLASSES), yaml=None)
