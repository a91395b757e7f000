"""Detection metrics: matching of detections to labels, precision, recall, AP and the confusion matrix."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils.boxes import box_iou

IOU_THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))  # COCO's .50:.05:.95
EPS = 1e-16


def fitness(metrics: np.ndarray) -> np.ndarray:
    """Return the score that selects the best epoch: 0.1 mAP50 + 0.9 mAP50-95, of columns P, R, mAP50, mAP50-95."""
    return metrics[..., 2] * 0.1 + metrics[..., 3] * 0.9


def process_batch(detections: Tensor, labels: Tensor, iouv: Tensor) -> Tensor:
    """Match one image's detections to its labels.

    detections: (m, 6) corners, confidence, class, sorted by descending confidence, as NMS returns them; labels: (k, 5)
    class, corners; iouv: (t,) IoU thresholds. Returns (m, t) bool: whether each detection is a true positive at each
    threshold. Each label is matched at most once, and so is each detection.
    """
    correct = torch.zeros(len(detections), len(iouv), dtype=torch.bool, device=detections.device)
    if not len(detections) or not len(labels):
        return correct
    iou = box_iou(labels[:, 1:], detections[:, :4])
    iou = torch.where(labels[:, 0:1] == detections[:, 5], iou, -1.0)
    # each detection selects the label with the highest IoU; each label then keeps the most confident of the detections
    # that selected it with an IoU above the threshold, which is the first one
    best, label = iou.cpu().numpy().max(0), iou.cpu().numpy().argmax(0)
    detection, level = np.nonzero(best[:, None] >= iouv.cpu().numpy())
    _, first = np.unique(label[detection] * len(iouv) + level, return_index=True)
    correct[detection[first], level[first]] = True
    return correct


def smooth(y: np.ndarray, fraction: float = 0.05) -> np.ndarray:
    """Smooth a curve (n,) with a box filter over `fraction` of its length; returns (n,)."""
    width = round(len(y) * fraction * 2) // 2 + 1
    width += 1 - width % 2
    pad = np.ones(width // 2)
    return np.convolve(np.concatenate((pad * y[0], y, pad * y[-1])), np.ones(width) / width, mode="valid")


def compute_ap(recall: np.ndarray, precision: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Compute AP, the area under a precision-recall curve, with COCO's 101-point interpolation.

    recall, precision: (n,) in order of descending confidence. Returns AP and the curve that was integrated: the
    precision envelope and the recall, with end points added.
    """
    r = np.concatenate(([0.0], recall, [1.0]))
    p = np.concatenate(([1.0], precision, [0.0]))
    p = np.flip(np.maximum.accumulate(np.flip(p)))
    x = np.linspace(0, 1, 101)
    y = np.interp(x, r, p)
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()), p, r


class Curves:
    """Curves (classes, 1000) at IoU 0.5: precision, recall and F1 over confidence, and precision over recall."""

    def __init__(self, classes: int) -> None:
        self.x = np.linspace(0, 1, 1000)
        self.p = np.zeros((classes, 1000))
        self.r = np.zeros((classes, 1000))
        self.pr = np.zeros((classes, 1000))

    @property
    def f1(self) -> np.ndarray:
        """F1 over confidence, (classes, 1000)."""
        return 2 * self.p * self.r / (self.p + self.r + EPS)


def pr_curves(
    tp: np.ndarray, conf: np.ndarray, pred_cls: np.ndarray, target_cls: np.ndarray
) -> tuple[np.ndarray, Curves, np.ndarray, np.ndarray]:
    """Compute AP and curves per class.

    tp: (n, t) bool, true positives at each IoU threshold; conf, pred_cls: (n,); target_cls: (k,). Returns ap
    (classes, t), the curves, the classes that have labels, and the number of labels of each.
    """
    order = np.argsort(-conf, kind="stable")
    tp, conf, pred_cls = tp[order], conf[order], pred_cls[order]
    classes, counts = np.unique(target_cls, return_counts=True)
    ap, curves = np.zeros((len(classes), tp.shape[1])), Curves(len(classes))
    for i, (c, count) in enumerate(zip(classes, counts, strict=True)):
        of_class = pred_cls == c
        if not of_class.any():
            continue
        hits = tp[of_class].cumsum(0)
        misses = (1 - tp[of_class]).cumsum(0)
        recall = hits / (count + EPS)
        precision = hits / (hits + misses)
        curves.r[i] = np.interp(-curves.x, -conf[of_class], recall[:, 0], left=0)
        curves.p[i] = np.interp(-curves.x, -conf[of_class], precision[:, 0], left=1)
        for t in range(tp.shape[1]):
            ap[i, t], envelope, r = compute_ap(recall[:, t], precision[:, t])
            if t == 0:
                curves.pr[i] = np.interp(curves.x, r, envelope)
    return ap, curves, classes.astype(int), counts


def ap_per_class(
    tp: np.ndarray, conf: np.ndarray, pred_cls: np.ndarray, target_cls: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, Curves]:
    """Compute the metrics per class at the confidence with the best mean F1 (at IoU 0.5).

    Arguments as for `pr_curves`. Returns tp, fp, p, r, f1 (classes,), ap (classes, t), the classes (classes,), and
    the curves.
    """
    ap, curves, classes, counts = pr_curves(tp, conf, pred_cls, target_cls)
    best = smooth(curves.f1.mean(0), 0.1).argmax() if len(classes) else 0
    p, r, f1 = curves.p[:, best], curves.r[:, best], curves.f1[:, best]
    hits = (r * counts).round()
    return hits, (hits / (p + EPS) - hits).round(), p, r, f1, ap, classes, curves


class ConfusionMatrix:
    """Counts of predicted classes (rows) by true class (columns), (nc + 1, nc + 1); the last of each is background."""

    def __init__(self, nc: int, conf: float = 0.25, iou_thres: float = 0.45) -> None:
        self.matrix = np.zeros((nc + 1, nc + 1))
        self.nc = nc
        self.conf = conf
        self.iou_thres = iou_thres

    def process_batch(self, detections: Tensor, labels: Tensor) -> None:
        """Add one image: detections (m, 6) corners, confidence, class; labels (k, 5) class, corners."""
        detections = detections[detections[:, 4] > self.conf]
        true = labels[:, 0].long().cpu().numpy()
        pred = detections[:, 5].long().cpu().numpy()
        iou = box_iou(labels[:, 1:], detections[:, :4])
        label, found = (iou > self.iou_thres).nonzero(as_tuple=True)
        order = iou[label, found].argsort(descending=True).cpu().numpy()
        label, found = label.cpu().numpy()[order], found.cpu().numpy()[order]
        partner: dict[int, int] = {}
        for k, m in zip(label.tolist(), found.tolist(), strict=True):
            if k not in partner and m not in partner.values():
                partner[k] = m
        for k, c in enumerate(true):
            self.matrix[pred[partner[k]] if k in partner else self.nc, c] += 1
        for m in set(range(len(pred))) - set(partner.values()):
            self.matrix[pred[m], self.nc] += 1
