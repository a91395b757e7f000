"""The results of detect.py: annotated images and videos, label files, crops, a table."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.boxes import xyxy2xywhn
from utils.data.images import write_image
from utils.data.naming import Names, Stems
from utils.draw.boxes import Annotator, color_of, crop_box
from utils.errors import UserError
from utils.files import atomic_write, csv_text, safe_name
from utils.system.console import LOGGER
from utils.system.device import has_display
from utils.system.opencv import cv2

WRITABLE = frozenset(".jpg .jpeg .png .bmp .webp .tif .tiff".split())  # other image formats are written as .jpg


@dataclass
class Output:
    """Draws the detections and writes the selected files to `folder`."""

    folder: Path
    names: dict[int, str]
    save_img: bool = True
    save_txt: bool = False
    save_conf: bool = False
    save_crop: bool = False
    save_csv: bool = False
    view_img: bool = False
    line_thickness: int = 3
    hide_labels: bool = False
    hide_conf: bool = False
    videos: dict[str, tuple[cv2.VideoWriter, tuple[int, int]]] = field(default_factory=dict)  # with (width, height)
    image_names: Names = field(default_factory=Names)
    video_names: Names = field(default_factory=Names)
    folder_names: Names = field(default_factory=Names)
    stems: Stems = field(default_factory=Stems)  # of labels and crops

    def add(self, found: Tensor, im0: np.ndarray, path: str, mode: str, frame: int, fps: float) -> None:
        """Write the results of one frame. found: (m, 6) corners in pixels of `im0`, confidence, class; best first."""
        name, stem = self.names_of(path, mode, frame)
        if self.save_txt:
            self._write_txt(found, im0.shape, self.folder / "labels" / f"{stem}.txt")
        if self.save_csv and len(found):
            self._write_csv(found, name)
        if self.save_crop:
            for k, row in enumerate(found.tolist()):
                folder = self.folder / "crops" / safe_name(self.names[int(row[5])])
                folder.mkdir(parents=True, exist_ok=True)
                write_image(folder / f"{stem}-{k + 1}.jpg", crop_box(im0, row[:4]))
        if self.save_img or self.view_img:
            picture = self.draw(found, im0)
            if self.view_img:
                show(name, picture)
            if self.save_img and mode == "image":
                write_image(self.folder / name, picture)
            elif self.save_img:
                self._write_video(name, picture, fps)

    def draw(self, found: Tensor, im0: np.ndarray) -> np.ndarray:
        """Return the frame with its boxes drawn, the most confident on top."""
        painter = Annotator(im0, self.line_thickness)
        for row in reversed(found.tolist()):
            name = self.names[int(row[5])]
            label = "" if self.hide_labels else name if self.hide_conf else f"{name} {row[4]:.2f}"
            painter.box_label(row[:4], label, color_of(int(row[5])))
        return painter.result()

    def names_of(self, path: str, mode: str, frame: int) -> tuple[str, str]:
        """Return the file name of an annotated image or video, and the stem of its labels and crops; all are unique."""
        if mode == "image":
            image, suffix = self.image_names.take(Path(path).stem, path), Path(path).suffix
            return f"{image}{suffix if suffix.lower() in WRITABLE else '.jpg'}", self.stems.take(image, path)
        video = self.video_names.take(safe_name(Path(path).stem if mode == "video" else path), path)
        return f"{video}.mp4", self.stems.frame(video, frame)

    def _write_txt(self, found: Tensor, shape: tuple[int, ...], file: Path) -> None:
        boxes = xyxy2xywhn(found[:, :4], shape[1], shape[0]).tolist()
        with atomic_write(file, "w", durable=False) as f:
            for row, box in zip(found.tolist(), boxes, strict=True):
                values = [*box, row[4]] if self.save_conf else box
                f.write(" ".join([f"{int(row[5])}", *(f"{v:.6g}" for v in values)]) + "\n")

    def _write_csv(self, found: Tensor, name: str) -> None:
        file = self.folder / "predictions.csv"
        new = not file.exists()
        with open(file, "a", encoding="utf-8", newline="") as f:
            writer = csv.writer(f)
            if new:
                writer.writerow(("Image Name", "Prediction", "Confidence"))
            for row in found.tolist():
                writer.writerow((csv_text(name), csv_text(self.names[int(row[5])]), f"{row[4]:.2f}"))

    def _write_video(self, name: str, picture: np.ndarray, fps: float) -> None:
        size = (picture.shape[1], picture.shape[0])
        if name not in self.videos:
            file = self.folder / name
            writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), fps or 30, size)
            if not writer.isOpened():
                raise UserError(f"{file}: OpenCV cannot write this video; use --nosave or --save-txt")
            self.videos[name] = writer, size
        writer, first = self.videos[name]
        # OpenCV silently drops frames of another size, which a camera may send after a reconnect
        writer.write(picture if size == first else cv2.resize(picture, first))

    def features_folder(self, path: str, mode: str, frame: int) -> Path:
        """Return the folder for the feature maps of an image or frame; no two of them share it."""
        stem = self.names_of(path, mode, frame)[1]
        return self.folder / self.folder_names.take(f"features_{safe_name(stem)}", stem)

    def close(self) -> None:
        """Finish the video files, and log which outputs are not named after their source."""
        for writer, _ in self.videos.values():
            writer.release()
        texts = self.save_txt or self.save_crop
        for what, names, used in (("images", self.image_names, self.save_img or texts),
                                  ("videos", self.video_names, self.save_img or texts),
                                  ("labels and crops", self.stems, texts)):  # fmt: skip
            if used and names.changes:
                LOGGER.info(f"{what}: {names.summary()}")


def show(title: str, picture: np.ndarray) -> None:
    """Show an image in a window. Raises UserError if there is no display."""
    if not has_display():
        raise UserError("--view-img: there is no display here")
    try:
        cv2.imshow(title, picture)
        cv2.waitKey(1)
    except cv2.error as e:
        raise UserError("--view-img: this OpenCV has no window support; run pip uninstall opencv-python-headless, then "
                        "pip install opencv-python") from e  # fmt: skip
