"""Non-maximum suppression as part of an ONNX graph, so that apps and web pages need no code for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.export.engines import INSIDE, need
from models.export.facts import ExportFacts

# decoded: the output of `Detect`. Each box keeps only its best class; boxes of different classes do not suppress each
# other.
TEXT = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
nms (float[batch, boxes, numbers] decoded, float[1] conf_thres = {{{conf}}}, float[1] iou_thres = {{{iou}}},
     int64[1] max_det = {{{max_det}}}) => (float[found, 7] detections)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] four = {{4}}, int64[1] five = {{5}},
 int64[1] last = {{2147483647}}, int64[2] image_and_box = {{0, 2}}, float[1] half = {{0.5}}, int64 first = {{0}},
 int64 step = {{1}}>
{{
    xy = Slice(decoded, zero, two, two)
    wh = Slice(decoded, two, four, two)
    sure = Slice(decoded, four, five, two)
    classes = Slice(decoded, five, last, two)
    reach = Mul(wh, half)
    low = Sub(xy, reach)
    high = Add(xy, reach)
    corners = Concat <axis = 2> (low, high)

    every = Mul(classes, sure)
    best = ArgMax <axis = 2, keepdims = 1> (every)
    shape = Shape(decoded)
    batch = Slice(shape, zero, one)
    numbers = Slice(shape, two, last)
    count = Sub(numbers, five)
    count0 = Squeeze(count)
    numbered = Range(first, count0, step)
    is_best = Equal(best, numbered)
    is_best1 = Cast <to = 1> (is_best)
    counted = Mul(every, is_best1)
    scores = Transpose <perm = [0, 2, 1]> (counted)
    kept = NonMaxSuppression(corners, scores, max_det, iou_thres, conf_thres)

    of = Gather <axis = 1> (kept, image_and_box)
    box = GatherND(corners, of)
    conf = GatherND(scores, kept)
    image = Gather <axis = 1> (kept, first)
    cls = Gather <axis = 1> (kept, step)
    image1 = Cast <to = 1> (image)
    cls1 = Cast <to = 1> (cls)
    image2 = Unsqueeze(image1, one)
    cls2 = Unsqueeze(cls1, one)
    conf2 = Unsqueeze(conf, one)
    rows = Concat <axis = 1> (image2, box, conf2, cls2)

    image64 = Cast <to = 11> (image)
    conf64 = Cast <to = 11> (conf)
    image64x2 = Add(image64, image64)
    key = Sub(image64x2, conf64)
    found = Shape(key)
    keys, order = TopK <largest = 0, sorted = 1> (key, found)
    ordered = Gather <axis = 0> (rows, order)

    batch0 = Squeeze(batch)
    every_image = Range(first, batch0, step)
    its = Gather <axis = 0> (image, order)
    its2 = Unsqueeze(its, one)
    mine = Equal(its2, every_image)
    mine1 = Cast <to = 1> (mine)
    up_to = CumSum(mine1, first)
    own = Mul(up_to, mine1)
    rank = ReduceSum <keepdims = 0> (own, one)
    most = Cast <to = 1> (max_det)
    stays = LessOrEqual(rank, most)
    detections = Compress <axis = 0> (ordered, stays)
}}
"""


def with_nms(model: Any, nms: Mapping[str, float]) -> Any:
    """Add NMS to an ONNX model: its output `output0` (b, n, 5 + nc) becomes `detections` (m, 7).

    A row is the image's index in the batch, x1, y1, x2, y2 in pixels, confidence, class. Rows are sorted by image, then
    by descending confidence. nms: default values of conf, iou and max_det (per image), which a caller may change with
    the inputs conf_thres, iou_thres and max_det.
    """
    onnx = need("onnx", "--nms")
    opset = next(o.version for o in model.opset_import if not o.domain)
    part = onnx.parser.parse_model(TEXT.format(ir=model.ir_version, opset=opset, **nms))
    return onnx.compose.merge_models(model, part, io_map=[("output0", "decoded")])


def without_nms(path: Path, out: Path, facts: ExportFacts) -> None:
    """Write the part before NMS of a file that `with_nms` made, as an ONNX file with the metadata `facts`."""
    onnx = need("onnx", "--nms")
    model = onnx.load(str(path))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, [None] * 3))
    next(field for field in model.metadata_props if field.key == INSIDE).value = facts.to_json()
    onnx.save(model, str(out))
