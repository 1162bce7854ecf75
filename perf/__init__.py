"""Demo media and benchmarks."""
