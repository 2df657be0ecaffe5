"""Serve a model over HTTP with OpenAI's protocol: chat with pictures, drawing, pictures to ids and back.

python -m unicode.run.serve --model outputs/unicode_merged --port 8000
"""

import argparse
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unicode.run.command import add_model_options, command, log, new_parser, open_named_engine

KEY_VARIABLE = "UNICODE_API_KEY"
HEAD = 1 << 18  # bytes of a request line and its headers; the parser refuses more
LIMITS = {
    "body": (32 << 20, "bytes of a request"),
    "images": (8, "pictures in a request and in its answer"),
    "tokens": (4096, "longest answer, ids of pictures included"),
    "queue": (128, "requests in work or waiting; others get 429"),
    "seconds": (300, "longest time of a request"),
}


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("serve", __doc__, dry_run="open the model, listen to nothing")
    add_model_options(parser, "run folder of train_llm or folder of merge_lora", engine=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="requests that our own engine works on together (default: %(default)s)")
    for name, (default, what) in LIMITS.items():
        parser.add_argument(f"--max-{name}", type=int, default=default, help=f"{what} (default: %(default)s)")
    what = "pictures may be fetched from it; may be repeated"
    parser.add_argument("--image-host", action="append", default=[], metavar="HOST", help=what)
    args = parser.parse_args(argv)
    try:
        listening = socket.create_server((args.host, 0 if args.dry_run else args.port), backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {args.host}:{args.port} ({error.strerror}); give another --port") from error
    limits, key = {name: getattr(args, f"max_{name}") for name in LIMITS}, os.environ.get(KEY_VARIABLE, "")
    server = open_server(args, key=key, hosts=args.image_host, batch_size=args.batch_size, **limits)
    if not args.dry_run:
        log.info("serving %s by %s at http://%s:%d/v1", args.model, args.engine or "our own engine", *listening.getsockname()[:2])
        server.run(sockets=[listening])
    return 0


def open_server(args: argparse.Namespace, *, key: str, hosts: Iterable[str] = (), batch_size: int = 32, **limits: int) -> Any:
    """Open the model and the engine that the options name, behind a `uvicorn.Server`. ValueError: a limit below 1."""
    from unicode.common.extras import require

    for library in ("uvicorn", "fastapi", "httpx", "prometheus_client"):
        require(library, extra="serve")
    from unicode.serve.local import LocalEngine
    from unicode.serve.server import Limits, Server

    checked = Limits(**limits)
    model, engine = open_named_engine(args)
    engine, name = engine or LocalEngine(model, batch_size=batch_size), Path(args.model).resolve().name
    return listener(Server(engine, name=name, limits=checked, hosts=frozenset(hosts)), key=key)


def listener(server: Any, *, key: str = "") -> Any:
    """Return a `uvicorn.Server` for a `unicode.serve.server.Server`."""
    import uvicorn

    from unicode.serve.server import build_app

    options: dict[str, Any] = {"http": "h11", "h11_max_incomplete_event_size": HEAD, "timeout_graceful_shutdown": server.limits.seconds}
    return uvicorn.Server(uvicorn.Config(build_app(server, key=key), log_config=None, access_log=False, server_header=False, **options))


if __name__ == "__main__":
    raise SystemExit(main())
