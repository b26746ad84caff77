#!/usr/bin/env bash
# Makes requirements/cpu.lock and test.lock again: the newest versions that pyproject.toml allows, as they install today.
# Called by `make locks`. Keeps each lock's comment head. Works in a fresh environment that it removes at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3.11}
torch_index=${2:-https://download.pytorch.org/whl/cpu}

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2> /dev/null; then
    echo "make locks: $python is no Python 3.11, the version the locks are for; give one as PYTHON=/path/to/python3.11" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)

# prints the packages that pyproject.toml names itself; "core" leaves torchcfm out, whose own requirements are not wanted
direct() {
    "$work/venv/bin/python" - "$1" << 'EOF'
import sys, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
core, extras = project["dependencies"], project["optional-dependencies"]
chosen = {
    "torch": [each for each in core if each.startswith("torch>")],
    "core": [each for each in core if not each.startswith("torchcfm")] + extras["cpu"] + extras["onnx"],
    "torchcfm": [each for each in core if each.startswith("torchcfm")],
    "test": extras["test"],
}
print("\n".join(chosen[sys.argv[1]]))
EOF
}

frozen() { "${pip[@]}" freeze --all | grep -v '^pip==' | sed 's/+cpu$//'; }

write() { # write LOCK: the lock's comment head, then what stands on the input
    { grep '^#' "$1"; cat; } > "$work/new"
    cp "$work/new" "$1"
}

for part in torch core torchcfm test; do direct "$part" > "$work/$part.txt"; done
# a CPU build of torch, wherever pip finds one
"${pip[@]}" install -r "$work/torch.txt" --extra-index-url "$torch_index"
# diffusers asks for importlib_metadata, any; its newest versions bring lazy-importer, which nothing here imports
echo 'importlib_metadata<9' > "$work/held.txt"
"${pip[@]}" install -r "$work/core.txt" -c "$work/held.txt"
"${pip[@]}" install --no-deps -r "$work/torchcfm.txt"
frozen > "$work/cpu"
if grep -qi '^nvidia' "$work/cpu"; then
    echo "make locks: got torch's CUDA build, expected its CPU build; is $torch_index reachable?" >&2
    exit 1
fi
"${pip[@]}" install -r "$work/test.txt" -c "$work/cpu"
frozen | grep -vxF -f "$work/cpu" > "$work/test"
write requirements/cpu.lock < "$work/cpu"
write requirements/test.lock < "$work/test"
"${pip[@]}" check || true
