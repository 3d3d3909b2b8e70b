#!/usr/bin/env bash
# What can only be found out on a machine with an NVIDIA GPU; docs/gpu.md explains the parts.
#
#     benchmarks/gpu_check.sh [PART ...] [--out FOLDER] [--seconds 570]
#
# Needs Python 3.12 with PyTorch, and no network: wheels that are missing come from build/gpu_wheels, which
# `benchmarks/gpu_wheels.py prepare build/gpu_wheels` makes elsewhere. They are installed into build/gpu_site, and nothing
# of the environment is changed. GPU_WHEELS and GPU_SITE name other folders.
set -u
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
wheels=${GPU_WHEELS:-build/gpu_wheels} site=${GPU_SITE:-$PWD/build/gpu_site}

mkdir -p "$site/latentrt.dist-info"
# latentrt itself runs from here; its version is asked for when a picture is written.
printf 'Metadata-Version: 2.1\nName: latentrt\nVersion: %s\n' \
    "$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" > "$site/latentrt.dist-info/METADATA"
if [ -d "$wheels" ]; then
    "$python" benchmarks/gpu_wheels.py install "$wheels" "$site" || echo "goes on without the wheels named above"
fi
export PYTHONPATH="$site:$PWD/typings:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
# ONNX Runtime looks for the libraries that PyTorch's wheels bring beside itself, and it may lie elsewhere.
libraries=$("$python" -c 'import glob, sys; print(":".join(d for p in sys.path if p for d in sorted(glob.glob(p + "/nvidia/*/lib"))))')
export LD_LIBRARY_PATH="${libraries}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Ten minutes in all, installing included; --seconds among the arguments comes later and wins.
exec "$python" -m gpu --seconds "$((570 - SECONDS))" "$@"
