"""Estimate compute and communication of one optimizer step on 8 and 64 GPUs: the table of docs/scaling.md. Nothing runs on a GPU.

    python tests/bench/scaling.py

Bytes follow the formulas that tests/bench/communication.py confirms on small models; operations are those of the real configs
(configs/tokenizer/hqvae_256.yaml, configs/llm/base_7b.yaml). Rates are published peaks times the shares below.
"""

from dataclasses import dataclass

PEAK, SHARE_CNN, SHARE_LLM = 989e12, 0.30, 0.40  # dense bf16 operations/s of an H100; assumed shares for a convolutional net, a transformer
NVLINK, ETHERNET, SHARE_LINK = 450e9, 12.5e9, 0.8  # bytes/s in one direction: of a GPU, of a server of 8 GPUs with one 100 Gbit/s card
GPUS, SERVERS = 8, 8  # GPUs of a server; servers of the 64 GPUs

IMAGE_OPERATIONS = 3 * 245e9 + 3 * 40e9 + 8 * 5.4e9  # generator forward and backward; VGG of LPIPS; discriminator
GENERATOR, DISCRIMINATOR = 89.5e6, 0.66e6  # parameters, gradients in float32
ROWS, WIDTH, CANDIDATES = 32000, 4096, 1024  # of the language model's table; latents offered to unused rows
WEIGHTS, LORA = 6.74e9, 320e6  # parameters of Vicuna 7B; of LoRA of rank 128
TOKENS = 640  # of a conversation with an image of 320 ids, assumed


@dataclass(frozen=True)
class Case:
    """One kind of step. Bytes are payloads: of all-reduces, which a ring sends twice, and of all-gathers and reduce-scatters."""

    name: str
    operations: float  # per sample
    share: float  # of the peak
    samples: int  # per GPU and step
    micro: int = 1  # micro-batches per step
    reduced: float = 0.0  # per step
    gathered: float = 0.0  # per step
    micro_reduced: float = 0.0  # per micro-batch
    micro_gathered: float = 0.0  # per micro-batch

    def compute(self, samples: int) -> float:
        """Seconds of computing per step."""
        return self.operations * samples / (PEAK * self.share)

    def sent(self, micro: int) -> float:
        """Bytes that pass a link of a long ring per step."""
        return 2 * (self.reduced + micro * self.micro_reduced) + self.gathered + micro * self.micro_gathered


def codebook_bytes(width: int, *, levels: int = 2) -> float:
    """Statistics of a moving-average codebook: sums, counts and candidates of every level in float32."""
    return 4.0 * levels * (ROWS * width + ROWS + CANDIDATES * width)


def cases() -> list[Case]:
    """Tokenizers with 48 images per GPU, language models with 16 conversations per GPU in two micro-batches of 8."""
    gradients = 4 * (GENERATOR + DISCRIMINATOR)
    forward = TOKENS * 2 * WEIGHTS
    weights, lora = 2 * WEIGHTS, 2 * LORA  # bytes in bf16
    images = {"operations": IMAGE_OPERATIONS, "share": SHARE_CNN, "samples": 48}
    adapted = {"operations": 3 * forward, "share": SHARE_LLM, "samples": 16, "micro": 2}  # forward, its recomputation, backward to inputs
    tuned = adapted | {"operations": 4 * forward}  # and the gradients of the weights
    return [
        Case("tokenizer, `projected` or `frozen`", **images, reduced=gradients),
        Case("tokenizer, `free`, width 32", **images, reduced=gradients + codebook_bytes(32)),
        Case("tokenizer, `language`, width 4096", **images, reduced=gradients + codebook_bytes(WIDTH)),
        Case("LoRA, DDP", **adapted, reduced=4 * LORA),
        Case("LoRA, ZeRO-2", **adapted, gathered=lora, micro_reduced=lora),
        Case("LoRA, ZeRO-3", **adapted, micro_gathered=2 * weights + lora),
        Case("full, ZeRO-2", **tuned, gathered=weights, micro_reduced=weights),
        Case("full, ZeRO-3", **tuned, micro_gathered=2 * weights + weights),
    ]


def main() -> None:
    """Print a row per case: the batch of 8 GPUs on one server; eight times the batch on 64; the same batch on 64."""
    print("| step | compute | NVLink, 8 GPUs | network, 64 GPUs, 8 x batch | speed kept | compute, same batch | network | speed kept |")
    print("|---|" + "---:|" * 7)
    for case in cases():
        inside = case.sent(case.micro) * (GPUS - 1) / GPUS / (NVLINK * SHARE_LINK)
        large, between = case.compute(case.samples), case.sent(case.micro) * (SERVERS - 1) / SERVERS / (ETHERNET * SHARE_LINK)
        small, less = case.compute(case.samples // SERVERS), case.sent(1) * (SERVERS - 1) / SERVERS / (ETHERNET * SHARE_LINK)
        times = [f"{1000 * value:.{'1' if value < 0.02 else '0'}f} ms" for value in (large, inside, between, small, less)]
        kept = [f"{100 * own / max(own, link):.0f} %" for own, link in ((large, between), (small, less))]
        print(f"| {case.name} | {times[0]} | {times[1]} | {times[2]} | {kept[0]} | {times[3]} | {times[4]} | {kept[1]} |")


if __name__ == "__main__":
    main()
