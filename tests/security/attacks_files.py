"""Attacks through the files of a dataset: images, labels, lists, links, XML, zips."""

from __future__ import annotations

import os
import socket
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from helpers import write_yolo_set
from security.zoo import LEFT_OUT, REFUSED, Attack

from my_tools import voc2yolo
from utils.archive import Archive
from utils.data.images import read_image
from utils.data.labels import list_images, load_labels
from utils.data.sources import list_media, open_source
from utils.settings.dataset import load_data
from utils.system.download import download, download_files
from utils.voc.files import FolderFiles

PICTURE = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))[1].tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: int) -> bytes:
    """Return a grey PNG whose header claims a size and whose data has `rows` rows, compressed 1,000 to 1."""
    pack = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    data = b"".join(pack.compress(row) for _ in range(rows)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG whose header claims a size."""
    content = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    at = content.find(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp(width: int, height: int) -> bytes:
    content = bytearray(cv2.imencode(".bmp", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def picture(content: bytes, folder: Path, name: str = "x.png") -> Any:
    (folder / name).write_bytes(content)
    return read_image(folder / name)


def data_set(change: Callable[[Path, Path], Any], folder: Path, left: int = 3) -> Any:
    """Scan a dataset of four images, the first image or label of which is changed; the others must stay usable."""
    data = load_data(write_yolo_set(folder / "set", 4))
    change(folder / "set/images/train/000.png", folder / "set/labels/train/000.txt")
    index = load_labels(data.train, data.nc)
    assert len(index) == left and (index.values[:, 1:] <= 1).all()


def label(text: str | bytes, folder: Path) -> Any:
    data_set(lambda image, file: file.write_bytes(text if isinstance(text, bytes) else text.encode()), folder)


def instead(make: Callable[[Path], Any]) -> Callable[[Path, Path], Any]:
    """Return a change that replaces the image by what `make` creates."""

    def change(image: Path, file: Path) -> None:
        image.unlink()
        make(image)

    return change


def instead_of_label(make: Callable[[Path], Any]) -> Callable[[Path, Path], Any]:
    def change(image: Path, file: Path) -> None:
        file.unlink()
        make(file)

    return change


def unix_socket(path: Path) -> None:
    short = os.path.relpath(path)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(short if len(short) < 100 else str(path))


def loops(folder: Path) -> Any:
    """List a folder with two links to its parent; following both would visit 2^40 folders."""
    data = load_data(write_yolo_set(folder / "set", 4))
    for name in ("a", "b"):
        (folder / "set/images/train" / name).symlink_to("..", target_is_directory=True)
    found = list_images(data.train)
    assert len(found) == len({os.path.realpath(f) for f in found}) <= 8


def system_linked(folder: Path) -> Any:
    data = load_data(write_yolo_set(folder / "set", 4))
    (folder / "set/images/train/a").symlink_to("/proc/self", target_is_directory=True)
    assert len(list_images(data.train)) == 4
    assert len(FolderFiles(folder / "set").names) == len([p for p in (folder / "set").rglob("*.*")])


def special(path: Path, make: Callable[[Path], Any]) -> Path:
    make(path)
    return path


def linked(link: tuple[str, str], folder: Path) -> Any:
    """Convert a VOC folder with one good image, an annotation without a usable image, and link[0] -> link[1]."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / "VOC" / name).mkdir(parents=True)
    for stem in ("good", "bad"):
        (folder / f"VOC/Annotations/{stem}.xml").write_text(
            _xml("", tail="<size><width>50</width><height>40</height></size>")
        )
    (folder / "VOC/JPEGImages/good.png").write_bytes(PICTURE)
    (folder / "VOC/JPEGImages/no.png").write_bytes(b"no picture")
    (folder / "VOC" / link[0]).symlink_to(link[1])
    done = voc2yolo.run(source=str(folder / "VOC"), out=str(folder / "out"), name="hostile", yaml=False)
    assert sum(done.images.values()) == 1
    print("\n".join(f"{file}: {reason}" for file, reason in done.problems))


def listed(text: str | bytes, folder: Path, read: Callable = lambda f: list_images((f,))) -> Any:
    (folder / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(folder / "list.txt")


def convert(files: dict[str, bytes], folder: Path, **how: Any) -> Any:
    """Convert a zipped VOC dataset that has one good image besides these files."""
    good = (
        b"<annotation><size><width>50</width><height>40</height></size><object><name>dog</name><bndbox><xmin>1</xmin>"
        b"<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    files = {"Annotations/good.xml": good, "JPEGImages/good.png": PICTURE, **files}
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if isinstance(content, str):  # the target of a symbolic link
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            z.writestr(info, content)
    done = voc2yolo.run(source=str(folder / "set.zip"), out=str(folder / "out"), name="hostile", yaml=False, **how)
    assert sum(done.images.values()) == 1
    for path in (folder / "out").rglob("*"):
        assert not path.is_symlink() or path.resolve().is_relative_to(folder)
    print("\n".join(f"{file}: {reason}" for file, reason in done.problems))


def annotated(xml: str | bytes, folder: Path) -> Any:
    xml = xml if isinstance(xml, bytes) else xml.encode()
    return convert({"Annotations/bad.xml": xml, "JPEGImages/bad.png": PICTURE}, folder)


def named(name: str, folder: Path) -> Any:
    """Convert an annotation that has no image of its own name and whose <filename> points elsewhere."""
    convert({"Annotations/bad.xml": _xml("", tail=f"<filename>{name}</filename>").encode()}, folder)


def unpacked(name: str, folder: Path, content: bytes = b"ran") -> Any:
    with zipfile.ZipFile(folder / "x.zip", "w") as z:
        info = zipfile.ZipInfo("placeholder")
        info.filename = info.orig_filename = name
        z.writestr(info, content)
    with Archive(folder / "x.zip") as archive:
        assert archive.members == []
        print(archive.refused)


def bomb(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros.bin", bytes(2**26))
    with Archive(folder / "x.zip") as archive:
        archive.read("zeros.bin", 2**30)


def lying(folder: Path) -> Any:
    """Read a zip member that unpacks to more bytes than its header says."""
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros.bin", bytes(2**20))
    raw = (folder / "x.zip").read_bytes()
    (folder / "x.zip").write_bytes(raw.replace(struct.pack("<I", 2**20), struct.pack("<I", 10)))
    with Archive(folder / "x.zip") as archive:
        archive.read("zeros.bin", 2**30)


def _xml(head: str, name: str = "dog", tail: str = "") -> str:
    return (
        f"{head}<annotation><object><name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
        f"<ymax>9</ymax></bndbox></object>{tail}</annotation>"
    )


def _all(surface: str, feed: Callable, cases: dict[str, tuple], outcome: str = REFUSED) -> list[Attack]:
    return [Attack(surface, what, partial(feed, text), answer, outcome) for what, (text, answer) in cases.items()]


ENTITIES = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + k)} "{f"&{chr(97 + k)};" * 10}">' for k in range(9))
    + "]>"
)

ATTACKS = [
    *_all(
        "image",
        picture,
        {
            "a PNG with a header of 60,000 x 60,000 and one row of data": (
                png(60000, 60000, 1),
                "more than 178,956,970 pixels",
            ),
            "a PNG with a header of 60,000 x 60,000 and 2,000 rows of data": (
                png(60000, 60000, 2000),
                "more than 178,956,970 pixels",
            ),
            "a complete PNG of 20,000 x 20,000 in 50 KB": (png(20000, 20000, 20000), "more than 178,956,970 pixels"),
            "a JPEG with a header of 65,000 x 65,000": (jpeg(65000, 65000), "more than 178,956,970 pixels"),
            "a BMP with a header of 2^31 - 1 pixels per side": (
                bmp(2**31 - 1, 2**31 - 1),
                "more than 178,956,970 pixels",
            ),
            "a shell script saved as .png": (b"#!/bin/sh\ntouch ran\n", "not an image"),
            "an SVG with a script, saved as .png": (
                b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
                "not an image",
            ),
        },
    ),
    *_all(
        "file in a dataset",
        data_set,
        {
            "a named pipe in place of an image": (instead(os.mkfifo), "is not a regular file"),
            "a symbolic link to /dev/zero in place of an image": (
                instead(lambda p: p.symlink_to("/dev/zero")),
                "is not a regular file",
            ),
            "a broken symbolic link": (instead(lambda p: p.symlink_to("nowhere")), "No such file"),
            "a symbolic link to itself": (instead(lambda p: p.symlink_to(p.name)), "symbolic links"),
            "a socket in place of an image": (instead(unix_socket), "No such device|is not a regular file"),
            "a named pipe in place of a label file": (instead_of_label(os.mkfifo), "is not a regular file"),
            "a symbolic link to /dev/zero in place of a label file": (
                instead_of_label(lambda p: p.symlink_to("/dev/zero")),
                "is not a regular",
            ),
            "a symbolic link to a yaml file in place of a label file": (
                instead_of_label(lambda p: p.symlink_to(p.parents[2] / "squares.yaml")),
                "squares.yaml|line 1: not a number$",
            ),
            "a label file of 17 MiB": (instead_of_label(lambda p: p.write_bytes(bytes(17 * 2**20))), "is larger than"),
        },
        LEFT_OUT,
    ),
    Attack("file in a dataset", "two links to the parent folder (2^40 paths)", loops, "", "each image is listed once"),
    Attack(
        "file in a dataset", "a link to /proc/self, which leads to the whole disk", system_linked, "", "not followed"
    ),
    *_all(
        "VOC folder",
        linked,
        {
            "an image that is a link to a secret file": (
                ("JPEGImages/bad.png", "../../../secret/secret.txt"),
                "another kind",
            ),
            "an image that is a link to a text file named .png": (("JPEGImages/bad.png", "no.png"), "not an image"),
            "a split list that is a link to /etc/passwd": (("ImageSets/Main/test.txt", "/etc/passwd"), "another kind"),
        },
        LEFT_OUT,
    ),
    *_all(
        "label",
        label,
        {
            "Python code instead of a number": ("__import__('os').system('touch\u00a0ran') 1 1 1 1", "not a number"),
            "NaN": ("0 nan 0.5 0.5 0.5", "not finite"),
            "infinity": ("0 0.5 0.5 1e999 0.5", "not finite"),
            "a box outside the image": ("0 1.5 0.5 0.1 0.1", "must be fractions"),
            "a box whose area is zero after rounding": ("0 1 1 1e-30 1e-30", "without area"),
            "a class index of 10^9": ("1000000000 0.5 0.5 0.1 0.1", "class 1e\\+09 is not one of"),
            "a class index with an underscore (1_0)": ("1_0 0.5 0.5 0.1 0.1", "not a number"),
            "a full-width digit as the class index": ("\uff11 0.5 0.5 0.1 0.1", "not a number"),
            "bytes that are not UTF-8 text": (b"\xff\xfe\x00", "not a text file"),
        },
        LEFT_OUT,
    ),
    *_all(
        "list of images",
        listed,
        {
            "paths of secret files": ("../secret/secret.txt\n/etc/passwd\n", "no images"),
            "a NUL character in a name": ("a.png\0/etc/passwd\n", "zero bytes"),
            "bytes that are not UTF-8 text": (b"\xff\xfe\x00", "must be a text file"),
        },
    ),
    Attack(
        "--source",
        "a list that contains a named pipe",
        partial(listed, "pipe.png\n", read=lambda f: (os.mkfifo(f.with_name("pipe.png")), list_media(str(f)))),
        "contains no image or video",
    ),
    Attack(
        "--source",
        "a `.streams` list with a GStreamer pipeline that writes a file",
        partial(
            listed, "videotestsrc!filesink\n", read=lambda f: open_source(str(f.rename(f.with_suffix(".streams"))))
        ),
        "not a stream",
    ),
    Attack(
        "--source",
        "a `file:` URL",
        lambda folder: download("file:///etc/passwd", folder / "x"),
        "only http and https",
    ),
    *_all(
        "VOC XML",
        annotated,
        {
            "entities that expand to 10^10 characters": (_xml(ENTITIES, "&j;"), "entities or outside"),
            "an external entity from a file": (
                _xml('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>', "&e;"),
                "entities or outside",
            ),
            "an external entity from the network": (
                _xml('<!DOCTYPE a [<!ENTITY e SYSTEM "http://example.org/">]>', "&e;"),
                "entities or outside",
            ),
            "a parameter entity": (
                _xml('<!DOCTYPE a [<!ENTITY % e SYSTEM "file:///etc/passwd"> %e;]>'),
                "entities or outside",
            ),
            "an external DTD": (
                _xml('<!DOCTYPE a SYSTEM "file:///etc/passwd">', tail="<x>&e;</x>"),
                "entities or outside|xml",
            ),
            "100,000 nested tags": ("<annotation>" + "<a>" * 100000, "nested too deep"),
            "zlib_codec as the encoding": (_xml('<?xml version="1.0" encoding="zlib_codec"?>'), "encoding"),
            "a shell script instead of XML": ("#!/bin/sh", "cannot be parsed"),
            "entities in a file in Shift-JIS, which is not declared": (
                _xml(ENTITIES, "猫&j;").encode("shift_jis"),
                "entities or outside|cannot be parsed",
            ),
            "a box of 10^300 pixels in an image of another size": (
                _xml("", tail="<size><width>999999</width><height>7</height></size>").replace(">9<", ">1e300<"),
                "boxes lie outside",
            ),
        },
        LEFT_OUT,
    ),
    *_all(
        "VOC XML",
        named,
        {
            "a <filename> with the path of a secret file": ("../../secret/secret.txt", ""),
            "a <filename> with an absolute path": ("/etc/passwd", ""),
            "a <filename> with a network path": ("\\\\server\\share\\x.png", ""),
        },
        "only images of the dataset itself are considered",
    ),
    *_all(
        "zip",
        unpacked,
        {
            "`../` at the start of a name": ("../../ran", "leaves its folder"),
            "`../` in the middle of a name": ("images/../../ran", "leaves its folder"),
            "an absolute path": ("/etc/cron.d/ran", "absolute path"),
            "a Windows drive letter": ("C:/Windows/ran.exe", "absolute path"),
            "a network path": ("\\\\server\\share\\ran", "backslash"),
            "backslashes": ("..\\..\\ran", "backslash"),
            "a NUL character in a name": ("picture.png\0.sh", "NUL"),
        },
        LEFT_OUT,
    ),
    Attack(
        "VOC zip",
        "an image with a header of 60,000 x 60,000 and an annotation without a size",
        partial(convert, {"JPEGImages/bad.png": png(60000, 60000, 1), "Annotations/bad.xml": _xml("").encode()}),
        "more than 178,956,970 pixels",
        LEFT_OUT,
    ),
    Attack(
        "VOC zip",
        "a split list with a path of 400,000 folders",
        partial(convert, {"ImageSets/Main/train.txt": b"good\n" + b"a/" * 400_000}),
        "annotation missing",
        LEFT_OUT,
    ),
    Attack(
        "VOC zip",
        "4,000 folders with images of the same name, and as many annotations without an image",
        partial(convert, {f"{k}/{name}": b"" for k in range(4000) for name in ("a.png", "Annotations/a.xml")}),
        "cannot be parsed|is an empty file",
        LEFT_OUT,
    ),
    Attack(
        "zip",
        "a symbolic link to /etc/passwd",
        lambda folder: convert({"JPEGImages/bad.png": "/etc/passwd", "Annotations/bad.xml": _xml("").encode()}, folder),
        "symbolic link",
        LEFT_OUT,
    ),
    Attack("zip", "a named pipe", lambda folder: Archive(special(folder / "x.zip", os.mkfifo)), "not a regular file"),
    Attack(
        "zip",
        "a symbolic link to /dev/zero",
        lambda folder: Archive(special(folder / "x.zip", lambda p: p.symlink_to("/dev/zero"))),
        "not a regular file",
    ),
    Attack("zip", "a zip bomb (compressed 1,000 to 1)", bomb, "a zip bomb"),
    Attack("zip", "a member larger than its header says", lying, "damaged in the zip"),
    Attack(
        "zip",
        "10 MB of zero bytes",
        lambda folder: ((folder / "x.zip").write_bytes(bytes(10**7)), Archive(folder / "x.zip")),
        "not a complete zip",
    ),
    Attack(
        "download",
        "a URL whose file name is `..`",
        lambda folder: download_files("http://127.0.0.1:9/..", folder),
        "contains no file name",
    ),
]
