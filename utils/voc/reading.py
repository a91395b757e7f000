"""Reading of datasets in VOC format: the split of every annotation, then its content, its image and its frame.

Each step is done for all annotations before the next one, because files without a declared encoding and the first
pixel of the boxes (0 or 1) are judged by all files of a source together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import UserError
from utils.system.console import LOGGER, printable, progress
from utils.voc.annotation import VocAnnotation, VocError, box_edges, doubt, guess_encoding, read_voc_xml
from utils.voc.files import MAX_IMAGE, Files
from utils.voc.layouts import bare_parts
from utils.voc.options import Options
from utils.voc.sizes import Frame, find_frame, read_header
from utils.voc.source import SHOWN, VocSet

Problems = list[tuple[str, str]]  # (file, reason); the reason's text before its first colon is the kind of problem
Job = list[tuple[VocSet, str]]  # the dataset and the key of each annotation of a split

_SAMPLE = 200  # files without a declared encoding by which it is guessed


@dataclass
class Record:
    """One image to convert: `image` is its name in `files`, `stem` that of its output, `formula` that of its boxes."""

    voc: VocSet
    key: str
    files: Files
    image: str
    annotation: VocAnnotation
    frame: Frame
    formula: str
    stem: str = ""

    @property
    def label(self) -> str:
        """The name of the xml file in messages."""
        return f"{self.voc.name}/{self.key}.xml"

    @property
    def file_name(self) -> str:
        """The image's name in the output: the stem of the label file, so that image and label have the same stem."""
        return self.stem + os.path.splitext(self.image)[1]


# Splits


def list_images(sets: Sequence[VocSet], opt: Options, custom: bool, problems: Problems) -> dict[str, Job]:
    """Return, for each output split, the dataset and the key of every annotation to convert.

    Lists decide first, then folders such as train/ and valid/, and --split for the rest. Irregularities are added to
    `problems`.
    """
    chosen = [voc for voc in sets if custom or voc.year in opt.years]
    listed = {id(voc): voc.splits() for voc in chosen}
    named = {s for voc in chosen for s in (listed[id(voc)][0] or voc.layout.splits.values())}
    divide = named == {"train"} and not any(found for found, _ in listed.values())  # then val is taken from train
    jobs: dict[str, dict[tuple[int, str], VocSet]] = {}
    for voc in chosen:
        splits, odd = listed[id(voc)]
        problems += odd
        if splits and custom:
            problems += _contradictions(voc, splits)
        elif not splits and custom:
            splits = _unlisted_splits(voc, opt, divide)
        elif not splits:
            problems.append((str(voc.files.where), f"no image lists: {voc.name}/ImageSets/Main"))
        home: dict[str, str] = {}
        for split, keys in splits.items():
            output = split if custom else f"{split}{voc.year}"
            if output in jobs and not custom:  # VOC's zip and the folder unpacked from it contain the same images
                LOGGER.info(f"{output} is also in {voc.files.where}: that copy is not used")
                continue
            job = jobs.setdefault(output, {})
            for key in keys:
                if home.setdefault(key, split) != split:
                    problems.append((f"{voc.name}/{key}.xml", f"image in two splits: {home[key]} and {split}"))
                job[id(voc), key] = voc
        if custom and home and (unlisted := len(set(voc.annotations) - set(home))):
            LOGGER.info(f"{printable(voc.name)}: {unlisted} annotations are not in any list and are left out")
    return {output: [(voc, key) for (_, key), voc in job.items()] for output, job in jobs.items()}


def _unlisted_splits(voc: VocSet, opt: Options, divide: bool) -> dict[str, list[str]]:
    """Return the keys of each split for a dataset without lists: by its folders, the rest by --split."""
    splits: dict[str, list[str]] = {}
    rest = []
    for key in sorted(voc.annotations):
        split = None if divide else voc.layout.splits.get(key)
        (rest if split is None else splits.setdefault(split, [])).append(key)
    if splits:
        counts = ", ".join(f"{len(splits[s])} {s}" for s in sorted(splits))
        LOGGER.info(f"{printable(voc.name)}: split by the names of the folders: {counts}")
    if rest:
        why = "only train is named, val is taken from it" if divide else "no lists in ImageSets/Main"
        LOGGER.info(f"{printable(voc.name)}: {why}: using --split and --seed {opt.seed}")
        for split, keys in seeded_split(rest, opt.split, opt.seed).items():
            splits.setdefault(split, []).extend(keys)
    return splits


def _contradictions(voc: VocSet, splits: dict[str, list[str]]) -> Problems:
    """Return a problem for each annotation that a list puts into another split than its folder."""
    return [
        (f"{voc.name}/{key}.xml", f"folder and list name different splits, the list is used: {folder} and {split}")
        for split, keys in splits.items()
        for key in keys
        if (folder := voc.layout.splits.get(key, split)) != split
    ]


def seeded_split(stems: Sequence[str], fractions: Sequence[float], seed: int) -> dict[str, list[str]]:
    """Split `stems` into train, val and, with a third fraction, test; each gets at least one stem if there are enough.

    Stems are sorted by a hash with the seed, so that adding images later moves few of the others to another split.
    """
    order = sorted(stems, key=lambda stem: hashlib.sha256(f"{seed}:{stem}".encode("utf-8", "replace")).digest())
    names = ("train", "val", "test")[: len(fractions)]
    counts = [max(1, round(part * len(order))) if part else 0 for part in fractions[1:]]
    start = max(len(order) - sum(counts), 1 if order else 0)
    found = {"train": sorted(order[:start])}
    for name, count in zip(names[1:], counts, strict=True):
        found[name] = sorted(order[start : start + count])
        start += count
    return {name: part for name, part in found.items() if part}


# Contents


def read_splits(jobs: dict[str, Job], opt: Options, problems: Problems) -> dict[str, list[Record]]:
    """Read the annotations of all splits and find their images; add those that cannot be used to `problems`."""
    sources: dict[int, _Doubtful] = {}
    contents = {split: _read_annotations(split, job, opt, sources) for split, job in jobs.items()}
    for source in sources.values():
        _read_again(source)
    formulas = _formulas(contents, opt)
    records: dict[str, list[Record]] = {}
    for split, rows in contents.items():
        part = records[split] = []
        for voc, key, content in progress(rows, desc=f"{split}: sizes of images"):
            try:
                if isinstance(content, UserError):
                    raise content
                part.append(_find_record(voc, key, content, formulas[id(voc.files)], problems))
            except UserError as e:
                problems.append((f"{voc.name}/{key}.xml", str(e)))
    _drop_second_annotations(records, problems)
    return {split: _name_outputs(part, problems) for split, part in records.items()}


Content = tuple[VocSet, str, VocAnnotation | UserError]


@dataclass
class _Doubtful:
    """The files of one source that may not be in UTF-8: (rows, index in them, kind of doubt)."""

    found: list[tuple[list[Content], int, str]]
    utf8: bool = False  # other files are in UTF-8 and not in ASCII
    files: int = 0  # of the source, all of them


def _read_annotations(split: str, job: Job, opt: Options, sources: dict[int, _Doubtful]) -> list[Content]:
    """Return the content of each annotation, or the error that it raises; add doubtful files to `sources`."""
    rows: list[Content] = []
    for voc, key in progress(job, desc=f"{split}: annotations"):
        try:
            data = voc.read_annotation(key)
            source = sources.setdefault(id(voc.files), _Doubtful([]))
            source.files += 1
            if opt.encoding is None and not data.isascii():
                kind = doubt(data)
                if kind:
                    source.found.append((rows, len(rows), kind))
                source.utf8 |= not kind
            rows.append((voc, key, read_voc_xml(data, opt.encoding)))
        except UserError as e:
            rows.append((voc, key, e))
    return rows


def _read_again(source: _Doubtful) -> None:
    """Read the doubtful files of a source once more, in an encoding guessed from all of them together."""
    sure = [row for row in source.found if row[2] == "not utf-8"]
    # one short name among many may be a letter of its own, such as ñ
    rare = not sure and len(source.found) < 2 and source.files > 2
    doubtful = sure if source.utf8 or rare else source.found
    sample = [rows[k][0].read_annotation(rows[k][1]) for rows, k, _ in (sure or doubtful)[:_SAMPLE]]
    encoding = guess_encoding(sample)
    if encoding is None:
        return
    names: set[str] = set()
    count = 0
    for rows, k, kind in doubtful:
        voc, key, _ = rows[k]
        data = voc.read_annotation(key)
        try:
            if kind != "not utf-8" and guess_encoding([data]) != encoding:
                continue
            content = read_voc_xml(data, encoding)
        except VocError:  # the first error remains
            continue
        rows[k] = (voc, key, content)
        names |= {thing.name for thing in content.objects if not thing.name.isascii()}
        count += 1
    example = f" (classes {', '.join(map(printable, sorted(names)[:SHOWN]))})" if names else ""
    LOGGER.warning(
        f"{printable(voc.files.title)}: {count} xml files that declare no other encoding are read in {encoding}"
        f"{example}; if this is wrong, give another one with --encoding"
    )


def _formulas(contents: dict[str, list[Content]], opt: Options) -> dict[int, str]:
    """Return the formula of the boxes of each source.

    CVAT and LabelMe count pixels from 0 and write fractions; VOC and LabelImg count from 1. A source counts from 0 if
    more of its files have a coordinate of 0 than have a box that begins at pixel 1, or if most of them have fractions.
    """
    # files with a coordinate of 0 or a fraction, with a box at 1, with objects, with a coordinate of 0
    sources: dict[int, list[int]] = {}
    sets: dict[int, VocSet] = {}
    for voc, _, content in (row for rows in contents.values() for row in rows):
        sets.setdefault(id(voc.files), voc)
        counts = sources.setdefault(id(voc.files), [0, 0, 0, 0])
        if isinstance(content, UserError):
            continue
        zero = any(value == 0 for thing in content.objects for value in thing.box)
        counts[0] += zero or any(value % 1 for thing in content.objects for value in thing.box)
        counts[1] += not zero and any(1 in thing.box[:2] for thing in content.objects)
        counts[2] += bool(content.objects)
        counts[3] += zero
    formulas = {}
    for source, (zeros, ones, total, at_zero) in sources.items():
        voc = sets[source]
        from_0 = voc.year is None and (at_zero > ones or 2 * zeros >= total + ones)
        formulas[source] = opt.box if opt.box != "auto" else "zero" if from_0 else "exact"
        if opt.box == "auto" and zeros and voc.year is None:
            first, other = ("0", "exact counts from 1") if formulas[source] == "zero" else ("1", "zero counts from 0")
            LOGGER.warning(
                f"{printable(voc.files.title)}: {zeros} of {total} xml files have a coordinate that is 0 or has a "
                f"fraction: pixels are counted from {first}; --box {other}"
            )
    return formulas


def _find_record(voc: VocSet, key: str, annotation: VocAnnotation, formula: str, problems: Problems) -> Record:
    """Return the record of an annotation; raises UserError if its image is missing or unusable."""
    label = f"{voc.name}/{key}.xml"
    files, image = voc.find_image(key, annotation.filename)
    folders = [bare_parts(os.path.dirname(name)) for name in (voc.annotations[key], image)]
    if files is voc.files and all(set(a) - set(b) for a, b in (folders, folders[::-1])):
        problems.append((label, f"image taken from a folder of another name: {image}"))
    given = annotation.width, annotation.height
    try:
        header = read_header(files, image)
    except UserError as e:
        if not all(given):
            raise
        problems.append((label, f"<size> cannot be compared with the image: {e}"))
        frame = Frame(given, given)
    else:
        edges = [box_edges(thing.box, formula) for thing in annotation.objects]
        frame, note = find_frame(annotation, header, edges)
        if note:
            problems.append((label, note))
    return Record(voc, key, files, image, annotation, frame, formula)


def _drop_second_annotations(records: dict[str, list[Record]], problems: Problems) -> None:
    """Keep one of several xml files of the same image: preferably one in Annotations, with its name, near to it."""
    best: dict[tuple[int, str], tuple[tuple, Record]] = {}
    for r in (r for part in records.values() for r in part):
        xml = r.voc.annotations[r.key]
        stems = [os.path.splitext(name.rpartition("/")[2])[0] for name in (xml, r.image)]
        folders = [bare_parts(os.path.dirname(name)) for name in (xml, r.image)]
        rank, image = (r.voc.own is None, stems[0] != stems[1], folders[0] != folders[1]), (id(r.files), r.image)
        if image not in best or rank < best[image][0]:
            best[image] = rank, r
    for split, part in records.items():
        records[split] = []
        for r in part:
            first = best[id(r.files), r.image][1]
            if first.voc is r.voc and first.key == r.key:  # the same file may be listed in two splits
                records[split].append(r)
            else:
                problems.append((r.label, f"another xml file belongs to this image: {first.label}"))


def _name_outputs(part: Sequence[Record], problems: Problems) -> list[Record]:
    """Give each record of a split an output name of its own: its stem, or a longer name if others have the same stem.

    Returns the records without those whose image is that of another dataset under the same name.
    """
    same_stem: dict[str, list[Record]] = {}
    for r in part:
        same_stem.setdefault(r.key.rpartition("/")[2], []).append(r)
    taken = set(same_stem)
    kept = []
    for stem, same in same_stem.items():
        own = [r for r in same if r.voc is same[0].voc]
        for r in same:
            name = stem if len(own) == 1 else r.key.replace("/", "_")
            if r.voc is not same[0].voc:
                if _same_image(r, own[0]):
                    problems.append((r.label, f"same name in two sets: using {own[0].voc.name}"))
                    continue
                name = f"{r.voc.name}_{r.key}".replace("/", "_")
                problems.append((r.label, f"same name in two sets: written as {name}"))
            r.stem = name
            number = 2
            while (r.stem != stem or r is not own[0]) and r.stem in taken:
                r.stem, number = f"{name}_{number}", number + 1
            taken.add(r.stem)
            kept.append(r)
    return kept


def _same_image(a: Record, b: Record) -> bool:
    """Return whether two records have images of the same content."""
    try:
        if a.files.size(a.image) != b.files.size(b.image):
            return False
        return a.files.read(a.image, MAX_IMAGE) == b.files.read(b.image, MAX_IMAGE)
    except UserError:
        return False
