"""Writes a report of any kind: report.json for machines, report.md for terminals, report.html, which opens offline."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np

from distill.report.contents import SECTIONS
from distill.report.headline import headline
from distill.report.policies import default_student, reference_policy
from distill.report.section import KINDS, Part, parts
from distill.report.tables import md, md_table
from distill.report.tiles import tiles
from distill.store.manifest import write_bytes

SCHEMA_VERSION = 1
TEMPLATES = Path(__file__).parent / "templates"
REQUIRED = ("schema_version", "kind", "run", "measured_success", "task", "made", "data", "policies")


def write_report(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `report.json`, `report.md` and `report.html` into `folder`, each replaced whole or not at all.

    results: of a run, a conversion or a comparison, schema version 1; optional parts may be null or absent and are then left
    out, or said to be not measured. Clips are read from `folder`. Raises ValueError when a required part is missing.
    """
    folder = Path(folder)
    clean = strict_json(results)
    _check(clean)
    folder.mkdir(parents=True, exist_ok=True)
    filled = parts(SECTIONS, clean, folder)
    text = json.dumps(clean, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (
        ("report.json", text),
        ("report.md", markdown(clean, filled)),
        ("report.html", html(clean, filled)),
    ):
        write_bytes(folder / name, content.encode())


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


def markdown(results: Mapping[str, Any], filled: Sequence[Part]) -> str:
    """The report as Markdown: the same sentences and tables as the page, without its pictures."""
    head = headline(results)
    texts = [
        f"# {md(results['run'])}: {md(_subject(results))}",
        f"**{md(head.title)}.**",
        "\n".join(f"- {md(line)}" for line in head.lead),
        f"Task: {md(results['task']['summary'])}",
        "With pictures: [report.html](report.html). All numbers: [report.json](report.json).",
    ]
    for part in filled:
        body = _markdown_body(part)
        texts += [f"{'#' * part.level} {part.title}", *body] if body else []
    return "\n\n".join(text for text in texts if text) + "\n"


def _markdown_body(part: Part) -> list[str]:
    """What a part says without its pictures; nothing for one of pictures alone that are not files."""
    terms = [f"- {md(term)}: {md(meaning)}" for term, meaning in part.terms]
    files = [f"- {md(each.caption[0])}: [{md(each.file)}]({quote(each.file)})" for each in part.pictures if each.file]
    said = [*files, *part.lines, *terms, *([part.missing] if part.missing else [])]
    if part.table is None and not said:
        return []
    return [
        part.missing,
        *(md(line) for line in part.text),
        "\n".join(files),
        md_table(part.table) if part.table else "",
        "\n".join(terms),
        "\n".join(f"    {line}" if part.code else f"- {md(line)}" for line in part.lines),
        *(md(line) for line in part.notes),
    ]


def template(name: str) -> jinja2.Template:
    """A template of this room, in which all text is escaped and a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(name)


def html(results: Mapping[str, Any], filled: Sequence[Part]) -> str:
    """The page as one text: pictures, clips and its script inside, nothing loaded from elsewhere, no other script run."""
    script = (TEMPLATES / "report.js.j2").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("report.html.j2").render(
        results=results, subject=_subject(results), head=headline(results), tiles=tiles(results), parts=filled,
        teacher=reference_policy(results), student=default_student(results), script=script, digest=digest,
    )  # fmt: skip


def _subject(results: Mapping[str, Any]) -> str:
    return str(results["task"]["name"] if results["kind"] == "run" else results["kind"])


def _check(results: Mapping[str, Any]) -> None:
    missing = [name for name in REQUIRED if name not in results]
    if missing:
        raise ValueError(f"results lack {missing}, expected all of {list(REQUIRED)}: add them")
    if results["kind"] not in KINDS:
        raise ValueError(f"got results of kind {results['kind']!r}, expected one of {list(KINDS)}")
    if results["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"got results of schema version {results['schema_version']!r}, expected {SCHEMA_VERSION}: evaluate again"
        )
