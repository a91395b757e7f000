"""The default dataset, which is drawn and converted when it is first used."""

from __future__ import annotations

from pathlib import Path

from utils.files import DATASETS, ROOT
from utils.system.console import LOGGER
from utils.voc import convert, shapes
from utils.voc.options import Options

YAML = ROOT / "data" / "shapes.yaml"
FOLDER = DATASETS / "shapes"


def prepare_shapes(data_yaml: Path) -> None:
    """Draw and convert the dataset of data/shapes.yaml if `data_yaml` is that file and the dataset does not exist yet.

    Both steps can be repeated after an interruption; complete results are kept.
    """
    if data_yaml.resolve() != YAML or (FOLDER / "annotations" / "instances_test.json").is_file():
        return
    LOGGER.info(f"drawing the default dataset into {FOLDER} (only once, takes a few seconds)")
    shapes.make_set(shapes.OUT)
    names = list(shapes.CLASSES)
    convert.convert(Options(source=shapes.OUT, out=FOLDER, name="shapes", names=names, box="exact", yaml=None))
