"""Upload a folder that `mmm export` wrote to the Hugging Face hub, through its own library.

mmm push my-encoder --repo user/my-encoder
mmm push my-encoder --repo user/my-encoder --no_private

Log in first (`hf auth login`), or set HF_TOKEN. Only the weights, the configs and the card are uploaded. State a licence before a
model is made public: `mmm export --license`, or in the card (README.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmm.weights.hub import push_folder

POSITIONAL = "folder"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Push a model."""

    folder: str | None = None
    """The exported folder."""

    repo: str | None = None
    """Repository on the hub, user/name; made where it is missing."""

    private: bool = True
    """Make a repository that only its owner sees; one that exists stays as it is."""

    message: str = "Upload by mmm"
    """Message of the commit."""


def run(config: Config) -> dict[str, Any]:
    """Uploads, and prints the commit's address."""
    if config.folder is None or config.repo is None:
        raise ValueError("mmm push needs an exported folder and a name on the hub: mmm push FOLDER --repo user/name")
    address = push_folder(config.folder, config.repo, private=config.private, message=config.message)
    print(f"pushed: {address}")
    return {"commit": address, "repo": config.repo}
