"""Doing what is missing: a stage's inputs first, each stage once, several one-process stages side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distill.runtime.context import Context
from distill.runtime.stage import Stage
from distill.store.cost import accounting, cost_of
from distill.store.manifest import commit, finished, partial_folder, place_of, read_manifest


def in_order(stages: Iterable[Stage[Any]]) -> list[Stage[Any]]:
    """These stages and all that they need, each once, after what it reads."""
    ordered: dict[str, Stage[Any]] = {}

    def visit(stage: Stage[Any]) -> None:
        if stage.name in ordered:
            return
        for each in stage.read:
            for needed in each.needs:
                visit(needed)
        ordered[stage.name] = stage

    for stage in stages:
        visit(stage)
    return list(ordered.values())


def ensure(context: Context, stages: Sequence[Stage[Any]]) -> None:
    """Do these stages and what they need, unless they are there; all processes call it together.

    Raises ValueError when a finished stage's files do not match their manifest.
    """
    wanted = in_order(stages)
    for position, stage in enumerate(wanted):
        if stage.name in context.finished:
            continue
        if stage.side_by_side and context.share.world > 1:
            _side_by_side(context, _ready(context, wanted[position:]))
        if stage.name not in context.finished:
            context.finished[stage.name] = do(context, stage)


def _ready(context: Context, stages: Sequence[Stage[Any]]) -> list[Stage[Any]]:
    """Those that can be done side by side now: each needs one process only, and everything that it reads is done."""
    return [
        stage for stage in stages
        if stage.side_by_side and stage.name not in context.finished
        and all(needed.name in context.finished for each in stage.read for needed in each.needs)
    ]  # fmt: skip


def do(context: Context, stage: Stage[Any]) -> Path:
    """One stage whose inputs are done: reused where it is there, else run and committed. Returns its folder."""
    folder = stage.folder(context)
    if _is_done(context, stage):
        context.say(f"[{stage.name}] done before, reused: {folder}")
        return folder
    unfinished = partial_folder(folder, stage.key)
    if context.is_main:
        unfinished.mkdir(parents=True, exist_ok=True)
    context.wait()
    context.say(f"[{stage.name}] ...")
    with accounting(unfinished, leads=context.is_main):
        stage.run(context, unfinished)
    context.wait()
    _commit(context, stage)
    return folder


def _side_by_side(context: Context, stages: Sequence[Stage[Any]]) -> None:
    """Run those of the stages that are not there yet, each on one process, several at a time.

    Twice as fast on two cores as one after the other on both: nothing waits for the other half of its gradient. One that was
    interrupted goes on whichever process gets it.
    """
    # the cheap ones last, so that they fill up what the long ones leave
    todo = [stage for stage in sorted(stages, key=lambda stage: stage.cheap) if not _is_done(context, stage)]
    if len(todo) < 2:
        return
    folders = [partial_folder(stage.folder(context), stage.key) for stage in todo]
    if context.is_main:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    context.wait()
    context.say(f"[{', '.join(stage.name for stage in todo)}] side by side ...")
    for number in context.my_share(range(len(todo))):
        with accounting(folders[number]):
            todo[number].run(context.by_itself(), folders[number])
    context.wait()
    for number, stage in enumerate(todo):
        _commit(context, stage)
        context.finished[stage.name] = stage.folder(context)
        if number not in context.my_share(range(len(todo))) and context.is_main:
            stage.relay(context)


def _is_done(context: Context, stage: Stage[Any]) -> bool:
    """Whether the stage is there and whole; all processes ask together."""
    return context.on_main(lambda: finished(stage.folder(context), stage.key))


def _commit(context: Context, stage: Stage[Any]) -> None:
    folder = stage.folder(context)

    def close_account() -> float:
        seconds, cpu_seconds = cost_of(partial_folder(folder, stage.key))
        commit(folder, stage.key, stage.made_from, seconds, cpu_seconds)
        return seconds

    context.say(f"[{stage.name}] done in {context.on_main(close_account):.1f} s: {folder}")


def state_of(run: Path, stage: Stage[Any]) -> str:
    """Whether a stage of the run in this folder is there, in words."""
    folder = run / stage.name
    place = place_of(folder, stage.key)
    if place is not None:
        return "done" if place == folder else "done (put aside, comes back)"
    if partial_folder(folder, stage.key).is_dir():
        return "begun, goes on"
    return "to do" if read_manifest(folder) is None else "to do (settings changed; the old result is put aside)"
