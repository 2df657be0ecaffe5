"""Open a page for the browser on which a person talks with a model, draws with it, and sees the words of a picture.

python -m unicode.run.demo --model outputs/unicode_merged          http://127.0.0.1:7860
python -m unicode.run.demo --server http://127.0.0.1:8000          the same for a model that unicode.run.serve serves
"""

import argparse
import logging
import os
import secrets
import socket
from threading import Thread

from unicode.run.command import add_model_options, command, log, new_parser
from unicode.run.serve import KEY_VARIABLE, open_server


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("demo", __doc__, dry_run="open the model and build the page, listen to nothing")
    add_model_options(parser, "run folder of train_llm or folder of merge_lora", required=False, engine=True)
    parser.add_argument("--server", default="", metavar="URL", help=f"server of unicode.run.serve in place of --model; key: {KEY_VARIABLE}")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at (default: %(default)s)")
    args = parser.parse_args(argv)
    if bool(args.model) == bool(args.server):
        raise ValueError("give a model with --model DIR, or a server with --server URL")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for library in ("httpx", "httpx2"):  # they would log each request
        logging.getLogger(library).setLevel(logging.WARNING)
    from unicode.common.extras import require

    gr = require("gradio", extra="demo")
    from unicode.serve.demo import Client, build_page

    url, key = (args.server, os.environ.get(KEY_VARIABLE, "")) if args.server else serve_here(args)
    page = build_page(Client(url, key=key))
    if not args.dry_run:
        log.info("the page is at http://%s:%d", args.host, args.port)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # of this machine: nothing is fetched
        where = {"server_name": args.host, "server_port": args.port, "share": False, "css": "[aria-label=Share]{display:none}"}
        page.launch(**where, quiet=True, footer_links=[], theme=gr.themes.Default(**fonts))
    return 0


def serve_here(args: argparse.Namespace) -> tuple[str, str]:
    """Serve the model that the options name from a thread of this process; returns the address, on a free port, and the key."""
    key, listening = secrets.token_urlsafe(), socket.create_server(("127.0.0.1", 0))
    server = open_server(args, key=key)
    Thread(target=server.run, args=([listening],), daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", key


if __name__ == "__main__":
    raise SystemExit(main())
