"""Writes a run's report: report.json for machines, report.md for terminals, one report.html that opens offline."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np

from distill.report import figures, tables
from distill.report.by_task import task_table
from distill.report.real_time import real_time_line, real_time_table

SCHEMA_VERSION = 1
REQUIRED = ("schema_version", "run", "task", "made", "data", "policies")
CLIP_KINDS = {".webp": "image/webp", ".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}
REAL_TIME = "Real-time evaluation"
CLIP_BYTES = 16_000_000
"""Clips are put into the page up to this many bytes together; the rest is named and left beside it."""


def write_report(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `report.json`, `report.md` and `report.html` into `folder`, each replaced whole or not at all.

    results: the run's results, schema version 1; optional parts may be null or absent and are then said to be not
    measured. Clips are read from `folder`. Raises ValueError when a required part is missing.
    """
    folder = Path(folder)
    clean = strict_json(results)
    _check(clean)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(clean, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (
        ("report.json", text),
        ("report.md", markdown(clean)),
        ("report.html", html(folder, clean)),
    ):
        _replace(folder / name, content)


def strict_json(value: Any) -> Any:
    """The same value in JSON's own types: NaN and infinities become null, arrays lists, paths and keys text."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return strict_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [strict_json(each) for each in value]
    if isinstance(value, np.generic):
        return strict_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    raise ValueError(f"got a {type(value).__name__} in the results, expected numbers, text, lists, dicts: convert it")


def markdown(results: Mapping[str, Any]) -> str:
    """The report as Markdown: the same sentences and tables as the page, without its pictures."""
    head, run = tables.headline(results), md(results["run"])
    parts = [f"# {run}: {md(results['task']['name'])}", f"**{md(head.title)}.**"]
    parts.append("\n".join(f"- {md(line)}" for line in head.lead))
    parts.append(f"Task: {md(results['task']['summary'])}")
    parts.append("With pictures: [report.html](report.html). All numbers: [report.json](report.json).")
    for title, table, missing in _sections(results):
        parts.append(f"## {title}")
        parts.append(md_table(table) if table else missing)
        parts += [_distilling(results)] if title == "Wall time" else []
        parts += [real_time_line(results)] if title == REAL_TIME else []
    clips = [f"- {md(_label(results, name))}: [{md(path)}]({quote(path)})" for name, path in _clips(results).items()]
    parts.append("## Rollout clips")
    parts.append("\n".join(clips) if clips else "No clips were recorded in this run.")
    commands = results["made"].get("commands") or []
    if commands:
        parts.append("## Commands")
        parts.append("\n".join(f"    {' '.join(str(line).split())}" for line in commands))
    return "\n\n".join(part for part in parts if part) + "\n"


def template(name: str) -> jinja2.Template:
    """One of the pages, in which every text is escaped and a missing one is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    ).get_template(name)  # fmt: skip


def html(folder: Path, results: Mapping[str, Any]) -> str:
    """The page as one text: pictures and clips inside, nothing loaded from outside."""
    colours = figures.mode_colours(results["task"]["modes"])
    clips, clip_notes = _embedded_clips(folder, results)
    return template("report.html.j2").render(
        results=results,
        head=tables.headline(results),
        tiles=_tiles(results),
        panels=_panels(results, colours),
        legend=_legend(results, colours),
        plans=_plans(results),
        scatter=_scatter(results),
        histogram=_histogram(results),
        stages=_stages(results),
        curves=_curves(results),
        real_time=_real_time(results),
        real_time_line=real_time_line(results),
        tables={title: (table, missing) for title, table, missing in _sections(results)},
        distilling=_distilling(results),
        clips=clips,
        clip_notes=clip_notes,
        commands=results["made"].get("commands") or [],
        baselines=[policy["label"] for policy in results["policies"] if policy["kind"] == "baseline"],
        teacher=tables.reference_teacher(results),
        student=tables.default_student(results),
        fidelity_at=next((p["fidelity"] for p in results["policies"] if p.get("fidelity")), None),
    )


def _sections(results: Mapping[str, Any]) -> list[tuple[str, tables.Table | None, str]]:
    return [
        ("Results", tables.main_table(results), ""),
        *([("Success by task", by_task, "")] if (by_task := task_table(results)) else []),
        ("Latency", tables.latency_table(results), "Latency was not measured in this run."),
        (
            "Fidelity of the sets",
            tables.fidelity_table(results),
            "Distances to fresh teacher samples were not measured in this run.",
        ),
        (
            REAL_TIME, real_time_table(results),
            "Rollouts in which the world goes on while a policy computes were not part of this run "
            "(--real-time.latency-ms, --real-time.time-scales, --real-time.scale-to-clock).",
        ),
        (
            "Choice of checkpoints",
            tables.validation_table(results),
            "Checkpoints were not compared on validation starts in this run.",
        ),
        ("How it was made", tables.made_table(results), ""),
        ("Wall time", tables.wall_table(results), "Wall times were not measured in this run."),
    ]


def _distilling(results: Mapping[str, Any]) -> str:
    line = tables.distilling_line(results)
    return f"{line[0].upper()}{line[1:]}." if line else "What distilling cost in processor time was not measured in this run."


def _tiles(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The four numbers one wants first: name, teacher's, student's, what they are."""
    teacher, student = tables.reference_teacher(results), tables.default_student(results)
    if teacher is None or student is None:
        return []

    def milliseconds(policy: tables.Policy) -> str:
        latency = policy.get("latency")
        return f"{tables.number(latency['median_ms'])} ms" if latency else tables.NOTHING

    def modes(policy: tables.Policy) -> str:
        return f"{policy['modes_reached']}/{policy['modes_total']}"

    rows = (
        ("Success", *(tables.percent(policy["success_rate"]) for policy in (teacher, student)), "episodes solved"),
        ("Modes", modes(teacher), modes(student), "distinct ways taken"),
        ("Time of a decision", milliseconds(teacher), milliseconds(student), "median, less is better"),
        ("Network evaluations", str(teacher["nfe"]), str(student["nfe"]), "for one decision (NFE)"),
    )
    return [{"name": name, "teacher": its, "student": mine, "what": what} for name, its, mine, what in rows]


def _chosen(results: Mapping[str, Any], available: Mapping[str, Any]) -> list[tuple[str, tables.Policy]]:
    """(role, policy) of the three panels, left to right, as far as there is something to draw for them."""
    roles = (
        ("Teacher", tables.reference_teacher(results)),
        ("Regression student", tables.regression_student(results)),
        ("Default student", tables.default_student(results)),
    )
    chosen: list[tuple[str, tables.Policy]] = []
    for role, policy in roles:
        if policy and available.get(policy["name"]) and all(policy["name"] != other["name"] for _, other in chosen):
            chosen.append((role, policy))
    return chosen


def _panels(results: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, str]]:
    trajectories, scene = results.get("trajectories") or {}, results.get("scene") or []
    chosen = _chosen(results, trajectories)
    paths = [rollout["xy"] for _, policy in chosen for rollout in trajectories[policy["name"]]]
    limits = figures.view_limits(scene, paths)
    return [
        {
            "role": role,
            "label": policy["label"],
            "text": f"{tables.percent(policy['success_rate'])} solved, {policy['modes_reached']} of "
            f"{policy['modes_total']} modes; drawn: {len(trajectories[policy['name']])} episodes",
            "picture": data_uri(figures.top_view(scene, trajectories[policy["name"]], colours, limits)),
        }
        for role, policy in chosen
    ]


def _legend(results: Mapping[str, Any], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry per mode: its colour and how often the panels' policies took it."""
    policies = [policy for _, policy in _chosen(results, results.get("trajectories") or {})]
    return [
        {"mode": mode, "colour": colours.get(mode, figures.INK),
         "counts": " / ".join(str((policy.get("mode_counts") or {}).get(mode, 0)) for policy in policies)}
        for mode in results["task"]["modes"]
    ]  # fmt: skip


def _plans(results: Mapping[str, Any]) -> list[dict[str, str]]:
    plans, scene = results.get("planned_sets") or {}, results.get("scene") or []
    chosen = _chosen(results, plans)
    limits = figures.view_limits(scene, [plan for _, policy in chosen for plan in plans[policy["name"]]])
    pictures = []
    for role, policy in chosen:
        colour = figures.TEACHER if policy["kind"] == "teacher" else figures.STUDENT
        picture = figures.planned_set(scene, plans[policy["name"]], plans.get("observation_xy"), colour, limits)
        text = f"{len(plans[policy['name']])} plans from this one observation"
        pictures.append({"role": role, "label": policy["label"], "text": text, "picture": data_uri(picture)})
    return pictures


def _scatter(results: Mapping[str, Any]) -> str:
    timed = any(policy.get("latency") for policy in results["policies"])
    return data_uri(figures.success_against_speed(results["policies"])) if timed else ""


def _histogram(results: Mapping[str, Any]) -> str:
    pair = (tables.reference_teacher(results), tables.default_student(results))
    series = [
        (policy["label"], colour, policy["mode_counts"])
        for policy, colour in zip(pair, (figures.TEACHER, figures.STUDENT), strict=True)
        if policy and sum((policy.get("mode_counts") or {}).values())
    ]
    return data_uri(figures.mode_histogram(results["task"]["modes"], series)) if series else ""


def _stages(results: Mapping[str, Any]) -> str:
    timed = any((policy.get("latency") or {}).get("stages") for policy in results["policies"])
    return data_uri(figures.latency_stages(results["policies"])) if timed else ""


def _real_time(results: Mapping[str, Any]) -> str:
    rows = (results.get("real_time") or {}).get("rows") or []
    return data_uri(figures.success_against_latency(rows)) if rows else ""


def _curves(results: Mapping[str, Any]) -> str:
    curves = results.get("curves") or {}
    return data_uri(figures.training_curves(curves)) if any(curves.values()) else ""


def _clips(results: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(path) for name, path in (results.get("clips") or {}).items() if path}


def _embedded_clips(folder: Path, results: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """Clips as data URIs, and a line for each that is not in the page."""
    clips, notes, spent, root = [], [], 0, folder.resolve()
    for name, path in _clips(results).items():
        label, place = _label(results, name), (folder / path).resolve()
        kind = CLIP_KINDS.get(place.suffix.lower())
        if not place.is_relative_to(root) or kind is None:
            notes.append(f"{label}: {path} is not a picture in this report's folder, so it is not shown.")
        elif not place.is_file():
            notes.append(f"{label}: {path} was not found.")
        elif spent + place.stat().st_size > CLIP_BYTES:
            notes.append(f"{label}: {path} is too large for the page; open it beside this file.")
        else:
            spent += place.stat().st_size
            clips.append({"label": label, "picture": data_uri(place.read_bytes(), kind)})
    return clips, notes


def _label(results: Mapping[str, Any], name: str) -> str:
    labels = {"oracle": "Oracle", **{policy["name"]: str(policy["label"]) for policy in results["policies"]}}
    return labels.get(name, name)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A picture as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def md(text: Any) -> str:
    """Text that neither Markdown nor HTML inside it reads as markup."""
    plain = " ".join(str(text).split())
    for sign, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        plain = plain.replace(sign, safe)
    return plain


def md_table(table: tables.Table) -> str:
    """A table in Markdown, what its columns mean below it."""
    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [row([md(title) for title, _ in table.columns]), row(["---"] * len(table.columns))]
    for cells in table.rows:
        noted = [(md(cell.text), md("; ".join(cell.notes))) for cell in cells]
        lines.append(row([f"{text} ({notes})" if notes else text for text, notes in noted]))
    meanings = [f"{md(title)}: {md(meaning)}" for title, meaning in table.columns if meaning]
    return "\n".join(lines) + (f"\n\n{'. '.join(meanings)}." if meanings else "")


def _check(results: Mapping[str, Any]) -> None:
    missing = [name for name in REQUIRED if name not in results]
    if missing:
        raise ValueError(f"results lack {missing}, expected all of {list(REQUIRED)}: add them")
    if results["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"got results of schema version {results['schema_version']!r}, expected {SCHEMA_VERSION}: evaluate again"
        )


def _replace(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
