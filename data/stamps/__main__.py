"""Tux Paint's stamps, a few hundred real pictures with captions, as LLaVA's files.

    python data/stamps --out datasets/stamps [--root /usr/share/tuxpaint/stamps] [--size 128] [--val-share 0.05]

OUT/images/animals/birds/owl.png, owl.txt    squares on white, with the caption in English
OUT/images_captions_{train,val}.json         "Describe it." and the caption
OUT/images_questions_{train,val}.json        questions for the subject and the group, from the tree of folders, or for the caption
OUT/questions_val.jsonl                      the held-out questions one by one, with the right answers
"""

import argparse
import sys
from pathlib import Path

STAMPS = Path("/usr/share/tuxpaint/stamps")
WARNINGS = 5  # pictures that are left out by name
INSTALL = "Debian and Ubuntu have them as a package: apt-get install tuxpaint-stamps-default; or name another folder with --root"

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def build_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="python data/stamps", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("datasets/stamps"), metavar="DIR", help="folder to write (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=STAMPS, metavar="DIR", help="pictures with a .txt each (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of the squares in pixels (default: %(default)s)")
    parser.add_argument("--val-share", type=float, default=0.05, help="share of the held-out pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the wording and the order (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="look for the pictures, write nothing")
    return parser


def make_squares(root: Path, out: Path, *, size: int) -> tuple[int, int]:
    """Write every picture below `root` as an RGB square on white, whole, with its caption beside it; those of this size stay.

    Returns:
        How many squares there are, and how many pictures have no caption, cannot be read or have the name of one before them.

    Raises:
        ValueError: `out` has squares of other pictures.
    """
    from PIL import Image

    from unicode.annotations.captioned import read_caption
    from unicode.annotations.records import RefusedError
    from unicode.common.files import atomic_write, write_list
    from unicode.common.logging import get_logger
    from unicode.images.decode import decode_image
    from unicode.images.listing import UnreadableImageError, list_folder, read_bytes

    keys, made, left_out = list_folder(root).keys, set[Path](), 0
    squares = {(out / key).with_suffix(".png") for key in keys}
    if strange := sorted({*out.rglob("*.png")} - squares):
        raise ValueError(f"{strange[0]} is of no picture in {root}; delete {out}, or name another folder with --out")
    for key in keys:
        path, source = (out / key).with_suffix(".png"), root / key
        try:
            if path in made:
                raise RefusedError("same name", f"{path.name} is of another picture")
            caption = read_caption(source.with_suffix(".txt"))
            kept = has_size(path, size) and path.stat().st_mtime >= source.stat().st_mtime
            picture = None if kept else decode_image(read_bytes(source))
        except (RefusedError, UnreadableImageError) as error:
            left_out += 1
            if path not in made:  # a square of before, of a picture that was good then
                path.unlink(missing_ok=True)
            if left_out <= WARNINGS:
                get_logger(__name__).warning("%s is left out (%s)", source, error)
            continue
        if picture is not None:
            scale = size / max(picture.size)
            inside = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS, reducing_gap=3)
            square = Image.new("RGB", (size, size), "white")
            square.paste(inside, ((size - inside.width) // 2, (size - inside.height) // 2))
            with atomic_write(path, "wb") as file:
                square.save(file, format="PNG")
        write_list(path.with_suffix(".txt"), [caption])
        made.add(path)
    return len(made), left_out


def has_size(path: Path, size: int) -> bool:
    """Whether there is a square of this size at `path`."""
    from PIL import Image

    if not path.is_file():
        return False
    with Image.open(path) as square:
        return square.size == (size, size)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from unicode.run.command import command

    return command(prepare)(argv)


def prepare(argv: list[str] | None) -> int:
    """Make squares, conversations and held-out questions; see the module's docstring.

    Raises:
        FileNotFoundError: no stamps there.
        ValueError: an impossible size or share, no picture that can be read and has a caption, no questions.
    """
    from unicode.annotations.captioned import get_folder_anno
    from unicode.annotations.exports import write_question_file
    from unicode.common.files import lock_folder, read_json

    args = build_parser().parse_args(argv)
    if not args.root.is_dir():
        raise FileNotFoundError(f"no folder of stamps {args.root}. {INSTALL}")
    if args.size < 16:
        raise ValueError(f"--size {args.size}: the squares need at least 16 pixels a side")
    if args.dry_run:
        get_folder_anno(args.root, args.out, seed=args.seed, val_share=args.val_share, dry_run=True)
        return 0
    images = args.out / "images"
    with lock_folder(args.out, "preparing stamps"):
        made, left_out = make_squares(args.root, images, size=args.size)
        if not made:
            remedy = "put NAME.txt beside each picture NAME"
            raise ValueError(f"{args.root}: none of {left_out} pictures can be read and has a caption; {remedy}")
        get_folder_anno(images, args.out, seed=args.seed, val_share=args.val_share)
        if not read_json(args.out / "images_questions_val.json"):
            raise ValueError(f"{args.root}: no held-out questions; raise --val-share, or add pictures whose captions differ")
        asked = write_question_file(args.out / "images_questions_val.json", args.out / "questions_val.jsonl")
    print(f"{args.out}: {made} squares of {args.size} pixels, {left_out} pictures left out, {asked} held-out questions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
