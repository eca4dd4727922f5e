"""Downloads and uploads folders of weights through huggingface_hub, which alone handles the token."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mmm.weights.formats.base import CONFIG, PICKLED, PROCESSOR, WEIGHTS
from mmm.weights.model_card import CARD

logger = logging.getLogger(__name__)

OURS = "config.yaml"
FILES = (CARD, OURS, CONFIG, PROCESSOR, WEIGHTS)  # nothing else of a folder leaves this machine
NAME = re.compile(r"[\w.-]+/[\w.-]+")
SECRETS = re.compile(r"hf_\w+")


def pull_folder(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Fetches configs and weights of a repository, nothing else of it, from the hub or from what was fetched before.

    Args:
        repo: `user/name`: a folder that `mmm push` uploaded, transformers' or timm's.
        revision, token: as `huggingface_hub.snapshot_download` takes them.

    Raises:
        ValueError: there is none, it may not be read, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        for weights in (WEIGHTS, PICKLED):  # the older where a repository has no safetensors
            files = [OURS, CONFIG, PROCESSOR, weights]
            found = Path(snapshot_download(repo, revision=revision, token=token, allow_patterns=files))
            if (found / weights).is_file():
                break
    except Exception as error:  # of the library, or of any of the network's layers
        raise ValueError(f"{repo} does not exist here, and the hub gave nothing of this name: {_said(error)}") from None
    logger.info("%s: from the hub, in %s", repo, found)
    return found


def push_folder(folder: str | Path, repo: str, *, private: bool = True, message: str = "Upload by mmm") -> str:
    """Makes the repository where it is missing, and uploads an exported folder's files in one commit.

    Args:
        folder: folder that `mmm export` or `save_pretrained` wrote.
        repo: `user/name`.
        private: whether a new repository is private; an existing one stays as it is.
        message: message of the commit.

    Returns:
        The commit's address.

    Raises:
        ValueError: the folder is no exported one, the hub refuses, or it cannot be reached.
    """
    folder = Path(folder).expanduser()
    if not NAME.fullmatch(repo):
        raise ValueError(f"--repo {repo!r} is no name on the hub; give user/name")
    if not (folder / WEIGHTS).is_file() or not any((folder / name).is_file() for name in (OURS, CONFIG)):
        cure = "mmm export RUN --out FOLDER writes one"  # a run's own folder holds more than one would give away
        raise ValueError(f"{folder} is no exported folder: it lacks {WEIGHTS} beside a config; {cure}")
    from huggingface_hub import HfApi

    api = HfApi()  # takes the token from HF_TOKEN, or from where `hf auth login` put it
    files = [name for name in FILES if (folder / name).is_file()]
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        done = api.upload_folder(
            repo_id=repo, folder_path=str(folder), allow_patterns=files, commit_message=message, repo_type="model"
        )
    except Exception as error:  # of the library, or of any of the network's layers
        cure = "log in with `hf auth login` or set HF_TOKEN, and see that the hub can be reached from here"
        raise ValueError(f"{repo} was not pushed: {_said(error)}; {cure}") from None
    logger.info("uploaded %s to %s", ", ".join(files), repo)
    return str(done.commit_url)


def _said(error: Exception) -> str:
    """Returns the first line of an error, without tokens."""
    return SECRETS.sub("***", (str(error).strip().splitlines() or [type(error).__name__])[0])
