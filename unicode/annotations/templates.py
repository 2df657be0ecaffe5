"""Prompt templates of every task, drawn by seed and record."""

from hashlib import blake2b

TEXT_TO_IMAGE = "text_to_image"
NEXT_ROW = "next_row"
FIRST_ROW = "first_row"
UNCONDITIONAL = "unconditional"
DECOMPRESSION = "decompression"
CAPTION = "caption"

TEMPLATES: dict[str, tuple[str, ...]] = {
    TEXT_TO_IMAGE: (
        'Draw a picture of "{caption}".',
        "Please paint this scene for me: {caption}",
        'I would like to see "{caption}". Can you draw it?',
        "Here is a caption. Make the image that goes with it.\n{caption}",
        'What might a photo with the caption "{caption}" look like? Show me.',
        "Turn these words into a picture: {caption}",
        'Could you illustrate "{caption}" for my notes?',
        "{caption}\nDraw what you have just read.",
        'Imagine "{caption}", then put it on the canvas.',
        "My friend described a picture to me as follows. Recreate it.\n{caption}",
        'A page of my book needs an image of "{caption}". Please supply one.',
        "Sketch out the following in full: {caption}",
        'Give me an image that somebody would label "{caption}".',
        "I only have the description, not the picture. Can you bring it back? {caption}",
        'Let the words become pixels: "{caption}".',
        "Show, do not tell: {caption}",
        'Compose an image whose subject is "{caption}".',
        "For the exhibition we still lack this work: {caption}\nPlease create it.",
        'Fill an empty frame with "{caption}".',
        "Read the sentence below and answer with a single image.\n{caption}",
        'How would you depict "{caption}"? Answer with the depiction itself.',
        "This is what I want to look at: {caption}",
        'Produce one image matching the text "{caption}".',
        "Take this line as your brief and deliver the picture: {caption}",
    ),
    NEXT_ROW: (
        'A picture of "{caption}" begins with {ids}. Draw its next row.',
        "Caption: {caption}\nFinished so far: {ids}\nWhat comes right below?",
        'I am drawing "{caption}" from top to bottom and have reached {ids}. Continue with one more row.',
        "The upper part of the image is {ids}, and the whole will show this: {caption}\nAdd the row that follows.",
        'Here is the top of an unfinished image, {ids}, whose caption reads "{caption}". Give the following strip.',
        "{caption}\nThis is how far the painter came: {ids}\nPaint the next strip.",
        'Somebody cut off an image of "{caption}" after {ids}. Restore the row beneath.',
        "Extend {ids} downwards by one row, so that in the end the picture fits this description: {caption}",
        'Given the rows {ids} of "{caption}", what is the row under them?',
        "The printer stopped at {ids} while it printed the following: {caption}\nSend it the next row.",
        'Keep going from {ids}. The image is about "{caption}", and I need just one row more.',
        "Rows so far: {ids}\nSubject: {caption}\nNext row?",
        'You have already drawn {ids} for "{caption}". Go one row further.',
        "Look at the start of this picture, {ids}, and at its caption, then predict the row below.\n{caption}",
        'Right below {ids} the next row of "{caption}" is missing. Fill it in.',
        "Let the image {ids} grow by a row. It is meant to become this: {caption}",
        'Continue the drawing {ids} of "{caption}" for exactly one row.',
        "We unroll a picture line by line and can see {ids} by now. Unroll one more line of it: {caption}",
        'If {ids} is the upper part of "{caption}", how does it go on directly below?',
        "With the words below as a guide, append the next row to {ids}.\n{caption}",
    ),
    FIRST_ROW: (
        'Begin a picture of "{caption}" with its first row.',
        "Start at the top edge and draw only one row of this image: {caption}",
        'How does an image of "{caption}" begin? Give me the uppermost row.',
        "{caption}\nThe canvas is still empty. Paint its top strip.",
        'I want to build up "{caption}" row by row. Please make the first one.',
        "Nothing is drawn yet. Lay down the opening row of the following: {caption}",
        'What would you expect along the top of a photo of "{caption}"?',
        "Caption: {caption}\nFinished so far: nothing\nDraw the first row.",
        'Let us draw "{caption}" together, from top to bottom. You make the start.',
        "The printer is about to print the picture described here. Send it row number one.\n{caption}",
        'Of an image titled "{caption}", show me just the topmost row.',
        "Take a blank sheet and put the first strip of this scene on it: {caption}",
        'Which row stands at the very top of "{caption}"?',
        "Unroll the first line of a picture that shows the following: {caption}",
        'Give the first row of "{caption}", I shall ask for the rest later.',
        "Before the rest of the image can follow, we need its upper edge. The subject: {caption}",
    ),
    UNCONDITIONAL: (
        "Draw a picture.",
        "Show me an image of your own choice.",
        "Paint whatever comes to mind.",
        "Surprise me with a picture.",
        "Make any image you like.",
        "Please draw something, no matter what.",
        "Fill this empty frame.",
        "Create an image without a given subject.",
        "I have no particular wish, just draw.",
        "Pick a motif yourself and depict it.",
        "One picture, please, of anything at all.",
        "Let me see a random image.",
        "Put something on the canvas.",
        "Answer with a picture, its content is up to you.",
        "Think of a scene and show it to me.",
        "Give me a photo that could have been taken anywhere.",
    ),
    DECOMPRESSION: (
        "Restore the full picture from its compressed form {ids}.",
        "This is a compressed image: {ids}\nWrite it out in full.",
        "Unpack {ids} again.",
        "Every cell of {ids} stands for several codes at once. List them all.",
        "Here comes a small summary of a picture, {ids}. Bring back all of its details.",
        "Expand {ids} into the complete image.",
        "The picture {ids} was squeezed to save room. Undo that, please.",
        "Which image hides behind {ids}? Give the whole of it.",
        "{ids}\nReproduce this image without leaving anything out.",
        "Copy {ids} at full length.",
        "I stored a photo in short form as {ids}. Please give me the long form back.",
        "Decompress the image that follows. {ids}",
        "Look closely at {ids} and redraw it, coarse and fine parts alike.",
        "From the condensed image {ids}, recover the original.",
        "Take {ids} apart into the codes that it was added up from.",
        "Compressed: {ids}\nUncompressed:",
        "Draw exactly what you see in {ids}.",
        "What are the full contents of {ids}?",
        "You receive one summary for each cell of an image: {ids}\nReturn every code of every cell.",
        "Turn the digest {ids} back into the image it was made from.",
    ),
    CAPTION: (
        "Describe the picture in a few words.",
        "What does this image show?",
        "Give a short caption for the image.",
        "Put into words what can be seen here.",
        "Tell me briefly what is in the picture.",
        "Sum up the contents of this image.",
        "How would you caption this?",
        "Write down what the picture shows.",
        "I cannot see the image. What is in it?",
        "Say in a sentence or two what you see.",
        "Please name what is depicted.",
        "What would you write under this picture?",
        "Make a brief note of what the image contains.",
        "Look at the picture and describe it.",
        "A short description of this image, please.",
        "Which words would bring this picture to mind?",
    ),
}
"""The templates of each task; every task has at least sixteen."""


def draw(count: int, seed: int, *keys: str) -> int:
    """A whole number in [0, count), even over keys and fixed by `seed` and `keys`, whatever else is drawn before or after.

    ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"draw among {count} things; there must be one at least")
    return _hash(seed, keys) % count


def draw_share(seed: int, *keys: str) -> float:
    """A number in [0, 1), even over keys and fixed by `seed` and `keys`."""
    return (_hash(seed, keys) >> 11) * 2.0**-53


def fill(task: str, seed: int, key: str, **slots: str) -> str:
    """A template of `task`, drawn for the record `key`, with its slots filled in. ValueError for an unknown task."""
    if task not in TEMPLATES:
        raise ValueError(f"no templates for task '{task}'; there are: {', '.join(TEMPLATES)}")
    templates = TEMPLATES[task]
    return fill_template(templates[draw(len(templates), seed, task, key)], **slots)


def fill_template(template: str, **slots: str) -> str:
    """Put values into the slots of a template; braces inside a value stay as they are."""
    return template.format(**slots)


def _hash(seed: int, keys: tuple[str, ...]) -> int:
    message = "\0".join((str(seed), *keys)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(message, digest_size=8).digest(), "big")
