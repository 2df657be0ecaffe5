"""Models on a Hugging Face hub: org/name@revision -> a local folder; a folder with its README.md -> a commit of a repository."""

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from unicode.common.files import atomic_write, read_json
from unicode.common.logging import get_logger

CONTENT = ["*.safetensors", "*.json", "*.yaml", "*.jinja"]  # never pickles, which can run code when they are read
README, TEMPLATE = "README.md", Path(__file__).with_name("model_card.md")
_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?", re.ASCII)
logger = get_logger(__name__)


def is_hub_name(name: str | Path) -> bool:
    """Whether a text reads org/name or org/name@revision, and no local file or folder has that path."""
    return _NAME.fullmatch(str(name)) is not None and not Path(name).exists()


def find_folder(name: str | Path, *, otherwise: str) -> Path:
    """Return the snapshot of a name of the hub, in the hub's cache; any other path as it is, without the network.

    `otherwise`: what else the user can do, for messages. Raises FileNotFoundError: the hub has no such repository or revision for this
    token, or cannot be reached while the cache lacks it. Raises ValueError: the repository has no safetensors.
    """
    if not is_hub_name(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    repository, _, revision = str(name).partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=[*CONTENT, README]))
    except Exception as error:  # the client has errors of several libraries
        raise FileNotFoundError(f"no folder '{name}' here, and {_explain(error, str(name))}, or {otherwise}") from error
    if not any(folder.rglob("*.safetensors")):
        raise ValueError(f"{name} has no safetensors files, and pickles, which can run code, are not downloaded; {otherwise}")
    logger.info("%s is at commit %s", name, folder.name)
    return folder


def _explain(error: Exception, name: str) -> str:
    """Return the reason and the remedy for an error of the hub's client."""
    from huggingface_hub import constants

    reason = getattr(getattr(error, "response", None), "status_code", None) or type(error).__name__
    remedy = "check name, revision, HF_ENDPOINT and HF_HUB_OFFLINE, log in (hf auth login), or run hf download where there is a network"
    return f"{constants.ENDPOINT} does not give or take {name} ({reason}); {remedy}"


class HubMixin:
    """What a model that `save_pretrained` writes needs to be shared through a hub."""

    folder: Path | None = None  # That it was read from; None: it was built in memory
    save_pretrained: Any

    @property
    def source(self) -> str:
        """Where it was read from: org/name@commit, a local folder, or "" if it was built in memory."""
        found = re.fullmatch(r".*/models--([^/]+)--([^/]+)/snapshots/(\w+)", str(self.folder))
        return f"{found[1]}/{found[2]}@{found[3]}" if found else str(self.folder or "")

    def push_to_hub(self, name: str, *, private: bool | None = None, **options: Any) -> str:
        """Upload it with its README.md to the repository org/name, which is made if it does not exist.

        Model files there that it lacks are removed, so that two models never mix. `options`: of `save_pretrained`. Returns org/name@commit,
        which loads it. Raises ValueError: `name` is not org/name, or the hub cannot be reached or refuses.
        """
        from huggingface_hub import HfApi

        if not _NAME.fullmatch(name) or "@" in name:
            raise ValueError(f"'{name}' is no name of a repository; give org/name")
        with TemporaryDirectory() as temporary:
            self.save_pretrained(folder := Path(temporary) / name, **options)
            try:
                HfApi().create_repo(name, private=private, exist_ok=True)
                commit = HfApi().upload_folder(repo_id=name, folder_path=folder, delete_patterns=CONTENT, commit_message="Save model")
            except Exception as error:  # the client has errors of several libraries
                raise ValueError(f"{name} was not pushed: {_explain(error, name)}") from error
        return f"{name}@{commit.oid}"


def write_readme(folder: Path, facts: Mapping[str, Any], *, reads: str, source: Path | None, license_name: str, base: str = "") -> None:
    """Write the model card README.md into a folder; one that stands in `source` is copied, unless it is peft's empty one.

    `facts`: rows of a table. `reads`: load_tokenizer or load_model. `source`: folder of the model, whose config.yaml names the data, and
    whose metrics.json and summary.json have figures. `license_name`: as apache-2.0; "": as in `source`. `base`: base model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    name, source = "/".join(folder.absolute().parts[-2:]), source or folder
    card = ModelCard.load(source / README) if (source / README).is_file() else None
    terms = license_name or (card.data.get("license") if card else None)
    if card is None or "[More Information Needed]" in card.text:
        run: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if (path := source / "config.yaml").is_file() else {}
        report, summary = (read_json(file) if file.is_file() else {} for file in (source / "metrics.json", source / "summary.json"))
        texts: dict[str, Any] = {"data": run.get("data", {}), "metrics": report.get("metrics", {}), "summary": summary, "facts": facts}
        parent = base.partition("@")[0] if is_hub_name(base) else None
        about = ModelCardData(library_name="unicode-mllm", tags=["unicode"], base_model=parent)
        card = ModelCard.from_template(about, template_path=str(TEMPLATE), name=name, reads=reads, **texts)
    elif title := re.search(r"^# (\S+/\S+)$", card.text, flags=re.MULTILINE):
        card.text = card.text.replace(title[1], name)  # the name also stands in the lines of Python
    card.data.license = terms
    with atomic_write(folder / README) as file:
        file.write(str(card))
