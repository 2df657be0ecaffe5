"""Annotations and image lists, each made by the function that --func names: ids and captions in, conversations out.

python -m unicode.run.make_annotations --func NAME --root DIR --ids STORE [STORE ...] --out DIR [--seed N]
python -m unicode.run.make_annotations --func NAME --help        what it does, which files it reads and writes, its options
"""

import argparse
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unicode.annotations.build import VIEWS, Report, open_image_ids
from unicode.annotations.captioned import get_folder_anno, get_shapes_anno
from unicode.annotations.image_lists import concat_vae_with_mix, concat_vae_with_vqabench
from unicode.annotations.instructions import concat_llava_anno, concat_uni_anno, get_llava_uni_anno
from unicode.annotations.public import get_label_anno, get_parquet_anno
from unicode.annotations.text_to_image import get_decompression_anno, get_t2v_anno, get_uncond_anno
from unicode.run.command import command, log

FUNCTIONS: dict[str, Callable[..., Report]] = {
    function.__name__: function
    for function in (
        get_t2v_anno,
        get_llava_uni_anno,
        get_decompression_anno,
        get_uncond_anno,
        concat_llava_anno,
        concat_uni_anno,
        concat_vae_with_mix,
        concat_vae_with_vqabench,
        get_shapes_anno,
        get_folder_anno,
        get_label_anno,
        get_parquet_anno,
    )
}
DATA, SAMPLE = (Path(__file__).resolve().parents[2] / name for name in ("datasets/llava", "data/sample"))
ANNO = "FILE[@FOLDER]"
OPTIONS: dict[str, dict[str, Any]] = {
    "root": {"help": "folder of the input files; default: DATA_ROOT, datasets/llava, or else a sample of a few records"},
    "images": {"flag": "--ids", "nargs": "+", "metavar": "STORE", "help": "stores of ids, or folders of them; default: ids below --root"},
    "view": {"choices": VIEWS, "default": VIEWS[0], "help": "crop or flip where a store has several; default: %(default)s"},
    "out": {"default": "outputs/annotations", "help": "folder of the output, or the path of the main .json file; default: %(default)s"},
    "seed": {"type": int, "help": "fixes every draw and the order of the output; default: %(default)s"},
    "anno": {"metavar": ANNO, "help": "annotation file @ folder of the image root where its paths start; default: '%(default)s'"},
    "annos": {"flag": "--anno", "nargs": "+", "metavar": ANNO, "help": "several such files; concat_uni_anno takes FILE*WEIGHT too"},
    "weights": {"nargs": "+", "type": float, "metavar": "W", "help": "how often a record of each file occurs on average; default: 1"},
    "request": {"metavar": "WORDS", "help": "words of every request, with {caption} in them; default: those of the templates"},
    "parts": {"type": int, "help": "part records per image; default: %(default)s"},
    "share": {"type": float, "help": "share of the images; default: %(default)s"},
    "val_share": {"type": float, "help": "share of the val part; default: %(default)s"},
    "questions": {"type": int, "help": "questions per picture, at most; default: %(default)s"},
    "limit": {"type": int, "help": "the first so many scenes of each split; default: %(default)s (all)"},
    "world": {"nargs": "+", "metavar": "KEY=VALUE", "help": "settings of the world that differ from the default one, as colours=8"},
    "dataset": {"flag": "--set", "metavar": "NAME", "help": "data set, a class of torchvision.datasets; default: %(default)s"},
    "path": {"metavar": "FILES", "help": "Parquet files below --root, as 'data/train-*.parquet'; default: %(default)s"},
    "text_column": {"help": "column of captions, labels or conversations; default: %(default)s"},
    "bench": {"help": "folder of the benchmarks below --root; default: %(default)s"},
    "allow_test_images": {"action": "store_true", "help": "train the tokenizer on test images; scores are then not on unseen images"},
    "dry_run": {"action": "store_true", "help": "read the first records, check everything, write nothing"},
}
"""Parameter of a function -> its option."""


@command
def main(argv: list[str] | None = None) -> int:
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--func", choices=FUNCTIONS)
    options = vars(build_parser(chooser.parse_known_args(argv)[0].func).parse_args(argv))
    function = FUNCTIONS[options.pop("func")]
    parameters = inspect.signature(function).parameters
    root = Path((named := options.pop("root") or os.environ.get("DATA_ROOT")) or (DATA if DATA.is_dir() else SAMPLE))
    ids, view = options.pop("images"), options.pop("view", VIEWS[0])
    inputs: list[Any] = [root] if "root" in parameters else []
    if not named and inputs == [SAMPLE] and not (ids and options.get("anno") == ""):  # images of the stores, nothing is read from the root
        log.info("neither --root nor DATA_ROOT is given: taking the sample in %s", SAMPLE)
    if "images" in parameters:
        inputs.append(open_image_ids(ids or [root / "ids"], view=view, seed=options["seed"]))
    function(*inputs, options.pop("out"), **options)
    return 0


def build_parser(name: str | None = None) -> argparse.ArgumentParser:
    """The parser of one function; without a name, one whose help shows every function and every option."""
    parser = argparse.ArgumentParser(
        prog=f"make_annotations --func {name}" if name else "make_annotations",
        description=(inspect.getdoc(FUNCTIONS[name]) or "").split("\nArgs:")[0] if name else __doc__,
        epilog=None if name else "\n".join(f"  {one:26}{(inspect.getdoc(FUNCTIONS[one]) or '').splitlines()[0]}" for one in FUNCTIONS),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=140),
        conflict_handler="error" if name else "resolve",  # --anno takes one file or several
    )
    shown = argparse.SUPPRESS if name else "one of the functions below"
    parser.add_argument("--func", required=True, choices=FUNCTIONS, metavar="NAME", help=shown)
    signatures = {one: inspect.signature(function).parameters for one, function in FUNCTIONS.items()}
    for parameter, option in OPTIONS.items():
        readers = [one for one, own in signatures.items() if ("images" if parameter == "view" else parameter) in own]
        if name and name not in readers and parameter not in ("root", "images"):
            continue
        settings = {"flag": "--" + parameter.replace("_", "-"), **option}
        if not name:
            some = f" ({', '.join(readers)})" if len(readers) <= len(FUNCTIONS) // 2 else ""
            settings["help"] = settings["help"].split("; default")[0] + some
        elif name not in readers:
            settings["help"] = "not read by this function"
        elif parameter not in ("images", "view"):
            default = signatures[name][parameter].default
            settings |= {} if default is inspect.Parameter.empty else {"default": default}
        parser.add_argument(settings.pop("flag"), dest=parameter, **settings)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
