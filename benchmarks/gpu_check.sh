#!/usr/bin/env bash
# What can only be found out on a machine with an NVIDIA GPU. Each part has a time limit, fails alone and is reported.
#
#     benchmarks/gpu_check.sh [FOLDER]        # FOLDER gets one log a part and summary.txt; default: out/gpu_check
set -u
cd "$(dirname "$0")/.."
out=${1:-out/gpu_check}
python=${PYTHON:-python3}
mkdir -p "$out"
: > "$out/summary.txt"

part() { # name, seconds, command...
    local name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$@" > "$out/$name.log" 2>&1
    local status=$?
    local verdict="passed"
    if [ "$status" -eq 124 ]; then verdict="ran longer than $seconds s"; elif [ "$status" -ne 0 ]; then verdict="FAILED ($status)"; fi
    echo "$name: $verdict" | tee -a "$out/summary.txt"
    tail -n 1 "$out/$name.log"
}

part device 60 nvidia-smi
part noise 300 "$python" benchmarks/cuda_noise.py
! grep -q -e FAILED -e "ran longer" "$out/summary.txt"
