"""A language-model run's config -> devices, precision, DeepSpeed and arguments of transformers' Trainer."""

import math
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainingArguments

from unicode.common.distributed import world_size
from unicode.common.files import read_json
from unicode.train.config import LoopConfig, TrainLlmConfig, split_batch

REMEDY = 'write "auto" there, or change the setting'
EXAMPLES = "configs/deepspeed/zero2.json, zero3.json, zero2_offload.json or zero3_offload.json"


def read_deepspeed(path: str | Path, *, expected: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return the content of a DeepSpeed config.

    Args:
        path: the JSON file.
        expected: dotted key of DeepSpeed -> the run's setting that says the same, and its value.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, no ZeRO section, a value that contradicts the run, or an optimizer or schedule of its own.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no DeepSpeed config {path}; run.deepspeed takes {EXAMPLES}")
    content = read_json(path)
    stage = lookup(content, "zero_optimization.stage") if isinstance(content, dict) else None
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{path}: zero_optimization.stage is {stage!r}, expected 0, 1, 2 or 3; take {EXAMPLES}")
    for section in ("optimizer", "scheduler"):
        if section in content:
            raise ValueError(f"{path}: remove the section '{section}'; optimizer.* of the run's config says how weights are changed")
    for key, (setting, value) in expected.items():
        found = lookup(content, key)
        if found not in (None, "auto") and found != value:
            raise ValueError(f"{path}: {key} is {found!r}, but {setting} makes it {value!r}; {REMEDY}")
    return content  # type: ignore[no-any-return]


def zero_stage(content: dict[str, Any] | None) -> int:
    """The ZeRO stage of a config, 0 without one."""
    return int(lookup(content, "zero_optimization.stage") or 0) if content else 0


def lookup(content: dict[str, Any], key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


PATIENCE = timedelta(days=7)  # ranks that wait for the slowest one must not give up on it


@dataclass(frozen=True)
class Setting:
    """What follows from a config and the machine.

    Attributes:
        cpu: whether to compute on the CPU.
        bf16: whether to compute in bfloat16.
        dtype: name of the type of the weights in memory.
        accumulation: micro-batches per step and rank.
        micro: conversations per micro-batch.
        deepspeed: content of the DeepSpeed file; None without.
        zero: ZeRO stage, 0 without.
    """

    cpu: bool
    bf16: bool
    dtype: str
    accumulation: int
    micro: int
    deepspeed: dict[str, Any] | None
    zero: int


def settle(config: TrainLlmConfig) -> Setting:
    """Decide on device, precision and batches.

    Raises:
        FileNotFoundError: no DeepSpeed file of that name.
        ValueError: no GPU where one is asked for, a batch that cannot be split, or a DeepSpeed file that contradicts the run.
    """
    run, loop = config.run, config.train
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device is cuda, but there is no GPU here; set run.device=auto")
    cpu = run.device == "cpu" or not torch.cuda.is_available()
    bf16 = run.precision == "bf16" or (run.precision == "auto" and not cpu and torch.cuda.is_bf16_supported())
    ranks = world_size()
    split = LoopConfig(steps=1, batch_size=loop.batch_size, micro_batch_size=loop.micro_batch_size)
    accumulation = split_batch(split, ranks)
    micro = loop.batch_size // (accumulation * ranks)
    deepspeed = None
    if run.deepspeed:
        expected = {
            "train_micro_batch_size_per_gpu": ("train.micro_batch_size", micro),
            "gradient_accumulation_steps": ("train.batch_size", accumulation),
            "train_batch_size": ("train.batch_size", loop.batch_size),
            "gradient_clipping": ("optimizer.clip", config.optimizer.clip),
            "bf16.enabled": ("run.precision", bf16),
            "fp16.enabled": ("run.precision", False),
        }
        deepspeed = read_deepspeed(run.deepspeed, expected=expected)
    return Setting(cpu, bf16, choose_dtype(config, bf16=bf16), accumulation, micro, deepspeed, zero_stage(deepspeed))


def choose_dtype(config: TrainLlmConfig, *, bf16: bool) -> str:
    """The type of the weights in memory: frozen ones may be bfloat16; trained ones stay float32 where nothing keeps an exact copy."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return "bfloat16" if bf16 and (config.lora.enabled or bool(config.run.deepspeed)) else "float32"


def build_arguments(config: TrainLlmConfig, setting: Setting) -> TrainingArguments:
    """Return the arguments of a run, its number of steps still open (see `set_steps_`); joins the other ranks.

    With ZeRO-3, models that are opened while these arguments live are split over the ranks at once.
    """
    join_ranks(setting)
    loop, options, run = config.train, config.optimizer, config.run
    args = TrainingArguments(
        output_dir=run.dir,
        max_steps=max(1, loop.steps),
        per_device_train_batch_size=setting.micro,
        per_device_eval_batch_size=loop.eval_batch_size or setting.micro,
        gradient_accumulation_steps=setting.accumulation,
        learning_rate=options.lr,
        lr_scheduler_type=options.schedule,
        weight_decay=options.weight_decay,
        adam_beta1=options.betas[0],
        adam_beta2=options.betas[1],
        max_grad_norm=options.clip,
        logging_strategy="steps",
        logging_steps=loop.log_every,
        logging_nan_inf_filter=False,  # it would wait for the device in every micro-batch; LossGuard looks after NaN
        eval_strategy="steps" if config.data.val_files and loop.eval_every else "no",
        eval_steps=loop.eval_every or None,
        save_strategy="steps" if loop.save_every else "no",
        save_steps=loop.save_every or 500,
        save_total_limit=loop.keep + 1,  # one more, because the newest one is marked as whole only after old ones are dropped
        seed=run.seed,
        bf16=setting.bf16,
        use_cpu=setting.cpu,
        report_to="none",
        disable_tqdm=True,
        log_level="warning",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=int(PATIENCE.total_seconds()),
        deepspeed=setting.deepspeed,
    )
    assert args.device is not None  # asking for it joins the process group
    return args


def set_steps_(args: TrainingArguments, *, steps: int, warmup: float) -> None:
    """Set the number of steps and of those that warm up, a share of them below 1."""
    args.max_steps = steps
    args.warmup_steps = math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def join_ranks(setting: Setting) -> None:
    """Join the other ranks, in an environment where Trainer does what the config says.

    ACCELERATE_USE_CPU, which the scripts set on machines without GPU, silently turns DeepSpeed off; `use_cpu` says the same without that.
    A process that no launcher started becomes a job of one rank, where DeepSpeed needs a job and where Trainer would otherwise split each
    batch over all GPUs it sees.
    """
    os.environ.pop("ACCELERATE_USE_CPU", None)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = setting.deepspeed is not None
    if "RANK" not in os.environ and (deepspeed or (torch.cuda.device_count() > 1 and not setting.cpu)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if deepspeed and setting.cpu:  # on a GPU transformers does it
        import deepspeed as engine

        engine.init_distributed(dist_backend="gloo", timeout=PATIENCE, auto_mpi_discovery=False, verbose=False)
    elif setting.cpu and world_size() > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=PATIENCE)
