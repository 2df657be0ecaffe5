"""Make a small LLaMA and its tokenizer, pre-trained on text about the shapes world or on a file of text.

python -m unicode.run.make_base_model --out outputs/base
python -m unicode.run.make_base_model --out outputs/base --text datasets/emoji/base_text.txt --vocab-size 1024 --width 192 --hidden 512
"""

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from unicode.llm.base_model import BaseConfig, is_made, make_base_model
from unicode.run.command import command, log, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("make_base_model", __doc__, dry_run="check the settings and the folder, make nothing")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the model and its tokenizer; kept if complete")
    for field in fields(BaseConfig):
        option = f"--{field.name.replace('_', '-')}"
        kind: dict[str, Any] = {"action": "store_true"} if field.default is False else {"type": type(field.default)}
        parser.add_argument(option, default=field.default, help="(default: %(default)s)", **kind)
    arguments = parser.parse_args(argv)
    config = BaseConfig(**{field.name: getattr(arguments, field.name) for field in fields(BaseConfig)})
    if is_made(arguments.out, config):
        log.info("%s holds this base model already", arguments.out)
        return 0
    if arguments.dry_run:
        return 0
    start = time.monotonic()
    loss = make_base_model(arguments.out, config)
    log.info("wrote %s: loss %.3f nats a token after %d steps, %.0f s", arguments.out, loss, config.steps, time.monotonic() - start)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
