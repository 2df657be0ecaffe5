"""Images/s, peak memory and operations of a full training step of a tokenizer: generator, LPIPS network, discriminator, updates.

    python tests/bench/train_step.py                                                              # a small HQ-VAE on the CPU
    python tests/bench/train_step.py --config configs/tokenizer/hqvae_llava_concat.yaml --device cuda --batch 64 --rows 32000 \
        --table-width 4096 --precision bf16 --compile --channels-last

The step is the trainer's own. Every part takes part from the first step on: the LPIPS network has its real shape and random weights,
the discriminator trains, and its adaptive weight is computed. The language model's table is made up, the batch is noise in memory, so
reading images is not measured. A forward hook counts the generator's forward passes: exactly one per micro-batch, else exit code 1.
Operations (of matrix products and convolutions) are counted by torch.utils.flop_counter in one uncompiled step. Peak memory: the
allocator's on CUDA, the resident memory of this process on a CPU.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from unicode.codebook.embedding_table import save_table
from unicode.common.config import load_config
from unicode.images.loader import Batch
from unicode.train.config import TrainTokenizerConfig
from unicode.train.monitor import TokenizerMonitor
from unicode.train.tokenizer import TokenizerTrainer

SMALL = ["model.autoencoder.channels=32", "model.autoencoder.multipliers=[1,2,2]", "model.autoencoder.num_res_blocks=1"]
PARTS = {"lpips", "adversarial", "adaptive_weight", "discriminator"}  # what a full step reports
MATRIX_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16 operations/s of the data sheets
WARM_UP = 3


def parse_args() -> argparse.Namespace:
    """Return the arguments of the benchmark."""
    parser = argparse.ArgumentParser(description="Measure a full training step of a tokenizer.")
    parser.add_argument("--config", help="YAML file of a training run (default: a small HQ-VAE)")
    sizes = {"batch": 8, "image-size": 0, "steps": 5, "rows": 4096, "table-width": 256}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="compile the networks")
    parser.add_argument("--channels-last", action="store_true", help="NHWC memory order")
    parser.add_argument("--peak", type=float, default=0.0, help="the card's matrix peak in operations/s, where it is not known here")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values of the config, for example train.micro_batch_size=4")
    return parser.parse_intermixed_args()


def build_trainer(args: argparse.Namespace, folder: Path) -> TokenizerTrainer:
    """Build the trainer, with every part of the objective at work from step 0."""
    save_table(folder / "table.safetensors", 0.02 * torch.randn(args.rows, args.table_width), torch.arange(0), model="made up")
    settings = [] if args.config else SMALL
    settings += [f"model.image_size={args.image_size or 64}"] if args.image_size or not args.config else []
    settings += [
        f"model.codebook.table={folder / 'table.safetensors'}",
        "data.name=shapes",
        "data.root=",
        "data.path=",
        "objective.perceptual.weight=1.0",
        "objective.perceptual.random=true",
        "objective.discriminator.enabled=true",
        "objective.discriminator.start=0",
        "objective.discriminator.alone_steps=0",
        "objective.discriminator.ramp_steps=0",
        "train.steps=1000",
        f"train.batch_size={args.batch}",
        "train.val_split=",
        f"run.dir={folder / 'run'}",
        f"run.device={args.device}",
        f"run.precision={args.precision}",
        f"run.compile={args.compile}",
        f"run.channels_last={args.channels_last}",
    ]
    config = load_config(TrainTokenizerConfig, args.config, [*settings, *args.overrides])
    trainer = TokenizerTrainer(config)
    trainer.monitor = TokenizerMonitor(folder, trainer.device, batch_size=args.batch, usage_alarm=0.0)
    return trainer


class Measured:
    """One training step at a time, with what it costs."""

    def __init__(self, trainer: TokenizerTrainer, batch: int) -> None:
        self.trainer, self.done, self.forwards = trainer, 0, 0
        trainer.tokenizer.register_forward_hook(self._count)
        size, micro = trainer.config.model.image_size, batch // trainer.accumulation
        names = [str(number) for number in range(micro)]
        images = 2 * torch.rand(trainer.accumulation, micro, 3, size, size, device=trainer.device) - 1
        self.micro = [Batch(part, names, list(range(micro)), []) for part in images]

    def _count(self, *_: object) -> None:
        self.forwards += 1

    def step(self) -> float:
        """Do one step; return its seconds."""
        self._synchronize()
        start = time.perf_counter()
        self.trainer.train_step(self.done, self.micro)
        self._synchronize()
        self.done += 1
        return time.perf_counter() - start

    def operations(self) -> int:
        """Do one step without compilation and count its operations."""
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = nullcontext()  # its hooks on leaves do not work with autograd.grad, and the total needs no modules
        counter.mod_tracker.parents = {"Global"}
        with torch.compiler.set_stance("force_eager"), counter:
            self.step()
        return counter.get_total_flops()

    def _synchronize(self) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()


def peak_memory(device: torch.device) -> int:
    """Return the largest amount of memory in use so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def matrix_peak(device: torch.device, given: float) -> float:
    """Return the dense bf16 operations/s of the device, 0 where they are not known."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return given or next((peak for card, peak in MATRIX_PEAKS.items() if card in name), 0.0)


def main() -> int:
    """Measure, print, check."""
    args = parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(args, Path(folder))
    measured, device, config = Measured(trainer, args.batch), trainer.device, trainer.config
    operations = measured.operations()
    for _ in range(WARM_UP):
        measured.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(measured.step() for _ in range(args.steps))
    missing = PARTS - {name for group in trainer.monitor.sums for name in group}
    layout, model = trainer.tokenizer.layout, config.model
    switches = f"{args.precision}{' compiled' * args.compile}{' channels-last' * args.channels_last}"
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{model.type}, {model.image_size} px, channels {model.autoencoder.channels} x {list(model.autoencoder.multipliers)}, ", end="")
    print(f"{layout.num_codes} codes of {trainer.tokenizer.num_rows} rows, mode {model.codebook.mode}")
    print(f"batch {args.batch}, {switches}, {where}")
    print(f"images/s                  {args.batch / seconds:10.2f}   ({seconds:.3f} s a step, median of {args.steps})")
    print(f"peak memory               {peak_memory(device) / 2**20:10.0f} MiB {'allocated' if device.type == 'cuda' else 'resident'}")
    print(f"operations per image      {operations / args.batch / 1e9:10.1f} G")
    print(f"operations per second     {operations / seconds / 1e12:10.3f} T")
    if peak := matrix_peak(device, args.peak):
        print(f"share of the matrix peak  {operations / seconds / peak:10.1%}   (of {peak / 1e12:.0f} T/s, dense bf16)")
    print(f"generator forwards        {measured.forwards:10d}   in {measured.done} steps of {trainer.accumulation} micro-batches")
    if missing or measured.forwards != measured.done * trainer.accumulation:
        print(f"not a full step with one forward per micro-batch; parts missing: {sorted(missing) or 'none'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
