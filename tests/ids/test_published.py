"""UniCode-ECCV24's files become a store in its own order, under paths instead of bare names."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unicode.ids.layout import Layout
from unicode.ids.store import Store, StoreSpec
from unicode.run.import_ids import find_paths, import_ids, main

NAMES = [f"0{number:03d}" for number in range(6)]
PATHS = [f"{name[:2]}/{name}.jpg" for name in NAMES]


def read(folder: Path, out: Path | None = None, *, split: str = "train", tokenizer: Any = None) -> StoreSpec:
    return import_ids(folder, out or folder, split=split, paths=None, tokenizer=tokenizer, dry_run=out is None)


def write(folder: Path, names: list[str] = NAMES, split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    top = torch.randint(0, 32000, (len(names), 64), dtype=torch.int32, generator=generator)
    bottom = torch.randint(0, 32000, (len(names), 256), dtype=torch.int32, generator=generator)
    folder.mkdir(exist_ok=True)
    (folder / f"{split}_image_list.json").write_text(json.dumps(names))
    torch.save(top, folder / f"{split}_codes_t.pth")
    torch.save(bottom, folder / f"{split}_codes_b.pth")
    return top, bottom


def test_the_run_of_ids_is_the_published_one(tmp_path: Path) -> None:
    top, bottom = write(tmp_path / "in", PATHS)
    read(tmp_path / "in", tmp_path / "out")
    store = Store(tmp_path / "out")
    assert store.layout.order == "rows"
    for row, path in enumerate(PATHS):
        expected = torch.cat([top[row][:, None], bottom[row].reshape(64, 4)], dim=1).flatten()
        assert store[path].tolist() == expected.tolist()
    levels = store.layout.split(store.layout.restore(store[PATHS[2]]))
    assert levels[0].tolist() == top[2].tolist()
    assert levels[1].tolist() == bottom[2].tolist()


def test_bare_names_get_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in")
    records = [{"id": name, "image": path, "conversations": []} for name, path in zip(NAMES, PATHS, strict=True)]
    (tmp_path / "anno.json").write_text(json.dumps([*records, {"id": "text only"}]))
    (tmp_path / "list.txt").write_text("\n".join(PATHS))
    for paths in ("anno.json", "list.txt"):
        assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--paths", str(tmp_path / paths)]) == 0
        assert list(Store(tmp_path / "out")) == PATHS
    assert main([str(tmp_path / "in"), str(tmp_path / "dry"), "--paths", str(tmp_path / "list.txt"), "--dry-run"]) == 0
    assert not (tmp_path / "dry").exists()
    assert main([str(tmp_path / "in"), str(tmp_path / "other")]) == 2
    assert "give --paths" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_names_with_two_paths_or_none(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/0001.jpg\nb/0001.jpg\n")
    with pytest.raises(ValueError, match=r"a/0001.jpg and for b/0001.jpg"):
        find_paths(["0001"], tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a/0001.jpg\n")
    with pytest.raises(ValueError, match=r"list.txt has no path for '0002'"):
        find_paths(["0001", "0002"], tmp_path / "list.txt")


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    top, bottom = write(tmp_path / "in", PATHS)
    known = torch.cat([top.flatten(), bottom.flatten()]).long().unique()
    nested = Layout("hierarchical", ((8, 8), (16, 16)))
    read(tmp_path / "in", tmp_path / "out", tokenizer=SimpleNamespace(row_ids=known, fingerprint="a" * 16, layout=nested))
    store = Store(tmp_path / "out")
    assert (store.spec.tokenizer, store.layout) == ("a" * 16, nested)
    assert store[PATHS[0]][:5].tolist() == [int(top[0, 0]), *bottom[0][[0, 1, 16, 17]].tolist()], "ids in the order of the tokenizer"
    with pytest.raises(ValueError, match=f"{top[0, 0]} is no image id of the tokenizer"):
        read(tmp_path / "in", tokenizer=SimpleNamespace(row_ids=known[known != top[0, 0]]))


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    top, _ = write(tmp_path, PATHS)
    with pytest.raises(FileNotFoundError, match=r"val_image_list.json is missing"):
        read(tmp_path, split="val")
    for codes, message in (
        (top[:3], "has 3 images, train_image_list.json 6"),
        (top.float(), "expected integers"),
        ({"codes": top}, "holds dict"),
        (torch.zeros(6, 60, dtype=torch.int32), "no square grid"),
    ):
        torch.save(codes, tmp_path / "train_codes_t.pth")
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
    (tmp_path / "train_codes_t.pth").write_bytes(b"no tensor")
    with pytest.raises(ValueError, match="a tensor of ids is expected there"):
        read(tmp_path)
