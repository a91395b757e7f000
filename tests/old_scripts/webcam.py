"""Count what a camera sees: boxes on the live picture, a crop of each object, one video per camera."""

import argparse

import torch

from models.common import DetectMultiBackend
from utils.dataloaders import IMG_FORMATS, VID_FORMATS, LoadImages, LoadStreams
from utils.general import (
    LOGGER,
    Path,
    Profile,
    check_img_size,
    check_imshow,
    check_requirements,
    colorstr,
    cv2,
    increment_path,
    non_max_suppression,
    print_args,
    scale_boxes,
    xyxy2xywh,
)
from utils.plots import Annotator, colors, save_one_box
from utils.torch_utils import select_device, smart_inference_mode


class Recorder:
    """One video file per camera, begun with its first picture."""

    def __init__(self, folder):
        self.folder, self.files = folder, {}

    def write(self, name, picture):
        if name not in self.files:
            size = picture.shape[1], picture.shape[0]
            code = cv2.VideoWriter_fourcc(*"mp4v")
            self.files[name] = cv2.VideoWriter(str(self.folder / f"{name}.mp4"), code, 30, size)
        self.files[name].write(picture)

    def close(self):
        for file in self.files.values():
            file.release()


@smart_inference_mode()
def watch(opt):
    out = increment_path(Path(opt.project) / "exp", exist_ok=False)
    (out / "labels").mkdir(parents=True, exist_ok=True)
    model = DetectMultiBackend(opt.weights, device=select_device(opt.device), dnn=False, data=None, fp16=False)
    size = check_img_size(opt.imgsz * 2, s=model.stride)
    live = Path(opt.source).suffix[1:] not in IMG_FORMATS + VID_FORMATS
    loader = LoadStreams if live else LoadImages
    dataset = loader(opt.source, img_size=size, stride=model.stride, auto=model.pt, vid_stride=1)
    window = live and check_imshow(warn=True)
    model.warmup(imgsz=(len(dataset) if live else 1, 3, *size))
    recorder, clock = Recorder(out), Profile()

    for path, im, im0s, _, text in dataset:
        x = torch.from_numpy(im).to(model.device).float() / 255
        with clock:
            found = non_max_suppression(model(x if x.ndim == 4 else x[None]), opt.conf, 0.45, None, False, max_det=100)
        for k, det in enumerate(found):
            name, im0 = (Path(path[k]).stem, im0s[k]) if live else (Path(path).stem, im0s)
            number = "" if dataset.mode == "image" else f"_{dataset.count if live else dataset.frame}"
            annotator, clean = Annotator(im0, line_width=2, example=str(model.names)), im0.copy()
            det[:, :4] = scale_boxes(x.shape[-2:], det[:, :4], im0.shape).round()
            rows = []
            for *xyxy, conf, cls in det:
                c = int(cls)
                annotator.box_label(xyxy, f"{model.names[c]} {conf:.2f}", color=colors(c, True))
                save_one_box(xyxy, clean, file=out / "crops" / model.names[c] / f"{name}.jpg", BGR=True)
                centre = xyxy2xywh(torch.tensor(xyxy).view(1, 4))[0].tolist()
                rows.append(" ".join(f"{v:.1f}" for v in (c, *centre, conf)))
            (out / "labels" / f"{name}{number}.txt").write_text("\n".join(rows))
            if window:
                cv2.imshow(name, annotator.result())
                cv2.waitKey(1)
            if dataset.mode == "image":
                cv2.imwrite(str(out / Path(path).name), annotator.result())
            else:
                recorder.write(name, annotator.result())
            LOGGER.info(f"{text}{name}: {len(det)} objects, {clock.dt * 1e3:.1f}ms")
    recorder.close()
    LOGGER.info(f"results in {colorstr('bold', out)}, {clock.t:.1f}s in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", nargs="+", default="best.pt")
    parser.add_argument("--source", default="0")
    parser.add_argument("--imgsz", "--img", nargs=1, type=int, default=[640])
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--device", default="")
    parser.add_argument("--project", default="runs/watch")
    opt = parser.parse_args()
    print_args(vars(opt))
    check_requirements(exclude=("tensorboard", "thop"))
    watch(opt)
