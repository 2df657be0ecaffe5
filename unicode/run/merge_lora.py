"""Add a trained LoRA adapter to its base model: a plain Hugging Face folder that any tool opens, with unicode.json in it.

python -m unicode.run.merge_lora outputs/unicode_lora outputs/unicode_merged
"""

from dataclasses import replace
from pathlib import Path
from shutil import copyfile

from unicode.common.files import lock_folder, name_errors
from unicode.common.hub import find_folder
from unicode.run.command import command, log, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("merge_lora", __doc__, dry_run="open base model and adapter, write nothing")
    parser.add_argument("run", help="run folder of train_llm with an adapter")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--base", default="", help="base model, if it has moved since the training")
    parser.add_argument("--dtype", default="auto", help="of the weights: float32, bfloat16, float16 or auto, as the base model has them")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds a model already")
    args = parser.parse_args(argv)
    from unicode.llm.card import write_card
    from unicode.llm.cell_head import FILE as CELL_HEAD_FILE
    from unicode.llm.llava import PROJECTOR_FILE, read_projector, save_projector
    from unicode.llm.load import open_merged

    run, out = find_folder(args.run, otherwise="give a run folder of train_llm"), Path(args.out)
    if (out / "config.json").exists() and not args.overwrite:
        raise ValueError(f"{out} holds a model already; give another folder, or --overwrite")
    if out.resolve() == run.resolve():
        raise ValueError(f"{out} is the run folder itself; give another folder for the merged model")
    model, text, card = open_merged(run, base=args.base, dtype=args.dtype)
    if args.dry_run:
        log.info("%s on %s can be merged: %d weights, %s", run, card.base, model.num_parameters(), model.dtype)
        return 0
    with lock_folder(out, "merging"), name_errors(out):
        model.save_pretrained(out)
        text.save_pretrained(out)
        if (run / PROJECTOR_FILE).is_file():
            save_projector(out, read_projector(run))
        if card.output_mode == "cells":
            copyfile(run / CELL_HEAD_FILE, out / CELL_HEAD_FILE)
        # last, so that a folder with a card is complete
        write_card(out, replace(card, kind="full" if card.kind == "lora" else card.kind, config={**card.config, "merged_from": str(run)}))
    log.info("%s: %d weights, %s", out, model.num_parameters(), model.dtype)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
