"""A small web service: POST a picture, get what is in it as JSON."""

import cv2
import numpy as np
import torch
from flask import Flask, jsonify, request

from models.common import DetectMultiBackend
from utils.augmentations import letterbox
from utils.general import check_img_size, non_max_suppression, scale_boxes
from utils.torch_utils import select_device, smart_inference_mode

app = Flask(__name__)
model = DetectMultiBackend("best.pt", device=select_device(""), dnn=False, data="data/coco128.yaml", fp16=False)
size = check_img_size((160, 150), s=model.stride)
model.warmup(imgsz=(1, 3, *size))


@smart_inference_mode()
def look(picture):
    im = letterbox(picture, size, stride=model.stride, auto=model.pt)[0]
    im = np.ascontiguousarray(im[:, :, ::-1].transpose(2, 0, 1))
    x = torch.from_numpy(im).to(model.device)[None]
    x = (x.half() if model.fp16 else x.float()) / 255
    (det,) = non_max_suppression(model(x, augment=False, visualize=False), 0.25, 0.45, None, False, max_det=1000)
    det[:, :4] = scale_boxes(x.shape[2:], det[:, :4], picture.shape).round()
    for *box, conf, cls in det.tolist():
        yield {"name": model.names[int(cls)], "confidence": conf, "box": [int(v) for v in box]}


@app.route("/detect", methods=["POST"])
def answer():
    if not request.files.get("image"):
        return jsonify({"error": "no image"})
    data = np.frombuffer(request.files["image"].read(), np.uint8)
    return jsonify(list(look(cv2.imdecode(data, cv2.IMREAD_COLOR))))


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=5000)
