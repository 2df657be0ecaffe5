"""Tokenizers on disk -> ImageTokenizer: run folders, save_pretrained folders and three published layouts."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from unicode.codebook.codebook import CodebookConfig
from unicode.common.checkpoint import newest_checkpoint
from unicode.common.files import read_tensors
from unicode.common.hub import find_folder
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.model import CONFIG_FILE, ImageTokenizer

CHECKPOINTS = ("ckpt/last.ckpt", "ckpt/state_dict.ckpt", "model.pt")
TOKENIZER_FOLDER = "tokenizer"  # inside a checkpoint of a run
State = dict[str, torch.Tensor]
HQ_PREFIXES = {
    "quant_conv_b.": "quant_conv.",
    "post_quant_conv_b.": "post_quant_conv.",
    "up_conv.": "stack.into.1.",
    "down_conv.": "stack.out.1.",
    "down_t.": "stack.resamples.0.down.",
    "upsample_t.": "stack.resamples.0.up.",
}
RQ_PREFIXES = {"quant_conv.": "quant_conv.", "post_quant_conv.": "post_quant_conv."}
RESAMPLINGS = {"pixelshuffle": "pixelshuffle", "nearest": "average", "conv": "conv"}


def load_tokenizer(path: str | Path) -> ImageTokenizer:
    """Return the tokenizer at `path`, in evaluation mode on the CPU.

    `path`: a run folder of `unicode.run.train_tokenizer` (its newest undamaged checkpoint is taken), one of its checkpoints, a folder of
    `save_pretrained`, one of hqtransformer, UniCode-ECCV24 or rq-vae-transformer, or org/name@revision of a hub. FileNotFoundError: there
    is no such folder or repository, or no tokenizer in it. ValueError: the tokenizer is damaged or of another architecture.
    """
    folder = find_folder(path, otherwise="give the folder of a tokenizer")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder '{folder}'; train one with: sh scripts/vae_train/train_hqvae.sh CONFIG.yaml run.dir={folder}")
    saved = next((place for place in (folder, folder / TOKENIZER_FOLDER) if (place / CONFIG_FILE).is_file()), None)
    if saved is None and find_published(folder) is None:
        checkpoint = newest_checkpoint(folder / "checkpoints")
        if checkpoint is None:
            places = f"neither {CONFIG_FILE}, nor undamaged checkpoints in checkpoints/, nor a published layout"
            raise FileNotFoundError(f"'{folder}' holds no tokenizer: {places} (config.yaml with one of {', '.join(CHECKPOINTS)})")
        saved = checkpoint / TOKENIZER_FOLDER
    tokenizer = load_published(folder) if saved is None else ImageTokenizer.from_pretrained(saved)
    tokenizer.folder = folder
    return tokenizer


def find_published(folder: Path) -> Path | None:
    """Return the weights file of a published layout in `folder`, or None."""
    if not (folder / "config.yaml").is_file():
        return None
    return next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)


def load_published(folder: Path) -> ImageTokenizer:
    """Return the tokenizer of a published run folder, in evaluation mode.

    Raises FileNotFoundError: the folder has no config.yaml with weights beside it. Raises ValueError: the weights are no plain tensors, or
    the config describes a model of none of the published layouts.
    """
    weights = find_published(folder)
    if weights is None:
        raise FileNotFoundError(f"{folder} has no config.yaml with one of {', '.join(CHECKPOINTS)} beside it")
    try:  # interpolations stay text: a downloaded file must not read environment variables
        content: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    except Exception as error:  # the YAML parser has a family of errors of its own
        raise ValueError(f"{folder}/config.yaml is not valid YAML: {error}") from error
    state = _generator_state(read_tensors(weights, wanted="a published tokenizer"), source=str(weights))
    try:
        if "stage1" in content:
            config, state = _convert_stage1(content["stage1"], state)
        elif "arch" in content:
            config, state = _convert_rq(content["arch"], state)
        else:
            raise ValueError("neither 'stage1' (hqtransformer, UniCode-ECCV24) nor 'arch' (rq-vae-transformer) is in it")
    except (KeyError, TypeError, AttributeError) as error:
        fault = f"{error} is missing from config.yaml or the weights" if isinstance(error, KeyError) else f"config.yaml, {error}"
        raise ValueError(f"{folder}: {fault}; it is none of the published layouts") from error
    except ValueError as error:
        raise ValueError(f"{folder}/config.yaml: {error}") from error
    return ImageTokenizer.from_state(config, state, source=str(weights), partial=True)


def _generator_state(content: Any, *, source: str) -> State:
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
        raise ValueError("double_z, or an encoder without middle block or attention, is in no published model and not supported")
    attention = [int(side) for side in values["attn_resolutions"]]
    return AutoencoderConfig(
        channels=values["ch"],
        multipliers=list(values["ch_mult"]),
        num_res_blocks=values["num_res_blocks"],
        latent_channels=values["z_channels"],
        downsample_input=halves_first,
        # Their encoder counts resolutions from the image's, also when its first convolution has halved it already.
        encoder_attention=[side // 2 for side in attention] if halves_first else attention,
        decoder_attention=attention,
    )


def _convert_stage1(stage1: dict[str, Any], state: State) -> tuple[TokenizerConfig, State]:
    """hqtransformer and UniCode-ECCV24: type simrqgan2 (an HQ-VAE); UniCode-ECCV24 also: rqvae, whose passes share one codebook."""
    kind, aux, values = stage1["type"], stage1["hparams_aux"], stage1["hparams"]
    if kind == "rqvae":
        if aux.get("use_l2_norm"):
            raise ValueError("stage1.hparams_aux.use_l2_norm of an rqvae normalizes over rows of the image, which is not supported")
        quantizers, prefixes = ["quantize"], RQ_PREFIXES
        shape: dict[str, Any] = {"type": "rqvae", "depth": int(aux["num_quant_layer"]), "share_codebook": True}
    elif kind == "simrqgan2":
        upsample = str(aux.get("upsample")).rstrip("0123456789")
        if upsample not in RESAMPLINGS:
            raise ValueError(f"stage1.hparams_aux.upsample is '{aux.get('upsample')}'; known: {', '.join(RESAMPLINGS)}")
        quantizers = ["quantize_t", "quantize_t" if aux.get("shared_codebook") else "quantize_b"]
        prefixes = HQ_PREFIXES
        shape = {"type": "hqvae", "resample": RESAMPLINGS[upsample]}
    else:
        raise ValueError(f"stage1.type is '{kind}'; known: simrqgan2 (HQ-VAE) and rqvae")
    renamed = _rename(state, prefixes)
    codebook = CodebookConfig(mode="free", num_rows=len(state[f"{quantizers[0]}.embedding"]), normalize="none")
    from_language_model = f"{quantizers[0]}.llmcodebook" in state
    if from_language_model:
        codebook.mode, codebook.mean_length = "language", float(aux["fix_len_l2norm"])
        codebook.normalize = "sphere" if aux.get("use_l2_norm") else "mean_length"
        shape["order"] = "rows" if kind == "simrqgan2" else ""
    for level, name in enumerate(quantizers):
        book = f"stack.codebooks.{level}"
        renamed[f"{book}.rows"] = state[f"{name}.embedding"]
        renamed[f"{book}.row_ids"] = torch.arange(codebook.num_rows)
        if from_language_model:
            renamed[f"{book}.row_ids"] = state[f"{name}.selected_llm_indices"]
            mean_row = state[f"{name}.llm_len_l2norm"].mean() if aux["norm_type"] == "rela_llm" else 1.0
            renamed[f"{book}.scale"] = torch.as_tensor(codebook.mean_length * mean_row, dtype=torch.float32)
    config = TokenizerConfig(
        **shape,
        image_size=values["resolution"],
        code_channels=len(renamed["quant_conv.weight"]),
        autoencoder=_autoencoder(values, halves_first=bool(values.get("use_init_downsample"))),
        codebook=codebook,
    )
    return config, renamed


def _convert_rq(arch: dict[str, Any], state: State) -> tuple[TokenizerConfig, State]:
    """rq-vae-transformer: type rq-vae."""
    if arch["type"] != "rq-vae":
        raise ValueError(f"arch.type is '{arch['type']}'; expected 'rq-vae'")
    values, ddconfig = arch["hparams"], arch["ddconfig"]
    latent, code = list(values["latent_shape"]), list(values["code_shape"])
    if latent[:2] != code[:2]:
        raise ValueError(f"code_shape {code} folds cells of latent_shape {latent} together, which is not supported")
    shared, depth = bool(values["shared_codebook"]), int(code[2])
    renamed = _rename(state, RQ_PREFIXES)
    for level in range(1 if shared else depth):
        rows = state[f"quantizer.codebooks.{level}.weight"][:-1]  # the last row is padding that no search returns
        renamed |= {f"stack.codebooks.{level}.rows": rows, f"stack.codebooks.{level}.row_ids": torch.arange(len(rows))}
    config = TokenizerConfig(
        type="rqvae",
        image_size=ddconfig["resolution"],
        depth=depth,
        code_channels=len(renamed["quant_conv.weight"]),
        share_codebook=shared,
        autoencoder=_autoencoder(ddconfig, halves_first=False),
        codebook=CodebookConfig(mode="free", num_rows=len(renamed["stack.codebooks.0.rows"]), normalize="none"),
    )
    return config, renamed


def _rename(state: State, prefixes: dict[str, str]) -> State:
    """Return the tensors of encoder and decoder, and those of some prefixes with the prefix replaced."""
    renamed = {name: tensor for name, tensor in state.items() if name.startswith(("encoder.", "decoder."))}
    for theirs, ours in prefixes.items():
        renamed |= {ours + name.removeprefix(theirs): tensor for name, tensor in state.items() if name.startswith(theirs)}
    return renamed
