#!/usr/bin/env bash
# CoppeliaSim 4.1.0, PyRep and RLBench into one folder, for Ubuntu 20.04 or newer; prints what to export then.
#
#   docker/install_rlbench.sh ~/rlbench [python3.8 or newer]
#
# RLBench is licensed for non-commercial or academic research only, CoppeliaSim Edu for education: read both licences first.
# System packages it needs (Debian, Ubuntu): python3-venv python3-dev gcc git curl xz-utils xvfb libgl1-mesa-dri libgl1
# libglib2.0-0 libdbus-1-3 libxkbcommon-x11-0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0
# libxcb-shape0 libxcb-xinerama0 libxcb-xkb1 libfontconfig1
set -euo pipefail

folder=$(realpath -m "${1:?give the folder to install into}")
python=${2:-python3}
archive=CoppeliaSim_Edu_V4_1_0_Ubuntu20_04
address=${COPPELIASIM_ADDRESS:-https://downloads.coppeliarobotics.com/V4_1_0/$archive.tar.xz}
pyrep=8f420be8064b1970aae18a9cfbc978dfb15747ef
rlbench=02720bba4c73fe02eb75df946b8791b806028a9d

mkdir -p "$folder"
if [ ! -f "$folder/$archive/libcoppeliaSim.so" ]; then
    curl --fail --location --output "$folder/coppeliasim.tar.xz" "$address"
    tar -xf "$folder/coppeliasim.tar.xz" -C "$folder"
    rm "$folder/coppeliasim.tar.xz"
fi
export COPPELIASIM_ROOT="$folder/$archive"
export LD_LIBRARY_PATH="$COPPELIASIM_ROOT${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

[ -x "$folder/python/bin/python" ] || "$python" -m venv "$folder/python"
pip="$folder/python/bin/python -m pip --disable-pip-version-check"
$pip install --upgrade pip setuptools wheel
# never `pip install pyrep`: that name on PyPI is somebody else's package
$pip install 'numpy<2' Pillow scipy natsort pyquaternion gymnasium cffi
$pip install --no-deps "git+https://github.com/stepjam/PyRep.git@$pyrep"
$pip install --no-deps "git+https://github.com/stepjam/RLBench.git@$rlbench"

cat <<END

Installed. For flow2one:

    export COPPELIASIM_ROOT=$COPPELIASIM_ROOT
    Xvfb :99 -screen 0 1280x1024x24 +extension GLX +render -noreset &     # on a machine without a screen
    export DISPLAY=:99
    accelerate launch distill.py doctor --rlbench --rlbench.python $folder/python/bin/python
END
