"""Non-maximum suppression of YOLOv5 head output, with torchvision's kernel or, where that does not load, our own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.boxes import box_iou, xywh2xyxy
from utils.console import LOGGER

CLASS_OFFSET = 7680  # pixels: boxes of different classes are moved this far apart, so that they never overlap
MANY = 256  # boxes from which looking at one class after the other is faster
MAX_CANDIDATES = 30000  # the best-scored candidates of an image that are looked at


@functools.cache
def nms_kernel(device: str = "cpu") -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return `nms(boxes, scores, iou_thres) -> kept indices`, torchvision's if it works on this type of device.

    A torchvision that does not fit torch fails on import or on first use ("operator torchvision::nms does not
    exist"); that costs one warning and the speed of the kernel, not the run.
    """
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), torch.ones(1, device=device), 0.5)
    except Exception as e:  # a broken pair raises ImportError, RuntimeError, NotImplementedError or OSError
        reason = f"{type(e).__name__}: {e}".splitlines()[0]
        LOGGER.warning(
            f"torchvision does not work with torch {torch.__version__} ({reason}); the project's own, slower NMS is "
            "used. To mend it: pip install --upgrade --force-reinstall torch torchvision"
        )
        return plain_nms
    return nms


def plain_nms(boxes: Tensor, scores: Tensor, iou_thres: float) -> Tensor:
    """Greedy NMS without torchvision: boxes (n, 4) corners, scores (n,); indices kept, best first."""
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(best)
        if order.numel():
            order = order[~(box_iou(boxes[best][None], boxes[order], eps=0.0)[0] > iou_thres)]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long, device=boxes.device)


def non_max_suppression(
    prediction: Tensor | Sequence[Tensor],
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
) -> list[Tensor]:
    """Pick the detections of each image from decoded head output.

    prediction: (b, n, 5 + nc): cx, cy, w, h in pixels, objectness, class scores (or a head's tuple that starts so).
    multi_label: a box may carry several classes. classes: keep only these. agnostic: classes suppress each other.
    Returns per image (m, 6): x1, y1, x2, y2, confidence, class; best first, at most max_det.
    Raises ValueError for thresholds outside [0, 1].
    """
    if not 0 <= conf_thres <= 1 or not 0 <= iou_thres <= 1:
        raise ValueError(f"conf_thres {conf_thres} and iou_thres {iou_thres} must lie in [0, 1]")
    if not isinstance(prediction, Tensor):
        prediction = prediction[0]
    return [_image_nms(x, conf_thres, iou_thres, classes, agnostic, multi_label, max_det) for x in prediction]


def _image_nms(
    x: Tensor, conf_thres: float, iou_thres: float, classes: Sequence[int] | None, agnostic: bool,
    multi_label: bool, max_det: int,
) -> Tensor:  # fmt: skip
    """Detections of one image (n, 5 + nc).

    Whether a box survives depends on better ones only, so the best candidates give the same survivors as all of them; a
    network at the start of its training fires everywhere, and then they are a small part.
    """
    x = x[x[:, 4] > conf_thres]
    scores = x[:, 5:] * x[:, 4:5]
    if not multi_label:
        scores, cls = scores.max(1)
        scores, cls = scores[:, None], cls[:, None]
    else:
        cls = torch.arange(scores.shape[1], device=x.device).expand_as(scores)
    if classes is not None:
        wanted = torch.isin(cls, torch.as_tensor(list(classes), device=cls.device))
        scores = torch.where(wanted, scores, -1.0)
    conf = scores.flatten()
    most = min(int((conf > conf_thres).sum()), MAX_CANDIDATES)
    size = max(4 * max_det, 1024)
    while True:
        best = _best(conf, min(size, most))
        rows, of_class = best // scores.shape[1], cls.flatten()[best]
        boxes = xywh2xyxy(x[rows, :4])
        kept = _suppress(boxes, conf[best], torch.zeros_like(of_class) if agnostic else of_class, iou_thres)
        if len(kept) >= max_det or size >= most:
            kept = kept[:max_det]
            return torch.cat((boxes[kept], conf[best][kept, None], of_class[kept, None].to(boxes)), 1)
        size *= 4


def _suppress(boxes: Tensor, scores: Tensor, cls: Tensor, iou_thres: float) -> Tensor:
    """Greedy NMS within classes of boxes (n, 4), best first: indices kept, best first."""
    nms = nms_kernel(boxes.device.type)
    moved = boxes + cls[:, None] * CLASS_OFFSET
    if len(boxes) < MANY or boxes.device.type != "cpu":
        return nms(moved, scores, iou_thres)
    # the kernel compares each box with each: the classes one by one are far fewer pairs
    order = cls.argsort(stable=True)
    parts = order.split(cls.bincount()[cls.unique()].tolist())
    return torch.cat([part[nms(moved[part], scores[part], iou_thres)] for part in parts]).sort().values


def _best(scores: Tensor, count: int) -> Tensor:
    """The indices of the `count` highest of scores (n,), the highest first, of equals the first."""
    if not count:
        return torch.empty(0, dtype=torch.long, device=scores.device)
    lowest = scores.topk(count, sorted=False).values.min()
    chosen = (scores >= lowest).nonzero()[:, 0]  # more than count where some are equal to the lowest
    return chosen[scores[chosen].argsort(descending=True, stable=True)][:count]
