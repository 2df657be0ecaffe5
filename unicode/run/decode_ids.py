"""Decode the ids of a store, or of the runs in an annotation file, to pictures.

python -m unicode.run.decode_ids --ckpt outputs/hqvae --ids outputs/hqvae/ids/photos --out pictures
"""

from unicode.annotations.build import read_runs
from unicode.common.distributed import open_job
from unicode.ids.store import Store
from unicode.run.command import command, log, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("decode_ids", __doc__, dry_run="load the tokenizer, open the ids, write nothing")
    parser.add_argument("--ckpt", required=True, help="tokenizer that made the ids")
    parser.add_argument("--ids", required=True, help="store of ids, or an annotation file (.json, .jsonl) with <vistok> runs")
    parser.add_argument("--out", required=True, help="folder of the PNG files; each at the path of its key")
    parser.add_argument("--view", type=int, default=0, help="which view, where a store has several (default: %(default)s)")
    parser.add_argument("--levels", type=int, default=None, help="use the first so many levels only; 1: the coarse picture (default: all)")
    parser.add_argument("--limit", type=int, default=0, help="decode only the first so many pictures (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures per forward pass (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    args = parser.parse_args(argv)
    from unicode.tokenizer.decode import decode_runs, store_runs
    from unicode.tokenizer.load import load_tokenizer

    device = open_job(args.device)
    tokenizer = load_tokenizer(args.ckpt).to(device)
    if args.ids.endswith((".json", ".jsonl")):
        layout, total = tokenizer.layout, None
        runs = read_runs(args.ids, layout=layout, tokenizer=tokenizer.fingerprint)
    else:
        store = Store(args.ids)
        layout, total, runs = store.layout, len(store), store_runs(store, tokenizer, view=args.view)
    if args.dry_run:
        next(runs, None)
        log.info("%s: %s", args.ids, layout.describe())
        return 0
    settings = {"levels": args.levels, "batch_size": args.batch_size, "limit": args.limit}
    pictures, partial = decode_runs(tokenizer, runs, args.out, layout=layout, total=total, **settings)
    left_out = f", {partial} runs of ids are no whole picture and were left out" if partial else ""
    log.info("%s: %d pictures%s", args.out, pictures, left_out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
