"""Write the shapes world as POPE, ScienceQA, MME, GQA and VQAv2: question files, right answers and pictures in LLaVA's folders.

python -m unicode.run.export_benchmarks --out outputs/shapes/eval
"""

from pathlib import Path

from unicode.annotations.exports import EXPORTS, export_benchmarks, training_conversations
from unicode.common.config import load_config
from unicode.common.files import lock_folder
from unicode.common.json_lists import write_json_list
from unicode.images.shapes import SPLITS, ShapesConfig
from unicode.run.command import command, log, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("export_benchmarks", __doc__, dry_run="check the settings, write nothing")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which benchmarks: {', '.join(EXPORTS)} (default: all)")
    parser.add_argument("--out", required=True, help="folder of the benchmarks: what unicode.run.benchmark is given as --data")
    parser.add_argument("--split", choices=SPLITS, default="val", help="scenes of which split (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=100, help="the first so many scenes of the split (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=5, help="of GQA and VQAv2, per scene at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides what is asked (default: %(default)s)")
    parser.add_argument("--world", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the world that differ, as colours=8")
    train_help = "also write shapes_forms_train.json: so many training scenes, asked in the forms of these benchmarks (default: none)"
    parser.add_argument("--train", type=int, default=0, metavar="N", help=train_help)
    args = parser.parse_args(argv)
    config = load_config(ShapesConfig, None, args.world)
    if args.train < 0:
        raise ValueError(f"--train {args.train} is below 0")
    settings = {"split": args.split, "num_scenes": args.scenes, "questions": args.questions, "seed": args.seed, "names": args.names}
    if args.dry_run:
        counts = export_benchmarks(args.out, config=config, **settings, dry_run=True)
        log.info("would write %s to %s", ", ".join(counts), args.out)
        return 0
    with lock_folder(args.out, "exporting"):
        for name, count in export_benchmarks(args.out, config=config, **settings).items():
            log.info("%s: %d questions about %d pictures", name, count, args.scenes)
        if args.train:
            path = Path(args.out) / "shapes_forms_train.json"
            log.info("%s: %d conversations", path, write_json_list(path, training_conversations(config, num_scenes=args.train)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
