"""Damage for the readers: bytes that are cut, flipped or spliced, JSON with odd values, links and paths that lead elsewhere."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, -(2**63), 1.5, float("nan"), float("inf"), 1e308, "", "x", "x" * 5000,
    "../../etc/passwd", "/etc/passwd", "..", "a/../../b", "\u202e/..", "\uff0e\uff0e/x", "~", "nul\x00", "{0.__class__}",
    "{episode_index:>999999999}", "!!python/object/apply:os.system", "float128", "O", "<U99999999", [], [[]], {}, [1] * 100,
    [2**40, 2**40], [-1, 2], {"": 0},
)  # fmt: skip
SPLICED = (b"\x00", b"\xff" * 8, b"../", b"[" * 3000, b'{"a":' * 2000, b"9" * 5000, b"\xed\xa0\x80")


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four kinds of damage."""
    held = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        how = rng.randrange(8)
        place = rng.randrange(len(held) + 1)
        if how == 0:
            del held[place:]
        elif how == 1 and held:
            for _ in range(rng.randint(1, 8)):
                held[rng.randrange(len(held))] = rng.randrange(256)
        elif how == 2 and held:
            held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
        elif how == 3:
            held[place:place] = rng.randbytes(rng.randint(1, 16))
        elif how == 4:
            end = min(len(held), place + rng.randint(1, 64))
            held[place:place] = held[place:end] * rng.randint(1, 4)
        elif how == 5:  # a length field
            form = rng.choice(("<Q", ">Q", "<I", ">I", "<H"))
            size = struct.calcsize(form)
            if len(held) >= size:
                where = rng.choice((0, 8, rng.randrange(len(held) - size + 1)))
                value = rng.choice((0, 1, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)) % 2 ** (8 * size)
                held[where : where + size] = struct.pack(form, value)
        elif how == 6:
            del held[place : place + rng.randint(1, 32)]
        else:
            held[place:place] = rng.choice(SPLICED)
    return bytes(held)


def mutated_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with something odd in one to three places."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        value = _one(value, rng)
    return value


def _one(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        how = rng.random()
        if how < 0.1:
            del value[key]
        elif how < 0.15:
            value[str(rng.choice(ODD))[:50]] = value.pop(key)
        else:
            value[key] = _one(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        value[place] = _one(value[place], rng)
        return value * 3 if rng.random() < 0.05 else value
    return rng.choice(ODD)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """JSON text with an odd value, sometimes damaged bytes."""
    if rng.random() < 0.2:
        return mutated_bytes(data, rng)
    try:
        return json.dumps(mutated_value(json.loads(data), rng)).encode()
    except (ValueError, RecursionError):  # it was damaged before
        return mutated_bytes(data, rng)


def mutated_lines(data: bytes, rng: random.Random) -> bytes:
    """JSON lines."""
    lines = data.splitlines()
    if not lines or rng.random() < 0.2:
        return mutated_bytes(data, rng)
    place = rng.randrange(len(lines))
    lines[place] = mutated_json(lines[place], rng)
    return b"\n".join(lines)


def mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The JSON header, its length, or any byte."""
    if rng.random() < 0.3 or len(data) < 8:
        return mutated_bytes(data, rng)
    (size,) = struct.unpack("<Q", data[:8])
    header = mutated_json(data[8 : 8 + size], rng)
    told = len(header) if rng.random() < 0.8 else rng.choice((0, 2**31, 2**63, 2**64 - 1, size))
    return struct.pack("<Q", told) + header + data[8 + size :]


def mutated_file(path: Path, rng: random.Random) -> None:
    """Damage one file, by what kind of file it is."""
    data = path.read_bytes()
    if path.suffix == ".json" or path.name in (".zarray", ".zgroup", ".zattrs"):
        damaged = mutated_json(data, rng)
    elif path.suffix == ".jsonl":
        damaged = mutated_lines(data, rng)
    elif path.suffix == ".safetensors":
        damaged = mutated_safetensors(data, rng)
    else:
        damaged = mutated_bytes(data, rng)
    path.write_bytes(damaged)


def mutated_tree(folder: Path, rng: random.Random) -> None:
    """Damage a folder: files' contents, files that are missing, links to elsewhere, a folder or a pipe in a file's place."""
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    if not files:
        return
    described = [each for each in files if each.suffix in (".json", ".jsonl") or each.name.startswith(".z")]
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(described if described and rng.random() < 0.6 else files)
        how = rng.random()
        if not path.is_file() or path.is_symlink():
            continue
        if how < 0.8:
            mutated_file(path, rng)
        elif how < 0.87:
            path.unlink()
        elif how < 0.95:
            path.unlink()
            path.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "/proc/self/environ", ".", "..", path.name, "/nowhere")))
        elif how < 0.98:
            path.unlink()
            path.mkdir()
        else:
            path.unlink()
            os.mkfifo(path)


def removed(path: Path) -> None:
    """Delete a file or folder, links included, whatever became of it."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
