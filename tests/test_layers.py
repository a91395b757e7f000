"""The rooms of the code: who imports whom, how many files a room has. The order stands in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from test_old_names import SHIMS

MOST_FILES = 12  # code files in a room
LISTED = re.search(r"```yaml\n(- .*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)[1]
LAYERS: list[list[str]] = yaml.safe_load(LISTED)  # from the top down: files, and folders with a slash at the end
OLD_NAMES = frozenset(f"{name.replace('.', '/')}.py" for name in SHIMS)
FILES = sorted(p.relative_to(ROOT).as_posix() for pattern in ("*.py", "models/**/*.py", "utils/**/*.py",
               "my_tools/**/*.py") for p in ROOT.glob(pattern))  # fmt: skip


def room_of(file: str) -> tuple[int, str]:
    """The layer of a file, counted from the top, and its room there."""
    rooms = [(len(room), n, room) for n, layer in enumerate(LAYERS) for room in layer
             if file == room or room.endswith("/") and file.startswith(room)]  # fmt: skip
    return max(rooms)[1:]  # the closest name: models/run/ before models/


def imports_of(text: str, files: frozenset[str] = frozenset(FILES)) -> set[str]:
    """The project's files that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{a.name}" for a in node.names] + [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        paths = [name.replace(".", "/") for name in names]
        found |= {file for p in paths for file in (f"{p}.py", f"{p}/__init__.py") if file in files}
    return found


# YOLOv5 has these classes in models.common; they are looked up in the rooms above only when a script asks for them
WHEN_ASKED = {"models/common.py": {"models/inference/backend.py", "models/inference/hub.py"}}
IMPORTS = {
    file: imports_of((ROOT / file).read_text(encoding="utf-8")) - {file} - WHEN_ASKED.get(file, set()) for file in FILES
}


def upward(file: str, imported: str) -> str:
    """Why a file must not import another one, or an empty string."""
    if file in OLD_NAMES:
        return ""
    if imported in OLD_NAMES:
        return f"{file} imports {imported}, which is for other people's scripts"
    (layer, room), (below, its_room) = room_of(file), room_of(imported)
    if below > layer or room == its_room:
        return ""
    return f"{file} imports {imported}: {its_room} is not below {room}"


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The files of one cycle of imports, or an empty list."""
    done: set[str] = set()

    def visit(file: str, path: list[str]) -> list[str]:
        if file in path:
            return path[path.index(file) :] + [file]
        if file in done:
            return []
        found = next(filter(None, (visit(other, [*path, file]) for other in sorted(graph.get(file, ())))), [])
        done.add(file)
        return found

    return next(filter(None, (visit(file, []) for file in graph)), [])


@pytest.mark.parametrize("file", FILES)
def test_every_file_has_a_room_and_imports_only_from_rooms_below(file: str) -> None:
    assert room_of(file)
    assert [why for other in sorted(IMPORTS[file]) if (why := upward(file, other))] == []


def test_no_cycles() -> None:
    assert cycle(IMPORTS) == []


def test_rooms_are_not_crowded() -> None:
    rooms: dict[str, list[str]] = {}
    for file in FILES:
        if file not in OLD_NAMES:
            rooms.setdefault(Path(file).parent.as_posix(), []).append(file)
    assert {room: len(files) for room, files in rooms.items() if len(files) > MOST_FILES} == {}


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("/__init__.py")])
def test_every_room_says_what_lives_there(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert len(tree.body) == 1 and 1 <= len(ast.get_docstring(tree).splitlines()) <= 2


def test_every_folder_of_code_is_a_package() -> None:
    assert {f"{Path(file).parent.as_posix()}/__init__.py" for file in FILES if "/" in file} <= set(FILES)


def test_every_room_named_exists() -> None:
    assert [room for layer in LAYERS for room in layer if not (ROOT / room).exists()] == []


@pytest.mark.parametrize("script", ["train.py", "val.py", "detect.py", "export.py"])
def test_scripts_use_no_tools(script: str) -> None:
    assert [file for file in IMPORTS[script] if file.startswith("my_tools/")] == []


def test_opencv_is_loaded_in_one_place() -> None:
    text = {file: (ROOT / file).read_text(encoding="utf-8") for file in FILES}
    assert [file for file in FILES if re.search(r"^\s*(import cv2|from cv2)", text[file], re.MULTILINE)] == [
        "utils/system/opencv.py"
    ]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("utils/boxes.py", "from utils.files import ROOT", "utils/files.py is not below"),
        ("utils/data/labels.py", "def f():\n    from utils.draw import plots", "utils/draw/ is not below utils/data/"),
        ("utils/files.py", "import models.yolo", "models/yolo.py is not below"),
        ("models/yolo.py", "import importlib\nimportlib.import_module('models.run.state')", "models/run/ is not below"),
        ("models/run/state.py", "import train", "train.py is not below models/run/"),
        ("utils/voc/source.py", "from utils import evaluation", "utils/evaluation/ is not below utils/voc/"),
        ("val.py", "from utils.metrics import fitness", "for other people's scripts"),
        ("utils/data/labels.py", "from utils.data import images\nimport utils.files", ""),
        ("my_tools/compare.py", "import val, train", ""),
    ],
)
def test_the_check_finds_what_it_is_for(file: str, text: str, message: str) -> None:
    reasons = [why for other in imports_of(text) if (why := upward(file, other))]
    assert any(message in why for why in reasons) if message else reasons == []


def test_cycles_are_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
