"""The detections of one call, with the interface of YOLOv5's results object: boxes, tables, drawings, crops."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from PIL import Image, ImageShow
from torch import Tensor

from utils.boxes import xyxy2xywh
from utils.data.images import write_image
from utils.data.naming import Names
from utils.draw.boxes import Annotator, color_of, count_text, crop_box
from utils.errors import UserError
from utils.files import increment_path, safe_name
from utils.system.console import LOGGER, shown
from utils.system.device import has_display

if TYPE_CHECKING:
    from pandas import DataFrame

CORNERS = ("xmin", "ymin", "xmax", "ymax")
CENTRES = ("xcenter", "ycenter", "width", "height")
DEFAULT_FOLDER = "runs/detect/exp"


class Crop(TypedDict):
    """A crop of one object: box (4,) corners in pixels, conf and cls scalar tensors, im (h, w, 3) uint8 RGB."""

    box: Tensor
    conf: Tensor
    cls: Tensor
    label: str
    im: np.ndarray


@dataclass(frozen=True)
class Tables:
    """One table per image for each box format; columns: four of the box, confidence, class, name."""

    xyxy: list[DataFrame]
    xyxyn: list[DataFrame]
    xywh: list[DataFrame]
    xywhn: list[DataFrame]


class Detections:
    """The detections of one call, for each image by descending confidence.

    ims: the images, (h, w, 3) uint8 RGB; after `render()`, with boxes drawn on them. files: a name for each image,
    `image0.jpg` if it has none. xyxy (also called pred), xywh, xyxyn and xywhn: tensors (m, 6) of box, confidence,
    class, the last two with boxes normalized by the image's sides. names: {index: class name}. n: number of images.
    t: milliseconds per image of pre-processing, inference and NMS. s: shape of the batch. `len`, iteration and `[i]`
    are over images.

    >>> import numpy as np, torch
    >>> found = torch.tensor([[10.0, 20, 30, 60, 0.75, 1], [0, 0, 50, 40, 0.5, 0]])
    >>> results = Detections([np.zeros((80, 100, 3), np.uint8)], [found], ["a.jpg"], names={0: "hat", 1: "cat"})
    >>> results.xywh[0][0]
    tensor([20.0000, 40.0000, 20.0000, 40.0000,  0.7500,  1.0000])
    >>> print(results.pandas().xyxy[0])
       xmin  ymin  xmax  ymax  confidence  class name
    0  10.0  20.0  30.0  60.0        0.75      1  cat
    1   0.0   0.0  50.0  40.0        0.50      0  hat
    >>> print(str(results).splitlines()[0])
    image 1/1: 80x100 1 hat, 1 cat
    >>> [(crop["label"], crop["im"].shape) for crop in results.crop(save=False)]
    [('cat 0.75', (52, 32, 3)), ('hat 0.50', (46, 56, 3))]
    """

    def __init__(
        self, ims: Sequence[np.ndarray], pred: Sequence[Tensor], files: Sequence[str],
        times: tuple[float, float, float] = (0.0, 0.0, 0.0), names: Mapping[int, str] | None = None,
        shape: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self._originals = list(ims)
        self.ims, self.pred, self.files = list(ims), list(pred), list(files)
        classes = {int(c) for p in pred for c in p[:, 5].tolist()}
        self.names = dict(names) if names else {c: str(c) for c in classes}
        self.n, self.t, self.s = len(self.pred), tuple(times), tuple(shape)
        self.xyxy = self.pred
        self.xywh = [xyxy2xywh(p) for p in self.pred]
        sides = [p.new_tensor([*im.shape[1::-1], *im.shape[1::-1], 1, 1]) for p, im in zip(pred, ims, strict=True)]
        self.xyxyn = [p / s for p, s in zip(self.xyxy, sides, strict=True)]
        self.xywhn = [p / s for p, s in zip(self.xywh, sides, strict=True)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int | slice) -> Detections:
        chosen = range(self.n)[index]
        wanted = chosen if isinstance(index, slice) else [chosen]
        ims, pred, files = ([of[k] for k in wanted] for of in (self._originals, self.pred, self.files))
        return Detections(ims, pred, files, self.t, self.names, self.s)

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(self.n))

    def __str__(self) -> str:
        lines = []
        for k, (found, im) in enumerate(zip(self.pred, self._originals, strict=True)):
            count = count_text(found[:, 5].tolist(), self.names) or "(no detections)"
            lines.append(f"image {k + 1}/{self.n}: {im.shape[0]}x{im.shape[1]} {count}")
        times = "{:.1f}ms pre-process, {:.1f}ms inference, {:.1f}ms NMS".format(*self.t)
        return "\n".join([*lines, f"Speed: {times} per image at shape {self.s}"])

    __repr__ = __str__

    def print(self) -> None:
        """Print the number of objects per class for each image, and the times."""
        LOGGER.info(str(self))

    def tolist(self) -> list[Detections]:
        """Return a list with one `Detections` object per image."""
        return list(self)

    def pandas(self) -> Tables:
        """Return the boxes as tables; `.pandas().xyxy[0]` is the first image's. Raises UserError without pandas."""
        return Tables(
            **{form: [self._table(p, CORNERS) for p in getattr(self, form)] for form in ("xyxy", "xyxyn")},
            **{form: [self._table(p, CENTRES) for p in getattr(self, form)] for form in ("xywh", "xywhn")},
        )

    def _table(self, found: Tensor, box: tuple[str, ...]) -> DataFrame:
        try:
            import pandas
        except ImportError as e:
            raise UserError(f".pandas() needs pandas, which cannot be imported ({e}); pip install pandas") from e
        values = found.double().cpu().numpy()
        columns = {name: values[:, k] for k, name in enumerate((*box, "confidence"))}
        classes = values[:, 5].astype(int)
        return pandas.DataFrame({**columns, "class": classes, "name": [self.names[c] for c in classes.tolist()]})

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Draw the boxes and return the images, (h, w, 3) uint8 RGB, which are also stored in `ims`."""
        self.ims = [np.ascontiguousarray(self._drawn(i, labels)[..., ::-1]) for i in range(self.n)]
        return self.ims

    def _drawn(self, i: int, labels: bool) -> np.ndarray:
        """Return image i, BGR, with its boxes drawn, the most confident on top."""
        painter = Annotator(self._originals[i][..., ::-1])
        for row in reversed(self.pred[i].tolist()):
            painter.box_label(row[:4], self._label(row) if labels else "", color_of(int(row[5])))
        return painter.result()

    def _label(self, row: Sequence[float]) -> str:
        return f"{self.names[int(row[5])]} {row[4]:.2f}"

    def save(self, labels: bool = True, save_dir: str | Path = DEFAULT_FOLDER, exist_ok: bool = False) -> Path:
        """Write the images with their boxes into save_dir, or the first free one of save_dir2, ...; return the folder.

        exist_ok: use save_dir even if it exists. Raises UserError if the folder cannot be created.
        """
        folder = increment_path(save_dir, exist_ok)
        for i, (name, stem) in enumerate(zip(self.files, self._stems(), strict=True)):
            write_image(folder / f"{stem}{Path(name).suffix}", self._drawn(i, labels))
        LOGGER.info(f"{self.n} image{'s' if self.n != 1 else ''} saved to {shown(folder)}")
        return folder

    def _stems(self) -> list[str]:
        """Return a name without suffix for each image; no two are equal, even where upper and lower case are."""
        names = Names()
        names.reserve(Path(file).stem for file in self.files)
        return [names.take(Path(file).stem, i) for i, file in enumerate(self.files)]

    def crop(self, save: bool = True, save_dir: str | Path = DEFAULT_FOLDER, exist_ok: bool = False) -> list[Crop]:
        """Crop each object, with a small margin; `save` also writes the crops to `save_dir/crops/<class>/`."""
        folder = increment_path(save_dir, exist_ok) / "crops" if save else Path()
        crops: list[Crop] = []
        for im, found, stem in zip(self._originals, self.pred, self._stems(), strict=True):
            for k, row in enumerate(found):
                cut = crop_box(im, row[:4].tolist()).copy()
                name = self.names[int(row[5])]
                crops.append(Crop(box=row[:4], conf=row[4], cls=row[5], label=self._label(row.tolist()), im=cut))
                if save:
                    target = folder / safe_name(name)
                    target.mkdir(parents=True, exist_ok=True)
                    write_image(target / f"{stem}-{k + 1}.jpg", cut[..., ::-1])
        if save:
            LOGGER.info(f"{len(crops)} crop{'s' if len(crops) != 1 else ''} saved to {shown(folder)}")
        return crops

    def show(self, labels: bool = True) -> None:
        """Show the images with their boxes: below the cell in a notebook, otherwise in the system's image viewer.

        Without a display, as on a server, a warning is logged instead.
        """
        pictures = [Image.fromarray(self._drawn(i, labels)[..., ::-1]) for i in range(self.n)]
        if in_notebook():
            from IPython.display import display

            for picture in pictures:
                display(picture)
            return
        if not has_display():
            LOGGER.warning(".show(): no display is available; use .save() to write the images or .render() to get them")
            return
        for picture, name in zip(pictures, self.files, strict=True):
            if not ImageShow.show(picture, name):
                LOGGER.warning(".show(): no image viewer was found; use .save() to write the images")
                return


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel. IPython is not imported for this check."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython(), "kernel") if ipython else False
