"""Lists for tokenizer training: each image once and on one side, test images only when they are asked for."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from unicode.annotations.image_lists import concat_vae_with_mix, concat_vae_with_vqabench
from unicode.metrics.benchmarks import BENCHMARKS


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def text_record() -> dict[str, Any]:
    return {"id": "t", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


def test_annotation_files_are_split_by_a_hash(tmp_path: Path, write: Any, record: Any) -> None:
    laion = [record(str(number), f"{number % 300:05d}.jpg", "x") for number in range(400)]
    mix = [record(str(number), f"coco/{number}.jpg", "x") for number in range(300)]
    mix += [text_record(), record("a", "../x.jpg", "x"), record("b", "b\nc.jpg", "x")]
    write(tmp_path / "laion.json", laion)
    write(tmp_path / "mix.json", mix)
    report = concat_vae_with_mix(tmp_path, tmp_path / "out", annos=["laion.json@laion/images", "mix.json"], val_share=0.1)
    train, val = (lines(tmp_path / "out" / f"llava_concat_{split}.txt") for split in ("train", "val"))
    names = [[f"laion/images/{number:05d}.jpg", f"coco/{number}.jpg"] for number in range(300)]
    assert sorted(train + val) == sorted(name for pair in names for name in pair)
    assert 35 < len(val) < 90
    expected = {"no image": 1, "image path leaves the root": 1, "malformed image field": 1}
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == expected
    write(tmp_path / "mix.json", mix[::-1][:200])
    concat_vae_with_mix(tmp_path, tmp_path / "half", annos=["mix.json"], val_share=0.1)
    assert set(lines(tmp_path / "half" / "llava_concat_val.txt")) <= set(val)
    assert set(lines(tmp_path / "half" / "llava_concat_train.txt")) <= set(train)


def test_given_lists_keep_their_split(tmp_path: Path, write: Any, record: Any) -> None:
    (tmp_path / "llava_laion558k_train.txt").write_text("a.jpg\nb.jpg\na.jpg\nshared.jpg\n/abs.jpg\n")
    (tmp_path / "llava_laion558k_test.txt").write_text("v.jpg\nshared.jpg\n")
    write(tmp_path / "llava_v1_5_mix665k.json", [record("1", "coco/1.jpg", "x")])
    report = concat_vae_with_mix(tmp_path, tmp_path, val_share=0)
    assert lines(tmp_path / "llava_concat_train.txt") == ["a.jpg", "b.jpg", "coco/1.jpg"]
    assert lines(tmp_path / "llava_concat_val.txt") == ["v.jpg", "shared.jpg"]
    assert report.dropped["image path leaves the root"].examples[0]["record"] == 4
    assert any("stay in val only" in note for note in report.notes)


def test_missing_data_sets_are_named(tmp_path: Path, write: Any, record: Any) -> None:
    with pytest.raises(FileNotFoundError, match="--anno"):
        concat_vae_with_mix(tmp_path, tmp_path)
    write(tmp_path / "blip_laion_cc_sbu_558k.json", [record("1", "1.jpg", "x")])
    report = concat_vae_with_mix(tmp_path, tmp_path / "out", val_share=0)
    assert "llava_v1_5_mix665k.json" in report.notes[0]
    assert json.loads((tmp_path / "out" / "llava_concat.report.json").read_text())["notes"] == report.notes
    with pytest.raises(ValueError, match="val_share"):
        concat_vae_with_mix(tmp_path, tmp_path, val_share=1)
    with pytest.raises(ValueError, match="name their folder"):
        concat_vae_with_mix(tmp_path, tmp_path / "x.txt")


def test_dry_run_writes_nothing(tmp_path: Path, write: Any, record: Any) -> None:
    write(tmp_path / "blip_laion_cc_sbu_558k.json", [record("1", "1.jpg", "x")])
    concat_vae_with_mix(tmp_path, tmp_path / "out", val_share=0, dry_run=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Lists of concat_vae_with_mix and question files of four benchmarks, one of each kind."""
    (tmp_path / "llava_concat_train.txt").write_text("a.jpg\n")
    (tmp_path / "llava_concat_val.txt").write_text("v.jpg\n")
    folder = tmp_path / "eval"
    for name in ("pope", "sqa", "mmbench", "seed"):
        (folder / BENCHMARKS[name].files["questions"].paths[-1]).parent.mkdir(parents=True, exist_ok=True)
    questions = [{"question_id": 1, "image": "p1.jpg"}, {"question_id": 2, "image": "p1.jpg"}, {"question_id": 3, "image": "p2.jpg"}]
    (folder / BENCHMARKS["pope"].files["questions"].paths[-1]).write_text("\n".join(map(json.dumps, questions)))
    (folder / BENCHMARKS["sqa"].files["questions"].paths[-1]).write_text(json.dumps([{"id": "4", "image": "4/image.png"}, {"id": "5"}]))
    (folder / BENCHMARKS["seed"].files["questions"].paths[-1]).write_text(json.dumps({"image": "../../../../x.jpg"}))
    picture = base64.b64encode(b"picture").decode()
    rows = ["index\tquestion\timage", f"7\twhat\t{picture}", f"../8\twhat\t{picture}", "9\twhat\tnot base64!", "10\twhat\tné"]
    rows += [f"2411\twhat\t{picture}", "2412\twhat\t2411"]  # which shares the picture of the row before
    (folder / BENCHMARKS["mmbench"].files["questions"].paths[-1]).write_text("\n".join(rows))
    return tmp_path


def test_benchmark_images_need_a_yes(bench: Path) -> None:
    with pytest.raises(ValueError, match=r"test images.*--allow-test-images"):
        concat_vae_with_vqabench(bench, bench)


def test_benchmark_images_are_appended_to_train_alone(bench: Path) -> None:
    report = concat_vae_with_vqabench(bench, bench / "out", allow_test_images=True)
    assert lines(bench / "out" / "llava_concat_vqa_train.txt") == [
        "a.jpg",
        "eval/scienceqa/images/test/4/image.png",
        "eval/pope/val2014/p1.jpg",
        "eval/pope/val2014/p2.jpg",
        "eval/mmbench/images/7.jpg",
        "eval/mmbench/images/2411.jpg",
    ]
    assert lines(bench / "out" / "llava_concat_vqa_val.txt") == ["v.jpg"]
    assert (bench / "eval" / "mmbench" / "images" / "7.jpg").read_bytes() == b"picture"
    expected = {"no image": 1, "malformed image field": 3, "image path leaves the root": 1}
    assert {name: drop.count for name, drop in report.dropped.items()} == expected
    assert "test images" in report.notes[0] and "vqav2" in report.notes[1]


def test_benchmarks_that_cannot_be(bench: Path) -> None:
    with pytest.raises(ValueError, match="relative to --root"):
        concat_vae_with_vqabench(bench, bench, bench="../eval", allow_test_images=True)
    with pytest.raises(FileNotFoundError, match="no benchmark in"):
        concat_vae_with_vqabench(bench, bench, bench="nothing", allow_test_images=True)
    (bench / "eval" / BENCHMARKS["mmbench"].files["questions"].paths[-1]).write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="expected 'index' and 'image'"):
        concat_vae_with_vqabench(bench, bench, allow_test_images=True)
    (bench / "llava_concat_train.txt").unlink()
    with pytest.raises(FileNotFoundError, match="--func concat_vae_with_mix"):
        concat_vae_with_vqabench(bench, bench, allow_test_images=True)
