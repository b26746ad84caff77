# flow2one beside RLBench on CoppeliaSim 4.1.0, without a screen. Two interpreters: Python 3.8 for the simulators, 3.11 for all else.
#
#   docker build -f docker/rlbench.Dockerfile -t flow2one-rlbench .
#   docker run --rm -it --gpus all -v "$PWD/runs:/flow2one/runs" flow2one-rlbench \
#       accelerate launch distill.py --config configs/rlbench/open_drawer.yaml
#
# RLBench is licensed for non-commercial or academic research only, CoppeliaSim Edu for education: an image with them is not to be
# passed on to who has not accepted both.
FROM ubuntu:20.04
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates curl gcc git g++ libdbus-1-3 libfontconfig1 libgl1 libgl1-mesa-dri libglib2.0-0 libxcb-icccm4 \
        libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libxcb-xkb1 \
        libxkbcommon-x11-0 make python3 python3-dev python3-pip python3-venv xvfb xz-utils \
    && rm -rf /var/lib/apt/lists/*

COPY docker/install_rlbench.sh /tmp/
RUN /tmp/install_rlbench.sh /opt/rlbench python3

COPY . /flow2one
WORKDIR /flow2one
RUN python3 -m pip install --no-cache-dir uv && uv venv --python 3.11 .venv && uv pip install --python .venv -e ".[gpu]"

ENV COPPELIASIM_ROOT=/opt/rlbench/CoppeliaSim_Edu_V4_1_0_Ubuntu20_04 \
    DISPLAY=:99 \
    PATH=/flow2one/.venv/bin:$PATH \
    FLOW2ONE_RLBENCH_PYTHON=/opt/rlbench/python/bin/python
# a screen in memory for the simulators, then the command
ENTRYPOINT ["/bin/sh", "-c", "Xvfb :99 -screen 0 1280x1024x24 +extension GLX +render -noreset >/dev/null 2>&1 & exec \"$0\" \"$@\""]
CMD ["accelerate", "launch", "distill.py", "doctor", "--rlbench"]
