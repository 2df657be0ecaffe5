"""All benchmarks by name: the one place where a string becomes a benchmark."""

from unicode.metrics.benchmarks.entry import Benchmark

BENCHMARKS: dict[str, Benchmark] = {}
"""In the order of LLaVA's results table."""
