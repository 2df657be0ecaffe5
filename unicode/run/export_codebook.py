"""Take the input-embedding table out of a language model: HF folder or GGUF file -> one safetensors file that tokenizers are built on.

python -m unicode.run.export_codebook --model models/vicuna-7b-v1.5 --out outputs/tables/vicuna-7b.safetensors
"""

import argparse
from pathlib import Path

from unicode.run.command import command, log


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m unicode.run.export_codebook", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder of a Hugging Face causal LM, or a .gguf file")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="safetensors file to write: rows and excluded ids")
    parser.add_argument("--dry-run", action="store_true", help="read and report, write nothing")
    arguments = parser.parse_args(argv)
    from unicode.codebook.embedding_table import load_table, save_table
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
    if arguments.dry_run:
        return 0
    save_table(arguments.out, embedding.rows, excluded, model=embedding.model)
    log.info("wrote %s, sha256 of the rows %s", arguments.out, load_table(arguments.out).digest)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
