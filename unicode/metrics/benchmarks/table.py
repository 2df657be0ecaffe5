"""All benchmarks by name: the one place where a string becomes a benchmark."""

from unicode.metrics.benchmarks.entry import Benchmark
from unicode.metrics.benchmarks.gqa import Gqa
from unicode.metrics.benchmarks.llavabench import Llavabench
from unicode.metrics.benchmarks.mmbench import MMBENCH, MMBENCH_CN
from unicode.metrics.benchmarks.mme import Mme
from unicode.metrics.benchmarks.mmvet import Mmvet
from unicode.metrics.benchmarks.pope import Pope
from unicode.metrics.benchmarks.seed import Seed
from unicode.metrics.benchmarks.sqa import Sqa
from unicode.metrics.benchmarks.textvqa import Textvqa
from unicode.metrics.benchmarks.vizwiz import Vizwiz
from unicode.metrics.benchmarks.vqav2 import Vqav2

_ALL: tuple[Benchmark, ...] = (
    Vqav2(),
    Gqa(),
    Vizwiz(),
    Sqa(),
    Textvqa(),
    Pope(),
    Mme(),
    MMBENCH,
    MMBENCH_CN,
    Seed(),
    Llavabench(),
    Mmvet(),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
"""In the order of LLaVA's results table."""
