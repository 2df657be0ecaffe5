"""Headline numbers that others published, for the table beside ours; each in the unit of our headline.

LLaVA-1.5: its model zoo. UniCode and the plain-VQ ablation of Being-VL-0 stand as others quote them; look them up before printing them
as facts of the papers.
"""

from collections.abc import Mapping

_LLAVA = ("LLaVA-1.5 7B", "LLaVA-1.5 7B LoRA", "LLaVA-1.5 13B", "LLaVA-1.5 13B LoRA")
_LLAVA_SCORES = {
    "vqav2": (78.5, 79.1, 80.0, 80.0),
    "gqa": (62.0, 63.0, 63.3, 63.3),
    "vizwiz": (50.0, 47.8, 53.6, 58.9),
    "sqa": (66.8, 68.4, 71.6, 71.2),
    "textvqa": (58.2, 58.2, 61.3, 60.2),
    "pope": (85.9, 86.4, 85.9, 86.7),
    "mme": (1510.7, 1476.9, 1531.3, 1541.7),
    "mmbench": (64.3, 66.1, 67.7, 68.5),
    "mmbench_cn": (58.3, 58.9, 63.6, 61.5),
    "seed": (58.6, 60.1, 61.6, 61.3),
    "llavabench": (65.4, 67.9, 72.5, 69.5),
    "mmvet": (31.1, 30.2, 36.1, 38.3),
}
_QUOTED: dict[str, dict[str, float]] = {
    "UniCode 7B LoRA (quoted)": {"vqav2": 53.1, "vizwiz": 46.2, "sqa": 62.9, "pope": 71.8},
    "plain VQ, Being-VL ablation (quoted)": {"vqav2": 54.3, "vizwiz": 45.0, "sqa": 57.8, "pope": 76.1, "mme": 1301.2, "mmbench": 38.2},
}


def published_scores(name: str) -> Mapping[str, float]:
    """Return {model: headline} of one benchmark."""
    llava = dict(zip(_LLAVA, _LLAVA_SCORES[name], strict=True))
    return llava | {model: scores[name] for model, scores in _QUOTED.items() if name in scores}
