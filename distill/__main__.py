"""`python -m distill`: the command line, also from a folder that has packages named as ours."""

import sys
from pathlib import Path

# Python put the working folder, or this one, first: a user's own `envs` or `students` there must not be taken for ours
sys.path[0] = str(Path(__file__).resolve().parents[1])

from distill.cli.main import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
