"""What only an NVIDIA GPU can tell, in parts: `benchmarks/gpu_check.sh` runs them, docs/gpu.md explains them."""
