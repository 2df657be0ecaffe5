"""Compare the codebook modes on the generated world: same budget, several seeds -> the table of docs/results.md.

    python tests/bench/codebook_modes.py --table outputs/base/table.safetensors --out outputs/codebook_modes --processes 2

Each run trains a small HQ-VAE, encodes scenes, and lets a small language model learn the ids of the training scenes and predict those of
held-out ones (unseen combinations). Finished runs are kept; the same command goes on with the others and prints the table.
"""

import argparse
import json
from itertools import product
from pathlib import Path

from runs import codebook_modes, coded, one_core, print_table, read_results, shown, start_missing, train_tokenizer

VARIANTS = codebook_modes(502)
VARIANTS["projected, entropy 0.02"] = [*VARIANTS["projected"], "model.codebook.entropy_weight=0.02"]
WORLDS = {
    "32 px": ["model.image_size=32"],
    "64 px, jitter": (
        "model.image_size=64 model.autoencoder.channels=24 model.autoencoder.multipliers=[1,2,2] "
        "data.shapes.jitter=2 data.shapes.colours=8 data.shapes.shapes=4 data.shapes.places=3"
    ).split(),
}
COLUMNS = ("PSNR dB", "coarse usage %", "fine usage %", "coarse perplexity", "fine perplexity", "bits / image", "|rows - LLM|")


def run_one(args: argparse.Namespace, world: str, variant: str, seed: int) -> dict[str, float]:
    """Train, encode and predict one combination in this process."""
    import torch
    from predictability import predict_ids

    from unicode.codebook.embedding_table import load_table
    from unicode.metrics.reconstruction import count_rows_, usage_report

    folder = Path(args.out) / f"{world}-{variant}-{seed}".replace(" ", "_").replace(",", "")
    settings = [f"model.codebook.table={args.table}", "train.batch_size=32", "train.val_images=8", "train.num_workers=0"]
    settings += one_core(folder, seed=seed, steps=args.steps)
    settings += ["data.shapes.max_objects=3", "model.autoencoder.encoder_tile=0"]  # what lies side by side shall influence the codes
    settings += [*WORLDS[world], *VARIANTS[variant]]
    tokenizer, config = train_tokenizer("hqvae_shapes", settings)

    def encode(split: str, count: int) -> tuple[torch.Tensor, float]:
        found = list(coded(tokenizer, config, split, limit=count))
        return torch.cat([codes for _, codes, _ in found]), float(torch.cat([psnr for _, _, psnr in found]).mean())

    train_codes, _ = encode("train", args.images)
    val_codes, psnr = encode("val", 500)
    reports = []
    for part in tokenizer.layout.split(val_codes):
        counts = torch.zeros(tokenizer.num_rows, dtype=torch.long)
        count_rows_(counts, part)
        reports.append(usage_report(counts))
    bits = predict_ids(tokenizer.to_ids(train_codes), tokenizer.to_ids(val_codes), steps=args.lm_steps, seed=seed).bits_per_image
    distance = float("nan")
    if variant in ("frozen", "language"):
        language = load_table(args.table).rows[tokenizer.row_ids]
        distance = max(float((codebook.rows - language).abs().max()) for codebook in tokenizer.codebooks)
    usage = [report["usage_percent"] for report in reports] + [report["perplexity"] for report in reports]
    return dict(zip(COLUMNS, [psnr, *usage, bits, distance], strict=True))


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="embedding table of the base model")
    parser.add_argument("--out", default="outputs/codebook_modes", help="folder of runs and results")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each tokenizer")
    parser.add_argument("--lm-steps", type=int, default=200, help="optimizer steps of each language model")
    parser.add_argument("--images", type=int, default=2000, help="training scenes whose ids the language model learns")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    parser.add_argument("--one", nargs=3, metavar=("WORLD", "VARIANT", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    results = Path(args.out) / "results"
    results.mkdir(parents=True, exist_ok=True)
    if args.one:
        world, variant, seed = args.one
        result = run_one(args, world, variant, int(seed))
        (results / f"{world}-{variant}-{seed}.json").write_text(json.dumps(result))
        return
    paths = {job: results / f"{job[0]}-{job[1]}-{job[2]}.json" for job in product(WORLDS, VARIANTS, range(args.seeds))}
    start_missing({path: job for job, path in paths.items()}, args.processes)
    rows = []
    for world, variant in product(WORLDS, VARIANTS):
        runs = read_results(paths[world, variant, seed] for seed in range(args.seeds))
        cells = [shown([run[name] for run in runs]) for name in COLUMNS[:-1]]
        rows.append([world, variant, *cells, max(run[COLUMNS[-1]] for run in runs)])
    print_table(["world", "mode", *COLUMNS], rows)


if __name__ == "__main__":
    main()
