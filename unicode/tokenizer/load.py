"""One door for every tokenizer on disk: a run folder, a `save_pretrained` folder, or other people's published layouts."""

from pathlib import Path

from unicode.common.checkpoint import newest_checkpoint
from unicode.tokenizer.model import CONFIG_FILE, ImageTokenizer
from unicode.tokenizer.published import find_published, load_published

TOKENIZER_FOLDER = "tokenizer"  # inside a checkpoint of a run


def load_tokenizer(path: str | Path) -> ImageTokenizer:
    """Return the tokenizer that lies at `path`, in evaluation mode on the CPU.

    Args:
        path: a run folder of `unicode.run.train_tokenizer` (its newest whole checkpoint is taken), one of its checkpoints, a folder
            of `save_pretrained`, or a folder of hqtransformer, UniCode-ECCV24 or rq-vae-transformer.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it that is a tokenizer.
        ValueError: what is there is damaged or of another architecture.
    """
    folder = Path(path)
    if not folder.is_dir():
        remedy = f"train a tokenizer with: sh scripts/vae_train/train_hqvae.sh CONFIG.yaml run.dir={folder}"
        raise FileNotFoundError(f"no folder '{folder}'; {remedy}")
    if (folder / CONFIG_FILE).is_file():
        return ImageTokenizer.from_pretrained(folder)
    if (folder / TOKENIZER_FOLDER / CONFIG_FILE).is_file():
        return ImageTokenizer.from_pretrained(folder / TOKENIZER_FOLDER)
    if find_published(folder) is not None:
        return load_published(folder)
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is not None:
        return ImageTokenizer.from_pretrained(checkpoint / TOKENIZER_FOLDER)
    raise FileNotFoundError(
        f"'{folder}' holds no tokenizer: neither {CONFIG_FILE}, nor whole checkpoints in checkpoints/, nor a published layout "
        "(config.yaml with ckpt/last.ckpt, ckpt/state_dict.ckpt or model.pt)"
    )
