"""The default data set: drawn and converted at its first use."""

from __future__ import annotations

from pathlib import Path

from utils.files import DATASETS, ROOT
from utils.system.console import LOGGER
from utils.voc import convert, shapes

YAML = ROOT / "data" / "shapes.yaml"
FOLDER = DATASETS / "shapes"


def prepare_shapes(data_yaml: Path) -> None:
    """Draw and convert the set of data/shapes.yaml if `data_yaml` is that file and the set is not there yet.

    Both steps keep what is complete and finish what was interrupted.
    """
    if data_yaml.resolve() != YAML or (FOLDER / "annotations" / "instances_test.json").is_file():
        return
    LOGGER.info(f"drawing the default data set into {FOLDER} (once, a few seconds)")
    shapes.make_set(shapes.OUT, shapes.IMAGES, shapes.SIZE, seed=0)
    names = list(shapes.CLASSES)
    convert.convert(convert.Options(source=shapes.OUT, out=FOLDER, name="shapes", names=names, yaml=None))
