"""Write a merged model as one GGUF file, which llama.cpp, Ollama and other engines serve.

python -m unicode.run.export_gguf --model outputs/unicode_merged --out outputs/unicode.gguf
"""

from pathlib import Path

from unicode.run.command import command, log, new_parser

TYPES = ("f32", "f16", "q8_0")


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("export_gguf", __doc__, dry_run="open the model, write nothing")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder of merge_lora, or a plain causal language model")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="GGUF file to write")
    parser.add_argument("--type", default="f16", choices=TYPES, help="of the matrices (default: %(default)s)")
    args = parser.parse_args(argv)
    from unicode.llm.card import FILE, read_card
    from unicode.llm.cell_head import FILE as CELL_HEAD
    from unicode.llm.gguf_export import export_gguf
    from unicode.llm.llava import PROJECTOR_FILE
    from unicode.llm.load import ADAPTER_CONFIG
    from unicode.llm.model import open_base

    if (args.model / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{args.model} holds an adapter; merge it first: python -m unicode.run.merge_lora {args.model} MERGED")
    for file, what in ((PROJECTOR_FILE, "reads pixels through a projector"), (CELL_HEAD, "writes images by cells")):
        if (args.model / file).is_file():
            raise ValueError(f"{args.model} {what} ({file}), which no GGUF file holds; serve it with python -m unicode.run.serve --model")
    card = read_card(args.model) if (args.model / FILE).is_file() else None
    if card is not None and card.input_mode != "ids":
        log.warning("this model reads images by cells (input_mode %s), which llama.cpp cannot: it can draw and talk there", card.input_mode)
    model, text = open_base(args.model, device="cpu")
    if not args.dry_run:
        export_gguf(model, text, args.out, card=card, kind=args.type, name=args.model.resolve().name)
        log.info("%s: %d weights as %s, %.1f MB", args.out, model.num_parameters(), args.type, args.out.stat().st_size / 1e6)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
