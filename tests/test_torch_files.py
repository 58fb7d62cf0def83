"""Files of torch.save are read as data: the right arrays, and nothing of them is run.

Know before reading: models/torch_files.py. Know after: what a file made to do harm comes to.
"""

import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from models.files import Refused
from models.torch_files import Call, Torch, followed, number

VALUES = {
    "none": None,
    "whole": [0, 1, 255, 70_000, -5, 2**40, -(2**70)],
    "real": [1.5, -0.0, 1e300],
    "text": ["", "Actb", "Gène", "x" * 300],
    "bytes": b"abc",
    "true": [True, False],
    "nested": {"a": [{"b": (1, 2, 3, 4)}, (), (5,), (1, 2), []], 3: {}},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_built_as_they_were(protocol):
    values = dict(VALUES)
    if protocol < 3:  # there bytes are a call
        del values["bytes"]
    one = ["one"]
    values |= {"twice": [one, one], "ordered": collections.OrderedDict(z=1, a=2)}
    found = followed(pickle.dumps(values, protocol))
    assert found == {**values, "ordered": {"z": 1, "a": 2}}
    assert found["twice"][0] is found["twice"][1] and list(found["ordered"]) == ["z", "a"]


ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(4, dtype=">i2"),
    "text": np.array(["d10", "Gène"]),
    "bytes": np.array([b"ab", b"c"]),
    "objects": np.array(["d2", None, 3, np.float64(0.5)], object),
    "empty": np.empty((0, 3)),
    "boolean": np.array([True, False]),
    "scalar": np.array(2.5),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_numpy(tmp_path, kind, protocol):
    array = ARRAYS[kind]
    torch = Torch(archive(tmp_path / "a.pt", pickle.dumps({"a": array}, protocol)))
    found = torch.array(torch.content["a"])
    assert found.dtype.kind == array.dtype.kind and found.shape == array.shape
    assert found.tolist() == array.tolist()


def test_numbers_of_numpy():
    for value in (np.float32(0.25), np.int64(10), np.bool_(True), np.str_("nb"), 3, "x", None):
        assert number(followed(pickle.dumps(value, 2))) == value


def archive(path, program, folder="archive", **members):
    """An archive as torch.save makes it, of a program and of raw numbers by the names of members."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{folder}/data.pkl", program)
        for name, content in members.items():
            file.writestr(f"{folder}/{name.replace('_', '/')}", content)
    return path


class Storage:
    """Stands for torch.FloatStorage in a program."""


class Rebuilt:
    """An object whose program asks for a tensor of torch."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return rebuild, self.arguments


def rebuild(*arguments):
    raise AssertionError("called")


class Pickler(pickle.Pickler):
    """Writes numbers apart, as torch does."""

    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


def program_of(value):
    """Its program, with the names that torch gives to what stands for it here."""
    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    program = stream.getvalue()
    here = __name__.encode()
    program = program.replace(b"c" + here + b"\nStorage\n", b"ctorch\nFloatStorage\n")
    return program.replace(b"c" + here + b"\nrebuild\n", b"ctorch._utils\n_rebuild_tensor_v2\n")


def tensor(offset, shape, strides, n=6):
    return Rebuilt(("storage", Storage, "0", "cpu", n), offset, shape, strides, False, {})


def test_tensors_are_read_from_their_numbers(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    value = {
        "all": tensor(0, (2, 3), (3, 1)),
        "part": tensor(1, (2, 2), (1, 3)),
        "one": tensor(5, (), ()),
    }
    torch = Torch(archive(tmp_path / "a.pt", program_of(value), data_0=numbers.tobytes()))
    found = {name: torch.array(call) for name, call in torch.content.items()}
    assert found["all"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["part"].tolist() == [[1, 4], [2, 5]] and found["one"].tolist() == 5
    swapped = archive(
        tmp_path / "b.pt",
        program_of(value),
        data_0=numbers.astype(">f4").tobytes(),
        byteorder=b"big",
    )
    torch = Torch(swapped)
    assert torch.array(torch.content["all"]).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "offset, shape, strides, n",
    [
        (4, (2, 3), (3, 1), 6),
        (0, (2, 3), (4, 1), 6),
        (-1, (2,), (1,), 6),
        (0, (2,), (-1,), 6),
        (0, (10**9,), (0,), 6),
        (0, (2,), (1, 1), 6),
        (0, (2.0,), (1,), 6),
        (0, (7,), (1,), 7),
        (0, (3,), (10**18,), 6),
        (6, (1,), (1,), 6),
    ],
)
def test_tensors_beyond_their_numbers_are_refused(tmp_path, offset, shape, strides, n):
    program = program_of(tensor(offset, shape, strides, n))
    numbers = np.arange(6, dtype=np.float32).tobytes()
    torch = Torch(archive(tmp_path / "a.pt", program, data_0=numbers))
    with pytest.raises(Refused, match="numbers do not fit"):
        torch.array(torch.content)


def test_what_torch_itself_writes(tmp_path):
    torch = pytest.importorskip("torch")
    x = torch.arange(12.0).reshape(3, 4)
    state = collections.OrderedDict(
        x=x, turned=x.T, part=x[1:, ::2], half=x.half(), whole=x.long(), no=torch.zeros(0, 3)
    )
    state["weight"] = torch.nn.Parameter(x)
    state["bad"] = x.bfloat16()
    torch.save({"state": state, "layer": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "a.pt")
    file = Torch(tmp_path / "a.pt")
    bad = file.content["state"].pop("bad")
    for name, call in file.content["state"].items():
        theirs = state[name].detach().numpy()
        np.testing.assert_array_equal(file.array(call), theirs, strict=True)
    assert file.array(file.content["layer"]["weight"]).shape == (2, 2)
    with pytest.raises(Refused, match="has a tensor in torch.BFloat16Storage, which"):
        file.array(bad)


# ------------------------------------------------------------------------------- files made to do harm
class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.makedirs, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_call_of_a_program_is_made(tmp_path, protocol):
    mark = tmp_path / "mark"
    program = pickle.dumps({"x": Harm(mark), "y": 3}, protocol)
    pickle.loads(program)
    assert mark.is_dir()  # it would do harm
    mark.rmdir()
    found = followed(program)
    assert isinstance(found["x"], Call) and found["x"].function == "os.makedirs"
    assert found["x"].arguments == (str(mark),) and found["y"] == 3
    torch = Torch(archive(tmp_path / "a.pt", program))
    with pytest.raises(Refused, match="a call of os.makedirs, which was not made, where an"):
        torch.array(torch.content["x"])
    with pytest.raises(Refused, match="where a number or a text is expected"):
        number(torch.content["x"])
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"(S'mark'\nios\nmakedirs\n.",  # INST
        b"(cos\nmakedirs\nS'mark'\no.",  # OBJ
        b"\x80\x04\x82\x01.",  # EXT1
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"N",
        b"\x80\x02",
    ],
)
def test_instructions_without_business_in_a_file_of_weights(program):
    with pytest.raises((Refused, ValueError)):
        followed(program)


def test_a_memo_beyond_all_measure_takes_no_memory():
    assert followed(b"N" + b"r" + (2**31 - 1).to_bytes(4, "little") + b".") is None


def test_archives_that_claim_too_much(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps("x" * 10**6, 2))
    with pytest.raises(Refused, match="claim to be larger than the file"):
        Torch(tmp_path / "a.pt")
    with pytest.raises(Refused, match="it has no data.pkl"):
        Torch(archive(tmp_path / "b.pt", b"N.", folder="a/b"))


def test_keys_that_python_would_hash_without_end_are_refused():
    deep = b"(N" + b"\x85" * 300_000 + b"Nd."  # a tuple in a tuple in a tuple ...
    with pytest.raises(Refused, match="a key that is neither"):
        followed(deep)
    doubled = b"(N" + b"q\x00h\x00\x86" * 60 + b"Nd."  # of itself and itself, 60 times
    with pytest.raises(Refused, match="a key that is neither"):
        followed(doubled)


def test_compressed_members_are_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"N." + bytes(100))
        file.writestr("archive/data/0", np.random.default_rng(0).bytes(1000))
    with pytest.raises(Refused, match="compressed"):
        Torch(path)


def test_tensors_that_share_their_numbers_do_not_fill_the_memory(tmp_path):
    numbers = np.zeros(60_000, np.float32)
    value = [tensor(0, (60_000,), (1,), 60_000) for _ in range(30)]
    torch = Torch(archive(tmp_path / "a.pt", program_of(value), data_0=numbers.tobytes()))
    with pytest.raises(Refused, match="times its own size"):
        for call in torch.content:
            torch.array(call)
