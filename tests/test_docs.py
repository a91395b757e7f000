"""The pages in both languages: they say the same, their links lead somewhere, and their commands run as they stand."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT

from models.weights.checkpoint import save_checkpoint, weights_content
from models.yolo import Model
from utils.files import MODEL_FOLDERS
from utils.settings.dataset import load_data

PAIRS = [("README.md", "README.zh-CN.md"), ("docs/from-the-articles.md", "docs/from-the-articles.zh-CN.md"),
         ("docs/deploy.md", "docs/deploy.zh-CN.md"), ("docs/train.md", "docs/train.zh-CN.md"),
         ("docs/compare.md", "docs/compare.zh-CN.md")]  # fmt: skip
ENGLISH = [f"docs/{name}.md" for name in
           "differences evaluate export heads models python reliability slim speed".split()]  # fmt: skip
PAGES = [*[page for pair in PAIRS for page in pair], *ENGLISH]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
YAML_FOLDERS = ("", *MODEL_FOLDERS, "data", "data/hyps")


@functools.cache
def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    return FENCED.sub("", page(name))


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and code of each fenced block; comments, which are translated, are left out."""
    return [(kind, re.sub(r"(^|[^\S\n]+)# .*$", "", code, flags=re.MULTILINE)) for kind, code in
            FENCED.findall(page(name))]  # fmt: skip


def commands(name: str) -> list[str]:
    """The command lines of the bash blocks, one a line."""
    code = "\n".join(code for kind, code in blocks(name) if kind == "bash")
    return [part.strip() for line in code.splitlines() for part in line.split("&&") if part.strip()]


def anchors(name: str) -> list[str]:
    """The headings' anchors as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]


def links(name: str) -> list[tuple[str, str]]:
    """Target and anchor of each link; the target is a path below ROOT, or an address."""
    found = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(name)):
        path, _, anchor = target.partition("#")
        if "://" not in path:
            path = os.path.normpath(Path(name).parent / path) if path else name
        found.append((Path(path).as_posix() if "://" not in path else path, anchor))
    return found


def as_in_english(link: tuple[str, str]) -> tuple[str, str]:
    """A link without its language: which page, and which of its headings."""
    path, anchor = link
    place = str(anchors(path).index(anchor)) if anchor and path in PAGES else anchor
    return path.replace(".zh-CN", ""), place


def tables(name: str) -> list[str]:
    return [line for line in prose(name).splitlines() if line.startswith("|")]


# What can be told without running anything


def test_every_page_is_here_and_reached_from_the_readme() -> None:
    assert sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")) == sorted(
        p for p in PAGES if p.startswith("docs/")
    )
    assert {path for path, _ in links("README.md")} >= {p for p in PAGES if p.startswith("docs/") and "zh" not in p}


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_is_short(name: str) -> None:
    assert len(page(name).splitlines()) <= 200


@pytest.mark.parametrize("name", [p for p in PAGES if p.startswith("docs/") and "zh" not in p and "articles" not in p])
def test_a_page_opens_with_a_command(name: str) -> None:
    """Within its first lines, before any other heading, stands the command that most people came for."""
    assert re.search(r"^```\w+$", page(name).partition("\n## ")[0], re.MULTILINE)


COMMANDS = sorted({c for name in PAGES for c in commands(name) if c.startswith(("python ", "torchrun "))})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_scripts_flags_and_yaml_files_that_exist(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_words = shlex.split(command)
    at = next(i for i, word in enumerate(all_words) if word.endswith(".py"))
    script, words = ROOT / all_words[at], all_words[at + 1 :]
    assert script.is_file(), all_words[at]
    if not all_words[at].startswith("tests/"):
        monkeypatch.setattr(sys, "argv", all_words[at:])
        module = importlib.import_module(all_words[at].removesuffix(".py").replace("/", "."))
        with contextlib.suppress(SystemExit) if "--help" in words else contextlib.nullcontext():
            module.parse_opt()
    for word in words:
        if word.endswith(".yaml") and not word.startswith(("../", "runs/")):
            assert any((ROOT / folder / word).is_file() for folder in YAML_FOLDERS), word


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for path, anchor in links(name):
        if "://" in path:
            continue
        assert (ROOT / path).is_file(), path
        assert not anchor or anchor in anchors(path), f"{path}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_headings_have_anchors_of_their_own(name: str) -> None:
    assert [a for a, count in Counter(anchors(name)).items() if count > 1] == []


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_languages_have_the_same_code(pair: tuple[str, str]) -> None:
    assert blocks(pair[1]) == blocks(pair[0])


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_languages_have_the_same_headings_tables_and_figures(pair: tuple[str, str]) -> None:
    english, chinese = ([re.match("#+", line)[0] for line in prose(name).splitlines() if line.startswith("#")]
                        for name in pair)  # fmt: skip
    assert chinese == english
    rows = [[(line.count("|"), sorted(re.findall(r"\d+(?:[.,/]\d+)*", line))) for line in tables(name)]
            for name in pair]  # fmt: skip
    for number, (ours, theirs) in enumerate(zip(*rows, strict=True)):
        assert theirs == ours, tables(pair[1])[number]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_languages_name_the_same_code_in_their_text(pair: tuple[str, str]) -> None:
    english, chinese = (set(re.findall(r"`([^`\n]+)`", " ".join(prose(name).split()))) for name in pair)
    assert chinese == english


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_languages_have_the_same_links(pair: tuple[str, str]) -> None:
    english, chinese = (Counter(map(as_in_english, links(name))) for name in pair)
    assert chinese == english


@pytest.mark.parametrize("name", [page for pair in PAIRS for page in pair])
def test_each_language_links_to_the_other(name: str) -> None:
    other = next(pair[1 - pair.index(name)] for pair in PAIRS if name in pair)
    assert (other, "") in links(name)[:3]


# The steps of the articles, done

STEPS = commands(PAIRS[1][0])
TRAINING = "--epochs 1 --imgsz 64 --batch-size 4"
SMALLER = {  # what is appended to a step's command; of a flag given twice the last one counts
    "train.py": f"{TRAINING} --noplots --workers 0 --device cpu",
    "val.py": "--noplots --workers 0 --device cpu",
    "detect.py": "--device cpu",
    "my_tools/compare.py": "--draws 100 --seconds 0 --pictures 2 --workers 0 --device cpu",
    "my_tools/slim.py": "--imgsz 64 --batch-size 4 --steps 2 --workers 0 --device cpu",
}
# the large model is built for its layer table only: where it is trained, its smallest relative is instead, or none
SMALL_MODELS = {"yolov5l_slimneck.yaml": "--cfg yolov5n_slimneck.yaml",
                "--reproduce": f"{TRAINING} --models yolov5_shufflenet.yaml"}
# Runs each command in a fork, which spares it the imports (the batch norm is for those that torch puts off until a
# network is built on the meta device); what asks for the network gets an error
RUNNER = """
import json, multiprocessing, os, runpy, socket, sys, traceback
import cv2, matplotlib.figure, numpy, pandas, torch, torchvision

torch.nn.BatchNorm2d(1, device="meta")(torch.empty(2, 1, 2, 2, device="meta"))

multiprocessing.set_start_method("fork")  # others leave semaphores to be cleaned up at a real exit

def refuse(*args):
    raise RuntimeError("asked for the network")

socket.socket.connect = socket.getaddrinfo = refuse
for number, words in enumerate(json.load(open("../steps.json"))):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"../{number}.txt", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        sys.argv, sys.path[0] = words, os.path.abspath(os.path.dirname(words[0]))
        code = 1
        try:
            runpy.run_path(words[0], run_name="__main__")
            code = 0
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(f"../{number}.txt", "a") as f:
        f.write(f"\\nexit code {code}\\n")
"""


def small(command: str) -> list[str]:
    """The words of a step's command, script first, with what makes it a matter of seconds."""
    python, *words = shlex.split(command)
    assert python == "python", command
    more = [SMALLER.get(words[0], "")]
    if words[0] in SMALLER:
        more += [flags for part, flags in SMALL_MODELS.items() if part in command]
    return [*words, *shlex.split(" ".join(more))]


def copy_checkout(to: Path) -> None:
    """The files of the project that git knows or would add."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("needs git and a checkout, to tell the project's files from others")
    listing = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def voc_zips(folder: Path) -> None:
    """PASCAL VOC's three archives, of a few pictures each: a dog in all, a difficult person in every second one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    corners = "<xmin>11</xmin><ymin>21</ymin><xmax>60</xmax><ymax>70</ymax>"
    dog = f"<object><name>dog</name><bndbox>{corners}</bndbox></object>"
    person = dog.replace("dog", "person").replace("<bndbox>", "<difficult>1</difficult><bndbox>")
    size = "<size><width>96</width><height>80</height><depth>3</depth></size>"
    for archive, year, lists in (
        ("VOCtrainval_06-Nov-2007", 2007, {"train": 4, "val": 2}),
        ("VOCtest_06-Nov-2007", 2007, {"test": 4}),
        ("VOCtrainval_11-May-2012", 2012, {"train": 4, "val": 2}),
    ):  # fmt: skip
        with zipfile.ZipFile(folder / f"{archive}.zip", "w") as z:
            root = f"VOCdevkit/VOC{year}"
            for k, (split, count) in enumerate(lists.items()):
                stems = [f"{year}{split}{i}" for i in range(count)]
                z.writestr(f"{root}/ImageSets/Main/{split}.txt", "\n".join(stems))
                for i, stem in enumerate(stems):
                    picture = rng.integers(0, 255, (80, 96, 3), np.uint8)
                    z.writestr(f"{root}/JPEGImages/{stem}.jpg", cv2.imencode(".jpg", picture)[1].tobytes())
                    objects = dog + person * ((i + k) % 2)
                    z.writestr(f"{root}/Annotations/{stem}.xml", f"<annotation>{size}{objects}</annotation>")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the steps have been done: the checkout, the data sets beside it, outputs as 0.txt, ..."""
    if not hasattr(os, "fork"):
        pytest.skip("runs the commands in forks, which Windows has not")
    folder = tmp_path_factory.mktemp("reader")
    copy_checkout(folder / "checkout")
    voc_zips(folder / "datasets/VOC/images")
    stand_in = Model("yolov5n.yaml", nc=80)  # for the trained YOLOv5-L that the reader has
    stand_in.names |= dict(enumerate(load_data("VOC.yaml").names.values()))  # COCO's include all of VOC's
    save_checkpoint(folder / "checkout/yolov5l.pt", weights_content(stand_in, 640))
    (folder / "steps.json").write_text(json.dumps([small(c) for c in STEPS]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-c", RUNNER], cwd=folder / "checkout", env=env, check=True, timeout=600)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(STEPS)), ids=STEPS)
def test_each_step_runs(number: int, done: Path) -> None:
    output = (done / f"{number}.txt").read_text(encoding="utf-8")
    assert output.endswith("\nexit code 0\n"), f"{STEPS[number]}\n{output[-6000:]}"


@pytest.mark.slow
def test_the_steps_leave_what_the_page_says(done: Path) -> None:
    left = done / "checkout/runs"
    wanted = ["compare/exp/report.html", "compare/voc/report.html", "train/exp3/opt.yaml", "slim/exp/weights/slim.pt"]
    wanted += ["slim/exp2/weights/slim.pt", "train/exp5/results.csv"]
    assert [name for name in wanted if not (left / name).is_file()] == []
    layers = (left / "slim/exp/layers.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert all(row.split(",")[2] or row.split(",")[-1] for row in layers), "what it became, or why it stayed"
    assert any(",Conv,SlimNeck," in row for row in layers) and any("1x1" in row for row in layers)
    assert "article: yolov5_stem_shufflenet" in (left / "compare/exp/report.md").read_text(encoding="utf-8")
    zips = done / "datasets/VOC/images"
    assert len(list(zips.glob("*.zip"))) == 3 and len(list(zips.glob("test2007/*.jpg"))) == 4
    (label,) = set((done / "datasets/VOC/labels/test2007/2007test0.txt").read_text().splitlines())
    assert [float(v) for v in label.split()] == pytest.approx([11, 35 / 96, 45 / 80, 50 / 96, 50 / 80])
