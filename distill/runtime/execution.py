"""Runs what is missing: a stage's inputs first, each stage once, several single-process stages in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distill.runtime.context import Context
from distill.runtime.diagnostics import note_place
from distill.runtime.progress import Progress, in_words
from distill.runtime.stage import Stage
from distill.store.cost import accounting, cost_of
from distill.store.manifest import check_place, commit, finished, make_folder, partial_folder, place_of, read_manifest


def in_order(stages: Iterable[Stage[Any]]) -> list[Stage[Any]]:
    """These stages and all that they need, each once, after its inputs."""
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
    """Run these stages and what they need, unless they are done; all processes call it together.

    Raises ValueError when a finished stage's files do not match their manifest.
    """
    wanted = in_order(stages)
    progress = Progress.of(context.folder, wanted)
    context.say(progress.opening)
    for position, stage in enumerate(wanted):
        if stage.name in context.finished:
            continue
        if stage.side_by_side and context.share.world > 1:
            _side_by_side(context, _ready(context, wanted[position:]), progress)
        if stage.name not in context.finished:
            context.finished[stage.name] = run_stage(context, stage, progress)


def _ready(context: Context, stages: Sequence[Stage[Any]]) -> list[Stage[Any]]:
    """Stages that can run in parallel now: each needs one process only, and all its inputs are done."""
    return [
        stage for stage in stages
        if stage.side_by_side and stage.name not in context.finished
        and all(needed.name in context.finished for each in stage.read for needed in each.needs)
    ]  # fmt: skip


def run_stage(context: Context, stage: Stage[Any], progress: Progress | None = None) -> Path:
    """Run one stage whose inputs are done, or reuse its result. Returns its folder. progress: None for a stage by itself."""
    folder = stage.folder(context)
    progress = progress or Progress([stage.name], {stage.name: None})
    if _is_done(context, stage):
        context.say(f"{progress.place(stage.name)} {stage.name}: done before, reused")
        return folder
    unfinished = partial_folder(folder, stage.key)
    if context.is_main:
        make_folder(unfinished)
    context.wait()
    context.say(f"{progress.place(stage.name)} {stage.name}{_expected(progress, stage)}")
    note_place(stage=stage.name)
    with accounting(unfinished, leads=context.is_main):
        stage.run(context, unfinished)
    context.wait()
    _commit(context, stage, progress)
    return folder


def _expected(progress: Progress, stage: Stage[Any]) -> str:
    seconds = progress.estimates.get(stage.name)
    return "" if seconds is None else f", about {in_words(seconds)}"


def _side_by_side(context: Context, stages: Sequence[Stage[Any]], progress: Progress) -> None:
    """Run those of the stages that are missing in parallel, each on one process.

    On two cores it is twice as fast as running them in turn on both: no process waits for the other half of a gradient. An
    interrupted stage resumes on whichever process gets it.
    """
    # cheap ones last, to fill the time that the long ones leave
    pending = [stage for stage in sorted(stages, key=lambda stage: stage.cheap) if not _is_done(context, stage)]
    if len(pending) < 2:
        return
    folders = [partial_folder(stage.folder(context), stage.key) for stage in pending]
    if context.is_main:
        for folder in folders:
            make_folder(folder)
    context.wait()
    names = [stage.name for stage in pending]
    context.say(f"{progress.place(*names)} {', '.join(names)}, in parallel")
    for number in context.my_share(range(len(pending))):
        note_place(stage=pending[number].name)
        with accounting(folders[number]):
            pending[number].run(context.by_itself(), folders[number])
    context.wait()
    for number, stage in enumerate(pending):
        _commit(context, stage, progress)
        context.finished[stage.name] = stage.folder(context)
        if number not in context.my_share(range(len(pending))) and context.is_main:
            stage.relay(context)


def _is_done(context: Context, stage: Stage[Any]) -> bool:
    """Whether the stage is done and its files are intact; all processes ask together.

    Raises ValueError where something else stands in its place.
    """
    folder = stage.folder(context)

    def ask() -> bool:
        done = finished(folder, stage.key)
        if not done:
            check_place(folder)
        return done

    return context.on_main(ask)


def _commit(context: Context, stage: Stage[Any], progress: Progress) -> None:
    folder = stage.folder(context)

    def close_account() -> float:
        partial = partial_folder(folder, stage.key)
        try:
            stage.load(partial)
        except Exception as error:
            raise ValueError(f"{partial}: what was written cannot be read back ({error}); the same command writes it "
                             "again") from error  # fmt: skip
        seconds, cpu_seconds = cost_of(partial)
        commit(folder, stage.key, stage.made_from, seconds, cpu_seconds)
        return seconds

    seconds = context.on_main(close_account)
    context.say(f"{progress.place(stage.name)} {stage.name}: done in {seconds:.1f} s {progress.ended(stage.name)}")


def plan(run: Path, stages: Sequence[Stage[Any]]) -> list[str]:
    """What a run of these stages would do: a line each with its state and its time in earlier runs, then the sum."""
    progress = Progress.of(run, stages)
    lines = []
    for stage in stages:
        seconds = progress.estimates.get(stage.name)
        lines.append(f"  {stage.name:28} {state_of(run, stage)}{'' if seconds is None else f', about {in_words(seconds)}'}")
    known = f"time in earlier runs with these settings: {progress.left}"
    unknown = "" if not progress.estimates else "time not known: no earlier run with these settings"
    return [*lines, *([known] if progress.left else [unknown] if unknown else [])]


def state_of(run: Path, stage: Stage[Any]) -> str:
    """The state of a stage in this run folder, as text."""
    folder = run / stage.name
    place = place_of(folder, stage.key)
    if place is not None:
        return "done" if place == folder else "done (archived, will be restored)"
    if partial_folder(folder, stage.key).is_dir():
        return "started, will resume"
    return "to do" if read_manifest(folder) is None else "to do (settings changed; the old result will be archived)"
