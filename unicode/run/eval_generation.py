"""Measure drawn pictures: FID, inception score, CLIP score; of the shapes world what the exact judge sees in them.

python -m unicode.run.eval_generation --pictures outputs/drawn
python -m unicode.run.eval_generation --pictures outputs/drawn_imagenet --config configs/generation/imagenet.yaml
"""

import argparse
from pathlib import Path
from typing import Any

from unicode.common.log import get_logger
from unicode.common.ranks import is_main
from unicode.run.command import command
from unicode.run.job import open_job

log = get_logger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(prog="python -m unicode.run.eval_generation", description="Measure drawn pictures.")
    parser.add_argument("--pictures", required=True, help="folder that generate_images filled")
    parser.add_argument("--out", default="", help="JSON file of the report (default: metrics.json in the folder of the pictures)")
    parser.add_argument("--images", default="", help="pictures to compare with (FID): folder, list, LLaVA .json, tar shards, shapes:SPLIT")
    parser.add_argument("--config", default=None, help="YAML of a protocol; its data are the pictures to compare with")
    parser.add_argument("--inception", default="", help="file of torch-fidelity's Inception weights, for FID and inception score")
    parser.add_argument("--clip", default="", help="folder of a CLIP model of transformers, for the CLIP score")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=-1, help="processes per rank that read pictures (default: up to 8; none on a CPU)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="find everything, say what could not be computed, measure nothing")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the protocol, as splits=1 or data.limit=5000")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_intermixed_args(argv)
    from unicode.common.config import load_config
    from unicode.common.records import write_json
    from unicode.generate.config import GenerationConfig
    from unicode.metrics.entry import NotComputed
    from unicode.metrics.generation import GenerationMetrics, load_clip
    from unicode.run.drawn_pictures import Drawn, feed, judge_drawn, open_reference
    from unicode.run.judges import load_inception_everywhere

    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}; it must be at least 1")
    config = load_config(GenerationConfig, args.config, args.settings)
    device = open_job(args.device)
    drawn = Drawn(args.pictures)
    reference = open_reference(args.images, config, side=drawn.side, named=args.config is not None)
    inception = load_inception_everywhere(args.inception, device=device)
    clip = load_clip(args.clip, device=device)
    missing = [f"{name}: {one.reason} ({one.remedy})" for name, one in (("FID and inception score", inception), ("CLIP score", clip))
               if isinstance(one, NotComputed)]  # fmt: skip
    if args.dry_run:
        lacking = " | ".join(missing) or "nothing"
        log.info("%d pictures, %d to compare with; not to be computed: %s", len(drawn), len(reference or ()), lacking)
        return 0
    metrics = GenerationMetrics(inception=inception, clip=clip, splits=config.splits, device=device)
    skipped = feed(metrics, drawn, reference, batch_size=args.batch_size, num_workers=args.workers, device=device)
    name = "" if reference is None else (args.images or config.data.name)
    report: dict[str, Any] = {"metrics": judge_drawn(drawn) | metrics.compute(reference=name)}
    report["protocol"] = {
        "num_pictures": len(drawn),
        "num_errors": drawn.num_errors,
        "num_reference": 0 if reference is None else len(reference) - skipped,
        "reference": name,
        "transform": "" if reference is None else reference.protocol,
        "published": config.published,
        "drawn_by": drawn.settings,
    }
    if is_main():
        write_json(Path(args.out or Path(args.pictures) / "metrics.json"), report)
        print(format_metrics(report["metrics"]))
    return 0


def format_metrics(metrics: dict[str, Any]) -> str:
    """A line per metric."""
    lines = []
    for name, metric in metrics.items():
        if metric["value"] is None:
            lines.append(f"{name:<18} not computed: {metric['reason']}; {metric['remedy']}")
        else:
            lines.append(f"{name:<18}{metric['value']:10.4f} {metric['unit']}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
