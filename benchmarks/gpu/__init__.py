"""The parts of the GPU check; `benchmarks/gpu_check.sh` runs them, docs/gpu.md explains them."""
