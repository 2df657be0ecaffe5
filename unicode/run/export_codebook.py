"""Take the input-embedding table out of a language model: HF folder or GGUF file -> one safetensors file that tokenizers are built on.

python -m unicode.run.export_codebook --model models/vicuna-7b-v1.5 --out outputs/tables/vicuna-7b.safetensors
"""

from pathlib import Path

from unicode.run.command import command, log, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("export_codebook", __doc__, dry_run="read and report, write nothing")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder of a Hugging Face causal LM, or a .gguf file")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="safetensors file to write: rows and excluded ids")
    rare = "let only the last N eligible rows stand for pieces of images, which are the rarest tokens of most vocabularies (default: all)"
    parser.add_argument("--last", type=int, default=0, metavar="N", help=rare)
    arguments = parser.parse_args(argv)
    import torch

    from unicode.codebook.embedding_table import LanguageTable, load_table, save_table
    from unicode.llm.vocabulary import load_embedding

    embedding = load_embedding(arguments.model)
    excluded = embedding.excluded_ids()
    count, width = embedding.rows.shape
    print(f"{embedding.model}: {count} rows of width {width}, mean norm {embedding.rows.norm(dim=1).mean():.4g}")
    for reason, ids in embedding.excluded.items():
        if ids:
            samples = ", ".join(f"{index} {embedding.tokens.get(index, '')!r}" for index in ids[:4])
            print(f"  excluded {len(ids):>6}  {reason}: {samples}{', ...' if len(ids) > 4 else ''}")
    print(f"  eligible {count - len(excluded):>6}  may stand for a piece of an image")
    if len(excluded) == len(embedding.rows):
        raise ValueError(f"no row of {arguments.model} may stand for a piece of an image; the model looks untrained")
    if arguments.last:
        eligible = LanguageTable(embedding.rows, excluded, embedding.model, "").select_ids(0)
        if not 0 < arguments.last <= len(eligible):
            raise ValueError(f"--last {arguments.last}: {arguments.model} has {len(eligible)} eligible rows; give a number from 1 to that")
        excluded = torch.cat([excluded, eligible[: -arguments.last]]).sort().values
        print(f"  taken    {arguments.last:>6}  the last of them")
    if arguments.dry_run:
        return 0
    save_table(arguments.out, embedding.rows, excluded, model=embedding.model)
    log.info("wrote %s, sha256 of the rows %s", arguments.out, load_table(arguments.out).digest)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
