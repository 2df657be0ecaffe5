"""What is drawn and how: the config of `unicode.run.generate_images`, and of the protocols that pictures are compared under."""

from dataclasses import dataclass, field

from unicode.generate.image import CAPTION_TEMPLATE, caption_request
from unicode.generate.sampling import Sampling
from unicode.images.config import DataConfig


@dataclass
class GenerationConfig:
    """Prompts, sampling, and the pictures to compare with.

    Raises:
        ValueError: a value out of range, or a template with an unknown slot.
    """

    prompts: str = ""
    """A file (.txt, .jsonl, LLaVA .json), shapes:val, or unconditional:NUMBER."""
    template: str = CAPTION_TEMPLATE
    """What the user says about a description, which takes the place of {caption}; '{caption}' alone leaves it as it is."""
    samples: int = 1
    """Pictures per prompt, each with a seed of its own."""
    limit: int = 0
    """The first so many prompts only; 0: all."""
    seed: int = 0
    """Of the sampling; a picture's own seed is drawn from it and the id of the prompt."""
    batch_size: int = 16
    """Pictures drawn at a time; guidance doubles the rows."""
    temperature: float | None = None
    """Of the image ids; 0 takes the likeliest. Left out: 1, and 0 for decompression."""
    top_k: int = 0
    """Draw each id among so many of the likeliest; 0: all."""
    top_p: float = 1.0
    """Draw each id among the likeliest that together have this probability."""
    guidance: float = 1.0
    """Classifier-free guidance; 1: none. Above 1 the model must have been trained with unconditional pictures too."""
    cache: str = "dynamic"
    """Key-value cache: "dynamic" or "static"."""
    compiled: bool = False
    """Compile the decoding step (with the static cache; worth it for many pictures on a GPU)."""
    splits: int = 10
    """Groups of the inception score."""
    data: DataConfig = field(default_factory=DataConfig)
    """Pictures to compare with (FID); with `name: shapes` also the world of the prompts."""
    published: str = ""
    """What is known of published figures under this protocol; for the reader."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("limit", 0), ("batch_size", 1), ("splits", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        caption_request("words", template=self.template)  # a template without the slot ends here
        self.sampling()

    def sampling(self, default_temperature: float = 1.0) -> Sampling:
        """How ids are drawn. ValueError for values out of range."""
        temperature = default_temperature if self.temperature is None else self.temperature
        return Sampling(temperature, self.top_k, self.top_p, self.guidance)
