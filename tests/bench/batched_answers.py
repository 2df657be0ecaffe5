"""Questions per second of batched answering beside one question at a time: same questions, same answers (float32).

    OMP_NUM_THREADS=2 python tests/bench/batched_answers.py [--shapes tiny smol] [--batch-size 16] [--new-tokens 16] [--questions 64]
    python tests/bench/batched_answers.py --device cuda --dtype bfloat16 --shapes smol --batch-size 64 --questions 512

Untrained models of two shapes, "tiny" (the embedded base model, 4 layers of width 128) and "smol" (SmolLM2-135M), are asked short
questions about images of `--ids` ids in the `vicuna_v1` template, `--per-image` questions about each. An untrained model hardly ever ends
an answer, so each has `--new-tokens` tokens. Exit code 1 where batches are less than 3 ("tiny") or 2 ("smol") times as fast, or in
float32 any answer differs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unicode.generate.answers import Answer, AnswerConfig, answer_questions
from unicode.generate.questions import AskedQuestion
from unicode.llm.load import LanguageModel, open_model
from unicode.llm.template import get_template

WANTED = {"tiny": 3.0, "smol": 2.0}
SHAPES = {
    "tiny": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4},
    "smol": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}  # fmt: skip
WORDS = "is there a red green blue circle square triangle at the top left bottom right of small big things two how many what colour".split()
SUFFIX = "Answer the question using a single word or phrase."


def main() -> int:
    """Measure each shape, print questions per second and ratios and whether they suffice."""
    args = parse_args()
    failed = False
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), shape)
            model = open_model(folder, device=args.device, dtype=args.dtype)
        questions = make_questions(args)
        lengths = [len(model.prompt([f"<image>\n{question.text}"], question.images)) for question in questions]
        print(f"{shape}: {args.device}, {torch.get_num_threads()} threads, {args.dtype}; {len(questions)} questions, prompts of ", end="")
        print(f"{min(lengths)} to {max(lengths)} tokens, {args.ids} of them an image; {args.new_tokens} new tokens")
        failed |= not measure(model, questions, args, wanted=WANTED[shape])
    return int(failed)


def measure(model: LanguageModel, questions: Sequence[AskedQuestion], args: argparse.Namespace, *, wanted: float) -> bool:
    """Answer in batches of both sizes, in turns, the fastest round of each counts; whether speed and answers are as wanted."""
    fastest = dict.fromkeys((1, args.batch_size), float("inf"))
    answers: dict[int, dict[int, Answer]] = {}
    for round_number in range(args.repeats + 1):
        for size in fastest:
            config = AnswerConfig(batch_size=size, max_new_tokens=args.new_tokens)
            asked = questions if round_number else questions[: args.batch_size]
            start = time.perf_counter()
            answers[size] = dict(answer_questions(model, asked, config=config))
            if round_number:  # the first round warms up
                fastest[size] = min(fastest[size], time.perf_counter() - start)
    for size, seconds in fastest.items():
        print(f"  batch {size:<4}{len(questions) / seconds:10.2f} questions/s")
    same = sum(answers[1][place].ids == answers[args.batch_size][place].ids for place in answers[1])
    faster = fastest[1] / fastest[args.batch_size]
    print(f"  {faster:.2f} times as fast (wanted {wanted:g}); {same} of {len(questions)} answers equal")
    return faster >= wanted and (same == len(questions) or args.dtype != "float32")


def make_questions(args: argparse.Namespace) -> list[AskedQuestion]:
    """Random short questions about random images."""
    generator = np.random.default_rng(0)
    images = [generator.integers(100, 500, args.ids) for _ in range(-(-args.questions // args.per_image))]
    texts = [" ".join(generator.choice(WORDS, generator.integers(3, 15))) for _ in range(args.questions)]
    shown = [(images[number // args.per_image],) if args.ids else () for number in range(args.questions)]
    return [AskedQuestion(f"{text}\n{SUFFIX}", image, id=number) for number, (text, image) in enumerate(zip(texts, shown, strict=True))]


def write_model(folder: Path, shape: str) -> None:
    """An untrained model of a shape, with a small byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<image_start>", "<image_end>", "<compressed_start>", "<compressed_end>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    frame = "".join(part.text for part in get_template("vicuna_v1").render([" ".join(WORDS), None]))
    tokenizer.train_from_iterator([frame, SUFFIX] * 2, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.1, **SHAPES[shape])
    LlamaForCausalLM(config).save_pretrained(folder)


def parse_args() -> argparse.Namespace:
    """Return the arguments of the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    for name, default in {"batch-size": 16, "new-tokens": 16, "questions": 64, "ids": 80, "per-image": 4, "repeats": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
