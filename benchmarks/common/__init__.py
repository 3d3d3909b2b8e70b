"""What several benchmarks share: timing, tables, paths, rates of the machine, and random models to measure with."""
