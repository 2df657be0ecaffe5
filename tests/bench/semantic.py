"""Semantic supervision of a tokenizer at equal budget: without, with a teacher, with words, with both -> a table.

    python tests/bench/semantic.py teacher efficientnet-lite0-57934424.pth outputs/efficientnet     the weights as a folder of transformers
    python data/emoji --out datasets/emoji --size 32
    python tests/bench/semantic.py compare emoji --base outputs/base --teacher outputs/efficientnet --out outputs/semantic --processes 2
    python tests/bench/semantic.py step emoji --base outputs/base --teacher outputs/efficientnet --out outputs/semantic --steps 40

`compare` takes emoji or fashion. Every run trains the set's tokenizer for `--steps`, and measures PSNR, the linear probe on the classes of
held-out pictures, retrieval of their captions, bits per image of a small model of ids, and for emoji with `--llm-steps` the questions that
a small language model answers right. Finished runs are kept; the same command goes on with the others and prints the table. `step` trains
all four side by side in one process and prints the CPU time of their steps.
"""

import argparse
import json
import re
import time
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from runs import ROOT, answer, call, coded, one_core, print_means, read_results, start_missing, train_tokenizer, tune

EMOJI, FASHION = "datasets/emoji", "/usr/share/datasets/fashion-mnist"
WITHOUT = "objective.semantic.words.weight=0"  # which a config may have on
VARIANTS = {"without": (), "teacher": ("teacher",), "words": ("words",), "both": ("teacher", "words")}
PARTS = {"emoji": ("train", ("choose", "unseen", "new")), "fashion": ("train", ("test",))}


def convert_teacher(weights: Path, out: Path) -> None:
    """EfficientNet-Lite0 in the names of the package efficientnet_lite_pytorch -> a folder of transformers' EfficientNet.

    Lite networks have ReLU6 and no squeeze-and-excitation: its gates are set to one.
    """
    import torch
    from transformers import EfficientNetConfig, EfficientNetModel

    sizes = {"hidden_dim": 1280, "image_size": 224, "width_coefficient": 1.0, "depth_coefficient": 1.0}
    model = EfficientNetModel(EfficientNetConfig(hidden_act="relu6", **sizes))
    state, source = model.state_dict(), torch.load(weights, weights_only=True)
    renamed = {"_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm"}
    renamed |= {"_conv_head": "encoder.top_conv", "_bn1": "encoder.top_bn"}
    parts = {"_expand_conv": "expansion.expand_conv", "_bn0": "expansion.expand_bn", "_depthwise_conv": "depthwise_conv.depthwise_conv"}
    parts |= {"_bn1": "depthwise_conv.depthwise_norm", "_project_conv": "projection.project_conv", "_bn2": "projection.project_bn"}
    for name, tensor in source.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block:
            state[f"encoder.blocks.{block[1]}.{parts[block[2]]}.{block[3]}"] = tensor
        elif (layer := name.split(".")[0]) in renamed:
            state[f"{renamed[layer]}.{name.split('.')[1]}"] = tensor
    for name in state:
        if ".squeeze_excite.expand." in name:
            state[name] = torch.full_like(state[name], 30.0 if name.endswith("bias") else 0.0)
    model.load_state_dict(state)
    model.eval().save_pretrained(out)


def settings_of(args: argparse.Namespace, variant: str, seed: int, folder: Path) -> list[str]:
    """Overrides of the set's config for one run."""
    made = [f"model.codebook.table={args.base}/table.safetensors", "data.crop=center", *one_core(folder, seed=seed, steps=args.steps)]
    made += [f"data.limit={args.pictures}", WITHOUT]
    if args.set == "emoji":
        made += [f"data.root={EMOJI}/images", f"data.captions={EMOJI}/emoji_gallery.json"]
    return made + supervision(args, variant, cache=f"{args.out}/{args.set}-teacher.safetensors")


def supervision(args: argparse.Namespace, variant: str, *, cache: str) -> list[str]:
    """Overrides that turn on the terms of a variant; `cache` keeps the features of the teacher, "": computed in each step."""
    teacher = {"weight": args.teacher_weight, "path": args.teacher, "cache": cache, "image_size": args.teacher_side}
    terms = {"teacher": teacher, "words": {"weight": args.words_weight, "model": args.base}}
    return [f"objective.semantic.{term}.{key}={value}" for term in VARIANTS[variant] for key, value in terms[term].items()]


def run_one(args: argparse.Namespace, variant: str, seed: int) -> dict[str, float]:
    """Train and measure one tokenizer in this process."""
    import torch
    from predictability import predict_ids

    from unicode.images.dataset import build_dataset
    from unicode.metrics.probe import label_probes, retrieval
    from unicode.run.evaluation import Probe

    folder = Path(args.out) / f"{args.set}-{variant}-{seed}"
    tokenizer, config = train_tokenizer(f"hqvae_{args.set}", settings_of(args, variant, seed, folder))
    ids, psnr, found = [], [], []
    gallery = json.loads(Path(f"{EMOJI}/emoji_gallery.json").read_text()) if args.set == "emoji" else []
    groups = {one["image"]: one["attributes"].get("group", "") for one in gallery}
    train, held_out = PARTS[args.set]
    for split in (train, *held_out):
        config.data.split, config.data.limit, config.data.holdout = split, args.pictures, 0
        dataset = build_dataset(config.data, image_size=config.model.image_size, train=False)
        probe = Probe(tokenizer, dataset, config.data, base=args.base)
        for batch, codes, each in coded(tokenizer, config, split, limit=args.pictures):
            probe.add(batch, tokenizer.layout.split(codes))
            ids.append((split == train, tokenizer.to_ids(codes)))
            psnr += [each] if split != train else []
        found += [(split == train, key, next(iter(probe.captions_of(key))), means, probe) for _, key, means in probe.seen]
    known, new = ([one for one in found if one[0] is part] for part in (True, False))
    result = {"PSNR dB": float(torch.cat(psnr).mean())}
    for name, levels in (("coarse", 1), ("all codes", tokenizer.num_levels)):
        sides: list[Any] = []
        for part in (known, new):
            named = [(groups.get(key, text) if args.set == "emoji" else text, means) for _, key, text, means, _ in part]
            kept = [(label, torch.cat(means[:levels])) for label, means in named if label]
            sides += [torch.stack([vector for _, vector in kept]), [label for label, _ in kept]]
        result[f"linear probe, {name}, %"] = label_probes(*sides)["linear_probe"]["value"]
    texts = [text for _, _, text, _, _ in new]
    shares = retrieval(torch.stack([means[0] for _, _, _, means, _ in new]), new[0][4].space.caption_means(texts), texts)
    result["caption among 5, %"] = shares["caption_of_picture_at_5"]["value"]
    parts = [torch.cat([one for is_train, one in ids if is_train is part]) for part in (True, False)]
    result["bits / image"] = predict_ids(*parts, steps=args.lm_steps, seed=seed).bits_per_image
    return result | (answer_questions(args, folder, seed) if args.set == "emoji" and args.llm_steps else {})


def answer_questions(args: argparse.Namespace, folder: Path, seed: int) -> dict[str, float]:
    """Tune the base model to read the codes of emoji; the share of questions that it answers right, for each held-out split."""
    folder, emoji = folder.resolve(), Path(EMOJI)
    call("encode_images", "--ckpt", folder, "--images", emoji / "images", "--out", folder / "ids", "--device", "cpu")
    files = [emoji / "emoji_questions_train.json", emoji / "emoji_descriptions_train.json*0.5"]
    made = {"base": args.base, "tokenizer": folder, "files": files, "stores": [folder / "ids"]}
    tune("unicode_emoji", *one_core(folder / "llm", seed=seed, steps=args.llm_steps), **made)
    right: dict[str, list[bool]] = {}
    for one, found in answer(folder / "llm", emoji / "questions.jsonl", folder / "answers.jsonl", [folder / "ids"]):
        right.setdefault(one["split"], []).append(found)
    return {f"answers {split}, %": 100 * mean(each) for split, each in right.items()}


def measure_steps(args: argparse.Namespace) -> None:
    """Print the median CPU milliseconds of a step of every variant, which take steps in turn, and their ratio to `without`."""
    from unicode.common.config import load_config
    from unicode.images.loader import build_loader
    from unicode.train.config import TrainTokenizerConfig
    from unicode.train.monitor import TokenizerMonitor
    from unicode.train.samplers import AugmentedSampler
    from unicode.train.tokenizer import TokenizerTrainer

    trainers, spent = {}, {variant: list[float]() for variant in VARIANTS}
    for variant in VARIANTS:
        folder = Path(args.out) / f"step-{variant}"
        config = load_config(TrainTokenizerConfig, ROOT / f"configs/tokenizer/hqvae_{args.set}.yaml", settings_of(args, variant, 0, folder))
        trainers[variant] = TokenizerTrainer(config)
        trainers[variant].monitor = TokenizerMonitor(folder, "cpu", batch_size=config.train.batch_size, usage_alarm=0.0)
    sampler = AugmentedSampler(len(trainers["without"].dataset), batch_size=config.train.batch_size, stop_step=args.steps)
    for step, batch in enumerate(build_loader(trainers["without"].dataset, sampler, num_workers=0)):
        for variant, trainer in trainers.items():
            start = time.process_time()
            trainer.train_step(step, [batch])
            spent[variant].append(1000 * (time.process_time() - start))
    medians = {variant: median(times[len(times) // 4 :]) for variant, times in spent.items()}
    for variant, value in medians.items():
        print(f"| {variant} | {value:.0f} ms | {value / medians['without']:.3f} |")


def compare(args: argparse.Namespace) -> None:
    """Run what is missing, then print the table."""
    results = Path(args.out) / "results"
    results.mkdir(parents=True, exist_ok=True)
    if args.one:
        (results / f"{args.set}-{args.one[0]}-{args.one[1]}.json").write_text(json.dumps(run_one(args, args.one[0], int(args.one[1]))))
        return
    paths = {(variant, seed): results / f"{args.set}-{variant}-{seed}.json" for seed, variant in product(range(args.seeds), VARIANTS)}
    start_missing({paths["teacher", 0]: ("teacher", 0)}, 1)  # it makes the cache of features that others read
    start_missing({path: job for job, path in paths.items()}, args.processes)
    table = {(one,): read_results(paths[one, seed] for seed in range(args.seeds)) for one in VARIANTS}
    print_means([args.set], table, list(table["without",][0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    teacher = parts.add_parser("teacher")
    teacher.add_argument("weights", type=Path)
    teacher.add_argument("out", type=Path)
    for measure in (parts.add_parser("compare"), parts.add_parser("step")):
        add_options(measure)
    args = parser.parse_args()
    if args.what == "teacher":
        convert_teacher(args.weights, args.out)
    elif args.what == "step":
        measure_steps(args)
    else:
        compare(args)


def add_options(measure: argparse.ArgumentParser) -> None:
    """Options of `compare` and `step`."""
    measure.add_argument("set", choices=PARTS)
    measure.add_argument("--base", required=True, help="small base model with table.safetensors in its folder")
    add_supervision(measure)
    measure.add_argument("--out", default="outputs/semantic", help="folder of runs and results")
    measure.add_argument("--steps", type=int, default=1200, help="optimizer steps of each tokenizer")
    measure.add_argument("--lm-steps", type=int, default=300, help="optimizer steps of the model of ids")
    measure.add_argument("--llm-steps", type=int, default=0, help="optimizer steps of the language model; 0: no questions")
    measure.add_argument("--pictures", type=int, default=4000, help="pictures of a split, at most (default: %(default)s)")
    measure.add_argument("--seeds", type=int, default=3)
    measure.add_argument("--processes", type=int, default=1, help="runs side by side")
    measure.add_argument("--one", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)


def add_supervision(parser: argparse.ArgumentParser) -> None:
    """Options that `supervision` reads."""
    parser.add_argument("--teacher", default="outputs/efficientnet", help="folder of a vision model (default: %(default)s)")
    parser.add_argument("--teacher-side", type=int, default=128, help="pixels at which the teacher sees pictures (default: %(default)s)")
    parser.add_argument("--teacher-weight", type=float, default=0.1, help="default: %(default)s")
    parser.add_argument("--words-weight", type=float, default=0.1, help="default: %(default)s")


if __name__ == "__main__":
    main()
