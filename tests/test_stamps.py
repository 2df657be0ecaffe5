"""data/stamps: any folder of captioned pictures -> squares on white, conversations and held-out questions."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "data" / "stamps"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent)


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tuxpaint") / "stamps"
    for number in range(20):
        path = root / ("animals", "food")[number % 2] / ("one", "two")[number // 10] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (30, 10), (200, 0, 0, 255) if number else (0, 0, 0, 0)).save(path)
        if number != 7:
            path.with_suffix(".txt").write_text(f"Thing {number}.\nde.utf8=Ding.\n", encoding="utf-8")
    return root


def test_stamps_become_files_of_llava(stamps: Path, tmp_path: Path) -> None:
    outcome = run("--root", stamps, "--out", tmp_path, "--size", 32, "--val-share", 0.3)
    assert outcome.returncode == 0, outcome.stderr
    assert "19 squares of 32 pixels, 1 pictures left out" in outcome.stdout
    assert "7.png is left out (no caption: no 7.txt beside the picture)" in outcome.stderr
    with Image.open(tmp_path / "images" / "food" / "one" / "1.png") as square:
        assert square.mode == "RGB" and square.size == (32, 32)
        assert square.getpixel((16, 16)) == (200, 0, 0) and square.getpixel((16, 2)) == (255, 255, 255)
    with Image.open(tmp_path / "images" / "animals" / "one" / "0.png") as clear:
        assert clear.getextrema() == ((255, 255),) * 3
    parts = {split: json.loads((tmp_path / f"images_captions_{split}.json").read_text()) for split in ("train", "val")}
    assert len(parts["train"]) + len(parts["val"]) == 19 and parts["val"]
    assert all((tmp_path / "images" / record["image"]).is_file() for part in parts.values() for record in part)
    questions = [json.loads(line) for line in (tmp_path / "questions_val.jsonl").read_text().splitlines()]
    assert {question["image"] for question in questions} == {record["image"] for record in parts["val"]}
    before = (tmp_path / "images" / "food" / "one" / "1.png").stat().st_mtime_ns
    assert run("--root", stamps, "--out", tmp_path, "--size", 32, "--val-share", 0.3).returncode == 0
    assert (tmp_path / "images" / "food" / "one" / "1.png").stat().st_mtime_ns == before
    assert run("--root", stamps, "--out", tmp_path, "--size", 16, "--val-share", 0.3).returncode == 0
    assert Image.open(tmp_path / "images" / "food" / "one" / "1.png").size == (16, 16)


def test_squares_follow_their_pictures(stamps: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(stamps, root)
    Image.new("RGB", (8, 8)).save(root / "food" / "one" / "1.jpg")  # reads 1.txt too
    words = "--root", root, "--out", out, "--size", 16, "--val-share", 0.3
    twice = run(*words)
    assert "19 squares of 16 pixels, 2 pictures left out" in twice.stdout and "same name: 1.png is of another picture" in twice.stderr
    (root / "food" / "one" / "1.jpg").unlink()
    Image.new("RGB", (8, 8), "blue").save(root / "food" / "one" / "1.png")
    os.utime(root / "food" / "one" / "1.png", (time.time() + 9,) * 2)
    assert run(*words).returncode == 0
    with Image.open(out / "images" / "food" / "one" / "1.png") as changed:
        assert changed.getpixel((8, 8)) == (0, 0, 255)
    (root / "food" / "one" / "5.txt").unlink()
    fewer = run(*words)
    assert "18 squares of 16 pixels, 2 pictures left out" in fewer.stdout and "18 records read" in fewer.stderr
    (root / "food" / "one" / "3.png").unlink()
    strange = run(*words)
    assert strange.returncode == 2 and f"one/3.png is of no picture in {root}; delete {out}/images, or name another" in strange.stderr


def test_a_user_is_told(stamps: Path, tmp_path: Path) -> None:
    absent = run("--root", tmp_path / "none", "--out", tmp_path / "out")
    assert absent.returncode == 2 and "tuxpaint-stamps-default" in absent.stderr and "Traceback" not in absent.stderr
    assert run("--root", stamps, "--out", tmp_path / "out", "--size", 2).returncode == 2
    assert run("--root", stamps, "--out", tmp_path / "out", "--dry-run").returncode == 0
    assert not (tmp_path / "out").exists()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "broken" / "a.txt").write_text("a cat")
    broken = run("--root", tmp_path / "broken", "--out", tmp_path / "out")
    assert broken.returncode == 2 and "none of 1 pictures can be read and has a caption" in broken.stderr
    (tmp_path / "flat").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "flat" / f"{number}.png")
        (tmp_path / "flat" / f"{number}.txt").write_text("a thing")
    flat = run("--root", tmp_path / "flat", "--out", tmp_path / "out2", "--size", 16)
    assert flat.returncode == 2 and "no held-out questions; raise --val-share" in flat.stderr
    (tmp_path / "flat" / "2.txt").write_text("another thing")
    assert run("--root", tmp_path / "flat", "--out", tmp_path / "out2", "--size", 16, "--val-share", 0.5).returncode == 0
    assert "describe the picture" in (tmp_path / "out2" / "questions_val.jsonl").read_text()
