"""Shared by all commands: log messages on, and a user's error printed as one line with exit code 2 instead of a traceback."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import wraps
from typing import Any

from unicode.common.distributed import process_group
from unicode.common.logging import get_logger, printable, setup_logging

Main = Callable[[list[str] | None], int]

log = get_logger("unicode.run")  # of all commands: under `python -m` a command's own name is __main__
USER_ERROR = 2
INTERRUPTED = 130


def command(main: Main) -> Callable[..., int]:
    """Wrap the `main(argv) -> exit code` of a command.

    ValueError and OSError (with it FileNotFoundError and a full disk) are errors that the user can correct: they become one line
    `error: ...` on standard error and exit code 2. Ctrl-C becomes 130. Any other error is a bug and keeps its traceback. With
    UNICODE_TRACEBACK=1 in the environment the traceback of a user's error is shown too. A process group that the command opened is
    closed: threads that outlive the interpreter may abort, which the launcher would report as a failure.
    """

    @wraps(main)
    def run(argv: list[str] | None = None) -> int:
        setup_logging()
        alone = process_group() is None
        try:
            return main(argv)
        except (ValueError, OSError) as error:
            if os.environ.get("UNICODE_TRACEBACK") == "1":
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            return USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        finally:
            opened = process_group() if alone else None
            if opened:
                opened.destroy_process_group()

    return run


def new_parser(name: str, doc: str | None, *, dry_run: str) -> ArgumentParser:
    """Return the parser of the command `name`, described by the first line of its docstring. `dry_run`: what --dry-run does."""
    parser = ArgumentParser(prog=f"python -m unicode.run.{name}", description=(doc or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    return parser


def add_model_options(parser: ArgumentParser, what: str, *, required: bool = True, merged: bool = False, engine: bool = False) -> None:
    """Add the options of `open_named_model`, or of `open_named_engine`. `what`: help of --model. `merged`: LoRA is always merged."""
    parser.add_argument("--model", required=required, help=what)
    parser.add_argument("--base", default="", help="base model, if it has moved since the training")
    parser.add_argument("--image-tokenizer", default="", help="the same for the image tokenizer")
    parser.set_defaults(merge=merged)
    if not merged:
        parser.add_argument("--merge", action="store_true", help="add a LoRA adapter to the weights: faster, equal but for rounding")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    if engine:
        servers = "llama.cpp or vLLM servers of this model, a folder of merge_lora (default: our own engine)"
        parser.add_argument("--engine", default="", metavar="URL[,URL...]", help=servers)


def open_named_model(args: Namespace) -> Any:
    """Join the job and open the language model that the options name."""
    from unicode.common.distributed import open_job
    from unicode.llm.load import open_model

    options = {"base": args.base, "image_tokenizer": args.image_tokenizer, "dtype": args.dtype, "merge": args.merge}
    return open_model(args.model, device=open_job(args.device), **options)


def open_named_engine(args: Namespace) -> tuple[Any, Any]:
    """Open the model that the options name and the engine of --engine: the model then has no weights. Without --engine that is None."""
    if not args.engine:
        return open_named_model(args), None
    from unicode.llm.load import open_without_weights
    from unicode.serve.engines import HttpEngine

    model = open_without_weights(args.model, image_tokenizer=args.image_tokenizer, device=args.device)
    return model, HttpEngine(args.engine, model)


def one_line(error: BaseException) -> str:
    """Return the message of an error as one printable line; the bare path of an OSError gets its reason in words."""
    named = isinstance(error, OSError) and error.strerror and error.filename is not None
    text = f"{error.filename}: {error.strerror}" if named else str(error)  # type: ignore[attr-defined]
    return printable(" ".join(text.split())) or type(error).__name__
