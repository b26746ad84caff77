"""Files as they lie on disk: pointers of git-lfs are called so, links may not lead out of a data set, pipes are not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = 1024
"""A pointer is smaller than this."""


def is_pointer(file: Path) -> bool:
    """Whether a file is what git-lfs leaves in the place of one that was not fetched."""
    try:
        if not file.is_file() or file.stat().st_size >= POINTER_BYTES:
            return False
        with file.open("rb") as opened:
            return opened.read(len(POINTER)) == POINTER
    except OSError:
        return False


def refuse_pointer(file: Path) -> None:
    """Raise ValueError for a pointer of git-lfs, and for what is no file."""
    refuse_endless(file)
    if file.is_dir():
        raise ValueError(f"{file}: got a folder, expected a file; put the data itself there")
    if is_pointer(file):
        raise ValueError(f"{file}: is a pointer of git-lfs, not the data itself; run `git lfs pull` in the data set's folder, "
                         f"or "
                         "download it again")  # fmt: skip


def refuse_endless(path: Path) -> None:
    """Raise ValueError for a pipe or device: reading it may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: got a pipe or device, expected a file; remove it")


def read_text(root: Path, file: Path) -> str:
    """A text file of the data set `root`. Raises ValueError as `refuse_pointer` and `refuse_outside`, OSError without one."""
    refuse_pointer(file)
    refuse_outside(root, file)
    return file.read_text()


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Whatever is raised inside becomes a ValueError of one line with the data's path: a damaged file can break the library
    that reads it in any way. An ImportError, and a ValueError that is so already, pass."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        if type(error) is ValueError and said == str(error) and str(path) in said:
            raise
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{path}: cannot be read, it is damaged or not what it seems: {kind}{said}"[:600]) from error


def lies_within(root: Path, file: Path) -> bool:
    """Whether a file, links followed, lies in the folder `root`, or is one of its blobs in a cache of the Hugging Face Hub.

    That cache holds ``<repository>/snapshots/<revision>/<file>`` as links into ``<repository>/blobs/``.
    """
    resolved = file.resolve()
    if resolved.is_relative_to(root.resolve()):
        return True
    return any(each.parent.name == "snapshots" and resolved.is_relative_to((each.parent.parent / "blobs").resolve())
               for place in (root.absolute(), root.resolve()) for each in (place, *place.parents))  # fmt: skip


def refuse_outside(root: Path, file: Path) -> None:
    """Raise ValueError for a link that leads out of the data set."""
    if not lies_within(root, file):
        raise ValueError(f"{file}: leads out of the data set, to {file.resolve()}; expected the data itself. Copy it to where "
                         "the link is")  # fmt: skip
