"""LLaVA's twelve benchmarks, from names to objects: `BENCHMARKS` is the one place where a string becomes a benchmark."""

from unicode.metrics.benchmarks.base import Benchmark
from unicode.metrics.benchmarks.choice import MMBENCH, MMBENCH_CN, Seed, Sqa
from unicode.metrics.benchmarks.graded import Llavabench, Mmvet
from unicode.metrics.benchmarks.vqa import Gqa, Textvqa, Vizwiz, Vqav2
from unicode.metrics.benchmarks.yes_no import Mme, Pope

_ALL = (Vqav2(), Gqa(), Vizwiz(), Sqa(), Textvqa(), Pope(), Mme(), MMBENCH, MMBENCH_CN, Seed(), Llavabench(), Mmvet())
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}  # In the order of LLaVA's results table
