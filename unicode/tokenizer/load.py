"""Tokenizers on disk -> ImageTokenizer: run folders, save_pretrained folders and three published layouts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from unicode.codebook.codebook import CodebookConfig
from unicode.common.checkpoint import newest_checkpoint
from unicode.common.files import read_tensors
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.model import CONFIG_FILE, ImageTokenizer

CHECKPOINTS = ("ckpt/last.ckpt", "ckpt/state_dict.ckpt", "model.pt")
RESAMPLINGS = {"pixelshuffle": "pixelshuffle", "nearest": "average", "conv": "conv"}


@dataclass
class _Published:
    """A config and a state dict in our names."""

    config: TokenizerConfig
    widths: list[int]
    state: dict[str, torch.Tensor]


def find_published(folder: str | Path) -> Path | None:
    """Return the weights file of a published layout in `folder`, or None."""
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        return None
    return next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)


def load_published(folder: str | Path) -> ImageTokenizer:
    """Return the tokenizer of a published run folder, in evaluation mode.

    Raises:
        FileNotFoundError: the folder has no config.yaml with weights beside it.
        ValueError: the weights are no plain tensors, or the config describes a model that is none of the three.
    """
    weights = find_published(folder)
    if weights is None:
        raise FileNotFoundError(f"{folder} has no config.yaml with one of {', '.join(CHECKPOINTS)} beside it")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(Path(folder) / "config.yaml"), resolve=True)
    except Exception as error:  # the YAML parser has a family of errors of its own
        raise ValueError(f"{folder}/config.yaml is not valid YAML: {error}") from error
    state = _generator_state(read_tensors(weights, wanted="a published tokenizer"), source=str(weights))
    try:
        if "stage1" in content:
            published = _convert_hq(content["stage1"], state)
        elif "arch" in content:
            published = _convert_rq(content["arch"], state)
        else:
            raise ValueError("neither 'stage1' (hqtransformer, UniCode-ECCV24) nor 'arch' (rq-vae-transformer) is in it")
    except (KeyError, TypeError, AttributeError) as error:
        fault = f"{error} is missing from config.yaml or the weights" if isinstance(error, KeyError) else f"config.yaml, {error}"
        raise ValueError(f"{folder}: {fault}; it is none of the published layouts") from error
    except ValueError as error:
        raise ValueError(f"{folder}/config.yaml: {error}") from error
    tokenizer = ImageTokenizer(published.config, training=False, widths=published.widths)
    complete = {name: published.state.get(name, tensor) for name, tensor in tokenizer.inference_state().items()}
    tokenizer.load_inference_state({**complete, **published.state}, source=str(weights))
    return tokenizer.eval()


def _generator_state(content: Any, *, source: str) -> dict[str, torch.Tensor]:
    """Return the tokenizer's tensors of a checkpoint, without containers and prefixes."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{source} holds no state dict")
    for prefix in ("generator.", "stage1.generator.", "stage1."):
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            break
    return {name: tensor for name, tensor in state.items() if not name.startswith(("discriminator.", "perceptual_loss."))}


def _autoencoder(values: dict[str, Any], *, halves_first: bool) -> AutoencoderConfig:
    """Return our config of their encoder and decoder."""
    if values.get("double_z") or not values.get("use_mid_block", True) or not values.get("use_attn", True):
        raise ValueError("double_z, or an encoder without middle block or attention, was never published and is not supported")
    attention = [int(side) for side in values["attn_resolutions"]]
    # Their encoder counts resolutions from the image's, also when its first convolution has halved it already.
    encoder_attention = [side // 2 for side in attention] if halves_first else attention
    return AutoencoderConfig(
        channels=values["ch"],
        multipliers=list(values["ch_mult"]),
        num_res_blocks=values["num_res_blocks"],
        latent_channels=values["z_channels"],
        downsample_input=halves_first,
        encoder_attention=encoder_attention,
        decoder_attention=attention,
    )


def _convert_hq(stage1: dict[str, Any], state: dict[str, torch.Tensor]) -> _Published:
    """hqtransformer and UniCode-ECCV24: type simrqgan2."""
    if stage1["type"] != "simrqgan2":
        raise ValueError(f"stage1.type is '{stage1['type']}'; the HQ-VAE that was published is 'simrqgan2'")
    aux, values = stage1["hparams_aux"], stage1["hparams"]
    kind = str(aux.get("upsample")).rstrip("0123456789")
    if kind not in RESAMPLINGS:
        raise ValueError(f"stage1.hparams_aux.upsample is '{aux.get('upsample')}'; known: {', '.join(RESAMPLINGS)}")
    if aux.get("shared_codebook"):
        state |= {name.replace("quantize_t.", "quantize_b."): tensor for name, tensor in state.items() if name.startswith("quantize_t.")}
    names = {
        "quant_conv_b.": "quant_conv.",
        "post_quant_conv_b.": "post_quant_conv.",
        "up_conv.": "stack.into.1.",
        "down_conv.": "stack.out.1.",
        "down_t.": "stack.resamples.0.down.",
        "upsample_t.": "stack.resamples.0.up.",
        "quantize_t.embedding": "stack.codebooks.0.rows",
        "quantize_b.embedding": "stack.codebooks.1.rows",
        "quantize_t.selected_llm_indices": "stack.codebooks.0.row_ids",
        "quantize_b.selected_llm_indices": "stack.codebooks.1.row_ids",
    }
    renamed = _rename(state, names, keep=("encoder.", "decoder."), drop=("embedding_avg",))
    books = [renamed[f"stack.codebooks.{level}.rows"] for level in (0, 1)]
    from_language_model = "quantize_t.llmcodebook" in state
    codebook = CodebookConfig(mode="free", num_rows=len(books[0]), normalize="none")
    if from_language_model:
        length = float(aux["fix_len_l2norm"])
        codebook.normalize = "sphere" if aux.get("use_l2_norm") else "mean_length"
        codebook.mode, codebook.mean_length = "language", length
        for level, name in enumerate(("quantize_t", "quantize_b")):
            mean_row = state[f"{name}.llm_len_l2norm"].mean() if aux["norm_type"] == "rela_llm" else 1.0
            renamed[f"stack.codebooks.{level}.scale"] = torch.as_tensor(length * mean_row, dtype=torch.float32)
    else:
        renamed |= {f"stack.codebooks.{level}.row_ids": torch.arange(len(book)) for level, book in enumerate(books)}
    config = TokenizerConfig(
        type="hqvae",
        image_size=values["resolution"],
        resample=RESAMPLINGS[kind],
        code_channels=renamed["quant_conv.weight"].shape[0],
        order="rows" if from_language_model else "nested",
        autoencoder=_autoencoder(values, halves_first=bool(values.get("use_init_downsample"))),
        codebook=codebook,
    )
    return _Published(config, [book.shape[1] for book in books], renamed)


def _convert_rq(arch: dict[str, Any], state: dict[str, torch.Tensor]) -> _Published:
    """rq-vae-transformer: type rq-vae."""
    if arch["type"] != "rq-vae":
        raise ValueError(f"arch.type is '{arch['type']}'; expected 'rq-vae'")
    values, ddconfig = arch["hparams"], arch["ddconfig"]
    latent, code = list(values["latent_shape"]), list(values["code_shape"])
    if latent[:2] != code[:2]:
        raise ValueError(f"code_shape {code} folds cells of latent_shape {latent} together, which is not supported")
    shared, depth = bool(values["shared_codebook"]), int(code[2])
    books = 1 if shared else depth
    # Their tables end with a row of zeros for padding that no search ever returns.
    names = {f"quantizer.codebooks.{level}.weight": f"stack.codebooks.{level}.rows" for level in range(books)}
    dropped = ("cluster_size_ema", "embed_ema", *(f"codebooks.{level}.weight" for level in range(books, depth)))
    renamed = _rename(state, names, keep=("encoder.", "decoder.", "quant_conv.", "post_quant_conv."), drop=dropped)
    for level in range(books):
        renamed[f"stack.codebooks.{level}.rows"] = renamed[f"stack.codebooks.{level}.rows"][:-1]
        renamed[f"stack.codebooks.{level}.row_ids"] = torch.arange(len(renamed[f"stack.codebooks.{level}.rows"]))
    width = renamed["stack.codebooks.0.rows"].shape[1]
    config = TokenizerConfig(
        type="rqvae",
        image_size=ddconfig["resolution"],
        depth=depth,
        code_channels=renamed["quant_conv.weight"].shape[0],
        share_codebook=shared,
        autoencoder=_autoencoder(ddconfig, halves_first=False),
        codebook=CodebookConfig(mode="free", num_rows=len(renamed["stack.codebooks.0.rows"]), normalize="none"),
    )
    return _Published(config, [width] * books, renamed)


def _rename(
    state: dict[str, torch.Tensor], names: dict[str, str], *, keep: tuple[str, ...], drop: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """Return the tensors that we use under our names: `keep` by prefix as they are, `names` by prefix or whole name."""
    renamed = {name: tensor for name, tensor in state.items() if name.startswith(keep)}
    for theirs, ours in names.items():
        for name, tensor in state.items():
            matches = name.startswith(theirs) if theirs.endswith(".") else name == theirs
            if matches and not name.endswith(drop):
                renamed[ours + name.removeprefix(theirs)] = tensor
    return renamed


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
