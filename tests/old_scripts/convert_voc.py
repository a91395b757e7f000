"""Convert PASCAL VOC to YOLO labels, as the `download` entry of a data yaml does."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path as P

from tqdm import tqdm

from utils.general import Path, download

NAMES = ["square"]


def convert_box(size, box):
    dw, dh = 1.0 / size[0], 1.0 / size[1]
    return (box[0] + box[1]) / 2.0 * dw, (box[2] + box[3]) / 2.0 * dh, (box[1] - box[0]) * dw, (box[3] - box[2]) * dh


def convert_label(xml, out):
    root = ET.parse(xml).getroot()
    size = [int(root.find("size").find(x).text) for x in ("width", "height")]
    with open(out, "w") as f:
        for obj in root.iter("object"):
            cls = obj.find("name").text
            if cls in NAMES and int(obj.find("difficult").text) != 1:
                box = [float(obj.find("bndbox").find(x).text) for x in ("xmin", "xmax", "ymin", "ymax")]
                f.write(" ".join(str(a) for a in (NAMES.index(cls), *convert_box(size, box))) + "\n")


dir = Path(sys.argv[1])
url = sys.argv[2]
urls = [f"{url}VOCtrainval.zip", f"{url}VOCtest.zip"]
download(urls, dir=dir / "images", delete=False, curl=True, threads=3)

path = dir / "images/VOCdevkit/VOC2007"
lbs_path = dir / "labels"
lbs_path.mkdir(exist_ok=True, parents=True)
for xml in tqdm(sorted((path / "Annotations").glob("*.xml")), desc="VOC2007"):
    convert_label(xml, lbs_path / P(xml.name).with_suffix(".txt"))
