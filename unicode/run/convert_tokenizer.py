"""Write any tokenizer that `load_tokenizer` reads, published weights included, in this project's own form.

python -m unicode.run.convert_tokenizer published/hqvae outputs/hqvae_converted
"""

from dataclasses import replace
from pathlib import Path

from unicode.common.files import lock_folder
from unicode.run.command import command, log, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("convert_tokenizer", __doc__, dry_run="load and describe, write nothing")
    parser.add_argument("source", metavar="SRC", help="run folder, checkpoint, save_pretrained folder, or a published run folder")
    parser.add_argument("out", metavar="OUT", help="folder to write; a tokenizer that is there already is not overwritten by another one")
    what = "other order of the ids: nested, which cells need, or rows; the fingerprint is then another"
    parser.add_argument("--order", default="", help=what)
    args = parser.parse_args(argv)
    import torch

    from unicode.tokenizer.load import load_tokenizer
    from unicode.tokenizer.model import CONFIG_FILE

    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"OUT {out} is a file; give the folder that is to hold the tokenizer")
    tokenizer = load_tokenizer(args.source)
    if args.order:
        tokenizer.config = replace(tokenizer.config, order=args.order)
        vars(tokenizer).pop("fingerprint", None)
    config, layout = tokenizer.config, tokenizer.layout
    model = tokenizer.table_model or ("none" if config.codebook.mode == "free" else "not recorded")
    widths = ", ".join(str(book.width) for book in tokenizer.codebooks)
    print(f"type         {config.type}, {config.image_size} px, stride {config.stride}")
    print(f"codes        {layout.num_codes} ids per image, {layout.describe()}")
    print(f"rows         {tokenizer.num_rows} of width {widths}, mode {config.codebook.mode}")
    print(f"ids          {int(tokenizer.row_ids.min())} to {int(tokenizer.row_ids.max())}; language model: {model}")
    print(f"fingerprint  {tokenizer.fingerprint}")
    if (out / CONFIG_FILE).is_file() and load_tokenizer(out).fingerprint != tokenizer.fingerprint:
        raise ValueError(f"{out} holds another tokenizer; remove it or choose another OUT")
    if args.dry_run:
        return 0
    with lock_folder(out, "converting"):
        tokenizer.save_pretrained(out)
        again = load_tokenizer(out)
    images = 2 * torch.rand(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0)) - 1
    codes = tokenizer.encode(images)
    same = torch.equal(codes, again.encode(images)) and torch.equal(tokenizer.to_ids(codes), again.to_ids(codes))
    if not same or not torch.equal(tokenizer.decode(codes), again.decode(codes)) or again.fingerprint != tokenizer.fingerprint:
        raise ValueError(f"{out} does not give what its source gives; remove it and check the disk, then run the command again")
    log.info("%s: written, and read back with the same codes, ids and pixels", out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
