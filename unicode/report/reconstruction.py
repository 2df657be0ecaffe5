"""Reconstruction: the report and the grid of pictures of `unicode.run.eval_tokenizer` -> originals beside what comes back, per level."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from unicode.images.decode import open_image
from unicode.report.page import Figure, Section, gallery, hidden, missing, paragraph, table
from unicode.report.picture import figure, image_tag
from unicode.report.runs import read_object

PADDING = 2  # pixels around the pictures of grid.png
NUM_SHOWN = 8
NAMES = ("original", "all levels", "coarse only")
COMMAND = "python -m unicode.run.eval_tokenizer --ckpt RUN --images IMAGES --out DIR/metrics.json"


def read_grid(path: str | Path, side: int) -> np.ndarray:
    """Cut grid.png into its pictures.

    Args:
        path: the PNG that the evaluation wrote, pictures of `side` pixels with a border of two.
        side: of a picture.

    Returns:
        (rows, examples, side, side, 3) uint8: originals, reconstructions and, if there are several levels, the coarse level alone.

    Raises:
        ValueError: the size of the PNG does not fit pictures of this side.
    """
    with open_image(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    cell = side + PADDING
    (rows, rest_down), (columns, rest_across) = divmod(pixels.shape[0] - PADDING, cell), divmod(pixels.shape[1] - PADDING, cell)
    if rest_down or rest_across or rows < 2:
        raise ValueError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]} pixels, which does not hold rows of pictures of {side} pixels")
    cells = pixels[PADDING:, PADDING:].reshape(rows, cell, columns, cell, 3)
    return cells.swapaxes(1, 2)[:, :, :side, :side]


def reconstruction_section(folder: str | Path | None) -> tuple[Section, list[Figure]]:
    """Return the section for the folder of metrics.json and grid.png, and the figures for the top of the page."""
    title = "Pictures and what comes back"
    report = read_object(Path(folder) / "metrics.json") if folder else {}
    if folder is None or not report:
        return Section(title, missing("The reconstructions were not measured. They come from", COMMAND), "Reconstruction"), []
    parts = [paragraph(f"{_images(report)} through the tokenizer and back; every picture is a run of {_codes(report)}.")]
    parts.append(_pictures(Path(folder), report))
    metrics = report.get("metrics", {})
    known = {name: one for name, one in metrics.items() if one.get("value") is not None}
    if known:
        parts.append(table(["measure", "value", ""], [(name, one["value"], one.get("unit", "")) for name, one in known.items()]))
        how = "".join(paragraph(f"{name}: {one.get('protocol', '')}") for name, one in known.items())
        parts.append(hidden("how they are measured", how))
    absent = [f"{name}: {one.get('reason', '')}; {one.get('remedy', '')}" for name, one in metrics.items() if name not in known]
    if absent:
        parts.append(hidden(f"{len(absent)} measures could not be computed", "".join(map(paragraph, absent))))
    parts.append(_usage(report))
    figures = []
    if metrics.get("psnr", {}).get("value") is not None:
        figures.append(Figure("PSNR of reconstructions", f"{metrics['psnr']['value']:.1f} dB", _images(report)))
    return Section(title, "\n".join(parts), "Reconstruction"), figures


def _pictures(folder: Path, report: dict[str, Any]) -> str:
    """Every example as one figure, its rows side by side."""
    path, side = folder / "grid.png", report.get("protocol", {}).get("image_size")
    if not path.is_file() or not side:
        return missing(f"There is no {path}. It comes from", COMMAND)
    grid = read_grid(path, int(side))
    items = []
    for example in range(min(grid.shape[1], NUM_SHOWN)):
        cells = [
            f"<div>{image_tag(grid[row, example], f'example {example + 1}: {NAMES[row]}')}<small>{NAMES[row]}</small></div>"
            for row in range(min(len(grid), len(NAMES)))
        ]
        items.append(figure(f'<div class="side">{"".join(cells)}</div>', ""))
    return gallery(items, kind="pairs")


def _usage(report: dict[str, Any]) -> str:
    levels = report.get("codes", {}).get("levels", [])
    if not levels:
        return ""
    head = ["level", "codes", "rows used", "of rows", "perplexity", "commonest row, %"]
    rows = [[str(one["level"]), one["codes"], one["used"], one["rows"], one["perplexity"], 100 * one["top1_share"]] for one in levels]
    return "<h3>Use of the codebook</h3>" + table(head, rows)


def _images(report: dict[str, Any]) -> str:
    protocol = report.get("protocol", {})
    return f"{protocol.get('num_images', '?')} images of {protocol.get('image_set', 'an unnamed set')}"


def _codes(report: dict[str, Any]) -> str:
    levels, images = report.get("codes", {}).get("levels", []), report.get("protocol", {}).get("num_images")
    if not levels or not images:
        return "codes"
    return " + ".join(escape(f"{one['codes'] / images:.0f}") for one in levels) + " codes, coarse to fine"
