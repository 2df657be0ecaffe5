"""Chat with a model in the terminal. A question may name image files; images in answers are saved.

python -m unicode.run.chat --model outputs/unicode_visual_text --out outputs/chat
    > photos/bus.jpg What color is it?          the path of an image file stands for the image
    > /draw a red circle at the top left        draws an image, with guidance=... if given
    > /new                                      forget the conversation        /quit or Ctrl-D: leave
"""

import sys
from pathlib import Path

from unicode.run.command import add_model_options, command, new_parser, one_line, open_named_model


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("chat", __doc__, dry_run="open the model and stop")
    add_model_options(parser, "run folder of train_llm or folder of merge_lora")
    parser.add_argument("--out", default="outputs/chat", help="folder of the pictures that it draws (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer, pictures included (default: %(default)s)")
    parser.add_argument("--word-temperature", type=float, default=0.0, help="of the words; 0 is greedy (default: %(default)s)")
    settings = "seed, temperature, top_k, top_p of pictures and guidance of /draw; docs/configs/generation.md lists them"
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=settings)
    args = parser.parse_args(argv)
    from unicode.common.config import load_config
    from unicode.generate.chat import Chat
    from unicode.generate.images import GenerationConfig

    config = load_config(GenerationConfig, None, args.settings)
    model = open_named_model(args)
    chat = Chat(model, config, out=Path(args.out), num_tokens=args.max_new_tokens, word_temperature=args.word_temperature)
    if args.dry_run:
        return 0
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return 0
        try:
            answer = chat.say(line.strip()) if line.strip() else ""
        except (ValueError, OSError) as error:
            answer = f"error: {one_line(error)}"
        print(answer)


if __name__ == "__main__":
    raise SystemExit(main())
