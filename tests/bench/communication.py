"""Count the bytes that one optimizer step moves between ranks: tokenizers by codebook mode, language models by LoRA, full tuning and ZeRO.

    python tests/bench/communication.py                 # 2 and 4 ranks, tiny models on the CPU, a few minutes
    python tests/bench/communication.py --ranks 2 --only lora zero3 --json communication.json

The real training commands run on gloo in float32. Every collective of torch.distributed is counted where it is called, the buckets of DDP
in a communication hook. A step has 8 images or conversations in one micro-batch per rank. A run of 4 steps minus a run of 3 steps is one
step; what happens once per run cancels out. Payload: bytes of the tensor that is reduced, gathered or scattered. Sent: what each rank
sends for it over a ring of n ranks, 2 (n - 1) / n of the payload of an all-reduce, (n - 1) / n of the others. Barriers are not counted.
"""

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import distributed_c10d
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).parents[2]
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "UNICODE_CACHE": ""}
MOVED: Counter[str] = Counter()
"""Bytes of payload by kind of collective, of this process."""
ALL_REDUCE, GRADIENTS, REDUCE_SCATTER, ALL_GATHER, BROADCAST = "all-reduce", "gradients (DDP)", "reduce-scatter", "all-gather", "broadcast"
RING = {ALL_REDUCE: 2.0, GRADIENTS: 2.0, REDUCE_SCATTER: 1.0, ALL_GATHER: 1.0, BROADCAST: 1.0}  # times (n - 1) / n of the payload
PAYLOADS: dict[str, tuple[str, str, int]] = {  # function -> kind, name and place of the argument whose size is the payload
    "all_reduce": (ALL_REDUCE, "tensor", 0),
    "all_reduce_coalesced": (ALL_REDUCE, "tensors", 0),
    "reduce": (BROADCAST, "tensor", 0),
    "broadcast": (BROADCAST, "tensor", 0),
    "all_gather": (ALL_GATHER, "tensor_list", 0),
    "all_gather_into_tensor": (ALL_GATHER, "output_tensor", 0),
    "reduce_scatter": (REDUCE_SCATTER, "input_list", 1),
    "reduce_scatter_tensor": (REDUCE_SCATTER, "input", 1),
}


def count_collectives() -> None:
    """Wrap the collectives and the constructor of DDP; called before other libraries take references to them."""

    def wrap(function: Callable[..., Any], kind: str, argument: str, place: int) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            tensors = kwargs[argument] if argument in kwargs else args[place]
            listed = [tensors] if isinstance(tensors, torch.Tensor) else tensors
            MOVED[kind] += sum(tensor.numel() * tensor.element_size() for tensor in listed)
            return function(*args, **kwargs)

        return counted

    for name, (kind, argument, place) in PAYLOADS.items():
        counted = wrap(getattr(distributed, name), kind, argument, place)
        for module in (distributed, distributed_c10d):  # the second for functions of torch that call each other
            setattr(module, name, counted)

    def hook(_: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        MOVED[GRADIENTS] += bucket.buffer().numel() * bucket.buffer().element_size()
        before = MOVED[ALL_REDUCE]
        future = allreduce_hook(distributed.group.WORLD, bucket)
        MOVED[ALL_REDUCE] = before  # the same bytes, should the hook call a counted function
        return future

    construct = DistributedDataParallel.__init__

    def constructed(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        self.register_comm_hook(None, hook)

    DistributedDataParallel.__init__ = constructed  # type: ignore[method-assign]


TOKENIZER = (
    "model.image_size=32 model.autoencoder.channels=16 model.autoencoder.multipliers=[1,2] model.autoencoder.num_res_blocks=1 "
    "model.autoencoder.latent_channels=16 model.autoencoder.decoder_attention=[] data.name=shapes objective.perceptual.weight=0 "
    "train.batch_size=8 train.num_workers=0 train.log_every=100 train.eval_every=0 train.save_every=0 train.val_images=8 "
    "run.device=cpu run.threads=1 optimizer.warmup_steps=1"
).split()
HALVED = "train.batch_size=16"
PLAIN, GAN = "objective.discriminator.enabled=false", "objective.discriminator.start=0"
LLM = (
    "model.template=llava_llama_2 lora.r=8 train.batch_size=8 train.log_every=100 train.eval_every=0 "
    "train.save_every=0 run.device=cpu run.threads=1"
).split()
CASES: dict[str, tuple[str, list[str]]] = {
    "free": ("train_tokenizer", [PLAIN, "model.codebook.mode=free", "model.codebook.num_rows=400", "model.codebook.width=32"]),
    "frozen": ("train_tokenizer", [PLAIN, "model.codebook.mode=frozen", "model.codebook.width=0"]),
    "language": ("train_tokenizer", [PLAIN, "model.codebook.mode=language", "model.codebook.width=0"]),
    "projected": ("train_tokenizer", [PLAIN, "model.codebook.mode=projected", "model.codebook.width=16"]),
    "projected, GAN": ("train_tokenizer", [GAN, "model.codebook.mode=projected", "model.codebook.width=16"]),
    "lora": ("train_llm", []),
    "full": ("train_llm", ["lora.enabled=false"]),
    "lora, zero2": ("train_llm", [f"run.deepspeed={ROOT}/configs/deepspeed/zero2.json"]),
    "full, zero2": ("train_llm", ["lora.enabled=false", f"run.deepspeed={ROOT}/configs/deepspeed/zero2.json"]),
    "full, zero2, 2 micro-batches": ("train_llm", ["lora.enabled=false", f"run.deepspeed={ROOT}/configs/deepspeed/zero2.json", HALVED]),
    "lora, zero3": ("train_llm", [f"run.deepspeed={ROOT}/configs/deepspeed/zero3.json"]),
    "full, zero3": ("train_llm", ["lora.enabled=false", f"run.deepspeed={ROOT}/configs/deepspeed/zero3.json"]),
    "full, zero3, 2 micro-batches": ("train_llm", ["lora.enabled=false", f"run.deepspeed={ROOT}/configs/deepspeed/zero3.json", HALVED]),
    "full, zero3, gathered again": ("train_llm", ["lora.enabled=false", "run.deepspeed={folder}/zero3.json"]),
}


def prepare(folder: Path) -> list[str]:
    """Write a random LLaMA, its embedding table and conversations; return the settings of the language model's data."""
    from train.conftest import conversations
    from transformers import LlamaConfig, LlamaForCausalLM

    from unicode.annotations.records import IMAGE_TO_TEXT
    from unicode.common.files import write_json
    from unicode.llm.base_model import base_text, train_tokenizer
    from unicode.run import export_codebook

    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).save_pretrained(folder / "llm")
    train_tokenizer(islice(base_text(instructions=0.2, seed=0), 2000), vocab_size=508).save_pretrained(folder / "llm")
    assert export_codebook.main(["--model", str(folder / "llm"), "--out", str(folder / "table.safetensors")]) == 0
    write_json(folder / "train.json", conversations(IMAGE_TO_TEXT, 64))
    write_json(folder / "val.json", conversations(IMAGE_TO_TEXT, 8, seed=1))
    (folder / "empty.yaml").write_text("{}\n")
    zero3 = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())
    zero3["zero_optimization"] |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}  # as a model far above these limits
    (folder / "zero3.json").write_text(json.dumps(zero3))
    return [f"model.path={folder}/llm", f"data.files=[{folder}/train.json]", f"data.val_files=[{folder}/val.json]"]


def run_rank(command: str, words: list[str], environment: dict[str, str], out: Path) -> None:
    """One rank of a job: run a training command and write what it moved, and its parameters."""
    os.environ.update(environment)
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    code = import_module(f"unicode.run.{command}").main(words)
    out.write_text(json.dumps({"code": code, "moved": MOVED}))
    os._exit(code)


def measure(folder: Path, case: str, ranks: int, steps: int, data: list[str]) -> Counter[str]:
    """Run a case for some steps and return the bytes that its first rank moved."""
    command, settings = CASES[case][0], [word.replace("{folder}", str(folder)) for word in CASES[case][1]]
    shared = [*TOKENIZER, f"model.codebook.table={folder}/table.safetensors"] if command == "train_tokenizer" else [*LLM, *data]
    run = folder / f"{case}-{ranks}-{steps}".replace(", ", "-")
    run.mkdir()
    shared += [f"train.micro_batch_size={8 // ranks}"] if command == "train_llm" else []
    words = [str(folder / "empty.yaml"), *shared, *settings, f"train.steps={steps}", f"run.dir={run}/run"]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    started = []
    for rank in range(ranks):
        place = {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = multiprocessing.get_context("fork").Process(target=run_rank, args=(command, words, place, run / f"{rank}.json"))
        process.start()
        started.append(process)
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise SystemExit(f"{case} failed:\n{(run / '0.log').read_text()[-3000:]}")
    return Counter(json.loads((run / "0.json").read_text())["moved"])


def main() -> None:
    """Measure the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--only", nargs="+", default=[], help=f"cases whose name begins so: {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, help="write the bytes by case, ranks and kind there")
    args = parser.parse_args()
    os.environ.update(ON_CPU)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    torch.set_num_threads(1)
    count_collectives()
    for module in ("deepspeed", "transformers", "unicode.train.llm_trainer", "unicode.train.tokenizer"):
        import_module(module)  # once for all ranks, which are forks
    results: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare(folder)
        print("| case | ranks |", " | ".join(f"{kind} KiB" for kind in RING), "| payload KiB | sent per rank KiB |")
        print("|---|" + "---:|" * (len(RING) + 3))
        for case in CASES:
            if args.only and not case.startswith(tuple(args.only)):
                continue
            for ranks in args.ranks:
                longer, shorter = (measure(folder, case, ranks, steps, data) for steps in (4, 3))
                step = {kind: longer[kind] - shorter[kind] for kind in RING}
                results[f"{case}, {ranks} ranks"] = step
                sent = sum(RING[kind] * value for kind, value in step.items()) * (ranks - 1) / ranks
                cells = [f"{step[kind] / 1024:.1f}" for kind in RING] + [f"{sum(step.values()) / 1024:.1f}", f"{sent / 1024:.1f}"]
                print(f"| {case} | {ranks} |", " | ".join(cells), "|", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
