"""Codebook modes x decompression x ids or cells, at equal budget, on emoji or Fashion-MNIST -> tables and the paper's two claims.

    python tests/bench/evidence.py emoji --quickstart outputs/quickstart --out outputs/evidence --processes 2
    python tests/bench/evidence.py fashion --out outputs/evidence --processes 2

Without `--quickstart` annotations, base model and its table are made first. A tokenizer of each mode and seed takes `--tokenizer-steps`;
the runs of this mode and seed share it. A language model takes `--llm-steps`, or with `--llm-seconds` as many steps as a probe fits into
that time. Mode `free` writes the ids of the rows that the other modes take. `--vary one` changes one factor of the default (projected, no
decompression, cells) at a time; `--vary semantic` instead adds the terms of semantic.py, whose docstring tells how to make the teacher's
folder, to the default's tokenizer. Finished runs are kept; the same command goes on and prints the tables.
Loss of images: nats for each id of held-out captions, lower too where fewer rows are used; of `ids` it is over the whole vocabulary.
"""

import json
import subprocess
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import runs
import semantic

from unicode.run.quickstart import FASHION, LEARNED, OTHERS, choose_steps, plan

FACTORS = {"mode": tuple(runs.codebook_modes(0)), "decompression": ("off", "on"), "output": ("ids", "cells")}
DEFAULT = ("projected", "off", "cells")
TERMS = ("teacher", "words", "both")  # of semantic supervision, beside mode `projected`
CLAIMS = {  # the paper's two, then what else the runs tell: factor, what should be better, than what
    "language-driven beats frozen": (0, "language", "frozen"),
    "decompression helps": (1, "on", "off"),
    "projected beats frozen": (0, "projected", "frozen"),
    "cells beat ids": (2, "cells", "ids"),
}
HIDDEN = ("steps", "seconds", "rows", "tokenizer CPU seconds", "tuning CPU seconds", "CPU seconds")  # of results, not shown in tables
UNRATED, LOWER = ("rows used", "bits / picture"), ("FID in CNN features", "loss of images")  # neither better nor worse; better low
BUDGET = {"tokenizer-steps": 300, "llm-steps": 300, "llm-seconds": 0, "pictures": 6000, "held": 2000, "bits-steps": 200, "cnn-epochs": 6}
PROBE_STEPS, ROWS = 40, {"emoji": 256, "fashion": 0}  # rows of the tokenizers' configs; 0: all
HELD_OUT = {"emoji": ("choose", "unseen", "new"), "fashion": ("test",)}
CAPTIONS = {"emoji": "emoji_captions_unseen_seen", "fashion": "fashionmnist_captions_test"}  # held out


def clothes(args: Namespace, part: str) -> list[str]:
    """What encode_images takes: the pictures of a part of Fashion-MNIST that the language model reads, evenly spread."""
    limit = args.pictures if part == "train" else args.held
    return [f"torchvision:FashionMNIST:{part}@{FASHION}", "pad=true", "holdout=0.02", f"limit={limit}"]


def prepare(args: Namespace) -> dict[str, Any]:
    """Make data, base model and table where they are missing, then the questions, annotations of fewer pictures, and the CNN."""
    for step in choose_steps(plan(args.made, data=args.set), only=("data", "base", "codebook")):
        if not step.made.exists():
            if args.quickstart:
                raise ValueError(f"{args.made} is no finished quickstart of {args.set}: there is no {step.made}")
            subprocess.run([sys.executable, *step.command[1:]], check=True, cwd=runs.ROOT)
    args.anno.mkdir(parents=True, exist_ok=True)
    if args.set == "emoji":
        asked = (args.made / "anno/questions_unseen.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in asked if json.loads(line)["category"] in ("what", "tone", "group")]
        (args.anno / "questions.jsonl").write_text("".join(kept))
        return {}
    import fashion

    from unicode.common.config import load_config
    from unicode.images.dataset import DataConfig, open_images

    for part, kind in product(("train", "test"), ("captions", "questions")):
        source, *settings = clothes(args, part)
        keys = set(open_images(source, image_size=32, config=load_config(DataConfig, None, settings)).keys)
        name = f"fashionmnist_{kind}_{part}.json"
        records = [one for one in json.loads((args.made / "anno" / name).read_text()) if one["image"] in keys]
        (args.anno / name).write_text(json.dumps(records))
    runs.call("export_questions", "--anno", args.anno / name, "--kinds", "what", "--out", args.anno / "questions.jsonl")
    return fashion.train_cnn(Namespace(root=FASHION, cnn=args.cnn, epochs=args.cnn_epochs, batch=128, seed=0))


def make_tokenizer(args: Namespace, folder: Path, mode: str, seed: int) -> dict[str, Any]:
    """Train and measure a tokenizer; leave the ids of pictures, and the annotations that hold ids."""
    import torch
    from predictability import predict_ids

    from unicode.codebook.embedding_table import load_table

    table, start = args.made / "table.safetensors", time.process_time()
    row_ids = load_table(table).select_ids(ROWS[args.set])
    settings = [f"model.codebook.table={table}", "train.val_images=8", "train.num_workers=0"]
    settings += runs.codebook_modes(len(row_ids))[DEFAULT[0] if mode in TERMS else mode]
    settings += [semantic.WITHOUT, *([f"data.root={args.made}/anno/images"] if args.set == "emoji" else [])]
    if mode in TERMS:
        args.base = args.made / "base"
        cache = str(args.out / "teacher.safetensors") if args.set == "emoji" else ""  # few steps see a part of 58,800 pictures once
        settings += ["data.crop=center", *semantic.supervision(args, mode, cache=cache)]
        settings += [f"data.captions={args.made}/anno/emoji_gallery.json"] if args.set == "emoji" else []
    settings += runs.one_core(folder / "run", seed=seed, steps=args.tokenizer_steps)
    (tokenizer, config), seconds = runs.train_tokenizer(f"hqvae_{args.set}", settings), round(time.process_time() - start, 1)
    for codebook in tokenizer.codebooks:
        codebook.row_ids.copy_(row_ids)
    tokenizer.save_pretrained(folder / "tokenizer")
    train = torch.cat([codes for _, codes, _ in runs.coded(tokenizer, config, "train", limit=args.pictures)])
    held = [one for split in HELD_OUT[args.set] for one in runs.coded(tokenizer, config, split, limit=args.held)]
    parts = [tokenizer.to_ids(codes).cpu() for codes in (train, torch.cat([codes for _, codes, _ in held]))]
    for part in ("all",) if args.set == "emoji" else ("train", "test"):
        pictures = [args.made / "anno/images"] if args.set == "emoji" else clothes(args, part)
        runs.call("encode_images", "--ckpt", folder / "tokenizer", "--out", folder / "ids" / part, "--images", *pictures)
    own, root = OTHERS[args.set], args.made / "anno" if args.set == "emoji" else args.anno
    places, of_train = ["--root", root, "--out", folder / "anno", "--ids", *sorted(folder.glob("ids/*"))], f"{own['prefix']}_captions_train"
    made = [("t2v", of_train, own.get("requests", "")), ("uncond", of_train, own.get("free", "")), ("decompression", of_train, "")]
    for kind, name, options in (*made, ("t2v", CAPTIONS[args.set], own.get("requests", "--parts 0"))):
        runs.call("make_annotations", "--func", f"get_{kind}_anno", *places, "--anno", f"{name}.json", *options.format().split())
    found = {"PSNR dB": float(torch.cat([psnr for _, _, psnr in held]).mean()), "rows used": len(train.unique())}
    found["bits / picture"] = predict_ids(*parts, steps=args.bits_steps, seed=seed).bits_per_image
    return found | {"rows": len(row_ids), "tokenizer CPU seconds": seconds}


def tune(args: Namespace, folder: Path, tokenizer: Path, combination: Sequence[str], seed: int, steps: int) -> dict[str, Any]:
    """Tune the base model to read and draw; return what its summary has for the table."""
    files, start = [name for name in LEARNED[args.set] if "decompression" not in name], time.process_time()
    files += ["captions_train_decompression.json*0.4"] if combination[1] == "on" else []
    places, names = (tokenizer / "anno", args.anno, args.made / "anno"), [f"{OTHERS[args.set]['prefix']}_{file}" for file in files]
    paths = [next(place / name for place in places if (place / name.partition("*")[0]).exists()) for name in names]
    settings = [f"model.output_mode={combination[2]}", f"data.val_files=[{tokenizer}/anno/{CAPTIONS[args.set]}_t2v_full.json]"]
    settings += ["train.eval_samples=500", *runs.one_core(folder / "model", seed=seed, steps=steps)]
    made = {
        "base": args.made / "base",
        "tokenizer": tokenizer / "tokenizer",
        "files": paths,
        "stores": sorted(tokenizer.glob("ids/*")),
    }
    runs.tune(f"unicode_{args.set}", *settings, **made)
    summary, spent = runs.read_results([folder / "model/summary.json"])[0], round(time.process_time() - start, 1)
    return {"steps": steps, "seconds": summary["seconds"], "tuning CPU seconds": spent, LOWER[1]: summary["losses"]["eval_image_loss"]}


def measure(args: Namespace, folder: Path, tokenizer: Path) -> dict[str, float]:
    """Draw held-out captions, of emoji those of training too, and answer held-out questions with a tuned model."""
    model, anno, found, right = folder / "model", args.made / "anno", dict[str, float](), dict[str, list[bool]]()
    if args.set == "emoji":
        for name, prompts in (("unseen", CAPTIONS["emoji"]), ("train", "emoji_captions_train_seen")):
            options = ("temperature=0", "guidance=1.5", "limit=300")
            metrics = runs.draw(model, anno / f"{prompts}.json", folder / name, *options, gallery=anno / "emoji_gallery.json")
            nearest = [metrics[f"nearest_pixels{part}"]["value"] for part in ("", "_concept")]
            found |= {f"{name}: right %": nearest[0], f"{name}: concept %": nearest[1]}
    else:
        import fashion

        prompts, options, out = anno / f"{CAPTIONS['fashion']}.json", ("temperature=1", "guidance=1.5", "limit=500"), folder / "drawings"
        runs.draw(model, prompts, out, *options, score=False)
        taken = fashion.measure_drawings(Namespace(root=FASHION, cnn=args.cnn, folder=out))
        found = {"recognized %": 100 * taken["recognized"], LOWER[0]: taken["FID in features of the CNN"]}
    for one, fits in runs.answer(model, args.anno / "questions.jsonl", folder / "answers.jsonl", sorted(tokenizer.glob("ids/*"))):
        right.setdefault(one["category"] if args.set == "emoji" else "answers", []).append(fits)
    return found | {f"{name} %": 100 * mean(fits) for name, fits in sorted(right.items())}


def work(args: Namespace, kind: str, *words: str) -> None:
    """Do one job and write its result."""
    path, start = result_of(args, kind, *words), time.process_time()
    if kind == "prepare":
        found = prepare(args)
    elif kind == "tokenizer":
        found = make_tokenizer(args, path.parent, words[0], int(words[1]))
    else:
        *combination, seed, steps = words
        tokenizer = result_of(args, "tokenizer", combination[0], seed)
        found = runs.read_results([tokenizer])[0] | tune(args, path.parent, tokenizer.parent, combination, int(seed), int(steps))
        found |= measure(args, path.parent, tokenizer.parent) if kind == "run" else {}
    path.write_text(json.dumps(found | {"CPU seconds": round(time.process_time() - start, 1)}))


def result_of(args: Namespace, kind: str, *words: object) -> Path:
    """Result of "prepare", "tokenizer" MODE SEED, "probe" and "run" MODE DECOMPRESSION OUTPUT SEED (STEPS)."""
    return args.out / "-".join(map(str, (kind, *words[:4]))) / "result.json"


def print_results(args: Namespace, combinations: list[tuple[str, ...]]) -> None:
    """Print means, differences to the default, and for each claim the mean difference and how many pairs of runs have its sign."""
    results = {one: runs.read_results(result_of(args, "run", *one, seed) for seed in range(args.seeds)) for one in combinations}
    columns = [name for name in results[DEFAULT][0] if name not in HIDDEN]
    print(f"\n{args.set}: mean ± sd of {args.seeds} seeds (of the differences to the default of the same seed)")
    runs.print_means(FACTORS, results, columns, form=".2f", default=DEFAULT)
    if args.vary == "semantic":
        return
    print("\nmean ± sd of paired differences (pairs of runs that agree with the claim)")
    runs.print_claims(CLAIMS, results, [name for name in columns if name not in UNRATED], lower=LOWER)


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=tuple(CAPTIONS))
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="folder of runs and results (default: %(default)s)")
    parser.add_argument("--quickstart", type=Path, help="finished quickstart of this set, for annotations, base model and table")
    parser.add_argument("--vary", choices=("one", "all", "semantic"), default="one", help="6, 16 or 4 runs a seed (default: %(default)s)")
    semantic.add_supervision(parser)
    for name, default in ({"seeds": 3, "processes": 1} | BUDGET).items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--one", nargs="+", help=SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve() / args.set
    args.made, args.anno, args.cnn = (args.quickstart or args.out / "made").resolve(), args.out / "anno", args.out / "cnn.safetensors"
    if args.one:
        work(args, *args.one)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    kept, budget = args.out / "budget.json", {name: getattr(args, name.replace("-", "_")) for name in BUDGET} | {"made": str(args.made)}
    if kept.exists() and runs.read_results([kept]) != [budget]:
        parser.error(f"{args.out} has results of another budget, see {kept}; name another --out")
    kept.write_text(json.dumps(budget))
    changed = {one: sum(a != b for a, b in zip(one, DEFAULT, strict=True)) for one in product(*FACTORS.values())}
    combinations = [one for one, number in changed.items() if number < 2 or args.vary == "all"]
    if args.vary == "semantic":
        combinations = [DEFAULT, *((term, *DEFAULT[1:]) for term in TERMS)]

    def start(jobs: Iterable[tuple[Any, ...]]) -> None:
        runs.start_missing({result_of(args, *job): job for job in jobs}, args.processes)

    start([("prepare",)])
    start(("tokenizer", mode, seed) for seed, mode in product(range(args.seeds), dict.fromkeys(one[0] for one in combinations)))
    steps = dict.fromkeys(combinations, args.llm_steps)
    if args.llm_seconds:
        probes = {one: ("probe", DEFAULT[0], *one[1:], 0, PROBE_STEPS) for one in combinations}
        start(probes.values())
        seconds = runs.read_results(result_of(args, *probe) for probe in probes.values())
        steps = {one: round(args.llm_seconds / each["seconds"] * PROBE_STEPS) for one, each in zip(probes, seconds, strict=True)}
    start(("run", *one, seed, steps[one]) for seed, one in product(range(args.seeds), combinations))
    print_results(args, combinations)


if __name__ == "__main__":
    main()
