"""From the benchmarks' JSON files to reports, charts, the README's table, and comparisons of two runs."""
