"""Teachers: whatever can be asked for K action chunks per observation. A new kind is a file and a line in TEACHERS."""

from __future__ import annotations

from teachers.flow import FlowTeacher

TEACHERS = {
    "flow": FlowTeacher,
}
"""Kinds of teachers that can be trained here, by the name that `teacher.kind` takes."""
