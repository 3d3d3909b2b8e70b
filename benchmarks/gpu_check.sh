#!/usr/bin/env bash
# Checks and figures that need an NVIDIA GPU; docs/gpu.md explains the parts.
#
#     benchmarks/gpu_check.sh [PART ...] [--half-hour 1|2|3] [--list] [--out FOLDER] [--seconds 570]
#
# Needs Python 3.12 with PyTorch, and no network: missing wheels come from build/gpu_wheels, which
# `python -m benchmarks.gpu.wheels prepare build/gpu_wheels` makes on another machine. They are installed into
# build/gpu_site; the environment itself is not changed. GPU_WHEELS and GPU_SITE set other folders.
set -u
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
wheels=${GPU_WHEELS:-build/gpu_wheels} site=${GPU_SITE:-$PWD/build/gpu_site}

mkdir -p "$site/latentrt.dist-info"
# latentrt runs from the repository and is not installed, but writing a picture asks for its version.
printf 'Metadata-Version: 2.1\nName: latentrt\nVersion: %s\n' \
    "$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" > "$site/latentrt.dist-info/METADATA"
if [ -d "$wheels" ]; then
    "$python" -m benchmarks.gpu.wheels install "$wheels" "$site" || echo "continuing without the wheels named above"
fi
# typings/latentrt has these links, too, but not every transfer takes links.
mkdir -p "$site/latentrt"
for room in engines export runtime serve; do ln -sfn "$PWD/$room" "$site/latentrt/$room"; done
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
# ONNX Runtime looks for the libraries of PyTorch's wheels in its own site-packages, but may be installed elsewhere.
libraries=$("$python" -c 'import glob, sys; print(":".join(d for p in sys.path if p for d in sorted(glob.glob(p + "/nvidia/*/lib"))))')
export LD_LIBRARY_PATH="${libraries}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Seconds are counted from the start of this script, so installation is part of the budget.
exec "$python" -m benchmarks.gpu --spent "$SECONDS" "$@"
