"""Folders of weights on the Hugging Face hub, up and down, through its own library, which alone handles the token."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mmm.weights.formats.bundle import CARD
from mmm.weights.formats.run import CONFIG, WEIGHTS

logger = logging.getLogger(__name__)

FILES = (CARD, CONFIG, "config.json", WEIGHTS)  # nothing else of a folder leaves this machine
OLDER = "pytorch_model.bin"  # where a repository has no safetensors
NAME = re.compile(r"[\w.-]+/[\w.-]+")
SECRETS = re.compile(r"hf_\w+")


def pull_folder(repo: str) -> Path:
    """Config and weights of a repository, nothing else of it, from the hub or from what was fetched before.

    Args:
        repo: `user/name`: a folder that `mmm push` uploaded, transformers' or timm's.

    Raises:
        ValueError: where there is none, it may not be read, or nothing can be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, allow_patterns=[CONFIG, "config.json", WEIGHTS]))
        if not (folder / WEIGHTS).is_file():
            folder = Path(snapshot_download(repo, allow_patterns=["config.json", OLDER]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = SECRETS.sub("***", (str(error).strip().splitlines() or [type(error).__name__])[0])
        raise ValueError(f"{repo} does not exist here, and the hub gave nothing of this name: {said}") from None
    logger.info("%s: from the hub, in %s", repo, folder)
    return folder


def push_folder(folder: str | Path, repo: str, *, private: bool = True, message: str = "Upload by mmm") -> str:
    """Makes the repository where it is missing, and uploads an exported folder's files in one commit.

    Args:
        folder: that `mmm export` wrote: model.safetensors, with config.yaml or transformers' config.json.
        repo: `user/name`.
        private: of a repository that is made; one that exists stays as it is.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ValueError: where the folder is none, or the hub refuses.
    """
    folder = Path(folder).expanduser()
    _refuse_others(folder, repo)
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    except ImportError:
        raise ValueError("huggingface_hub is not installed; pip install huggingface_hub") from None
    api: Any = HfApi()  # takes the token from HF_TOKEN, or from where `hf auth login` put it
    files = [name for name in FILES if (folder / name).is_file()]
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        done = api.upload_folder(
            repo_id=repo, folder_path=str(folder), allow_patterns=files, commit_message=message, repo_type="model"
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        said = SECRETS.sub("***", (str(error).strip().splitlines() or [type(error).__name__])[0])
        raise ValueError(f"the hub refused {repo}: {said}; log in with `hf auth login`, or set HF_TOKEN") from None
    logger.info("uploaded %s to %s", ", ".join(files), repo)
    return str(done.commit_url)


def _refuse_others(folder: Path, repo: str) -> None:
    """Refuses what is no exported folder, a run's above all: it holds more than one would give away."""
    if not NAME.fullmatch(repo):
        raise ValueError(f"--repo {repo!r} is no name on the hub; give user/name")
    if not (folder / WEIGHTS).is_file() or not ((folder / CONFIG).is_file() or (folder / "config.json").is_file()):
        cure = "mmm export RUN --out FOLDER writes one"
        raise ValueError(f"{folder} is no exported folder: it lacks {WEIGHTS} beside a config; {cure}")
