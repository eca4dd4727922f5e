"""Download and upload of folders of weights through huggingface_hub, which handles the access token."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mmm.weights.formats.base import CONFIG, PICKLED, PROCESSOR, WEIGHTS
from mmm.weights.model_card import CARD

logger = logging.getLogger(__name__)

OURS = "config.yaml"
FILES = (CARD, OURS, CONFIG, PROCESSOR, WEIGHTS)  # only these files of a folder are uploaded
NAME = re.compile(r"[\w.-]+/[\w.-]+")
SECRETS = re.compile(r"hf_\w+")


def pull_folder(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Downloads only the configs and weights of a repository, or finds them in the cache.

    Args:
        repo: `user/name`, in the format of mmm, transformers or timm.
        revision, token: see `huggingface_hub.snapshot_download`.

    Raises:
        ValueError: the repository does not exist or is not accessible, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        for weights in (WEIGHTS, PICKLED):  # pickles only if a repository has no safetensors
            files = [OURS, CONFIG, PROCESSOR, weights]
            found = Path(snapshot_download(repo, revision=revision, token=token, allow_patterns=files))
            if (found / weights).is_file():
                break
    except Exception as error:  # errors of the library and of the network have many types
        raise ValueError(f"{repo} does not exist here, and it could not be downloaded from the hub: {_said(error)}") from None
    logger.info("%s: from the hub, in %s", repo, found)
    return found


def push_folder(folder: str | Path, repo: str, *, private: bool = True, message: str = "Upload by mmm") -> str:
    """Uploads the files of an exported folder in one commit. The repository is created if it does not exist.

    Args:
        folder: folder that `mmm export` or `save_pretrained` wrote.
        repo: `user/name`.
        private: whether a new repository is private; an existing one does not change.
        message: message of the commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder was not exported, the hub refuses the upload, or it cannot be reached.
    """
    folder = Path(folder).expanduser()
    if not NAME.fullmatch(repo):
        raise ValueError(f"--repo {repo!r} is not a name on the hub; give user/name")
    if not (folder / WEIGHTS).is_file() or not any((folder / name).is_file() for name in (OURS, CONFIG)):
        hint = "mmm export RUN --out FOLDER writes one"  # a run folder contains more than should be published
        raise ValueError(f"{folder} is not an exported folder: it lacks {WEIGHTS} beside a config; {hint}")
    from huggingface_hub import HfApi

    api = HfApi()  # reads the token from HF_TOKEN or from the login
    files = [name for name in FILES if (folder / name).is_file()]
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        done = api.upload_folder(
            repo_id=repo, folder_path=str(folder), allow_patterns=files, commit_message=message, repo_type="model"
        )
    except Exception as error:  # errors of the library and of the network have many types
        hint = "log in with `hf auth login` or set HF_TOKEN, and check the network"
        raise ValueError(f"{repo} was not pushed: {_said(error)}; {hint}") from None
    logger.info("uploaded %s to %s", ", ".join(files), repo)
    return str(done.commit_url)


def _said(error: Exception) -> str:
    """Returns the first line of an error, without tokens."""
    return SECRETS.sub("***", (str(error).strip().splitlines() or [type(error).__name__])[0])
