"""The config of a tokenizer's training: model, data, objective, optimizer, loop and run folder, each documented where it is read."""

from dataclasses import dataclass, field

from unicode.images.datasets import DataConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.objective import ObjectiveConfig


@dataclass
class OptimizerConfig:
    """AdamW of the generator and of the discriminator."""

    lr: float = 1e-4
    """Peak learning rate of the generator."""
    min_lr: float = 0.0
    """Learning rate of the last step."""
    discriminator_lr: float = 1e-4
    """Peak learning rate of the discriminator; follows the same curve."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    betas: list[float] = field(default_factory=lambda: [0.5, 0.9])
    """Adam's decay rates."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay."""
    clip: float = 1.0
    """Largest gradient norm; 0 is unlimited."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        if self.lr <= 0 or self.min_lr < 0 or self.min_lr > self.lr:
            raise ValueError(f"optimizer.lr {self.lr} must be positive and min_lr {self.min_lr} between 0 and it")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas {list(self.betas)} must be two numbers in [0, 1)")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps {self.warmup_steps} cannot be negative")


@dataclass
class LoopConfig:
    """How long, how large, how often."""

    steps: int = 0
    """Optimizer steps of the run; 0 takes `epochs`."""
    epochs: float = 0.0
    """Passes over the data, when `steps` is 0."""
    batch_size: int = 128
    """Images per optimizer step, all ranks and micro-batches together; the run is the same however they are split."""
    micro_batch_size: int = 0
    """Images per forward pass and rank; 0 means batch_size / ranks. Smaller ones are accumulated."""
    language_tail: float = 0.1
    """Mode `language`: share of the steps at the end during which r = 1."""
    fade_in: float = 0.0
    """Share of the steps at the start over which quantization fades in."""
    average_decay: float = 0.0
    """Decay of the moving average of the weights that is evaluated and saved; 0 is off."""
    num_workers: int = 8
    """Processes per rank that read and decode images; 0 does it in the training process."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl; losses are checked for NaN at the same steps."""
    eval_every: int = 1000
    """Steps between validations and pictures; 0 is only at the end."""
    val_split: str = "val"
    """Split of the data that is validated on; empty for none."""
    val_images: int = 2000
    """Images of a validation; 0 is all."""
    val_batch_size: int = 32
    """Images per forward pass of a validation."""
    save_every: int = 1000
    """Steps between checkpoints; 0 is only at the end."""
    keep: int = 3
    """Checkpoints kept."""
    usage_alarm: float = 0.01
    """Warn when a level uses less than this share of the rows it could have used between two log lines."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        if self.steps <= 0 and self.epochs <= 0:
            raise ValueError("set train.steps or train.epochs to a positive number")
        if self.batch_size < 1 or self.micro_batch_size < 0 or self.log_every < 1 or self.keep < 1:
            raise ValueError("train.batch_size, log_every and keep must be at least 1, micro_batch_size at least 0")
        if not 0 <= self.language_tail < 1 or not 0 <= self.fade_in <= 1 or not 0 <= self.average_decay < 1:
            raise ValueError("train.language_tail, fade_in and average_decay are shares between 0 and 1")


@dataclass
class RunConfig:
    """Where the run lives and how it computes."""

    dir: str = "outputs/tokenizer"
    """Run folder: config.yaml, metrics.jsonl, checkpoints/, pictures/, TensorBoard files. The same folder resumes."""
    seed: int = 0
    """Seed of weights, data order and augmentation."""
    device: str = "auto"
    """`auto` (GPUs where there are any), `cpu` or `cuda`."""
    precision: str = "auto"
    """`bf16`, `float32`, or `auto`: bf16 on GPUs that have it. Codebooks are float32 always."""
    compile: bool = False
    """Compile encoder, decoder, discriminator and perceptual network."""
    channels_last: bool = False
    """Keep images and convolutions in NHWC memory order, faster on tensor cores."""
    threads: int = 0
    """CPU threads of each rank; 0 leaves the library's choice."""

    def __post_init__(self) -> None:
        """Reject unknown words."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"run.device '{self.device}' is unknown; choose auto, cpu or cuda")
        if self.precision not in ("auto", "bf16", "float32"):
            raise ValueError(f"run.precision '{self.precision}' is unknown; choose auto, bf16 or float32")


@dataclass
class TrainTokenizerConfig:
    """Everything about one training run of a tokenizer."""

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: LoopConfig = field(default_factory=lambda: LoopConfig(steps=100_000))
    run: RunConfig = field(default_factory=RunConfig)


def split_batch(config: LoopConfig, world_size: int) -> int:
    """Return the number of micro-batches per step and rank.

    Raises:
        ValueError: the batch cannot be split evenly.
    """
    micro = config.micro_batch_size or config.batch_size // world_size
    if micro < 1 or config.batch_size % (micro * world_size):
        raise ValueError(
            f"train.batch_size {config.batch_size} cannot be split over {world_size} ranks in micro-batches of {micro}; "
            f"make it a multiple of {max(1, micro) * world_size}"
        )
    return config.batch_size // (micro * world_size)
