"""Drawn pictures: the folder of `unicode.run.generate_images` -> pictures with prompts, and decompression before and after."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from unicode.generate.jobs import RESULTS, SETTINGS
from unicode.images.decode import open_image
from unicode.report.answers import FindPicture
from unicode.report.page import Cell, Figure, Section, gallery, missing, number, paragraph, table
from unicode.report.picture import figure, image_tag
from unicode.report.runs import lines_of, read_object, spread

REPORTS = ("metrics.json", "scores.json", "eval.json")
RIGHT, SHUFFLED = "all", "shuffled_all"
"""Measures of the judge: everything in the picture as the prompt asks, as the prompt of another picture asks."""
NUM_DRAWN, NUM_PAIRS = 18, 9


def generation_section(folder: str | Path | None, *, baselines: Mapping[str, str | Path] | None = None) -> tuple[Section, list[Figure]]:
    """Return the section of drawn pictures and the figures for the top of the page.

    Args:
        folder: what `unicode.run.generate_images` wrote, with the report of `unicode.run.eval_generation` in it.
        baselines: name -> folder of other pictures with such a report, to compare with.
    """
    title, short = "Drawn from words", "Drawings"
    results = list(lines_of(Path(folder) / RESULTS)) if folder else []
    drawn = [one for one in results if _picture(folder, one.get("file")) is not None]
    if folder is None or not drawn:
        command = "python -m unicode.run.generate_images --model DIR --prompts FILE --out DIR"
        return Section(title, missing("Nothing was drawn. Drawings come from", command), short), []
    seconds = [float(one["seconds"]) for one in drawn if one.get("seconds")]
    speed = f", {number(float(f'{fmean(seconds):.2g}'))} s each" if seconds else ""
    how = f"{_sampled(Path(folder) / SETTINGS)}{speed}"
    text = f"{len(drawn):,} pictures that the language model wrote token by token from a prompt{how}; some of them, evenly taken."
    parts = [paragraph(text)]
    items = []
    for one in spread(drawn, NUM_DRAWN):
        prompt = str(one.get("prompt", ""))
        items.append(figure(image_tag(Path(folder) / one["file"], f"drawn from: {prompt or 'no prompt'}"), escape(prompt)))
    parts.append(gallery(items))
    folders = {"this model": folder, **(baselines or {})}
    scores = {name: _scores(path) for name, path in folders.items()}
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    figures = []
    if names:
        rows: list[list[Cell]] = [[name, *(_text(found.get(name)) for found in scores.values())] for name in names]
        parts.append(table(["measure", *scores], rows))
        judged = scores["this model"]
        if _text(judged.get(RIGHT)) is not None:
            others = f"shuffled prompts {_text(judged[SHUFFLED])}" if SHUFFLED in judged else f"{len(drawn):,} prompts"
            figures.append(Figure("drawings all right", str(_text(judged[RIGHT])), others))
    else:
        parts.append(missing("The drawings were not judged. Their measures come from", "python -m unicode.run.eval_generation --help"))
    return Section(title, "\n".join(parts), short), figures


def decompression_section(folder: str | Path | None, find_picture: FindPicture) -> tuple[Section, list[Figure]]:
    """Return the section of pictures that the model was given compressed and wrote out again."""
    title, short = "Compressed and written out again", "Decompression"
    results = list(lines_of(Path(folder) / RESULTS)) if folder else []
    drawn = [one for one in results if _picture(folder, one.get("file")) is not None]
    if folder is None or not drawn:
        command = "python -m unicode.run.generate_images --model DIR --prompts FILE --out DIR --decompress"
        return Section(title, missing("Nothing was decompressed. It is done by", command), short), []
    text = "The model gets a picture in a quarter of the tokens, the codes of each cell added up, and writes all its codes."
    exact = [float(one["exact"]) for one in drawn if isinstance(one.get("exact"), int | float)]
    psnr = [float(one["psnr"]) for one in drawn if isinstance(one.get("psnr"), int | float)]
    if exact:
        text += f" {100 * fmean(exact):.1f} % of the codes of {len(exact):,} pictures are exact."
    if psnr:
        text += f" PSNR {fmean(psnr):.1f} dB."
    parts, items = [paragraph(text)], []
    for one in spread(drawn, NUM_PAIRS):
        name = str(one.get("reference") or one.get("id") or "")
        before = _picture(folder, name) or find_picture(name)
        after = image_tag(Path(folder) / one["file"], f"{name} as the model wrote it out")
        cells = [f"<div>{after}<small>after</small></div>"]
        if before is not None:
            cells.insert(0, f"<div>{image_tag(before, f'{name} before compression')}<small>before</small></div>")
        note = ", ".join(
            [f"{100 * float(one['exact']):.0f} % exact"] * isinstance(one.get("exact"), int | float)
            + [f"{float(one['psnr']):.1f} dB"] * isinstance(one.get("psnr"), int | float)
        )
        items.append(figure(f'<div class="side">{"".join(cells)}</div>', escape(note or name)))
    parts.append(gallery(items, kind="pairs"))
    figures = [Figure("codes exact after decompression", f"{100 * fmean(exact):.1f} %", f"{len(exact):,} pictures")] if exact else []
    return Section(title, "\n".join(parts), short), figures


def _picture(folder: str | Path | None, name: Any) -> Image.Image | None:
    """The picture of a file name below `folder`, None where there is none."""
    if folder is None or not isinstance(name, str) or not name or not (Path(folder) / name).is_file():
        return None
    try:
        with open_image(Path(folder) / name) as opened:
            return opened.copy()
    except OSError:
        return None


def _sampled(settings: Path) -> str:
    """How ids were drawn, in words that follow "from a prompt": greedily or at a temperature, with guidance or not; "" if unknown."""
    sampling = read_object(settings).get("sampling")
    temperature, guidance = (sampling.get(name) if isinstance(sampling, dict) else None for name in ("temperature", "guidance"))
    if not isinstance(temperature, int | float) or not isinstance(guidance, int | float):
        return ""
    drawn = "greedily" if temperature == 0 else f"at temperature {number(temperature)}"
    return f", {drawn}, {'without guidance' if guidance == 1 else f'with guidance {number(guidance)}'}"


def _scores(folder: str | Path) -> dict[str, Any]:
    """Name -> entry {"value", "unit"} or plain value of the report in a folder."""
    report = next((found for name in REPORTS if (found := read_object(Path(folder) / name))), {})
    measures = report.get("metrics", report)
    return {
        name: value for name, value in measures.items() if isinstance(value, int | float) or (isinstance(value, dict) and "value" in value)
    }


def _text(entry: Any) -> Any:
    """A measure as it stands in a table."""
    if not isinstance(entry, dict):
        return entry
    if entry.get("value") is None:
        return None
    return f"{entry['value']:.4g} {entry.get('unit', '')}".strip()
