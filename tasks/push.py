"""Upload an exported folder to the Hugging Face hub.

mmm push my-encoder --repo user/my-encoder
mmm push my-encoder --repo user/my-encoder --no_private

Log in first (`hf auth login`), or set HF_TOKEN. Only the weights, the configs and the card are uploaded. State a licence before you
make a model public: `mmm export --license`, or edit the card (README.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmm.core.checks import CheckedConfig
from mmm.weights.hub import push_folder

POSITIONAL = "folder"


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Upload a model."""

    folder: str | None = None
    """Folder that mmm export wrote."""

    repo: str | None = None
    """Repository on the hub, user/name. It is created if it does not exist."""

    private: bool = True
    """Make a new repository private. The visibility of an existing repository does not change."""

    message: str = "Upload by mmm"
    """Message of the commit."""


def run(config: Config) -> dict[str, Any]:
    """Uploads the folder, and prints the address of the commit."""
    if config.folder is None or config.repo is None:
        raise ValueError("mmm push needs an exported folder and a name on the hub: mmm push FOLDER --repo user/name")
    address = push_folder(config.folder, config.repo, private=config.private, message=config.message)
    print(f"pushed: {address}")
    return {"commit": address, "repo": config.repo}
