"""Pictures of 256 px written by cells: a tokenizer of each layout, its ids, one model that reads and draws -> a table.

    OMP_NUM_THREADS=1 python tests/bench/cells_256.py --out outputs/cells_256

Layouts of configs/tokenizer/{hqvae,rqvae}_256.yaml with narrow channels: 8x8 + 16x16 (cells of 5 ids) and 8x8x4 (cells of 4); a small base
model, config configs/llm/unicode_visual_text_cells.yaml. Pictures: Tux Paint's animals with captions and questions (generated scenes where
they are not installed), and those of data/sample, drawn from its captions, with its conversations. Commands that have ended are kept.
Exit code 1 where a loss of training does not fall, a picture has another size, or a completion changes a given id.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from unicode.ids.store import Store
from unicode.images.shapes import COLOURS, PLACES, SHAPES, Scene, ShapesConfig, Thing, draw_scene
from unicode.images.shapes_text import scene_caption

ROOT = Path(__file__).parents[2]
STAMPS = Path("/usr/share/tuxpaint/stamps/animals")
WORLD = ShapesConfig(image_size=256, max_objects=3)
LAYOUTS = {"8x8 + 16x16": ("hqvae", 16), "8x8x4": ("rqvae", 8)}  # channels at full resolution, which rqvae does not halve at once
STEPS = """
base: make_base_model --out {out}/base --text {out}/text.txt --vocab-size 2048 --context 2048 --batch-size 8 --steps 60
table: export_codebook --model {out}/base --out {out}/table.safetensors
tokenizer: train_tokenizer {root}/configs/tokenizer/{kind}_256.yaml run.dir={own}/tokenizer run.compile=false
    model.codebook.table={out}/table.safetensors model.codebook.entropy_weight=0.05 model.autoencoder.channels={channels}
    model.autoencoder.num_res_blocks=1 model.autoencoder.latent_channels=32 data.name=folder data.root={anno}/images data.crop=center
    objective.l1=0.5 objective.perceptual.weight=0 objective.discriminator.enabled=false optimizer.lr=2e-3 optimizer.warmup_steps=10
    train.steps={tokenizer_steps} train.batch_size=8 train.average_decay=0 train.fade_in=0.1 train.num_workers=0 train.log_every=10
    train.save_every=25 train.val_split=
reconstruction: eval_tokenizer --ckpt {own}/tokenizer --images {held_out} --root {anno}/images --out {own}/reconstruction.json
ids: encode_images --ckpt {own}/tokenizer --images {anno}/images --out {own}/ids
whole: make_annotations --func get_t2v_anno --root {anno} --anno images_captions_train.json --ids {own}/ids --out {own}/anno
held: make_annotations --func get_t2v_anno --root {anno} --anno images_captions_val.json --ids {own}/ids --out {own}/anno
compressed: make_annotations --func get_decompression_anno --root {anno} --anno images_captions_train.json --ids {own}/ids --out {own}/anno
free: make_annotations --func get_uncond_anno --root {anno} --anno images_captions_train.json --ids {own}/ids --out {own}/anno --share 0.3
sample: make_annotations --func get_t2v_anno --root {root}/data/sample --ids {own}/ids --out {own}/anno
talk: make_annotations --func get_llava_uni_anno --root {root}/data/sample --ids {own}/ids --out {own}/anno
model: train_llm {root}/configs/llm/unicode_visual_text_cells.yaml run.dir={own}/model run.deepspeed= run.device=cpu model.path={out}/base
    model.image_tokenizer={own}/tokenizer model.template=chat data.files=[{files}] data.stores=[{own}/ids]
    model.gradient_checkpointing=false lora.r=64 lora.alpha=128 lora.dropout=0 data.max_length=1024 data.num_workers=0
    data.val_files=[{own}/anno/images_captions_val_t2v_full.json,{anno}/images_questions_val.json] optimizer.lr=1e-3
    optimizer.betas=[0.9,0.98] train.epochs=0 train.steps={steps} train.batch_size=8 train.micro_batch_size=0 train.group_by=none
    train.log_every=10 train.eval_every=40 train.save_every=40
draw: generate_images --model {own}/model --merge --prompts {held_out} --out {own}/draw guidance=1.5 limit=8
complete: generate_images --model {own}/model --merge --complete {held_out} --keep 4 --out {own}/complete limit=8 data.root={anno}/images
decompress: generate_images --model {own}/model --merge --decompress {held_out} --out {own}/decompress limit=8 data.root={anno}/images
"""
LEARNED = "{made}_t2v_full.json,{made}_t2v_part.json*0.3,{made}_decompression.json*0.5,{made}_uncond.json,"
LEARNED += "{own}/anno/llava_laion558k_t2v_full.json,{own}/anno/llava_mix665k.json,{anno}/images_questions_train.json*0.5"


def run_steps(steps: str, done: Path, /, **values: Any) -> None:
    """Run commands of unicode.run in this process; those that ended before have a file in `done`, which holds their seconds."""
    done.mkdir(parents=True, exist_ok=True)
    for label, name, rest in re.findall(r"^(\w+): (\w+)((?: .*\n)+)", steps, flags=re.MULTILINE):
        words, begun = [word.format(**values) for word in rest.split()], time.monotonic()
        if (done / label).exists():
            continue
        if import_module(f"unicode.run.{name}").main(words):
            sys.exit(f"{done}: {label} failed")
        (done / label).write_text(f"{time.monotonic() - begun:.0f}")


def prepare(out: Path) -> None:
    """Make pictures, captions, questions and the text of the base model."""
    anno, sample = out / "anno", ROOT / "data/sample"
    if not (anno / "images_questions_val.json").exists() and STAMPS.is_dir():
        subprocess.run([sys.executable, "data/stamps", "--root", STAMPS, "--out", anno, "--val-share", "0.1"], check=True, cwd=ROOT)
    elif not (anno / "images_questions_val.json").exists():
        for number in range(150):
            scene = draw_scene(WORLD, "train", number)
            save(scene, anno / f"images/scenes/all/{number:04}.png").with_suffix(".txt").write_text(scene_caption(scene, Random(number)))
        run_steps("scenes: make_annotations --func get_folder_anno --root {out}/anno/images --out {out}/anno\n", out / "done", out=out)
    for record in json.loads((sample / "blip_laion_cc_sbu_558k.json").read_text())[:-1]:  # the last one is no scene
        named = [re.findall("|".join(names), record["conversations"][1]["value"]) for names in (COLOURS, SHAPES, PLACES[2])]
        things = (Thing(colour, shape, "large", place) for colour, shape, place in zip(*named, strict=True))
        save(Scene(tuple(things), WORLD), anno / "images" / record["image"])
    lines, files = [], (*sample.glob("*.json"), *anno.glob("images_*_train.json"))
    for record in (record for file in files for record in json.loads(file.read_text())):
        turns = [" ".join(turn["value"].replace("<image>", "").split()) for turn in record["conversations"]]
        lines += [f"Question: {asked} Answer: {answer}" for asked, answer in zip(turns[::2], turns[1::2], strict=True)]
    (out / "text.txt").write_text("\n".join(lines))


def save(scene: Scene, path: Path) -> Path:
    """Write the picture of a scene; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.pixels().transpose(1, 2, 0)).save(path)
    return path


def measure(own: Path) -> dict[str, Any]:
    """Read losses, first and last, and what was drawn."""
    lines, store = list(map(json.loads, (own / "model/metrics.jsonl").open())), Store(own / "ids")
    named = {name for line in lines for name in line if re.fullmatch(r"(eval_)?(loss/level_\d|text_loss|image_loss)", name)}
    losses = {name: [line[name] for line in lines if name in line] for name in sorted(named)}
    drawn = {task: list(map(json.loads, (own / task / "results.jsonl").open())) for task in ("draw", "complete", "decompress")}
    whole = [Image.open(own / task / one["file"]).size == (256, 256) for task, found in drawn.items() for one in found]
    kept = [one["ids"][: one["given"]] == store[one["id"]][: one["given"]].tolist() for one in drawn["complete"]]
    psnr = json.loads((own / "reconstruction.json").read_text())["metrics"]["psnr"]["value"]
    row = {"reconstruction, PSNR": f"{psnr:.1f} dB"} | {name: f"{of[0]:.2f} -> {of[-1]:.2f}" for name, of in losses.items()}
    row |= {"pictures of 256x256": f"{sum(whole)} of {len(whole)}", "given ids kept": f"{sum(kept)} of {len(kept)}"}
    row |= {f"seconds: {step}": (own / "done" / step).read_text() for step in ("tokenizer", "ids", "model", *drawn)}
    return row | {"right": all(whole + kept) and all(of[-1] < of[0] for name, of in losses.items() if name[0] != "e")}


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default="outputs/cells_256", help="folder of everything (default: %(default)s)")
    parser.add_argument("--tokenizer-steps", type=int, default=50, help="of 8 pictures (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=120, help="of the language model, of 8 conversations (default: %(default)s)")
    args = parser.parse_args()
    out, rows = args.out.resolve(), {}
    prepare(out)
    for name, (kind, channels) in LAYOUTS.items():
        own, anno = out / kind, out / "anno"
        places = {"out": out, "own": own, "anno": anno, "root": ROOT, "held_out": anno / "images_captions_val.json"}
        files = LEARNED.format(**places, made=own / "anno/images_captions_train")
        run_steps(STEPS, own / "done", **vars(args) | places, kind=kind, channels=channels, files=files)
        rows[name] = measure(own)
    print("| |", " | ".join(rows), "|\n|---|" + "---|" * len(rows))
    for name in max(rows.values(), key=len):
        print(f"| {name} |", " | ".join(str(row.get(name, "")) for row in rows.values()), "|")
    return 0 if all(row["right"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
