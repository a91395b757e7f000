"""Datasets in VOC format, read from folders and zips: their splits, annotations and images.

File names in annotations and lists are looked up among the existing files and never used as paths.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.archive import ArchiveError
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, is_hidden
from utils.system.console import LOGGER, printable
from utils.voc.files import MAX_IMAGE, MAX_LIST, MAX_XML, Files, FolderFiles, ZipFiles
from utils.voc.layouts import (
    WANTED,
    Layout,
    bare_parts,
    describe,
    find_layouts,
    is_image,
    is_mask,
    key_of,
    path_split,
    split_of,
)

SPLITS = ("train", "val", "test")
SHOWN = 3  # files listed in the terminal for each kind of problem; the report lists all of them
_FLAG = re.compile(r"(.*\S)\s+(?:-1|0|1)")  # in VOC's lists per class a flag follows the name
_PER_CLASS = re.compile(r".+_(train|val|test)")  # VoTT writes only lists per class
_MAX_RIVALS = 64  # images of the same stem that are compared
_MAX_PARTS = 8  # folders of a path in an annotation or list that are compared
_MAX_LINE = 300  # characters of a line that are shown in a message
Image = tuple[Files, str]  # an image: its source, and its name there


class Pool:
    """Images of one source, found by their stem."""

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self.files = files
        self._by_stem: dict[str, list[str]] = {}
        for name in names:
            self._by_stem.setdefault(_stem(name).casefold(), []).append(name)
        self._near: dict[str, dict[str | tuple[str, ...], list[str]]] = {}  # by stem, then by folder

    def __bool__(self) -> bool:
        return bool(self._by_stem)

    def find(self, stem: str, xml: str) -> list[Image]:
        """Return the images with this stem; if there are none, those whose stem differs only in upper and lower case.

        xml: the folder of the xml file. If many images have this stem, only those of this folder are returned, or of
        folders with the same names.
        """
        names = self._by_stem.get(stem.casefold(), [])
        if len(names) > _MAX_RIVALS:
            near = self._near.get(stem.casefold())
            if near is None:
                near = self._near[stem.casefold()] = {}
                for name in names:
                    folder = os.path.dirname(name)
                    near.setdefault(folder, []).append(name)
                    near.setdefault(bare_parts(folder), []).append(name)
            names = (near.get(xml) or near.get(bare_parts(xml)) or names)[: _MAX_RIVALS + 1]
        exact = [name for name in names if _stem(name) == stem]
        return [(self.files, name) for name in exact or names]


@dataclass
class VocSet:
    """One dataset: `annotations` maps keys to xml files (see `Layout`); the images come from the pools.

    own: the images of the dataset's own folders, None if it has none; around: all images of its source; elsewhere:
    images of sources without xml files.
    """

    files: Files
    layout: Layout
    own: Pool | None
    around: Pool
    elsewhere: list[Pool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.layout.name
        self.annotations = self.layout.xmls
        self._tails: dict[str, str | None] | None = None

    @property
    def year(self) -> int | None:
        """2007 or 2012 for a dataset in a folder named VOC2007 or VOC2012, None for any other."""
        match = re.fullmatch(r"VOC(2007|2012)", self.name)
        return int(match[1]) if match else None

    def read_annotation(self, key: str) -> bytes:
        """Return the bytes of one xml file; raises UserError if it is missing or cannot be read."""
        if key not in self.annotations:
            raise UserError("annotation missing")
        return self.files.read(self.annotations[key], MAX_XML)

    def find_image(self, key: str, filename: str) -> Image:
        """Return the image of an annotation, found by the xml's stem, or else by its <filename>.

        Raises UserError if the image is missing, ambiguous, empty or larger than MAX_IMAGE.
        """
        # <filename> is often a path on the annotator's machine, or was not updated when the image was renamed
        told = re.split(r"[\\/]", key_of(filename))[-_MAX_PARTS:]
        stem = key.rpartition("/")[2]
        stems = [stem, told[-1], os.path.splitext(told[-1])[0], os.path.splitext(stem)[0] if is_image(stem) else ""]
        found = next(filter(None, (self._nearest(key, s, told) for s in dict.fromkeys(stems) if s)), None)
        if found is None:
            raise UserError("image missing")
        files, name = found
        size = files.size(name)
        if size == 0:
            raise UserError("image is an empty file")
        if size > MAX_IMAGE:
            raise UserError(f"image too large: {size} bytes, at most {MAX_IMAGE} are read")
        return found

    def _nearest(self, key: str, stem: str, told: list[str]) -> Image | None:
        """Return the image with this stem that is nearest to the xml; told: the path in <filename>, in parts."""
        xml = os.path.dirname(self.annotations[key])
        own = (self.own or self.around).find(stem, xml)
        if not own and self.own:
            own = [image for image in self.around.find(stem, xml) if os.path.dirname(image[1]) == xml]
        split, prefix = self.layout.splits.get(key), f"{self.layout.root}/" if self.layout.root else ""
        for images in (own, [image for pool in self.elsewhere for image in pool.find(stem, xml)]):
            ranked = []
            for order, (files, name) in enumerate(images):
                folder = os.path.dirname(name)
                extra = Counter(bare_parts(folder))
                extra.subtract(bare_parts(xml))
                other_split = split and path_split([files.title, *folder.split("/")]) not in (None, split)
                if folder != xml and (other_split or any(n > 0 and is_mask(part) for part, n in extra.items())):
                    continue
                rank = (folder != xml, not f"{folder}/".startswith(prefix), sum(map(abs, extra.values())))
                ends = zip(reversed(told), reversed(key_of(name).split("/")), strict=False)
                equal = next((k for k, (a, b) in enumerate(ends) if a != b), len(told))
                ranked.append(((*rank, -equal), order, folder, (files, name)))
            ranked.sort(key=lambda row: row[:2])
            rivals = {row[2]: row[3][1] for row in ranked if row[0] == ranked[0][0]}
            if len(rivals) > 1:
                raise UserError(f"several images of this name: {', '.join(sorted(rivals.values())[:SHOWN])}")
            if ranked:
                return ranked[0][3]
        return None

    def splits(self) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
        """Return the keys of train, val and test by the lists of images, and (file, reason) of problems in the lists.

        `trainval` is used as train if neither train nor val is listed. The dict is empty if there are no lists.
        """
        for table in self.layout.lists:
            central = "imagesets" in next(iter(table.values())).lower()
            if not central and self.layout.splits:
                continue
            wanted = _wanted(table)
            found: dict[str, list[str]] = {}
            problems: list[tuple[str, str]] = []
            for split, listed in wanted.items():
                self._read_lists(split, [table[name] for name in listed], found, problems)
            if wanted and (central or any(key in self.annotations for part in found.values() for key in part)):
                self._name_unused(table, [name for part in wanted.values() for name in part])
                return found, problems
            self._name_unused(table, [])
        return {}, []

    def _read_lists(
        self, split: str, names: Sequence[str], found: dict[str, list[str]], problems: list[tuple[str, str]]
    ) -> None:
        """Add the keys in the lists of one split to `found`."""
        keys: dict[str, None] = {}
        for name in names:
            label = f"{self.name}/{name[len(self.layout.root) :].lstrip('/')}"
            try:
                text = self.files.read(name, MAX_LIST).decode("utf-8-sig", errors="replace")
            except UserError as e:
                problems.append((label, f"list of images cannot be used: {e}"))
                continue
            lines = [self._key(line) for line in text.splitlines() if line.strip()]
            if (twice := len(lines) - len(set(lines))) and len(names) == 1:
                problems.append((label, f"images listed twice: {twice} lines"))
            keys.update(dict.fromkeys(lines))
            found[split] = list(keys)

    def _name_unused(self, table: dict[str, str], used: Sequence[str]) -> None:
        """Log the lists that are not used, except for lists per class and `trainval`, which repeat the used ones."""
        repeat = re.compile(r"(.+_)?(train|val|trainval|test)") if used else re.compile(r"(?!)")
        unused = [name for name in sorted(table) if name not in used and not repeat.fullmatch(name)]
        if unused:
            more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
            shown = ", ".join(printable(f"{name}.txt") for name in unused[:SHOWN])
            LOGGER.info(f"{printable(self.name)}: lists that are not used: {shown}{more}")

    def _key(self, line: str) -> str:
        """Return the key given by a line of a list: the line itself, or without its flag, folder and suffix."""
        line = key_of(line.strip())
        if line in self.annotations:
            return line
        flagged = _FLAG.fullmatch(line)
        bare = flagged[1] if flagged else line
        for text in (bare, line.split()[0]):  # several numbers, or a second column with the xml file, may follow
            parts = [part for part in re.split(r"[\\/]", text.strip("\"'")) if part not in ("", ".")][-_MAX_PARTS:]
            root, suffix = os.path.splitext(parts[-1] if parts else "")
            ends = [parts[-1:], [root]] if suffix.lower() in IMAGE_SUFFIXES | {".xml"} else [parts[-1:]]
            for end in ends:
                for first in range(len(parts)):
                    if (key := "/".join([*parts[first:-1], *end])) in self.annotations:
                        return key
                if end and (known := self._by_tail(end[0])):
                    return known
        return bare if len(bare) <= _MAX_LINE else f"{bare[:_MAX_LINE]}..."

    def _by_tail(self, stem: str) -> str | None:
        """Return the only key with this stem, also without the suffix of an image, or None."""
        if self._tails is None:
            self._tails = {}
            for key in self.annotations:
                stems = {tail := key.rpartition("/")[2], *([os.path.splitext(tail)[0]] if is_image(tail) else ())}
                for one in stems:
                    self._tails[one] = None if one in self._tails else key
        return self._tails.get(stem)


def _wanted(table: dict[str, str]) -> dict[str, list[str]]:
    """Return the lists to read for each split: one that names it, or else VoTT's lists per class."""
    by_split: dict[str, list[str]] = {}
    for name in sorted(table, key=lambda n: (n not in SPLITS, n)):
        plain = name.lower().replace("_", "").replace("-", "")
        if split := "trainval" if plain == "trainval" else split_of(name):
            by_split.setdefault(split, []).append(name)
    wanted = {split: by_split[split][:1] for split in SPLITS if split in by_split}
    if "trainval" in by_split and not {"train", "val"} & set(wanted):
        wanted = {"train": by_split["trainval"][:1], **wanted}
    if not wanted:
        for name in sorted(table):
            if match := _PER_CLASS.fullmatch(name.lower()):
                wanted.setdefault(match[1], []).append(name)
    return {split: wanted[split] for split in SPLITS if split in wanted}


def _stem(name: str) -> str:
    return key_of(os.path.splitext(name.rpartition("/")[2])[0])


def open_sources(paths: Sequence[Path]) -> tuple[list[VocSet], list[tuple[str, str]]]:
    """Open zips and folders; return the datasets in them, and (file, reason) of those that cannot be used.

    If a folder contains no dataset, the zips in it are opened too. A missing or broken path does not affect the
    others. The images of sources without xml files are available to all datasets.
    """
    sets, problems, pools = _open_all(paths)
    _split_by_source(sets)
    for voc in sets:
        voc.elsewhere = pools
        problems += voc.layout.odd
    if not sets:  # a source that contains only images is not a problem if another one has xml files
        problems += [(str(pool.files.where), f"no VOC dataset: {describe(pool.files)}; {WANTED}") for pool in pools]
    return sets, problems


def _split_by_source(sets: list[VocSet]) -> None:
    """Let the names of the sources, such as train.zip and test.zip, be splits, if they name several."""
    named = {id(voc): split for voc in sets if (split := split_of(voc.files.title))}
    if len(set(named.values())) < 2:
        return
    for voc in sets:
        for key in voc.layout.xmls if id(voc) in named else ():
            voc.layout.splits.setdefault(key, named[id(voc)])


def _open_all(paths: Sequence[Path]) -> tuple[list[VocSet], list[tuple[str, str]], list[Pool]]:
    sets: list[VocSet] = []
    problems: list[tuple[str, str]] = []
    pools: list[Pool] = []
    for path in paths:
        try:
            files = FolderFiles(path) if path.is_dir() else _open_zip(path)
            found, notes = find_sets(files), list(files.problems)
            if not found and path.is_dir():
                zips = sorted(p for p in path.glob("*.[zZ][iI][pP]") if p.is_file() and not is_hidden(p.name))
                found, more, inside = _open_all(zips)
                notes += more
                pools += inside
            pool = Pool(files, [name for name in files.names if is_image(name)])
            if not found and not notes and not pool:
                notes = [(str(path), f"no VOC dataset: {describe(files)}; {WANTED}")]
            elif pool and not any(voc.files is files for voc in found):
                pools.append(pool)
        except UserError as e:
            found, notes = [], [(str(path), str(e))]
        sets += found
        problems += notes
    return sets, problems, pools


def _open_zip(path: Path) -> ZipFiles:
    if path.suffix.lower() in (".tar", ".gz", ".tgz", ".rar", ".7z"):
        raise ArchiveError("not a zip: unpack it and give the path of its folder")
    return ZipFiles(path)


def find_sets(files: Files) -> list[VocSet]:
    """Return every dataset in a folder or zip; what is hidden or belongs to no dataset is counted in the log."""
    layouts, unused = find_layouts(files)
    where = printable(files.title)
    if files.hidden:
        more = ", ..." if len(files.hidden) > SHOWN else ""
        shown = ", ".join(map(printable, files.hidden[:SHOWN]))
        LOGGER.info(f"{where}: {len(files.hidden)} hidden files and folders are left out: {shown}{more}")
    if unused:
        LOGGER.info(f"{where}: {unused} xml files outside of Annotations are not used")
    around = Pool(files, [name for name in files.names if is_image(name)])
    return [VocSet(files, x, Pool(files, x.images) if x.images else None, around) for x in layouts]


def is_custom(sets: Sequence[VocSet]) -> bool:
    """Return whether the datasets are custom ones and not VOC2007 or VOC2012; raises UserError for a mix of both."""
    own = [voc.name for voc in sets if voc.year is None]
    if own and len(own) < len(sets):
        raise UserError(f"VOC2007 or VOC2012 and another dataset, {own[0]!r}, in one run: convert them separately")
    return bool(own)
