"""Folder layouts of datasets in VOC format: which xml files form a dataset, and which images and lists belong to it.

Besides VOC's own folders, xml files lie beside the images (LabelImg, Roboflow), in `annotations/` with the images in
`images/` (Kaggle), or in sub-folders (CVAT). Folders such as `train/` and `valid/` name a split.
"""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from utils.files import IMAGE_SUFFIXES
from utils.voc.files import Files

WANTED = "wanted: VOC xml files beside the images, or in a folder Annotations with the images in JPEGImages or images"
_XML = "annotations?|annots?|anns?|xmls?|labels?"
_IMAGE = "jpegimages|images?|imgs?|pictures|pics|photos|frames"
_ANNOTATIONS = re.compile(rf"(?:.*[-_ ])?(?:{_XML})(?:[-_ ].*)?", re.IGNORECASE)
_IMAGES = re.compile(rf"(?:.*[-_ ])?(?:{_IMAGE})(?:[-_ ].*)?", re.IGNORECASE)
_SPLIT = re.compile(
    rf"(?:(?:voc|data|{_XML}|{_IMAGE})[-_ ])?(train(?:ing|[-_]?val)?|val(?:id(?:ation)?)?|test(?:ing)?)"
    rf"(?:[-_ .]?(?:set|data|zip|voc|\d{{4}}|{_XML}|{_IMAGE}))*",
    re.IGNORECASE,
)
# images of these folders have the names of the dataset's images, but show something else
_MASKS = re.compile(r"segmentation|mask|trimap|visuali[sz]ation|depth|thumb|preview", re.IGNORECASE)


@dataclass
class Layout:
    """One dataset in a source: `xmls` maps keys to xml files, `splits` the keys of those in a folder named for a split.

    A key is the path below the folder of annotations, without suffix. `images` is None if no folder of images belongs
    to the dataset. `lists` holds tables of split lists (name to file), the preferred one first. `odd`: (file, reason).
    """

    root: str
    name: str
    title: str  # name for the output folder
    xmls: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    images: list[str] | None = None
    lists: list[dict[str, str]] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)


@functools.lru_cache(maxsize=65_536)
def split_of(name: str) -> str | None:
    """Return `train`, `val` or `test` for the name of a folder or list that names this split, None for any other."""
    match = _SPLIT.fullmatch(name)
    return {"tr": "train", "va": "val", "te": "test"}[match[1][:2].lower()] if match else None


def path_split(parts: Sequence[str]) -> str | None:
    """Return the split that the last such folder of a path names, or None."""
    return next(filter(None, map(split_of, reversed(parts))), None)


def key_of(name: str) -> str:
    """Normalise a name to Unicode NFC, since macOS stores accents as separate characters and lists may not."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


@functools.lru_cache(maxsize=65_536)
def bare_parts(folder: str) -> tuple[str, ...]:
    """Return the folders of a path that name neither annotations, images nor a split, in lower case."""
    return tuple(p.lower() for p in folder.split("/") if p and not (_is_generic(p) or split_of(p)))


def is_image(name: str) -> bool:
    """Return whether a file has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def find_layouts(files: Files) -> tuple[list[Layout], int]:
    """Return the datasets in a source, and the number of xml files that belong to none of them.

    Folders of annotations come first. Other xml files form datasets if there are no such folders, or if images lie
    beside them; beside VOC2007 and VOC2012 they are not used.
    """
    images = [name for name in files.names if is_image(name)]
    folders = _image_folders(images)
    named: dict[str, Layout] = {}
    loose: dict[str, list[str]] = {}
    for name in files.names:
        if not name.lower().endswith(".xml"):
            continue
        parts = name.split("/")[:-1]
        span = _annotation_span(parts)
        if span is None:
            loose.setdefault("/".join(parts), []).append(name)
            continue
        roots = ["/".join(parts[:k]) for k in range(span[1] - 1, span[0] - 1, -1)]
        root = next((r for r in roots if r in folders), roots[-1])
        layout = named.get(root)
        if layout is None:
            layout = named[root] = _new_layout(files, root, classic=parts[span[1] - 1] == "Annotations")
        _add(layout, files, name, "/".join(parts[span[1] :]))
    unused = 0
    if named:
        official = any(re.fullmatch(r"VOC(2007|2012)", layout.name) for layout in named.values())
        beside = {os.path.splitext(name)[0] for name in images}
        for folder, names in list(loose.items()):
            if official or not any(name[:-4] in beside for name in names):
                unused += len(loose.pop(folder))
    found = [*named.values(), *_loose_layouts(files, loose)]
    texts: dict[str, list[str]] = {}  # lists by their folder in lower case
    for name in files.names:
        if name.lower().endswith(".txt"):
            texts.setdefault(os.path.dirname(name).lower(), []).append(name)
    for layout in found:
        own = folders.get(layout.root)
        if own and named.get(layout.root) is layout:
            layout.images = own.get("JPEGImages") or [name for part in own.values() for name in part]
        layout.lists = _lists(layout, texts)
    return found, unused


def describe(files: Files) -> str:
    """Return what a source contains, as in `214 xml files in train/, 3 images`, for a message."""
    places: dict[str, Counter[str]] = {}
    for name in files.names:
        suffix = os.path.splitext(name)[1].lower()
        if is_image(name) or suffix in (".xml", ".json", ".txt", ".csv"):
            kind = "image" if is_image(name) else f"{suffix[1:]} file"
            places.setdefault(kind, Counter())[os.path.dirname(name)] += 1
    texts = []
    for kind, where in sorted(places.items()):
        folder = where.most_common(1)[0][0]
        more = f" and {len(where) - 1} other folders" if len(where) > 1 else ""
        place = f" in {folder}/{more}" if folder else more and f" at the top{more}"
        texts.append(f"{where.total()} {kind}{'s' if where.total() > 1 else ''}{place}")
    return "found " + (", ".join(texts) or f"{len(files.names)} files, none of them xml or an image")


def is_mask(folder: str) -> bool:
    """Return whether the name of a folder says that it contains masks or drawings of the dataset's images."""
    return _MASKS.search(folder) is not None


def _is_generic(name: str) -> bool:
    return _ANNOTATIONS.fullmatch(name) is not None or _IMAGES.fullmatch(name) is not None


def _is_images(name: str) -> bool:
    return _IMAGES.fullmatch(name) is not None and not _MASKS.search(name)


def _annotation_span(parts: Sequence[str]) -> tuple[int, int] | None:
    """Return where the folders of annotations begin and end in a path (annotations/xmls are two), None without any."""
    last = max((k for k, part in enumerate(parts) if part == "Annotations"), default=-1)
    if last < 0:
        last = max((k for k, part in enumerate(parts) if _ANNOTATIONS.fullmatch(part)), default=-1)
    if last < 0:
        return None
    first = last
    while first and _ANNOTATIONS.fullmatch(parts[first - 1]):
        first -= 1
    return first, last + 1


def _image_folders(images: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return, for each folder that contains folders of images, the images in each of them."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in images:
        parts = name.split("/")[:-1]
        for k, part in enumerate(parts):
            if _is_images(part):
                found.setdefault("/".join(parts[:k]), {}).setdefault(part, []).append(name)
    return found


def _new_layout(files: Files, root: str, classic: bool) -> Layout:
    name = root.rpartition("/")[2] or files.title
    if classic and not split_of(name):
        return Layout(root, name, name)
    parts = [files.where.parent.name, files.title, *filter(None, root.split("/"))]
    plain = [p for p in parts if not (split_of(p) or _is_generic(p))]
    return Layout(root, name, plain[-1] if plain else name)


def _add(layout: Layout, files: Files, name: str, below: str) -> None:
    """Add an xml file to a layout; below: its folder below that of the annotations."""
    key = key_of(f"{below}/{_stem(name)}" if below else _stem(name))
    if os.path.dirname(layout.xmls.get(key, name)) != os.path.dirname(name):  # train_annotations/, test_annotations/
        key = key_of(os.path.splitext(name[len(layout.root) :])[0].strip("/"))
    if layout.xmls.setdefault(key, name) != name:
        layout.odd.append((f"{layout.name}/{key}.xml", f"two xml files of this name: {layout.xmls[key]} is used"))
        return
    split = path_split(name.split("/")[:-1])
    if split:
        layout.splits[key] = split


def _loose_layouts(files: Files, loose: dict[str, list[str]]) -> list[Layout]:
    """Return layouts of xml files outside of folders of annotations: one for each folder that names a split."""
    groups: dict[str, list[str]] = {}
    for folder in loose:
        parts = folder.split("/")
        last = max((k + 1 for k, part in enumerate(parts) if split_of(part)), default=0)
        groups.setdefault("/".join(parts[:last]), []).append(folder)
    found = []
    for folders in groups.values():
        common = os.path.commonprefix([f"{folder}/".split("/")[:-1] for folder in folders])
        root = "/".join(common)
        layout = _new_layout(files, root, classic=False)
        for folder in folders:
            for name in loose[folder]:
                _add(layout, files, name, folder[len(root) :].strip("/"))
        found.append(layout)
    return found


def _lists(layout: Layout, texts: dict[str, list[str]]) -> list[dict[str, str]]:
    """Return the tables of split lists of a layout: of ImageSets/Main, ImageSets, and of the folders with the data."""
    prefix = f"{layout.root}/" if layout.root else ""
    main = texts.get(f"{prefix}imagesets/main".lower(), [])
    exact = [name for name in main if os.path.dirname(name) == f"{prefix}ImageSets/Main"]
    beside = {os.path.dirname(name) for name in layout.xmls.values()}
    nearby = {layout.root, *beside, *map(os.path.dirname, beside)}
    near = [name for folder in sorted(nearby) for name in texts.get(folder.lower(), ())]
    tables = [exact or main, texts.get(f"{prefix}imagesets".lower(), ()), [n for n in near if split_of(_stem(n))]]
    return [{key_of(_stem(name)): name for name in reversed(table)} for table in tables if table]


def _stem(name: str) -> str:
    return os.path.splitext(name.rpartition("/")[2])[0]
