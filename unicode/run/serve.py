"""Serve a model over HTTP with OpenAI's protocol: chat with pictures, drawing, pictures to ids and back.

python -m unicode.run.serve --model outputs/unicode_merged --port 8000
"""

import argparse
import os
import socket
from pathlib import Path

from unicode.run.command import add_engine_option, add_model_options, command, log, open_named_engine

KEY_VARIABLE = "UNICODE_API_KEY"


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m unicode.run.serve", description="Serve a model over HTTP with OpenAI's protocol.")
    add_model_options(parser, "run folder of train_llm or folder of merge_lora")
    add_engine_option(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="requests that our own engine works on together (default: %(default)s)")
    parser.add_argument("--max-body", type=int, default=32 << 20, help="bytes of a request (default: %(default)s)")
    parser.add_argument("--max-images", type=int, default=8, help="pictures in a request and in its answer (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="longest answer, ids of pictures included (default: %(default)s)")
    parser.add_argument("--max-queue", type=int, default=128, help="requests in work or waiting; others get 429 (default: %(default)s)")
    parser.add_argument("--max-seconds", type=int, default=300, help="longest time of a request (default: %(default)s)")
    parser.add_argument(
        "--image-host", action="append", default=[], metavar="HOST", help="pictures may be fetched from it; may be repeated"
    )
    parser.add_argument("--dry-run", action="store_true", help="open the model, listen to nothing")
    args = parser.parse_args(argv)
    from unicode.common.extras import require

    uvicorn, *_ = (require(library, extra="serve") for library in ("uvicorn", "fastapi", "httpx", "prometheus_client"))
    from unicode.serve.local import LocalEngine
    from unicode.serve.server import Limits, Server, build_app

    limits = Limits(args.max_body, args.max_images, args.max_tokens, args.max_queue, args.max_seconds)
    try:
        listening = socket.create_server((args.host, 0 if args.dry_run else args.port), backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {args.host}:{args.port} ({error.strerror}); give another --port") from error
    model, engine = open_named_engine(args)
    engine = engine or LocalEngine(model, batch_size=args.batch_size)
    server = Server(engine, name=Path(args.model).resolve().name, limits=limits, hosts=frozenset(args.image_host))
    if args.dry_run:
        return 0
    app = build_app(server, key=os.environ.get(KEY_VARIABLE, ""))
    log.info("serving %s by %s at http://%s:%d/v1", server.name, ", ".join(engine.kinds), *listening.getsockname()[:2])
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=limits.seconds, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
