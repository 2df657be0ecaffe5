"""Configs of both trainings: tokenizer and language model; every field documented and checked."""

from dataclasses import dataclass, field

from unicode.annotations.records import TASKS
from unicode.annotations.templates import fill_caption
from unicode.images.dataset import DataConfig
from unicode.llm.card import OUTPUT_MODES
from unicode.llm.cell_head import CellSettings
from unicode.llm.llava import VisionSettings
from unicode.llm.lora import LoraSettings
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.losses import ObjectiveConfig

ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
GROUPINGS = ("none", "length", "modality")


@dataclass
class AdamWConfig:
    """Settings of AdamW in both trainings."""

    lr: float = 1e-4  # Peak learning rate
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # Adam's decay rates
    weight_decay: float = 0.0  # AdamW's decoupled decay
    clip: float = 1.0  # Largest gradient norm; 0 is unlimited

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr {self.lr} must be positive")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas {list(self.betas)} must be two numbers in [0, 1)")
        if self.weight_decay < 0 or self.clip < 0:
            raise ValueError("optimizer.weight_decay and clip cannot be negative")


@dataclass
class StepsConfig:
    """Settings of the loop in both trainings."""

    steps: int = 0  # Optimizer steps of the run; 0 takes `epochs`
    epochs: float = 0.0  # Passes over the data, when `steps` is 0
    batch_size: int = 128
    """Images or conversations per optimizer step, all ranks and micro-batches together; the run is the same however they are split."""
    micro_batch_size: int = 0  # Images or conversations per forward pass and rank; 0 means batch_size / ranks. Smaller ones are accumulated
    log_every: int = 50  # Steps between lines of metrics.jsonl; losses are checked for NaN at the same steps and before every checkpoint
    eval_every: int = 1000  # Steps between measurements on held-out data; 0 is only at the end
    save_every: int = 1000  # Steps between checkpoints; 0 is none before the end
    keep: int = 3  # Checkpoints kept

    def __post_init__(self) -> None:
        if self.steps <= 0 and self.epochs <= 0:
            raise ValueError("set train.steps or train.epochs to a positive number")
        if self.batch_size < 1 or self.micro_batch_size < 0 or self.log_every < 1 or self.keep < 1:
            raise ValueError("train.batch_size, log_every and keep must be at least 1, micro_batch_size at least 0")
        if self.eval_every < 0 or self.save_every < 0:
            raise ValueError("train.eval_every and save_every cannot be negative")


@dataclass
class ComputeConfig:
    """Settings of devices and precision in both trainings."""

    seed: int = 0  # Seed of new weights, data order, augmentation and dropout
    device: str = "auto"  # `auto` (GPUs where there are any), `cpu` or `cuda`
    precision: str = "auto"  # `bf16`, `float32`, or `auto`: bf16 on GPUs that have it. Codebooks of a tokenizer are float32 always
    threads: int = 0  # CPU threads of each rank; 0 leaves the library's choice
    timeout_minutes: float = 60.0  # How long a rank waits for the others in one exchange before the run is ended as hanging

    def __post_init__(self) -> None:
        _check_word("run.device", self.device, ("auto", "cpu", "cuda"))
        _check_word("run.precision", self.precision, ("auto", "bf16", "float32"))
        if self.timeout_minutes <= 0:
            raise ValueError(f"run.timeout_minutes {self.timeout_minutes} must be positive")


@dataclass
class OptimizerConfig(AdamWConfig):
    """AdamW of the generator and of the discriminator."""

    min_lr: float = 0.0  # Learning rate of the last step
    discriminator_lr: float = 1e-4  # Peak learning rate of the discriminator; follows the same curve
    warmup_steps: int = 500  # Steps of linear warm-up
    betas: list[float] = field(default_factory=lambda: [0.5, 0.9])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"optimizer.min_lr {self.min_lr} must be between 0 and lr {self.lr}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps {self.warmup_steps} cannot be negative")


@dataclass
class LoopConfig(StepsConfig):
    """How long, how large, how often."""

    language_tail: float = 0.1  # Mode `language`: share of the steps at the end during which r = 1
    fade_in: float = 0.0  # Share of the steps at the start over which quantization fades in
    average_decay: float = 0.0  # Decay of the moving average of the weights that is evaluated and saved; 0 is off
    num_workers: int = 8  # Processes per rank that read and decode images; 0 does it in the training process
    val_split: str = "val"  # Split of the data that is validated on; empty for none
    val_images: int = 2000  # Images of a validation; 0 is all
    val_batch_size: int = 32  # Images per forward pass of a validation
    usage_alarm: float = 0.01  # Warn when a level uses less than this share of the rows it could have used between two log lines

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.language_tail < 1 or not 0 <= self.fade_in <= 1 or not 0 <= self.average_decay < 1:
            raise ValueError("train.language_tail, fade_in and average_decay are shares between 0 and 1")


@dataclass
class RunConfig(ComputeConfig):
    """Where the run lives and how it computes."""

    dir: str = "outputs/tokenizer"
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, pictures/, TensorBoard files. The same folder resumes."""
    compile: bool = False  # Compile encoder, decoder, discriminator and perceptual network
    channels_last: bool = False  # Keep images and convolutions in NHWC memory order, faster on tensor cores


@dataclass
class TrainTokenizerConfig:
    """Everything about one training run of a tokenizer."""

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: LoopConfig = field(default_factory=lambda: LoopConfig(steps=100_000))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        book = self.model.codebook
        if book.mode == "projected" and self.objective.commitment == 0 and book.entropy_weight == 0:
            raise ValueError("objective.commitment=0 leaves the rows of model.codebook.mode=projected without a gradient; set it above 0")
        semantic, data = self.objective.semantic, self.data
        levels = self.model.levels if self.model.type == "hqvae" else self.model.depth
        for name, term in (("teacher", semantic.teacher), ("words", semantic.words)):
            if term.weight > 0 and max(term.levels) >= levels:
                found = f"objective.semantic.{name}.levels {list(term.levels)}"
                raise ValueError(f"{found} must be below {levels}, the number of levels of the tokenizer")
        if semantic.words.weight > 0 and book.mode == "free":
            raise ValueError("objective.semantic.words needs rows of a language model, which model.codebook.mode=free has not")
        varies = data.name != "shapes" and (data.training_crop != "center" or data.flip)
        if semantic.teacher.weight > 0 and semantic.teacher.cache and varies:
            raise ValueError("objective.semantic.teacher.cache has features of whole pictures; set data.crop=center and data.flip=false")
        if semantic.words.weight > 0 and self.train.batch_size < 2:
            raise ValueError("objective.semantic.words tells the pictures of a batch apart; set train.batch_size to 2 or more")


def split_batch(loop: StepsConfig, world_size: int) -> int:
    """Return the number of micro-batches per step and rank. Raises ValueError: the batch cannot be split evenly."""
    micro = loop.micro_batch_size or loop.batch_size // world_size
    if micro < 1 or loop.batch_size % (micro * world_size):
        found = f"train.batch_size {loop.batch_size} cannot be split over {world_size} ranks in micro-batches of {micro}"
        raise ValueError(f"{found}; make it a multiple of {max(1, micro) * world_size}")
    return loop.batch_size // (micro * world_size)


@dataclass
class ModelConfig:
    """The language model that is tuned, and how it is read."""

    path: str = ""  # Folder of a Hugging Face model, or a .gguf file
    image_tokenizer: str = ""
    """Folder of the image tokenizer, kept in unicode.json for inference and checked against the ids; training needs it for cells and soft
    targets alone."""
    template: str = "vicuna_v1"  # Prompt template: vicuna_v1, llama_2, llava_llama_2, llava_v1, plain, or chat (the model's own)
    request: str = ""
    """What a request for a picture says, with the description in place of {caption}, as in the training data (get_t2v_anno --request); kept
    in unicode.json for drawing. Left out: the first of the project's own words."""
    input_mode: str = "ids"  # `ids` (one position per id) or `sum` (one position per coarse cell: the sum of the rows of its ids)
    output_mode: str = "ids"
    """How images in answers are written: `ids` (one position per id) or `cells` (one per coarse cell, whose ids a small transformer writes
    beside the language model; `cells.*`)."""
    attention: str = "auto"
    """`auto` (eager for models of few parameters on a CPU, flash or flex attention for `data.pack` and `data.isolate_turns` on a GPU, sdpa
    otherwise) or the name of an implementation."""
    dtype: str = "auto"  # Type of the weights in memory: float32, bfloat16, float16, or `auto`: as `run.precision` needs it
    quantize: str = "none"  # `none`, or `nf4` / `int8`: frozen weights in 4 or 8 bits under LoRA; needs a GPU and the package bitsandbytes
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    dropout: float = 0.0  # Dropout on what attention and MLP of each layer add, in the language model and in the cell head

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout {self.dropout} is a share, from 0 to below 1")
        if self.request:
            fill_caption(self.request, "words")  # one that cannot be drawn with later ends here
        _check_word("model.attention", self.attention, ATTENTIONS)
        _check_word("model.dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _check_word("model.quantize", self.quantize, ("none", "nf4", "int8"))
        _check_word("model.input_mode", self.input_mode, ("ids", "sum"))
        _check_word("model.output_mode", self.output_mode, OUTPUT_MODES)


@dataclass
class LlmDataConfig:
    """The training data."""

    files: list[str] = field(default_factory=list)
    """Annotation files, each PATH or PATH*WEIGHT; the weight is how often a record of the file occurs in an epoch on average."""
    val_files: list[str] = field(default_factory=list)
    """Held-out annotation files; their loss is measured every `train.eval_every` steps, per task."""
    stores: list[str] = field(default_factory=list)
    """Folders of ids (`unicode.run.encode_images`) for records that name images instead of holding ids."""
    max_length: int = 0
    """Longest sequence in tokens; 0: the model's context, at most 2048. Longer conversations are cut between turns, or left out."""
    isolate_turns: bool = False
    """Let the questions of a conversation attend to its images but not to each other, as if each were asked alone."""
    pack: bool = False  # Put several short conversations into one row of a batch; they do not attend to each other
    skip_bad: bool = False  # Leave out records that cannot be used and count them; false stops with the first of them named
    task_weights: dict[str, float] = field(default_factory=dict)
    """Task -> how often its records occur, times the weight of their file; 1 for tasks that are not named."""
    num_workers: int = 0  # Processes per rank that tokenize ahead; 0 does it in the training process

    def __post_init__(self) -> None:
        if self.max_length < 0 or self.num_workers < 0:
            raise ValueError(f"data.max_length {self.max_length} and num_workers {self.num_workers} cannot be negative")
        _check_weights("data.task_weights", self.task_weights)


@dataclass
class LlmOptimizerConfig(AdamWConfig):
    """AdamW, its schedule, and the weights of the parts of the loss."""

    lr: float = 2e-4
    projector_lr: float = 0.0  # Peak learning rate of a LLaVA projector; 0: as `lr`
    marker_lr: float = 0.0  # Peak learning rate of the rows of the image markers, and of words that learn; 0: as `lr`
    cell_head_lr: float = 0.0  # Peak learning rate of the cell head; 0: as `lr`
    muon_lr: float = 0.0
    """Peak learning rate of Muon, which then trains the matrices inside the layers, of language model and cell head; 0: AdamW trains all.
    Not with DeepSpeed, which divides matrices among ranks."""
    schedule: str = "cosine"  # `cosine`, `linear` or `constant_with_warmup`
    warmup: float = 0.03  # Steps of linear warm-up; below 1 a share of all steps
    weight_decay: float = 0.0  # AdamW's decoupled decay; never on biases, normalizations and marker rows
    text_weight: float = 1.0  # Weight of the mean loss over the text targets of a step
    image_weight: float = 1.0  # Weight of the mean loss over the image ids of a step
    code_smoothing: float = 0.0
    """Share of the target of an image id that goes to the other rows of its level, the nearest most; 0: none. Held-out losses have none."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """Task -> weight of its targets in those means; 1 for tasks that are not named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.projector_lr, self.marker_lr, self.cell_head_lr, self.muon_lr, self.warmup) < 0:
            raise ValueError("optimizer.projector_lr, marker_lr, cell_head_lr, muon_lr and warmup cannot be negative")
        if not 0 <= self.code_smoothing < 1:
            raise ValueError(f"optimizer.code_smoothing {self.code_smoothing} is a share, from 0 to below 1")
        if self.text_weight < 0 or self.image_weight < 0 or self.text_weight + self.image_weight == 0:
            raise ValueError("optimizer.text_weight and image_weight must be 0 or more, and one of them positive")
        _check_word("optimizer.schedule", self.schedule, ("cosine", "linear", "constant_with_warmup"))
        _check_weights("optimizer.task_weights", self.task_weights)


@dataclass
class LlmLoopConfig(StepsConfig):
    """How long, how large, how often."""

    epochs: float = 1.0  # Passes over the weighted data, when `steps` is 0
    group_by: str = "length"
    """What the conversations of a batch have in common: `length`, `modality` (images or none, then length), or `none`: all
    tasks in every step. Micro-batches then have about as many tokens each, and `micro_batch_size` conversations on average."""
    log_every: int = 10
    eval_every: int = 0
    eval_batch_size: int = 0  # Conversations per forward pass and rank of a measurement; 0: as micro_batch_size
    eval_samples: int = 1000  # Held-out conversations measured, spread over the files; 0 is all
    save_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_batch_size < 0 or self.eval_samples < 0:
            raise ValueError("train.eval_batch_size and eval_samples cannot be negative")
        _check_word("train.group_by", self.group_by, GROUPINGS)


@dataclass
class LlmRunConfig(ComputeConfig):
    """Where the run lives and how it computes."""

    dir: str = "outputs/llm"
    """Run folder: config.yaml, metrics.jsonl, checkpoint-N/, tensorboard/, and at the end the adapter or model. The same folder resumes."""
    deepspeed: str = ""  # A DeepSpeed JSON file, as configs/deepspeed/zero2.json; empty: one process or DDP


@dataclass
class TrainLlmConfig:
    """Everything about one training run of a language model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    vision: VisionSettings = field(default_factory=VisionSettings)
    cells: CellSettings = field(default_factory=CellSettings)
    data: LlmDataConfig = field(default_factory=LlmDataConfig)
    optimizer: LlmOptimizerConfig = field(default_factory=LlmOptimizerConfig)
    train: LlmLoopConfig = field(default_factory=LlmLoopConfig)
    run: LlmRunConfig = field(default_factory=LlmRunConfig)

    def __post_init__(self) -> None:
        if self.vision.projector_only and self.lora.enabled:
            raise ValueError("vision.projector_only=true trains no adapter; set lora.enabled=false")
        if self.vision.enabled and self.data.stores:
            raise ValueError("data.stores holds ids, but vision.enabled=true reads image files; name their folders in vision.images")
        if self.vision.enabled and self.model.input_mode != "ids":
            raise ValueError(f"model.input_mode={self.model.input_mode} adds up ids, but vision.enabled=true reads none; set it to ids")
        of_ids = {
            "model.output_mode=cells": self.model.output_mode == "cells",
            "optimizer.code_smoothing": self.optimizer.code_smoothing > 0,
            "lora.train_words": self.lora.train_words,
        }
        for key, used in of_ids.items():
            if used and self.vision.enabled:
                raise ValueError(f"{key} is for image ids, but vision.enabled=true learns none; turn one of them off")
            if used and not self.model.image_tokenizer:
                raise ValueError(f"{key} needs the codebook of the image tokenizer; name its folder in model.image_tokenizer")
        if self.optimizer.muon_lr and self.vision.projector_only:
            raise ValueError("optimizer.muon_lr trains matrices inside the layers, and vision.projector_only=true trains none; set it to 0")
        if self.optimizer.muon_lr and self.run.deepspeed:
            raise ValueError("optimizer.muon_lr needs whole matrices, and run.deepspeed divides them among ranks; turn one of them off")
        if self.model.quantize != "none" and not self.lora.enabled:
            raise ValueError(f"model.quantize={self.model.quantize} needs lora.enabled=true: quantized weights cannot be tuned themselves")


def _check_word(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{key} '{value}' is unknown; choose {', '.join(known)}")


def _check_weights(key: str, weights: dict[str, float]) -> None:
    for task, weight in weights.items():
        if task not in TASKS:
            raise ValueError(f"{key} names the task '{task}'; known: {', '.join(TASKS)}")
        if not 0 <= weight < 1e6:
            raise ValueError(f"{key}.{task} is {weight}; it must be a number from 0 up")
