"""The images of LLaVA's twelve benchmarks, found through their question files in the folders that LLaVA's scripts expect."""

import base64
import binascii
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unicode.annotations.conversation import BAD_IMAGE, RefusedError, image_key
from unicode.annotations.report import Report
from unicode.annotations.sources import Item
from unicode.common.json_stream import read_json_list
from unicode.common.records import atomic_write, read_jsonl


@dataclass(frozen=True)
class BenchmarkFiles:
    """Where one benchmark keeps its questions and its images, relative to the folder of all benchmarks."""

    questions: str
    images: str


BENCHMARKS = {
    "vqav2": BenchmarkFiles("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", "vqav2/test2015"),
    "gqa": BenchmarkFiles("gqa/llava_gqa_testdev_balanced.jsonl", "gqa/data/images"),
    "vizwiz": BenchmarkFiles("vizwiz/llava_test.jsonl", "vizwiz/test"),
    "sqa": BenchmarkFiles("scienceqa/llava_test_CQM-A.json", "scienceqa/images/test"),
    "textvqa": BenchmarkFiles("textvqa/llava_textvqa_val_v051_ocr.jsonl", "textvqa/train_images"),
    "pope": BenchmarkFiles("pope/llava_pope_test.jsonl", "pope/val2014"),
    "mme": BenchmarkFiles("MME/llava_mme.jsonl", "MME/MME_Benchmark_release_version"),
    "mmbench": BenchmarkFiles("mmbench/mmbench_dev_20230712.tsv", "mmbench/images"),
    "mmbench_cn": BenchmarkFiles("mmbench_cn/mmbench_dev_cn_20231003.tsv", "mmbench_cn/images"),
    "seed": BenchmarkFiles("seed_bench/llava-seed-bench_1.jsonl", "seed_bench"),
    "llavabench": BenchmarkFiles("llava-bench-in-the-wild/questions.jsonl", "llava-bench-in-the-wild/images"),
    "mmvet": BenchmarkFiles("mm-vet/llava-mm-vet.jsonl", "mm-vet/images"),
}


def benchmark_images(root: Path, bench: str, report: Report, *, dry_run: bool = False) -> Iterator[Item]:
    """Yield (question file, place, path of an image relative to `root`) for every question that has an image.

    MMBench keeps its pictures inside the table: they are written to `images` beside it, unless `dry_run`. Benchmarks that are not
    there are noted in the report, pictures that cannot be read are counted there.

    Raises:
        FileNotFoundError: no benchmark is there.
        ValueError: the folder leaves the image root, or a question file is damaged.
    """
    try:
        folder = image_key(bench)
    except RefusedError as refused:
        raise ValueError(f"--bench {bench}: the lists hold paths relative to --root, so must this be ({refused})") from None
    found = {name: files for name, files in BENCHMARKS.items() if (root / folder / files.questions).is_file()}
    if not found:
        looked = ", ".join(files.questions for files in BENCHMARKS.values())
        raise FileNotFoundError(f"no benchmark in {root / folder}: looked for {looked}")
    if len(found) < len(BENCHMARKS):
        report.note(f"benchmarks not in {root / folder} and left out: {', '.join(name for name in BENCHMARKS if name not in found)}")
    for files in found.values():
        questions = root / folder / files.questions
        if questions.suffix == ".tsv":
            names = _extract_pictures(questions, root / folder / files.images, report, dry_run=dry_run)
        else:
            names = _named_images(questions)
        for index, name in names:
            yield str(questions), index, f"{folder}/{files.images}/{name}"


def _named_images(questions: Path) -> Iterator[tuple[int, str]]:
    records = read_json_list(questions) if questions.suffix == ".json" else read_jsonl(questions)
    for index, record in enumerate(records):
        if isinstance(record, dict) and isinstance(record.get("image"), str):
            yield index, record["image"]


def _extract_pictures(table: Path, folder: Path, report: Report, *, dry_run: bool) -> Iterator[tuple[int, str]]:
    """Write the base64 pictures of a table to `folder`, named by their column "index"."""
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    with open(table, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        if not {"index", "image"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{table} has the columns {rows.fieldnames}; expected 'index' and 'image' among them")
        for number, row in enumerate(rows):
            name = f"{row['index']}.jpg"
            try:
                picture = base64.b64decode(row["image"] or "", validate=True)
                if not picture or not str(row["index"]).isdigit():
                    raise RefusedError(BAD_IMAGE, f"row {number} has the index {row['index']!r} and {len(picture)} bytes of picture")
            except (RefusedError, binascii.Error) as error:
                refused = error if isinstance(error, RefusedError) else RefusedError(BAD_IMAGE, f"not base64: {error}")
                report.drop(refused, source=str(table), index=number, name=row["index"])
                continue
            if not dry_run and not (folder / name).is_file():
                with atomic_write(folder / name, "wb") as out:
                    out.write(picture)
            yield number, name
