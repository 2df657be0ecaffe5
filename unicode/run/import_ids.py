"""Import the id files of UniCode-ECCV24, or a Parquet file of `unicode.run.export_ids`, into a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from unicode.common.files import read_json, read_list, read_tensors
from unicode.common.json_lists import read_json_list
from unicode.ids.layout import Layout
from unicode.ids.parquet import read_parquet
from unicode.ids.store import StoreSpec, check_keys, hash_keys
from unicode.ids.store_writer import StoreWriter
from unicode.run.command import command, log, new_parser

if TYPE_CHECKING:
    import torch

    from unicode.tokenizer.model import ImageTokenizer

SHARD_SIZE = 2048
TRANSFORM = {"protocol": "imported from UniCode-ECCV24: shorter side resized, center crop"}


def import_ids(
    source: str | Path, out: str | Path, *, split: str, paths: str | Path | None, tokenizer: ImageTokenizer | None, dry_run: bool = False
) -> StoreSpec:
    """Check one split in the folder `source`, write it to the store `out`, and return the spec of that store.

    `split`: first part of the file names, "train" or "val". `paths`: where bare names get their paths from, see `find_paths`. `tokenizer`:
    the one that made the ids, where it is known; they are written in its order.

    Raises FileNotFoundError: one of the three files is missing. Raises ValueError: the files do not fit each other, hold no ids of the
    tokenizer, or name images without paths; `out` holds another store. Raises OSError: the disk is full.
    """
    import torch

    names, coarse, fine = _read_files(Path(source), split)
    keys = find_paths(names, paths)
    check_keys(keys)
    known = None if tokenizer is None else tokenizer.row_ids.cpu()
    for codes in (coarse, fine):
        foreign = torch.zeros_like(codes, dtype=torch.bool) if known is None else ~torch.isin(codes, known.to(codes.dtype))
        if foreign.any():
            row, place = (int(value) for value in foreign.nonzero()[0])
            raise ValueError(f"image '{keys[row]}': {codes[row, place]} is no image id of the tokenizer; the files belong to another one")
    order = "rows" if tokenizer is None else tokenizer.layout.order
    layout = Layout("hierarchical", ((isqrt(coarse.shape[1]),) * 2, (isqrt(fine.shape[1]),) * 2), order=order)
    vocab_size, fingerprint = int(max(coarse.max(), fine.max())) + 1, tokenizer.fingerprint if tokenizer is not None else ""
    spec = StoreSpec(fingerprint, layout, TRANSFORM, "float32", ("whole",), vocab_size, len(keys), hash_keys(keys), SHARD_SIZE)
    if not dry_run:
        with StoreWriter(out, spec) as writer:
            writer.prepare(keys)
            for shard in writer.missing():
                rows = slice(spec.shard_rows(shard).start, spec.shard_rows(shard).stop)
                writer.put(shard, layout.arrange(layout.join([coarse[rows], fine[rows]]))[:, None])
            writer.close()
            writer.finish(keys)
    return spec


def find_paths(names: Sequence[str], paths: str | Path | None) -> list[str]:
    """Turn the published list of names into keys, that is paths relative to the image root.

    A name is a path, or a file name without folder and extension: the "id" of a record in the LLaVA annotation file `paths`, or the
    stem of a line in the list `paths` (.txt). ValueError for a bare name without a path, or with several.
    """
    known: dict[str, str] = {}
    for name, path in _read_paths(paths) if paths is not None else ():
        if known.setdefault(name, path) != path:
            raise ValueError(f"{paths}: '{name}' stands for {known[name]} and for {path}; a bare name must have one path")
    keys = [name if PurePosixPath(name).suffix else known.get(name, "") for name in names]
    missing = [name for name, key in zip(names, keys, strict=True) if not key]
    if missing:
        found = f"{paths} has no path for" if paths is not None else "give --paths, an annotation file or a list with the paths of"
        raise ValueError(f"{len(missing)} names have no path and keys are paths relative to the image root: {found} '{missing[0]}'")
    return keys


def _read_paths(paths: str | Path) -> Iterator[tuple[str, str]]:
    if Path(paths).suffix == ".json":
        records = (record for record in read_json_list(paths) if isinstance(record, dict) and isinstance(record.get("image"), str))
        return ((str(record.get("id")), record["image"]) for record in records)
    return ((PurePosixPath(line).stem, line) for line in read_list(paths))


def _read_files(source: Path, split: str) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Names, coarse (images, n) and fine (images, m) ids of one split, checked against each other."""
    import torch

    files = [source / f"{split}_{part}" for part in ("image_list.json", "codes_t.pth", "codes_b.pth")]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; UniCode-ECCV24 writes {', '.join(other.name for other in files)}")
    names = read_json(files[0])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{files[0]} is not a list of names")
    tensors = [read_tensors(file, wanted="a tensor of ids") for file in files[1:]]
    for file, codes in zip(files[1:], tensors, strict=True):
        if not isinstance(codes, torch.Tensor) or codes.ndim != 2 or codes.is_floating_point() or not codes.numel():
            found = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, torch.Tensor) else type(codes).__name__
            raise ValueError(f"{file} holds {found}; expected integers (images, codes)")
        if isqrt(codes.shape[1]) ** 2 != codes.shape[1]:
            raise ValueError(f"{file}: {codes.shape[1]} codes per image are no square grid")
        if len(codes) != len(names):
            raise ValueError(f"{file} has {len(codes)} images, {files[0].name} {len(names)}")
    return names, tensors[0], tensors[1]


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("import_ids", __doc__, dry_run="read and check everything, write nothing")
    files = "<split>_image_list.json, <split>_codes_t.pth and <split>_codes_b.pth"
    parser.add_argument("source", metavar="SRC", help=f"folder of {files}; or a .parquet file of export_ids")
    parser.add_argument("out", metavar="OUT", help="folder of the store")
    parser.add_argument("--split", default="train", help="first part of the file names (default: %(default)s)")
    parser.add_argument("--paths", help="LLaVA annotation (.json) or list (.txt) with the paths, from the image root, of bare names")
    parser.add_argument("--ckpt", help="tokenizer that made the ids: recorded in the store, and ids that are not its own are refused")
    args = parser.parse_args(argv)
    tokenizer = None
    if args.ckpt:
        from unicode.tokenizer.load import load_tokenizer

        tokenizer = load_tokenizer(args.ckpt)
    if args.source.endswith(".parquet"):
        spec = read_parquet(args.source, args.out, tokenizer=tokenizer.fingerprint if tokenizer is not None else "", dry_run=args.dry_run)
    else:
        spec = import_ids(args.source, args.out, split=args.split, paths=args.paths, tokenizer=tokenizer, dry_run=args.dry_run)
    log.info("%s: %d images, %s", args.source if args.dry_run else args.out, spec.num_images, spec.layout.describe())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
