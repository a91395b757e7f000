"""The reader of pickles that runs nothing: what it reads, what it refuses by name, what is damage."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from models.weights.unpickle import Inert, RefusedPickle, read_torch_zip


def write_zip(path: Path, data: bytes, records: dict[str, bytes] | None = None, packed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as z:
        for name, content in {"archive/data.pkl": data, **(records or {})}.items():
            z.writestr(name, content)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_save_wrote(tmp_path: Path, protocol: int) -> None:
    base = torch.arange(24.0)
    content = {
        "a": base.view(4, 6), "part": base[3:9:2], "turned": base.view(4, 6).T, "half": torch.ones(3).half(),
        "long": torch.tensor(7), "empty": torch.zeros(0, 3), "bf16": torch.ones(2, dtype=torch.bfloat16),
        "plain": [1, -2.5, None, True, "ä", 2**70, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1, 2}, [], {}],
        "od": OrderedDict(x=1), "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    if protocol >= 4:  # made by calls before
        content["plain"] += [b"x", frozenset((1, 2))]
    file = tmp_path / "a.pt"
    torch.save(content, file, pickle_protocol=protocol)
    found = read_torch_zip(file)
    assert list(found) == list(content) and found["plain"] == content["plain"] and found["od"] == content["od"]
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_classes_of_a_network_become_inert(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))}, tmp_path / "a.pt")
    found = read_torch_zip(tmp_path / "a.pt")["model"]
    assert type(found) is Inert and found.path == "torch.nn.modules.container.Sequential"
    conv = found.state["_modules"]["0"]
    assert conv.path == "torch.nn.modules.conv.Conv2d" and conv.state["_parameters"]["weight"].shape == (4, 3, 1, 1)


def call(module: str, name: str, *args: str, protocol: int = 2) -> bytes:
    """A pickle that calls module.name(*args)."""
    texts = b"".join(b"X" + struct.pack("<I", len(a.encode())) + a.encode() for a in args)
    if protocol < 4:
        return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + texts + b"tR."
    names = b"".join(b"\x8c" + bytes([len(n)]) + n.encode() for n in (module, name))
    return b"\x80\x04" + names + b"\x93(" + texts + b"tR."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec"),
        ("__builtin__", "getattr"), ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "open"),
        ("builtins", "compile"), ("types", "FunctionType"), ("types", "CodeType"), ("marshal", "loads"),
        ("operator", "attrgetter"), ("operator", "methodcaller"), ("functools", "partial"), ("functools", "reduce"),
        ("copyreg", "_reconstructor"), ("copyreg", "add_extension"), ("importlib", "import_module"),
        ("runpy", "run_path"), ("webbrowser", "open"), ("shutil", "rmtree"), ("pty", "spawn"), ("timeit", "timeit"),
        ("pickle", "loads"), ("_pickle", "loads"), ("torch", "load"), ("torch.hub", "load"), ("torch.jit", "load"),
        ("torch.storage", "_load_from_bytes"), ("torch._utils", "_import_dotted_name"), ("torch.serialization", "load"),
        ("numpy", "load"), ("numpy", "fromfile"), ("numpy.testing._private.utils", "runstring"),
        ("numpy.f2py.crackfortran", "myeval"), ("numpy.core.multiarray", "fromstring"),
        ("dill._dill", "_create_function"), ("cloudpickle.cloudpickle", "_make_function"), ("__main__", "f"),
        ("modelsx.common", "Conv"), ("pathlib", "Path.touch"), ("ultralytics.nn.tasks", "DetectionModel"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_asks_for_anything_else_is_refused_by_name(tmp_path: Path, module: str, name: str, protocol: int) -> None:
    file = write_zip(tmp_path / "x.pt", call(module, name, "echo", protocol=protocol))
    with pytest.raises(RefusedPickle) as e:
        read_torch_zip(file)
    assert e.value.args == (f"{module}.{name}",)


@pytest.mark.parametrize(
    "name", ["os.system", "sys.modules", "Conv.forward.__globals__", "a b", ""]
)  # what a module of ours has imported is reached by dots, or by no name at all
def test_names_reached_through_a_network_package(tmp_path: Path, name: str) -> None:
    with pytest.raises((RefusedPickle, ValueError)):
        read_torch_zip(write_zip(tmp_path / "x.pt", call("models.yolo", name, protocol=4)))


def test_a_call_that_is_allowed_is_still_not_made(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for module, name in (("models.evil", "run"), ("torch.nn.modules.module", "exec"), ("utils.general", "os")):
        found = read_torch_zip(write_zip(tmp_path / "x.pt", call(module, name, f"touch {victim}")))
        assert type(found) is Inert and found.path == f"{module}.{name}"
    assert not victim.exists()


def test_objects_cannot_be_given_attributes_that_act(tmp_path: Path) -> None:
    """BUILD on a name: in a real unpickler this changes the class or function itself."""
    data = b"\x80\x02cmodels.common\nConv\n}X\x01\x00\x00\x00aK\x01sb."
    with pytest.raises(ValueError, match="not an object"):
        read_torch_zip(write_zip(tmp_path / "x.pt", data))


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (b"\x80\x02(S'echo'\nios\nsystem\n.", "the instruction INST"),
        (b"\x80\x02(cmodels.a\nB\no.", "the instruction OBJ"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02Pname\n.", "the instruction PERSID"),
        (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
    ],
)
def test_instructions_that_are_not_followed(tmp_path: Path, data: bytes, asked: str) -> None:
    with pytest.raises(RefusedPickle) as e:
        read_torch_zip(write_zip(tmp_path / "x.pt", data))
    assert e.value.args == (asked,)


def tensor_pickle(elements: int = 4, offset: int = 0, size=(4,), stride=(1,), key: str = "0", kind="FloatStorage"):
    """A pickle of one tensor whose facts can be false."""
    out = io.BytesIO()

    class Writer(pickle._Pickler):
        def persistent_id(self, obj):
            return obj[1] if isinstance(obj, tuple) and obj and obj[0] == "pid" else None

    class Rebuild:
        def __reduce__(self):
            pid = ("pid", ("storage", getattr(torch, kind), key, "cpu", elements))
            return torch._utils._rebuild_tensor_v2, (pid, offset, size, stride, False, OrderedDict())

    Writer(out, 2).dump(Rebuild())
    return out.getvalue()


def test_a_hand_made_tensor_is_read(tmp_path: Path) -> None:
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    found = read_torch_zip(write_zip(tmp_path / "x.pt", tensor_pickle(size=(2, 2), stride=(1, 2)),
                                     {"archive/data/0": numbers}))  # fmt: skip
    assert found.tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"size": (5,)}, "does not fit"),
        ({"offset": 1}, "does not fit"),
        ({"offset": -1}, "invalid"),
        ({"stride": (-1,)}, "invalid"),
        ({"size": (10**12,), "stride": (0,)}, "does not fit"),
        ({"size": (2, 2), "stride": (1,)}, "invalid"),
        ({"size": ("a",)}, "invalid"),
        ({"elements": 10**9}, "16 bytes, 4000000000 were expected"),
        ({"elements": 2, "size": (2,)}, "8 were expected"),
        ({"elements": -1}, "invalid storage"),
        ({"key": "7"}, "invalid"),
        ({"key": "../../etc/passwd"}, "invalid"),
        ({"kind": "DoubleStorage"}, "32 were expected"),
    ],
)
def test_a_tensor_stays_inside_its_numbers(tmp_path: Path, facts: dict, message: str) -> None:
    file = write_zip(tmp_path / "x.pt", tensor_pickle(**facts), {"archive/data/0": struct.pack("<4f", 1, 2, 3, 4)})
    with pytest.raises(ValueError, match=message):
        read_torch_zip(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is invalid|exhausted"),
        (b"\x80\x02}", "exhausted|no end"),
        (b"\x80\x02.", "invalid"),
        (b"\x80\x02K\x01\x85\x86.", "too short"),
        (b"\x80\x02h\x05.", "invalid"),
        (b"\x80\x02K\x01K\x02a.", "not a list"),
        (b"\x80\x02]K\x01K\x02s.", "not a dict"),
        (b"\x80\x02}]K\x01s.", "not a plain value"),
        (b"\x80\x02(K\x01d.", "is invalid|shorter|longer"),
        (b"\x80\x02K\x01K\x01R.", "not a class|is invalid"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "not a class"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.", "invalid"),
        (b"\x80\x02K\x05Q.", "invalid"),
        (b"\xff\xfe", "opcode|at position"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "expected"),
    ],
)
def test_damaged_pickles(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_torch_zip(write_zip(tmp_path / "x.pt", data))


def test_large_numbers_cost_nothing(tmp_path: Path) -> None:
    """A memo index of two thousand million makes Python's own reader allocate a table of that size."""
    data = b"\x80\x02K\x01r\xff\xff\xff\x7fj\xff\xff\xff\x7f."
    assert read_torch_zip(write_zip(tmp_path / "x.pt", data)) == 1


NESTED = b"K\x01" + 60 * b"2\x86"  # a tuple of two of a tuple of two ...: to hash, print or compare takes 2**60 steps


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"}" + NESTED + b"Ns", "not a plain value"),
        (b"}(" + NESTED + b"Nu", "not a plain value"),
        (b"(" + NESTED + b"Nd", "not a plain value"),
        (b"\x8f(" + NESTED + b"\x90", "not a plain value"),
        (b"(" + NESTED + b"\x91", "not a plain value"),
        (b"c__builtin__\nset\n](" + NESTED + b"e\x85R", "not a plain value"),
        (b"(" + NESTED + b"cmodels.a\nB\nNNNtQ", "not a storage"),
        (b"(X\x07\x00\x00\x00storage" + NESTED + b"NNNtQ", "not a storage"),
        (NESTED + NESTED + b"\x93", "not a string"),
        (b"X\x01\x00\x00\x00a" + NESTED + b"\x93", "not a string"),
        (b"cmodels.a\n" + 300 * b"B" + b"\n", "more than 200 characters"),
    ],
)
def test_nothing_takes_for_ever(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_torch_zip(write_zip(tmp_path / "x.pt", b"\x80\x04" + data + b"."))


def test_one_list_is_not_copied_into_many_sets(tmp_path: Path) -> None:
    list_of_100 = b"](" + 100 * b"K\x01" + b"eq\x00c__builtin__\nset\nq\x01"
    with pytest.raises(ValueError, match="sets have more items"):
        read_torch_zip(write_zip(tmp_path / "x.pt", b"\x80\x02(" + list_of_100 + 99 * b"h\x01h\x00\x85R" + b"t."))


def test_a_tensor_used_many_times_is_stored_once(tmp_path: Path) -> None:
    base = torch.zeros(1000)
    torch.save([base[:k] for k in range(1, 500)], tmp_path / "x.pt")
    assert len({t.untyped_storage().data_ptr() for t in read_torch_zip(tmp_path / "x.pt")}) == 1


def test_numbers_are_of_one_type(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as z:
        data = z.read("a/data.pkl")
    second = b"h\x04X\x01\x00\x00\x001"  # FloatStorage, from the memo, and the record's name
    assert data.count(second) == 1
    data = data.replace(second, b"ctorch\nIntStorage\nX\x01\x00\x00\x000")
    with pytest.raises(ValueError, match="is used both as torch.int32 and as torch.float32"):
        read_torch_zip(write_zip(tmp_path / "x.pt", data, {"archive/data/0": bytes(8)}))


def test_a_pickle_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.weights.unpickle.LARGEST_PICKLE", 10)
    with pytest.raises(ValueError, match="at most 10 were expected"):
        read_torch_zip(write_zip(tmp_path / "x.pt", b"\x80\x02" + 20 * b"N" + b"."))


def test_packed_and_doubtful_archives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compressed"):
        read_torch_zip(write_zip(tmp_path / "a.pt", b"\x80\x02N.", packed=True))
    with pytest.raises(ValueError, match="exactly one data.pkl"):
        read_torch_zip(write_zip(tmp_path / "b.pt", b"\x80\x02N.", {"other/data.pkl": b"\x80\x02N."}))
    with pytest.raises(ValueError, match="big-endian"):
        read_torch_zip(write_zip(tmp_path / "c.pt", b"\x80\x02N.", {"archive/byteorder": b"big"}))
    (tmp_path / "d.pt").write_text("no zip")
    with pytest.raises(ValueError, match="zip"):
        read_torch_zip(tmp_path / "d.pt")
