"""One object that answers and draws: `load_model(path)` for a notebook or a script.

assistant = load_model("outputs/unicode_lora")
assistant.answer("What colour is the bus?", images=["bus.jpg"])
assistant.draw("a red bus on a street", seed=1).save("bus.png")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unicode.generate.answer import AnswerConfig, Question, answer_questions
from unicode.generate.image import Artist, caption_request
from unicode.generate.question_images import ImageLike
from unicode.generate.sampling import Sampling
from unicode.llm.load import LanguageModel, open_model


class Assistant:
    """Answers questions about images and draws.

    Args:
        model: what `unicode.llm.load.open_model` gives.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._artists: dict[Sampling, Artist] = {}

    def answer(
        self,
        text: str,
        images: Sequence[ImageLike] | ImageLike = (),
        *,
        history: Sequence[str] = (),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Answer one question; `unicode.generate.answer.answer_questions` answers many in batches.

        Args:
            text: the question, with an <image> tag where each image stands, or without any: then they stand in front.
            images: pictures, paths of them, contents of image files, or arrays of vocabulary ids; one or several.
            history: earlier turns: question, answer, question, answer.
            temperature: 0 takes the likeliest token each time.

        Returns:
            The words of the answer; pictures in it as <vistok>...</vistok>.

        Raises:
            ValueError: an image that cannot be read, tags that do not fit the images, or a prompt longer than the context.
        """
        shown = tuple(images) if isinstance(images, list | tuple) else (images,)
        config = AnswerConfig(1, max_new_tokens, temperature, top_p, seed)
        question = Question(text, shown, history=tuple(history))  # type: ignore[arg-type]
        ((_, answer),) = answer_questions(self.model, [question], config=config)
        if answer.error:
            raise ValueError(answer.error)
        return answer.text

    def draw(
        self, caption: str, *, seed: int = 0, guidance: float = 1.0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ) -> Image.Image:
        """Draw one picture of what `caption` says; `unicode.generate.image.draw_images` draws many in batches.

        Args:
            seed: the same seed and caption give the same picture.
            guidance: above 1 the caption counts for more, at twice the work.
            temperature, top_k, top_p: see `Sampling`.

        Raises:
            ValueError: an empty caption or one longer than the context, or a model that writes no image ids.
            FileNotFoundError: the image tokenizer is not where the training had it.
        """
        sampling = Sampling(temperature, top_k, top_p, guidance)
        if sampling not in self._artists:
            self._artists = {sampling: Artist(self.model, sampling=sampling)}
        artist = self._artists[sampling]
        (drawing,) = artist.draw([caption_request(caption, seed=seed)])
        return Image.fromarray(artist.pictures(drawing.ids[None])[0])


def load_model(path: str | Path, **options: Any) -> Assistant:
    """Open a trained model to answer and draw with; arguments and errors as `unicode.llm.load.open_model`."""
    return Assistant(open_model(path, **options))
