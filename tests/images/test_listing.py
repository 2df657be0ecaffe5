"""Folders, lists and annotation files -> keys; paths that leave the root are refused."""

import json
import pickle
from pathlib import Path

import pytest

from unicode.images.listing import PackedStrings, check_files, key_under, list_coco, list_folder, list_lines, list_llava


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/1.png", "a.webp", "notes.txt", ".hidden.jpg", ".git/x.jpg", "c/d/e.jpeg")
    assert list(list_folder(tmp_path).keys) == ["a.webp", "b/1.png", "b/2.JPG", "c/d/e.jpeg"]
    listing = list_folder(tmp_path / "c", root=tmp_path)
    assert list(listing.keys) == ["c/d/e.jpeg"]
    assert (listing.root / listing.keys[0]).is_file()


def test_folder_follows_links_once(tmp_path: Path) -> None:
    touch(tmp_path, "real/1.png")
    (tmp_path / "real/loop").symlink_to(tmp_path / "real")
    touch(tmp_path, "elsewhere/2.png")
    (tmp_path / "real/link").symlink_to(tmp_path / "elsewhere")
    assert list(list_folder(tmp_path / "real").keys) == ["1.png", "link/2.png"]


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist.*data\.root.*DATA_VAE"):
        list_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="no images in"):
        list_folder(tmp_path)
    touch(tmp_path, "file.png")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        list_folder(tmp_path / "file.png")


def test_lines(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/1.png", "pictures/2.png")
    path = tmp_path / "list.txt"
    path.write_text(f"pictures/1.png\n\n./pictures/2.png\npictures/1.png\n{tmp_path}/pictures/3.png\r\n")
    assert list(list_lines(path, str(tmp_path)).keys) == ["pictures/1.png", "pictures/2.png", "pictures/3.png"]
    path.write_text("1.png\tA caption\n2.png\n")
    assert list(list_lines(path, str(tmp_path), folder="pictures", separator="\t").keys) == ["pictures/1.png", "pictures/2.png"]


def test_lines_without_a_root(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    path = tmp_path / "list.txt"
    path.write_text("a.png\n")
    assert list_lines(path, "").root == tmp_path
    path.write_text(f"a.png\n{tmp_path}/b.png\n")
    listing = list_lines(path, "")
    assert listing.root == Path("/")
    assert all((listing.root / key).is_file() for key in listing.keys)
    assert [key.rsplit("/", 1)[1] for key in listing.keys] == ["a.png", "b.png"]


@pytest.mark.parametrize("line", ["../x.png", "a/../../x.png", "/etc/x.png", ".", "a/.."])
def test_paths_that_leave_the_root_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"a.png\n{line}\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: .* leaves the image root"):
        list_lines(tmp_path / "list.txt", str(tmp_path))


def test_keys_are_plain(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert key_under(root, "", "a/b.png", "") == "a/b.png"
    assert key_under(root, "f", "./a//../b.png", "") == "f/b.png"
    assert key_under(root, "f", f"{root}/a.png", "") == "a.png"
    assert key_under(root, "", "..a/b..png", "") == "..a/b..png"


def test_empty_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="names no image"):
        list_lines(tmp_path / "list.txt", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no file"):
        list_lines(tmp_path / "none.txt", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_lines(tmp_path / "list.txt", str(tmp_path / "none"))


def test_llava(tmp_path: Path) -> None:
    path = tmp_path / "llava.json"
    records = [{"id": "1", "image": "a/1.jpg"}, {"id": "2"}, {"image": ["b.jpg", "a/1.jpg"]}, {"image": None}]
    path.write_text(json.dumps(records))
    assert list(list_llava(path, str(tmp_path)).keys) == ["a/1.jpg", "b.jpg"]
    assert list(list_llava(path, "", folder="images").keys) == ["images/a/1.jpg", "images/b.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "list of records"), ('[{"id": 1}]', "names no image"), ('[{"image": 3}]', "record 0"), ("[3]", "record 0"),
        ("[", "not valid JSON"), ('[{"image": "../x"}]', "record 0.*leaves"),
    ],
)  # fmt: skip
def test_malformed_llava(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "llava.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        list_llava(tmp_path / "llava.json", str(tmp_path))


def test_coco(tmp_path: Path) -> None:
    touch(tmp_path, "val2017/1.jpg", "val2017/2.jpg", "images/train2014/3.jpg")
    assert list(list_coco(str(tmp_path), "val").keys) == ["val2017/1.jpg", "val2017/2.jpg"]
    assert list(list_coco(str(tmp_path), "train").keys) == ["images/train2014/3.jpg"]
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps({"images": [{"file_name": "2.jpg"}]}))
    assert list(list_coco(str(tmp_path), "train", str(path)).keys) == ["val2017/2.jpg"]
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a COCO annotation"):
        list_coco(str(tmp_path), "val", str(path))
    with pytest.raises(FileNotFoundError, match="no folder test2017"):
        list_coco(str(tmp_path), "test")


def test_missing_files_are_named_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{index}.png" for index in range(0, 20, 2)))
    (tmp_path / "list.txt").write_text("".join(f"{index}.png\n" for index in range(20)))
    listing = list_lines(tmp_path / "list.txt", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"10 of 20 files .* 1\.png, 3\.png, 5\.png, \.\.\.; set data\.root"):
        check_files(listing, -1, "list.txt")
    check_files(listing, 0, "list.txt")
    check_files(listing, 10, "list.txt")  # every second one is looked for


def test_packed_strings() -> None:
    strings = ["a/b.jpg", "", "käse/日本.png", "x" * 300]
    packed = PackedStrings(iter(strings))
    assert list(pickle.loads(pickle.dumps(packed))) == strings
    assert len(packed) == 4
    assert packed[0] == "a/b.jpg"
    for index in (-1, 4):
        with pytest.raises(IndexError):
            packed[index]
    assert list(PackedStrings([])) == []
