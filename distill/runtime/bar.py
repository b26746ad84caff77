"""A progress bar that counts the work of all processes."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tqdm import tqdm


class Bar:
    """A progress bar over the work of all processes, advanced by the share of the first, which shows it.

    mine: items of this process; total: of all.
    """

    def __init__(self, mine: int, total: int, title: str, unit: str, shown: bool) -> None:
        self.mine, self.done = mine, 0
        self.bar = tqdm(total=total, desc=title, unit=unit, mininterval=0.5, disable=not shown)

    def update(self, count: int = 1) -> None:
        """`count` more items of this process are done."""
        self.advance_to(self.done + count)

    def advance_to(self, done: int) -> None:
        """`done` items of this process are done."""
        self.done = done
        total = self.bar.total or 0
        self.bar.update((total if done >= self.mine else done * total // self.mine) - self.bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()
