"""Conversion of datasets in VOC format to YOLO labels and COCO annotations, run by `my_tools/voc2yolo.py`."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.files import DATASETS, IMAGE_SUFFIXES, ROOT
from utils.system.console import LOGGER, printable, progress
from utils.system.download import download
from utils.voc.annotation import VOC_NAMES
from utils.voc.layouts import describe
from utils.voc.options import ZIPS, Options
from utils.voc.output import coco_json, convert_objects, data_yaml, image_writer, sweep, write_if_changed
from utils.voc.reading import Problems, Record, list_images, read_splits
from utils.voc.source import SHOWN, VocSet, is_custom, open_sources

URL = "https://github.com/ultralytics/assets/releases/download/v0.0.0/"  # YOLOv5's mirror of the official VOC zips
COMMAND = "python my_tools/voc2yolo.py"
REPORT = "voc2yolo_report.txt"
ROWS = 40  # classes listed in the table
_ONE_FILE = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EISDIR)  # errors due to a file's name


@dataclass
class Summary:
    """The result of a conversion.

    images: number of images by split. objects, difficult: numbers of labels, and of difficult objects without a label,
    by split and class. problems: (file, reason). missing: messages on missing splits. changed: whether a file was
    written.
    """

    out: Path
    names: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, Counter[str]] = field(default_factory=dict)
    difficult: dict[str, Counter[str]] = field(default_factory=dict)
    problems: Problems = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    changed: bool = False
    data_yaml: Path | None = None


def convert(opt: Options) -> Summary:
    """Find the datasets, read their annotations, write all files that are missing or differ, and log a summary.

    Raises UserError if there is nothing to convert or if writing fails.
    """
    official_out = DATASETS / "VOC"
    places, sets, problems = find_sources(opt, official_out)
    custom = bool(opt.name or opt.names) or is_custom(sets)
    name = (opt.name or _plain(sets[0].layout.title) if sets else "custom") if custom else "VOC"
    out = Path(os.path.abspath(opt.out or DATASETS / name))
    jobs = list_images(sets, opt, custom, problems)
    if not any(jobs.values()):
        raise UserError(_nothing(opt, places, problems))
    if not any(voc.around or voc.elsewhere for voc in sets):
        found = "; ".join(dict.fromkeys(f"{voc.files.where}: {describe(voc.files)}" for voc in sets[:SHOWN]))
        raise UserError(f"nothing to convert: no images: {found}; give the folder of the images as another --source")
    records = read_splits(jobs, opt, problems)
    _check_out(out, records)
    names = list(opt.names or ()) or (_classes(records) if custom else list(VOC_NAMES))
    summary = Summary(out, names, problems=problems, missing=[] if custom else _missing(jobs, opt, places))
    try:
        _make_folders(out, jobs, name)
        for split, part in records.items():
            write_split(split, part, summary, opt)
        if any(summary.images.values()):
            _write_yaml(summary, name, opt, to_default=not custom and out == official_out)
        _write_report(summary)
    except OSError as e:
        raise UserError(f"cannot write {e.filename or out}: {e.strerror}; run the command again to continue") from e
    _log_summary(summary, custom)
    if not any(summary.images.values()):
        raise UserError("nothing was converted: there is no usable annotation with a usable image")
    return summary


def _check_out(out: Path, records: dict[str, list[Record]]) -> None:
    """Raise UserError if the images to convert lie where the converted ones go, which would overwrite them."""
    folders = {os.path.realpath(out / "images" / split) for split in records}
    for part in records.values():
        for record in part:
            where = record.voc.files.where
            if where.is_dir() and os.path.dirname(os.path.realpath(where / record.image)) in folders:
                raise UserError(f"{out} holds the images to convert, which would be overwritten: give another --out")


# Reading


def find_sources(opt: Options, official_out: Path) -> tuple[list[Path], list[VocSet], Problems]:
    """Return the places searched, the datasets found there, and the problems.

    These places are those of --source, or else the folders where VOC is expected; with --download, missing zips are
    downloaded first.
    """
    if opt.source:
        places = [Path(p) for p in opt.source]
        return places, *open_sources(places)
    places = [p / "images" for p in dict.fromkeys([Path(os.path.abspath(opt.out or official_out)), official_out])]
    sets, problems = open_sources(_expected(places))
    if not opt.download:
        return places, sets, problems
    have = {f"{split}{voc.year}" for voc in sets for split in voc.splits()[0]}
    for year in opt.years:
        for zip_name, splits in ZIPS[year].items():
            if not all(f"{split}{year}" in have for split in splits):
                download(URL + zip_name, places[0] / zip_name)
    return places, *open_sources(_expected(places))


def _expected(places: Sequence[Path]) -> list[Path]:
    """Return VOC's zips, then its unpacked folders, which come last because the unpacking may be incomplete."""
    zips = [p for place in places for p in sorted(place.glob("VOC*.zip")) if p.is_file()]
    folders = [p for place in places for p in (place / "VOCdevkit", place.parent / "VOCdevkit") if p.is_dir()]
    return zips + folders


def _classes(records: dict[str, list[Record]]) -> list[str]:
    return sorted({thing.name for part in records.values() for r in part for thing in r.annotation.objects})


# Writing


def _make_folders(out: Path, splits: Sequence[str] | dict[str, list], name: str) -> None:
    """Create the output folders, and delete temporary files that a killed run left in them."""
    folders = [out / kind / split for split in splits for kind in ("labels", "images")]
    for folder in (*folders, out / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, [f"instances_{split}.json" for split in splits])
    sweep(out, [f"{name}.yaml", REPORT])


def write_split(split: str, records: Sequence[Record], summary: Summary, opt: Options) -> None:
    """Write those labels, images and COCO json of one split that are missing or differ; add to `summary`."""
    labels, images = summary.out / "labels" / split, summary.out / "images" / split
    classes = {name: index for index, name in enumerate(summary.names)}
    objects, difficult = summary.objects.setdefault(split, Counter()), summary.difficult.setdefault(split, Counter())
    rows = []
    for r in progress(records, desc=f"{split}: images"):
        done = convert_objects(r.annotation, classes, r.frame, r.formula)
        try:
            put = image_writer(r.files, r.image, f"{images}/{r.file_name}", opt.link)
            # write the label first: a training on an unfinished dataset must not see the image without its label
            text = "".join(f"{line}\n" for line in done.lines).encode("ascii")
            summary.changed |= write_if_changed(f"{labels}/{r.stem}.txt", text)
            if put:
                put()
                summary.changed = True
        except (UserError, OSError, UnicodeEncodeError) as e:
            if isinstance(e, OSError) and e.errno not in _ONE_FILE:
                raise
            reason = str(e) if isinstance(e, UserError) else f"cannot be written: {getattr(e, 'strerror', e)}"
            summary.problems.append((r.label, reason))
            continue
        summary.problems += [(r.label, reason) for reason in done.problems]
        for index, _, hard in done.objects:
            (difficult if hard else objects)[summary.names[index]] += 1
        rows.append((r.file_name, *r.frame.size, done.objects))
    summary.images[split] = len(rows)
    path = summary.out / "annotations" / f"instances_{split}.json"
    summary.changed |= write_if_changed(path, coco_json(rows, summary.names).encode("ascii"), flush=True)
    kept = {row[0] for row in rows}
    for name in sorted(os.listdir(images)):
        if name not in kept and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            where = f"images/{split}/{name}"
            summary.problems.append((where, "not of this conversion: left by an earlier one? it will be used too"))


def _write_yaml(summary: Summary, name: str, opt: Options, to_default: bool) -> None:
    if to_default:
        summary.data_yaml = ROOT / "data" / "VOC.yaml"
    elif opt.yaml:
        text, notes = data_yaml(summary.out, [s for s, n in summary.images.items() if n], summary.names)
        summary.data_yaml = summary.out / f"{name}.yaml"
        summary.changed |= write_if_changed(summary.data_yaml, text.encode("utf-8"), flush=True)
        summary.missing += notes


def _write_report(summary: Summary) -> None:
    path = summary.out / REPORT
    if summary.problems:
        text = "".join(f"{printable(file)}: {printable(reason)}\n" for file, reason in summary.problems)
        summary.changed |= write_if_changed(path, text.encode("utf-8", "replace"), flush=True)
    elif path.is_file():
        path.unlink()
        summary.changed = True


# Messages


def _plain(name: str) -> str:
    """Turn a name from a zip into a safe file name."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".")[:80] or "custom"


def _missing(jobs: dict[str, list], opt: Options, places: Sequence[Path]) -> list[str]:
    """Return a line for each year of VOC of which splits are missing."""
    where = ", ".join(str(p) for p in places)
    lines = []
    for year in opt.years:
        absent = [s for splits in ZIPS[year].values() for s in splits if not jobs.get(f"{s}{year}")]
        if absent:
            lines.append(f"VOC{year} {'/'.join(absent)}: not found in {where}")
    return lines


def _nothing(opt: Options, places: Sequence[Path], problems: Problems) -> str:
    why = "; ".join(f"{printable(file)}: {printable(reason)}" for file, reason in problems[:SHOWN])
    if opt.source:
        return f"nothing to convert: {why or 'no images are listed for --years ' + ' '.join(map(str, opt.years))}"
    where = " or ".join(str(p) for p in places)
    return (
        f"no VOC data found in {where}{f' ({why})' if why else ''}: put the official zips or an unpacked VOCdevkit "
        f"there and run `{COMMAND}`, or download them (2.8 GB) with `{COMMAND} --download`"
    )


def _table(summary: Summary) -> list[str]:
    """Return the table of labels by class and split, followed by totals, difficult objects and images."""
    splits = list(summary.images)
    rows = [[printable(name)[:30], *(summary.objects[s][name] for s in splits)] for name in summary.names[:ROWS]]
    if len(summary.names) > ROWS:
        rows.append([f"... {len(summary.names) - ROWS} more", *("" for _ in splits)])
    rows.append(["all labels", *(summary.objects[s].total() for s in splits)])
    rows.append(["difficult, left out", *(summary.difficult[s].total() for s in splits)])
    rows.append(["images", *(summary.images[s] for s in splits)])
    return [f"{row[0]:<30}" + "".join(f"{value:>12}" for value in row[1:]) for row in [["class", *splits], *rows]]


def _log_summary(summary: Summary, custom: bool) -> None:
    kinds: dict[str, list[str]] = {}
    for file, reason in summary.problems:
        kind, _, detail = reason.partition(": ")
        kinds.setdefault(kind, []).append(printable(f"{file} ({detail})" if detail else file))
    for kind, files in sorted(kinds.items(), key=lambda item: -len(item[1])):
        more = f", ... see {summary.out / REPORT}" if len(files) > SHOWN else ""
        LOGGER.warning(f"{len(files)} x {printable(kind)}: {', '.join(files[:SHOWN])}{more}")
    for line in (*_table(summary), *summary.missing):
        LOGGER.info(line)
    if not any(summary.images.values()):
        return
    if not any(summary.objects.values()):
        hint = "" if custom else f"; a dataset with classes other than VOC's {len(VOC_NAMES)} needs --name or --names"
        LOGGER.warning(f"the dataset has no labels{hint}")
    LOGGER.info(f"{'written to' if summary.changed else 'nothing changed, everything is already in'} {summary.out}")
    if summary.data_yaml:
        official = not custom and summary.data_yaml.parent == ROOT / "data"
        data = "VOC.yaml" if official else shlex.quote(str(summary.data_yaml))
        LOGGER.info(f"train with: python train.py --cfg models/yolov5_shufflenet.yaml --data {data}")
