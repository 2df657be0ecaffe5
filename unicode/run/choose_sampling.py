"""Choose the sampling of a model's pictures: prompts drawn with several settings and measured -> the best one, in the model's card."""

from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unicode.common.files import lock_folder
from unicode.run.command import add_model_options, command, log, new_parser, open_named_model
from unicode.run.eval_generation import Gallery, measure_nearest, measure_scenes, read_gallery

GUIDANCE, TEMPERATURE = (1.0, 1.5, 2.0, 3.0), (0.0, 0.7, 1.0)  # that are tried; of equally good ones the first is taken


def share_right(sampler: Any, prompts: list[Any], config: Any, gallery: Gallery | None) -> float:
    """Draw prompts; return the percentage nearest to the right picture, or without a gallery with every object of the scene as wanted.

    Raises ValueError: a prompt that cannot be drawn, or nothing tells what is right.
    """
    import numpy as np
    import torch

    from unicode.generate.chat import ids_of
    from unicode.generate.images import decode_pictures

    template = config.template or sampler.model.card.request
    requests = [prompt.request(seed=config.seed, template=template) for prompt in prompts]
    batches = [requests[start : start + config.batch_size] for start in range(0, len(requests), config.batch_size)]
    pixels = [decode_pictures(sampler.model, np.stack([ids_of(one) for one in sampler.draw(batch)])) for batch in batches]
    side = pixels[0].shape[1]
    world = asdict(replace(config.data.shapes, image_size=side)) if config.prompts.startswith("shapes:") else None
    records = [{"id": prompt.id, "prompt": prompt.text, "reference": prompt.reference} for prompt in prompts]
    images = torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2)
    drawn: Any = SimpleNamespace(records=records, image=images.__getitem__, side=side, settings={"world": world})  # as `Drawn`
    found = measure_scenes(drawn) if gallery is None else measure_nearest(drawn, gallery)[0]
    if not found:
        raise ValueError("nothing tells whether a picture is right; give --gallery FILE, or prompts about scenes as shapes:val")
    return float(found["all" if gallery is None else "nearest_pixels"]["value"])


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("choose_sampling", __doc__, dry_run="open everything, draw nothing")
    add_model_options(parser, "run folder of train_llm or folder of merge_lora, whose unicode.json is written")
    parser.add_argument("--prompts", required=True, help="as of generate_images; other ones than those that results are reported of")
    parser.add_argument("--last", type=int, default=0, metavar="N", help="the last N prompts only (default: all)")
    parser.add_argument("--gallery", default="", help="as of eval_generation; not needed for scenes of the shapes world")
    settings = "as of generate_images; a temperature or guidance that is given is the only one tried"
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=settings)
    args = parser.parse_intermixed_args(argv)
    from unicode.common.config import load_config
    from unicode.generate.drawing_tasks import read_prompts
    from unicode.generate.engine import CachedDecoder
    from unicode.generate.images import GenerationConfig, ImageSampler, check_can_draw
    from unicode.llm.card import read_card, write_card

    config, folder = load_config(GenerationConfig, None, [*args.settings, f"prompts={args.prompts}"]), Path(args.model)
    card, model = read_card(folder), open_named_model(args)
    check_can_draw(model)
    side = model.images.config.image_size
    prompts = read_prompts(config.prompts, world=replace(config.data.shapes, image_size=side), limit=config.limit)[-args.last :]
    gallery = read_gallery(args.gallery, side=side) if args.gallery else None
    if args.dry_run:
        return 0
    decoder, tried = CachedDecoder(model.causal), []
    guidances = GUIDANCE if config.guidance is None else (config.guidance,)
    for guidance, temperature in product(guidances, TEMPERATURE if config.temperature is None else (config.temperature,)):
        sampling = replace(config.sampling(), guidance=guidance, temperature=temperature)
        right = share_right(ImageSampler(model, sampling=sampling, decoder=decoder), prompts, config, gallery)
        log.info("temperature %g, guidance %g: %.1f %% of %d pictures right", temperature, guidance, right, len(prompts))
        tried.append({**sampling.values(), "right": right})
    best = {name: value for name, value in max(tried, key=lambda one: one["right"]).items() if name != "right"}
    about = {"prompts": args.prompts, "number": len(prompts), "gallery": args.gallery, "tried": tried}
    with lock_folder(folder, "choosing the sampling"):
        write_card(folder, replace(card, sampling=best, config={**card.config, "sampling": about}))
    log.info("%s: %s", folder, ", ".join(f"{name} {value:g}" for name, value in best.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
