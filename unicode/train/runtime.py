"""A run's config -> devices, precision, ranks, DeepSpeed, the arguments of transformers' Trainer, and whether a run can resume."""

import math
import os
import shutil
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import distributed
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, TrainingArguments
from transformers.utils.generic import flatten_dict
from transformers.utils.import_utils import is_flash_attn_2_available

from unicode.common.distributed import world_size
from unicode.common.files import read_json
from unicode.common.logging import get_logger
from unicode.llm.model import CAUSAL_SDPA
from unicode.train.config import TrainLlmConfig, TrainTokenizerConfig, split_batch

DEEPSPEED_FILES = "configs/deepspeed/zero2.json, zero3.json, zero2_offload.json or zero3_offload.json"
FLEX_HEAD = 16  # Smallest width of an attention head that flex attention takes on a GPU
logger = get_logger(__name__)


@dataclass(frozen=True)
class Runtime:
    """What follows from a config and the machine."""

    cpu: bool  # Compute on the CPU
    bf16: bool  # Compute in bfloat16
    accumulation: int  # Micro-batches per step and rank
    micro: int  # Images or conversations per micro-batch
    deepspeed: dict[str, Any] | None = None  # Content of the DeepSpeed file

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage, 0 without DeepSpeed."""
        return int(self.deepspeed["zero_optimization"]["stage"]) if self.deepspeed else 0


def resolve_runtime(config: TrainTokenizerConfig | TrainLlmConfig) -> Runtime:
    """Decide on device, precision and batches, and set the number of CPU threads.

    Raises FileNotFoundError: no DeepSpeed file of that name. Raises ValueError: no GPU where one is asked for, a batch that cannot be
    split, or a DeepSpeed file that contradicts the run.
    """
    run, loop = config.run, config.train
    if run.threads:
        torch.set_num_threads(run.threads)
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device is cuda, but there is no GPU here; set run.device=auto")
    cpu = run.device == "cpu" or not torch.cuda.is_available()
    bf16 = run.precision == "bf16" or (run.precision == "auto" and not cpu and torch.cuda.is_bf16_supported())
    accumulation = split_batch(loop, world_size())
    micro = loop.batch_size // (accumulation * world_size())
    deepspeed = None
    if isinstance(config, TrainLlmConfig) and config.run.deepspeed:
        expected = {
            "train_micro_batch_size_per_gpu": ("train.micro_batch_size", micro),
            "gradient_accumulation_steps": ("train.batch_size", accumulation),
            "train_batch_size": ("train.batch_size", loop.batch_size),
            "gradient_clipping": ("optimizer.clip", config.optimizer.clip),
            "bf16.enabled": ("run.precision", bf16),
            "fp16.enabled": ("run.precision", False),
        }
        deepspeed = read_deepspeed(config.run.deepspeed, expected=expected)
        if deepspeed["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none":
            check_builder(config.run.deepspeed)
    return Runtime(cpu, bf16, accumulation, micro, deepspeed)


def resolve_attention(config: TrainLlmConfig, runtime: Runtime, model_config: Any) -> str:
    """Return `model.attention`; `auto` on a GPU becomes one that needs no T x T mask for packed rows or isolated turns, where there is one.

    Packed rows take flash attention 2 in bfloat16 where flash-attn is installed. Flex attention takes both, if the model has it. Other
    batches take `CAUSAL_SDPA`. Raises ValueError: flash attention with isolated turns, or flex attention on a CPU, where it has no
    gradient.
    """
    wanted, isolated = config.model.attention, config.data.isolate_turns
    if isolated and wanted.startswith("flash_attention"):
        raise ValueError(f"data.isolate_turns needs a mask, which {wanted} does not take; set model.attention=auto")
    if wanted == "flex_attention" and runtime.cpu:
        raise ValueError("model.attention=flex_attention trains on a GPU only; set model.attention=auto")
    text, model = model_config.get_text_config(), MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    sees_all = getattr(text, "sliding_window", None) is None
    if not (config.data.pack or isolated):
        plain = wanted == "auto" and not runtime.cpu and sees_all and getattr(model, "_supports_sdpa", False)
        return CAUSAL_SDPA if plain else wanted
    if wanted == "auto" and not runtime.cpu:
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        plain = sees_all and not getattr(text, "attention_dropout", 0)
        if not isolated and runtime.bf16 and is_flash_attn_2_available() and getattr(model, "_supports_flash_attn", False):
            return "flash_attention_2"
        if plain and head >= FLEX_HEAD and getattr(model, "_supports_flex_attn", False):
            return "flex_attention"
    if not wanted.startswith(("flash_attention", "flex_attention")):
        logger.info("packed rows and isolated turns use a mask of T x T here; flash or flex attention on a GPU needs none")
    return wanted


def check_builder(path: str) -> None:
    """ValueError if DeepSpeed's optimizer for the CPU, which it builds when a run starts, is neither there nor can be built."""
    from deepspeed.git_version_info import installed_ops

    missing = [tool for tool in (os.environ.get("CXX", "g++"), "ninja") if shutil.which(tool) is None]
    if missing and not installed_ops.get("cpu_adam"):
        remedy = "install it (Debian: apt install g++ ninja-build), or take a DeepSpeed file without offload_optimizer"
        raise ValueError(f"{path} keeps the optimizer on the CPU, and DeepSpeed needs {' and '.join(missing)} to build it; {remedy}")


def read_deepspeed(path: str | Path, *, expected: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return the content of a DeepSpeed config.

    `path`: the JSON file. `expected`: dotted key of DeepSpeed -> the run's setting that means the same, and its value. Raises
    FileNotFoundError: no such file. Raises ValueError: not JSON, no ZeRO section, a value that contradicts the run, or an optimizer or
    schedule of its own.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no DeepSpeed config {path}; run.deepspeed takes {DEEPSPEED_FILES}")
    content = read_json(path)
    values = flatten_dict(content) if isinstance(content, dict) else {}
    stage = values.get("zero_optimization.stage")
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{path}: zero_optimization.stage is {stage!r}, expected 0, 1, 2 or 3; take {DEEPSPEED_FILES}")
    for section in ("optimizer", "scheduler"):
        if section in content:
            raise ValueError(f"{path}: remove the section '{section}'; optimizer.* of the run's config replaces it")
    for key, (setting, value) in expected.items():
        if values.get(key) not in (None, "auto", value):
            found = f"{key} is {values[key]!r}, but {setting} makes it {value!r}"
            raise ValueError(f'{path}: {found}; write "auto" there, or change the setting')
    return content  # type: ignore[no-any-return]


def build_arguments(config: TrainLlmConfig, runtime: Runtime, *, steps: int) -> TrainingArguments:
    """Return the arguments of a run of `steps` optimizer steps; joins the other ranks.

    With ZeRO-3, models that are opened while these arguments live are split over the ranks at once.
    """
    loop, options, run = config.train, config.optimizer, config.run
    timeout = timedelta(minutes=run.timeout_minutes)
    join_ranks(runtime, timeout=timeout)
    args = TrainingArguments(
        output_dir=run.dir,
        max_steps=steps,
        warmup_steps=math.ceil(options.warmup * steps) if options.warmup < 1 else int(options.warmup),
        per_device_train_batch_size=runtime.micro,
        per_device_eval_batch_size=loop.eval_batch_size or runtime.micro,
        gradient_accumulation_steps=runtime.accumulation,
        learning_rate=options.lr,
        lr_scheduler_type=options.schedule,
        weight_decay=options.weight_decay,
        adam_beta1=options.betas[0],
        adam_beta2=options.betas[1],
        max_grad_norm=options.clip,
        logging_steps=loop.log_every,
        logging_nan_inf_filter=False,  # it would wait for the device in every micro-batch; the monitor checks for NaN
        eval_strategy="steps" if config.data.val_files and loop.eval_every else "no",
        eval_steps=loop.eval_every or None,
        save_strategy="steps" if loop.save_every else "no",
        save_steps=loop.save_every or 500,
        seed=run.seed,
        bf16=runtime.bf16,
        use_cpu=runtime.cpu,
        disable_tqdm=True,
        log_level="warning",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=int(timeout.total_seconds()),
        deepspeed=runtime.deepspeed,
    )
    assert args.device is not None  # asking for it joins the process group
    return args


def join_ranks(runtime: Runtime, *, timeout: timedelta) -> None:
    """Join the other ranks, with environment variables that make Trainer follow the config.

    ACCELERATE_USE_CPU, which the scripts set on machines without GPU, silently turns DeepSpeed off; `use_cpu` has the same effect without
    that. A process that no launcher started becomes a job of one rank, where DeepSpeed needs a job and where Trainer would otherwise split
    each batch over all GPUs it sees.
    """
    os.environ.pop("ACCELERATE_USE_CPU", None)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = runtime.deepspeed is not None
    if "RANK" not in os.environ and (deepspeed or (torch.cuda.device_count() > 1 and not runtime.cpu)):
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # a port that is free when the rank listens
    if deepspeed and runtime.cpu:  # on a GPU transformers does it
        import deepspeed as engine

        engine.init_distributed(dist_backend="gloo", timeout=timeout, auto_mpi_discovery=False, verbose=False)
    elif runtime.cpu and world_size() > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=timeout)


def check_resumable(config: Any, folder: Path, *, fixed: tuple[str, ...], loose: tuple[str, ...] = ()) -> None:
    """Compare a config with the `config.yaml` of a run folder; name in a warning the settings that differ.

    Raises ValueError: a setting differs whose dotted key begins with one of `fixed` and none of `loose`.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return
    before: dict[str, Any] = flatten_dict(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    now = flatten_dict(asdict(config))
    changed = [key for key in now if key in before and before[key] != now[key] and not key.startswith("run.dir")]
    for key in changed:
        if key.startswith(fixed) and not key.startswith(loose):
            values = f"{key}={before[key]}, this one has {now[key]}"
            raise ValueError(f"{folder} holds a run with {values}; choose another run.dir or take the old value")
    if changed:
        settings = ", ".join(f"{key}={now[key]} (was {before[key]})" for key in changed)
        logger.warning("continuing %s under other settings: %s", folder, settings)
