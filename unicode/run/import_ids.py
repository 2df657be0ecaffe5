"""Import the id files of UniCode-ECCV24 into a store.

python -m unicode.run.import_ids SRC OUT --split train --paths blip_laion_cc_sbu_558k.json
"""

import argparse

from unicode.common.log import get_logger
from unicode.ids.published import read_published, write_published
from unicode.run.command import command

log = get_logger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    description = "Import the id files of UniCode-ECCV24 into a store."
    parser = argparse.ArgumentParser(prog="python -m unicode.run.import_ids", description=description)
    parser.add_argument("source", metavar="SRC", help="folder of <split>_image_list.json, <split>_codes_t.pth and <split>_codes_b.pth")
    parser.add_argument("out", metavar="OUT", help="folder of the store")
    parser.add_argument("--split", default="train", help="first part of the file names (default: %(default)s)")
    parser.add_argument("--paths", help="LLaVA annotation (.json) or list (.txt) with the paths, from the image root, of bare names")
    parser.add_argument("--ckpt", help="tokenizer that made the ids: recorded in the store, and ids that are not its own are refused")
    parser.add_argument("--dry-run", action="store_true", help="read and check everything, write nothing")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args(argv)
    fingerprint, row_ids = "", None
    if args.ckpt:
        from unicode.tokenizer.load import load_tokenizer

        tokenizer = load_tokenizer(args.ckpt)
        fingerprint, row_ids = tokenizer.fingerprint, tokenizer.row_ids
    published = read_published(args.source, split=args.split, paths=args.paths, row_ids=row_ids)
    if not args.dry_run:
        write_published(published, args.out, fingerprint=fingerprint)
    log.info("%s: %d images, %s", args.source if args.dry_run else args.out, len(published.keys), published.layout.describe())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
