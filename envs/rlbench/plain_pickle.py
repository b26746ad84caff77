"""Reads the pickles of RLBench's stored demonstrations without unpickling them: nothing in a file is imported or called.

A pickle is a program for a stack machine. This machine builds numbers, text, lists, dicts, numpy arrays, and `Plain` objects of
the classes listed here; it refuses all else. It runs in any Python from 3.8 on with numpy.
"""

from __future__ import annotations

import pickletools
from typing import Any

import numpy as np

OBJECTS = ("rlbench.demo.Demo", "rlbench.backend.observation.Observation")
"""Classes whose objects become `Plain`."""

_CORES = ("numpy.core", "numpy._core")
FUNCTIONS = {
    **{core + ".multiarray._reconstruct": "empty array" for core in _CORES},
    **{core + ".multiarray.scalar": "scalar" for core in _CORES},
    **{core + ".numeric._frombuffer": "whole array" for core in _CORES},
    "numpy.dtype": "dtype", "numpy.ndarray": "ndarray", "_codecs.encode": "bytes", "__builtin__.bytes": "no bytes",
}  # fmt: skip
"""The functions in pickles of numpy arrays, by any version of numpy and Python, and what each of them builds."""

ORDERS = "<>=|"
KINDS = "biuf"
"""Kinds of dtypes that are read: booleans and numbers, never objects."""


class Plain:
    """An object of one of `OBJECTS`: its class's name, and its attributes in ``fields``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.fields: dict[str, Any] = {}


class _Named:
    """A class or function that the pickle names."""

    def __init__(self, path: str) -> None:
        self.path = path


class _Box:
    """A numpy array or dtype, whose value is set after the box was put into other objects."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


def read(data: bytes) -> Any:
    """The contents of a pickle. Raises ValueError, in one line, for an unknown class or instruction, and for damage."""
    try:
        return _unboxed(_run(data), {})
    except ValueError:
        raise
    except Exception as error:  # a damaged file can break the machine in any way
        raise ValueError(f"not a whole pickle ({type(error).__name__}: {' '.join(str(error).split())})") from error


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marked.append(stack)
            stack = []
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name in _MARKED:
            items, stack = stack, marked.pop()
            _MARKED[name](stack, items)
        elif name == "GLOBAL":
            stack.append(_known(argument.replace(" ", ".")))
        elif name in _ACTIONS:
            _ACTIONS[name](stack)
        else:
            raise ValueError(f"the pickle holds the instruction {name}, which no demonstration needs")
    raise ValueError("the pickle ends before its end")


def _known(path: str) -> _Named:
    if path not in OBJECTS and path not in FUNCTIONS:
        raise ValueError(f"the pickle names {path!r}, expected only {' and '.join(OBJECTS)} and numpy arrays")
    return _Named(path)


def _named(stack: list[Any]) -> None:
    name, module = stack.pop(), stack.pop()
    stack.append(_known(f"{module}.{name}"))


def _new(stack: list[Any]) -> None:
    arguments, kind = stack.pop(), stack.pop()
    if kind.path not in OBJECTS or arguments:
        raise ValueError(f"the pickle creates a {kind.path} from {arguments}, expected {' or '.join(OBJECTS)}")
    stack.append(Plain(kind.path.rpartition(".")[2]))


def _call(stack: list[Any]) -> None:
    arguments, function = stack.pop(), stack.pop()
    wanted = FUNCTIONS.get(function.path)
    if wanted == "empty array":
        stack.append(_Box())
    elif wanted == "dtype":
        stack.append(_Box(_dtype(arguments[0])))
    elif wanted == "scalar":
        stack.append(np.frombuffer(arguments[1], arguments[0].value)[0].item())
    elif wanted == "whole array":
        data, kind, shape, order = arguments
        stack.append(np.frombuffer(bytes(data), kind.value).reshape(shape, order=order))
    elif wanted == "bytes":
        stack.append(arguments[0].encode("latin1"))
    elif wanted == "no bytes" and not arguments:
        stack.append(b"")
    else:
        raise ValueError(f"the pickle calls {function.path}, which no demonstration needs")


def _build(stack: list[Any]) -> None:
    """Sets the state of an object, array or dtype."""
    state, target = stack.pop(), stack[-1]
    if isinstance(target, Plain):
        target.fields.update(state)
    elif isinstance(target.value, np.dtype):
        if state[1] not in ORDERS:
            raise ValueError(f"the pickle holds a dtype of byte order {state[1]!r}")
        target.value = target.value.newbyteorder(state[1])
    else:
        _, shape, kind, by_columns, data = state
        target.value = np.frombuffer(data, kind.value).reshape(shape, order="F" if by_columns else "C")


def _dtype(code: str) -> np.dtype[Any]:
    if not isinstance(code, str) or code[:1] not in KINDS or not code[1:].isdigit():
        raise ValueError(f"the pickle holds an array of {code!r}, expected numbers")
    return np.dtype(code)


def _unboxed(value: Any, done: dict[int, Any]) -> Any:
    """The value without boxes. done: what was made of each object, by its id: a few shared lists can stand for billions."""
    if isinstance(value, _Box):
        return value.value
    if not isinstance(value, (Plain, list, tuple, dict)):
        return value
    if id(value) in done:
        return done[id(value)][1]
    made: Any = value
    done[id(value)] = (value, made)  # the object itself stays alive, so that no other gets its id
    if isinstance(value, Plain):
        value.fields = {name: _unboxed(each, done) for name, each in value.fields.items()}
    elif isinstance(value, list):
        value[:] = [_unboxed(each, done) for each in value]
    elif isinstance(value, tuple):
        made = tuple(_unboxed(each, done) for each in value)
    else:
        made = {_unboxed(key, done): _unboxed(each, done) for key, each in value.items()}
    done[id(value)] = (value, made)
    return made


def _append(stack: list[Any]) -> None:
    item = stack.pop()
    stack[-1].append(item)


def _set(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    stack[-1][key] = value


def _pack(count: int) -> Any:
    def pack(stack: list[Any]) -> None:
        if len(stack) < count:
            raise IndexError("the stack is too short")
        items = tuple(stack[-count:])
        del stack[-count:]
        stack.append(items)

    return pack


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_MARKED = {
    "APPENDS": lambda stack, items: stack[-1].extend(items),
    "SETITEMS": lambda stack, items: stack[-1].update(zip(items[::2], items[1::2])),  # noqa: B905 - newer than 3.8
    "TUPLE": lambda stack, items: stack.append(tuple(items)),
    "LIST": lambda stack, items: stack.append(items),
    "DICT": lambda stack, items: stack.append(dict(zip(items[::2], items[1::2]))),  # noqa: B905
}
_ACTIONS = {
    "TUPLE1": _pack(1), "TUPLE2": _pack(2), "TUPLE3": _pack(3), "APPEND": _append, "SETITEM": _set,
    "STACK_GLOBAL": _named, "NEWOBJ": _new, "REDUCE": _call, "BUILD": _build,
}  # fmt: skip
