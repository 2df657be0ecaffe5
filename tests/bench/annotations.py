"""Records per second and peak memory of the annotation functions on synthetic captions.

    python tests/bench/annotations.py [--records 200000] [--func get_t2v_anno]

Writes an annotation file and a store of 8x8 + 16x16 ids to a temporary folder (about 2.5 GB for 200,000 records), then runs the
command in a process of its own and reads from the kernel how much memory it held at most. Ends with exit code 1 above 1.5 GiB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from unicode.common.files import read_json  # noqa: E402
from unicode.common.json_lists import write_json_list  # noqa: E402
from unicode.ids.layout import Layout  # noqa: E402
from unicode.ids.store import Store, StoreSpec, hash_keys  # noqa: E402
from unicode.ids.store_writer import StoreWriter  # noqa: E402

LIMIT = 1.5 * 2**30
VOCAB = 32_000
SHARD_SIZE = 2048
ANNOTATION = "captions.json"
WORDS = "a the red blue small large bus dog cat street tree house sits stands runs near under behind two three people with".split()


def write_inputs(folder: Path, count: int) -> None:
    """Write captions.json and the store `ids` of `count` images."""
    keys = [f"{number % 1000:05d}/{number:09d}.jpg" for number in range(count)]
    rng = np.random.default_rng(0)

    def record(number: int) -> dict[str, object]:
        caption = " ".join(rng.choice(WORDS, 12))
        turns = [{"from": "human", "value": "Describe the image.\n<image>"}, {"from": "gpt", "value": caption}]
        return {"id": f"{number:09d}", "image": keys[number], "conversations": turns}

    write_json_list(folder / ANNOTATION, map(record, range(count)))
    layout = Layout("hierarchical", ((8, 8), (16, 16)))
    spec = StoreSpec("0123456789abcdef", layout, {}, "float32", ("whole",), VOCAB, count, hash_keys(keys), SHARD_SIZE)
    with StoreWriter(folder / "ids", spec) as writer:
        writer.prepare(keys)
        for shard in writer.missing():
            writer.put(shard, rng.integers(0, VOCAB, spec.shard_shape(shard)))
        writer.close()
        writer.finish(keys)


def main() -> int:
    """Make the inputs, run the function, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--func", default="get_t2v_anno", choices=("get_t2v_anno", "get_llava_uni_anno", "get_decompression_anno"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-annotations-") as name:
        folder = Path(name)
        write_inputs(folder, options.records)
        started = time.perf_counter()
        Store(folder / "ids")
        opened = time.perf_counter() - started
        paths = ["--root", name, "--ids", str(folder / "ids"), "--out", str(folder / "out"), "--anno", ANNOTATION]
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "unicode.run.make_annotations", "--func", options.func, *paths], cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)  # the memory of this one child
        seconds = time.perf_counter() - started
        if status:
            return 1
        report = read_json(next((folder / "out").glob("*.report.json")))
        size = sum(path.stat().st_size for path in (folder / "out").iterdir())
        peak = usage.ru_maxrss * 1024
    print(f"store of {options.records} images opened in {opened * 1000:.0f} ms")
    print(f"{options.func}: {report['read']} records in {report['seconds']:.1f} s, {report['read'] / report['seconds']:.0f} records/s")
    print(f"whole process {seconds:.1f} s, of it {usage.ru_utime + usage.ru_stime:.1f} s of one core; {size / 1e9:.2f} GB written")
    print(f"peak memory {peak / 2**30:.2f} GiB, limit {LIMIT / 2**30:.1f} GiB")
    return int(peak >= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
