"""Fashion-MNIST: a small CNN that recognizes drawn pictures, and what an answer is worth without the picture.

    python tests/bench/fashion.py cnn                                    trains the CNN and writes outputs/bench/fashion_cnn.safetensors
    python tests/bench/fashion.py drawings outputs/quickstart/drawings   share recognized, FID in the CNN's features, for each class
    python tests/bench/fashion.py baselines outputs/quickstart/anno      the most frequent answer, and that to each wording

The CNN takes about two minutes on one core. FID: Frechet distance of the 128 features before its last layer, to all 10,000 test pictures.
"""

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unicode.annotations.captioned import SHORT
from unicode.annotations.public import label_words
from unicode.common.files import read_json, read_jsonl
from unicode.images.decode import open_image, pad_small
from unicode.images.torchvision_sets import TorchvisionSet
from unicode.metrics.frechet import FeatureSums, frechet_distance

SIDE, FEATURES = 32, 128
SET = "FashionMNIST"


class SmallCnn(nn.Module):
    """(B, 1, 32, 32) in [0, 1] -> (B, 128) features -> (B, 10) logits."""

    def __init__(self) -> None:
        super().__init__()

        def block(channels: int, out: int, padding: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, out, 3, padding=padding), nn.MaxPool2d(2), nn.BatchNorm2d(out), nn.ReLU()]

        self.body = nn.Sequential(*block(1, 16, 1), *block(16, 32, 0), *block(32, 64, 0), nn.Flatten(), nn.Linear(256, FEATURES), nn.ReLU())
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(FEATURES, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(pictures)))

    def features(self, pictures: Tensor) -> Tensor:
        """The 28 x 28 px in the middle -> (B, 128)."""
        return self.body(pictures[:, :, 2:-2, 2:-2])


def read_part(root: str, part: str) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures (N, 1, 32, 32) in [0, 1], padded as for the tokenizer, labels (N,), and the words of the classes."""
    found = TorchvisionSet(SET, part, root)
    pictures = np.stack([np.asarray(pad_small(found.read(index), size=SIDE))[..., 0] for index in range(len(found.keys))])
    return torch.from_numpy(pictures)[:, None].float() / 255, torch.from_numpy(found.labels), label_words(found.classes)


@torch.no_grad()
def features_of(network: SmallCnn, pictures: Tensor) -> Tensor:
    """(N, 128)."""
    return torch.cat([network.features(batch) for batch in pictures.split(500)])


def train_cnn(args: argparse.Namespace) -> dict[str, Any]:
    """Train with Adam and one cycle of the learning rate; pictures are mirrored at random."""
    torch.manual_seed(args.seed)
    start, busy, network = time.monotonic(), time.process_time(), SmallCnn()
    pictures, labels, _ = read_part(args.root, "train")
    per_epoch = len(labels) // args.batch
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=args.epochs * per_epoch)
    for _ in range(args.epochs):
        for chosen in torch.randperm(len(labels))[: per_epoch * args.batch].split(args.batch):
            batch = pictures[chosen]
            batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
            optimizer.zero_grad()
            cross_entropy(network(batch), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    test, right, _ = read_part(args.root, "test")
    accuracy = float((network.head(features_of(network, test)).argmax(1) == right).float().mean())
    args.cnn.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), args.cnn, metadata={"test_accuracy": f"{accuracy:.4f}"})
    size = sum(parameter.numel() for parameter in network.parameters())
    seconds = {"seconds": round(time.monotonic() - start, 1), "CPU seconds": round(time.process_time() - busy, 1)}
    return {"test accuracy": accuracy, "parameters": size, "epochs": args.epochs, **seconds}


def class_of(prompt: str, names: list[str]) -> int:
    """The class that a prompt names; the longest name wins, as a shirt is no t-shirt."""
    found = [name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?!\w)", prompt.lower())]
    if not found:
        raise ValueError(f"the prompt '{prompt}' names none of {', '.join(names)}")
    return names.index(max(found, key=len))


def measure_drawings(args: argparse.Namespace) -> dict[str, Any]:
    """Share of the drawn pictures that the CNN takes for what their prompt names, and their distance to the test pictures."""
    network = SmallCnn()
    network.load_state_dict(load_file(args.cnn))
    network.eval()
    real, labels, names = read_part(args.root, "test")
    records = [record for record in read_jsonl(args.folder / "results.jsonl") if "file" in record]
    wanted = torch.tensor([class_of(record["prompt"], names) for record in records])
    opened = [open_image(args.folder / record["file"]).convert("L") for record in records]
    drawn = torch.from_numpy(np.stack([np.asarray(picture) for picture in opened]))[:, None].float() / 255
    features, sums = features_of(network, drawn), [FeatureSums(FEATURES), FeatureSums(FEATURES)]
    for each, one in zip(sums, (features_of(network, real), features), strict=True):
        each.update_(one)
    taken = network.head(features).argmax(1)
    shares = {name: float((taken == index)[wanted == index].float().mean()) for index, name in enumerate(names) if (wanted == index).any()}
    ceiling = float((network.head(features_of(network, real)).argmax(1) == labels).float().mean())
    whole = {"pictures": len(records), "recognized": float((taken == wanted).float().mean()), "test pictures recognized": ceiling}
    return {**whole, "FID in features of the CNN": frechet_distance(sums[0].gaussian(), sums[1].gaussian()), "by class": shares}


def measure_baselines(args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on the test questions without a picture, for each kind: the most frequent answer of training, or that of the wording."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    worded: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def rows(part: str) -> list[tuple[str, str, str]]:
        found = []
        for record in read_json(args.folder / f"{SET.lower()}_questions_{part}.json"):
            turns = [turn["value"].replace("<image>\n", "").replace(f"\n{SHORT}", "") for turn in record["conversations"]]
            found += zip(record["kinds"], turns[::2], turns[1::2], strict=True)
        return found

    for kind, text, answer in rows("train"):
        answers[kind][answer] += 1
        worded[kind, text][answer] += 1
    right: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for kind, text, answer in rows("test"):
        frequent = answers[kind.removesuffix("_held")].most_common(1)[0][0]
        known = worded.get((kind, text))
        right[kind].append((answer == frequent, answer == (known.most_common(1)[0][0] if known else frequent)))
    means = {kind: np.mean(pairs, axis=0).tolist() for kind, pairs in right.items()}
    return {kind: {"questions": len(right[kind]), "most frequent": first, "by wording": second} for kind, (first, second) in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cnn", "drawings", "baselines"))
    parser.add_argument("folder", nargs="?", type=Path, help="of drawings, or of annotations")
    parser.add_argument("--root", default="/usr/share/datasets/fashion-mnist", help="Fashion-MNIST (default: %(default)s)")
    parser.add_argument("--cnn", type=Path, default=Path("outputs/bench/fashion_cnn.safetensors"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.what != "cnn" and args.folder is None:
        parser.error("name the folder of drawings or annotations")
    torch.set_num_threads(args.threads)
    print(json.dumps({"cnn": train_cnn, "drawings": measure_drawings, "baselines": measure_baselines}[args.what](args), indent=1))


if __name__ == "__main__":
    main()
