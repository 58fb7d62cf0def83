"""Files that `torch.save` wrote, read as data. This is engineering.

PyTorch keeps what it is given as a pickle, and a pickle is a program for a small machine with a
stack, one of whose instructions calls any function of any module by its name: who loads a
stranger's file runs it. Here nothing of it is run, and neither PyTorch nor Python's reader of
pickles is needed. The instructions are followed where they build numbers, texts, lists, tuples and
dicts. Where one would call a function, its name is noted, and what it would be given:

    >>> program = b"cos\\nsystem\\n(S'rm *'\\ntR."  # of a file made to do harm
    >>> followed(program)
    Call(function='os.system', arguments=('rm *',), state=None)

A few of these notes are understood: those by which PyTorch and NumPy write tensors and arrays
(`Torch.array`). All others stay what they are.

A file is a zip archive in which `data.pkl` is the program, and `data/0`, `data/1` ... are the
numbers of tensors.

Know before reading: what a stack is; and `python -m pickletools FILE`, which prints a program.

Know after: how a file is read that must not be run, and what of it can be read.
"""

from __future__ import annotations

import math
import os
import pickletools
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.files import Refused

# The numbers of a tensor, by the name of what stores them. Of bfloat16 NumPy has none.
STORED = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
DICTS = ("collections.OrderedDict", "collections.defaultdict")
# By these NumPy writes arrays and numbers; before version 2 from another module.
ARRAY = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
NUMBER = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
NO_BYTES = ("__builtin__.bytes", "builtins.bytes")
PLAIN_DTYPE = re.compile(r"[biufSU]\d+")

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# Instructions that put a number or a text on the stack, by what their names contain.
LITERALS = ("INT", "LONG", "FLOAT", "STRING", "BYTES", "UNICODE")
MARK = object()
# Tensors may share their numbers, and become arrays of their own here: of so many times the file.
COPIES = 10


class Name(str):
    """The name of a function or class: module, dot, name."""


class Stored(NamedTuple):
    """What a program says of the numbers of a tensor, which lie beside it in the archive."""

    description: Any  # ("storage", Name, key of the member, device, how many numbers)


@dataclass(eq=False)
class Call:
    """A call that a program asks for, and that was not made."""

    function: Any
    arguments: Any
    state: Any = None  # what the result would be told afterwards


# ------------------------------------------------------------------------------------- the program
def followed(program: bytes) -> Any:
    """What a pickle builds, with a `Call` in the place of each call that it asks for.

    Refused for an instruction that has no business in a file of weights; whatever Python raises for
    a program that is none.
    """
    stack: list = []
    memo: dict = {}
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        _follow(name, argument, stack, memo)
    raise Refused("its program has no end")


def _follow(name: str, argument: Any, stack: list, memo: dict) -> None:
    """One instruction: its name and argument, as pickletools has them."""
    if name in ("PROTO", "FRAME"):
        return
    if name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name in ("EMPTY_LIST", "EMPTY_DICT"):
        stack.append([] if name == "EMPTY_LIST" else {})
    elif name == "MARK":
        stack.append(MARK)
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[int(argument)])
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[int(argument)] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name == "GLOBAL":
        stack.append(Name(argument.replace(" ", ".")))
    elif name == "STACK_GLOBAL":
        module, attribute = _popped(stack, 2)
        stack.append(Name(f"{module}.{attribute}"))
    elif name == "BINPERSID":
        stack.append(Stored(stack.pop()))
    elif name in ("REDUCE", "NEWOBJ"):
        function, arguments = _popped(stack, 2)
        # What is in them comes afterwards.
        is_dict = function in DICTS and (function == DICTS[1] or arguments == ())
        stack.append({} if is_dict else Call(function, arguments))
    elif name == "BUILD":
        state = stack.pop()
        if isinstance(stack[-1], Call):  # a dict is told what is not needed
            stack[-1].state = state
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple(_popped(stack, int(name[-1]))))
    elif name in ("TUPLE", "LIST", "DICT"):
        items = _since_mark(stack)
        if name == "DICT":
            stack.append(_with_items({}, items))
        else:
            stack.append(tuple(items) if name == "TUPLE" else items)
    elif name in ("APPEND", "APPENDS"):
        items = _popped(stack, 1) if name == "APPEND" else _since_mark(stack)
        if isinstance(stack[-1], list):
            stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = _popped(stack, 2) if name == "SETITEM" else _since_mark(stack)
        if isinstance(stack[-1], dict):
            _with_items(stack[-1], items)
    elif any(part in name for part in LITERALS):
        stack.append(argument)
    else:
        raise Refused(f"its program has the instruction {name}, which weights do not need")


def _with_items(target: dict, items: list) -> dict:
    """The dict, with these keys and values in turn. Refused for a key that is no text or number.

    Python computes a hash of a key: of tuples in tuples, as deep as a program likes, it would come
    to no end, or overflow.
    """
    keys = items[::2]
    if not all(type(key) in (str, int, Name) for key in keys):
        raise Refused("has a dict with a key that is neither a text nor a whole number")
    target.update(zip(keys, items[1::2]))
    return target


def _popped(stack: list, n: int) -> list:
    """The last n of the stack, taken from it."""
    found = stack[-n:]
    del stack[-n:]
    return found


def _since_mark(stack: list) -> list:
    """What was put on the stack since the last mark; both are taken from it."""
    at = max(i for i, item in enumerate(stack) if item is MARK)
    found = stack[at + 1 :]
    del stack[at:]
    return found


# -------------------------------------------------------------------------------------- the archive
class Torch:
    """What is in a file of `torch.save`: `content` is what was saved, as `followed` has it.

    Refused for a file that is not whole, whose members are compressed, which torch.save never does,
    or which claims to hold more than it does; whatever zipfile and pickletools raise for one that
    is damaged.
    """

    def __init__(self, path: Path):
        self.parts = {}
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > os.path.getsize(path):
                raise Refused("its members claim to be larger than the file")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise Refused("its members are compressed, as torch.save does not write them")
            for member in members:
                _, _, name = member.filename.partition("/")  # the folder is called after the file
                self.parts[name] = archive.read(member)
        if "data.pkl" not in self.parts:
            raise Refused("no file of torch.save: it has no data.pkl")
        self.n_bytes_left = COPIES * os.path.getsize(path)
        self.order = ">" if self.parts.get("byteorder") == b"big" else "<"
        self.content = followed(self.parts["data.pkl"])

    def array(self, value: Any) -> np.ndarray:
        """The array that a `Call` stands for, of any shape: a tensor, or an array of NumPy's.

        Refused for anything else.
        """
        if isinstance(value, Call):
            if value.function == PARAMETER:
                return self.array(value.arguments[0])
            if value.function == TENSOR:
                return self._tensor(*value.arguments[:4])
            if value.function in ARRAY and value.state is not None:
                return _array(*value.state[1:5])
        raise Refused(f"holds {_in_words(value)} where an array is expected")

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
        """A tensor, of numbers that begin at an offset in its storage, with steps between them."""
        _, kind, key, _, n = storage.description
        if not isinstance(kind, str) or kind not in STORED:
            found = kind[:60] if isinstance(kind, str) else _in_words(kind)
            raise Refused(f"has a tensor in {found}, which is not read; save it as float")
        numbers = np.frombuffer(self.parts[f"data/{key}"], self.order + STORED[kind])
        whole = [offset, *shape, *strides]
        right = all(type(i) is int and i >= 0 for i in whole) and len(shape) == len(strides)
        last = offset + sum((i - 1) * step for i, step in zip(shape, strides))
        if not right or len(numbers) != n or math.prod(shape) > n or (n and last >= n):
            raise Refused(
                f"has a tensor of shape {shape} that its {len(numbers)} numbers do not fit"
            )
        self.n_bytes_left -= math.prod(shape) * numbers.itemsize
        if self.n_bytes_left < 0:
            raise Refused(
                f"has tensors of more than {COPIES} times its own size, which share numbers"
            )
        steps = [step * numbers.itemsize for step in strides]
        view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
        return view.astype(numbers.dtype.newbyteorder("="))


def _array(shape: Any, dtype: Any, is_fortran: Any, data: Any) -> np.ndarray:
    """An array of NumPy's, from what it writes of itself: of numbers and texts only."""
    code, order = str(dtype.arguments[0]), dtype.state[1] if dtype.state else "|"
    if code.startswith("O") and isinstance(data, list):
        values = [number(value) for value in data]
        found = np.empty(len(values), object)
        found[:] = values
        return found.reshape(shape)
    if not PLAIN_DTYPE.fullmatch(code):
        raise Refused(f"has an array of {code[:20]!r}, not of numbers or texts")
    kind = np.dtype(order.replace("|", "") + code)
    content = _bytes(data)
    if kind.itemsize * math.prod(shape) != len(content):
        raise Refused(f"has an array of shape {shape} that its {len(content)} bytes do not fit")
    return np.frombuffer(content, kind).reshape(shape, order="F" if is_fortran else "C")


def number(value: Any) -> Any:
    """A number or text as it is, or the one that a note of NumPy's stands for; None for None.

    Refused for anything else.
    """
    if isinstance(value, Call) and value.function in NUMBER:
        dtype, data = value.arguments
        return _array((), dtype, False, data).item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise Refused(f"holds {_in_words(value)} where a number or a text is expected")


def _bytes(data: Any) -> bytes:
    """Bytes; old programs write them as a text, to be encoded, or as none."""
    if isinstance(data, Call) and data.function == "_codecs.encode":
        return str(data.arguments[0]).encode("latin1")
    if isinstance(data, Call) and data.function in NO_BYTES and data.arguments == ():
        return b""
    if not isinstance(data, bytes):
        raise Refused(f"holds {_in_words(data)} where bytes are expected")
    return data


def _in_words(value: Any) -> str:
    """What a value is, for errors."""
    if isinstance(value, Call):
        function = value.function
        name = function[:60] if isinstance(function, str) else f"a {type(function).__name__}"
        return f"a call of {name}, which was not made,"
    return f"a {type(value).__name__}"
