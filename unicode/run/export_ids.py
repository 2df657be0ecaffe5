"""Export a store of ids as one file that other tools read; `unicode.run.import_ids` reads it back.

python -m unicode.run.export_ids --ids outputs/hqvae/ids/photos --format parquet --out photos.parquet
"""

from pathlib import Path

from unicode.ids.parquet import write_parquet
from unicode.ids.store import Store
from unicode.run.command import command, log, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("export_ids", __doc__, dry_run="open the store, write nothing")
    parser.add_argument("--ids", required=True, type=Path, metavar="STORE", help="folder of the store")
    parser.add_argument("--format", choices=("parquet",), default="parquet", help="columns key, ids, reason (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="file to write, .parquet")
    args = parser.parse_args(argv)
    if args.out.suffix != ".parquet":
        raise ValueError(f"--out {args.out} has to be a .parquet file")
    store = Store(args.ids)
    if not args.dry_run:
        write_parquet(store, args.out)
    log.info("%s: %d images, %s", args.ids if args.dry_run else args.out, len(store), store.layout.describe())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
