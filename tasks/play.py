"""Open a page to try models: hide parts of an image or a video, and see predictions, attention and features.

    mmm play runs/pretrain-1
    mmm play runs/pretrain-1 mae_visualize_vit_base.pth --norm_pix false --folders my_photographs
    mmm play runs/pretrain-1 --export my_space

The page needs `pip install 'masked-modelling[play]'`. Only this machine can reach it, unless --host allows others. The file of a
visitor is kept in memory until the visitor leaves. --export writes a Space for the Hugging Face hub with the same page.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mmm.core.checks import CheckedConfig, Limit, Positive
from mmm.evaluate.loaded_model import choose_device
from mmm.play.export import export_space
from mmm.play.models import Models
from mmm.play.player import SEARCHED, Player

logger = logging.getLogger(__name__)

POSITIONAL = "models"


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Open a page to play with models."""

    models: tuple[str, ...] = ()
    """Run folders, checkpoints or files of weights in them, published weights, or names on the hub. A run folder selects all its
    checkpoints."""

    folders: tuple[str, ...] = ()
    """Folders of images or videos in which the page searches for the samples most similar to that of a visitor. Every visitor can
    see them."""

    searched: Positive = SEARCHED
    """Largest number of samples of a folder that are searched, chosen by key."""

    host: str = "127.0.0.1"
    """Address at which the page is served. 127.0.0.1: only this machine can reach it; 0.0.0.0: other machines too."""

    port: Annotated[int, Limit("from 1 to 65535", lambda value: 1 <= value <= 65535)] | None = None
    """Port of the page. None: the first free one from 7860."""

    norm_pix: bool | None = None
    """State that published weights predict standardised patches (true) or not (false); their file does not contain it."""

    device: str | None = None
    """Device, for instance cpu or cuda:1. None: the accelerator of this machine, else the CPU."""

    export: str | None = None
    """Write a Hugging Face Space with the models into this folder instead of opening the page. None: open the page."""


def run(config: Config) -> dict[str, Any]:
    """Serves the page until it is interrupted, or writes the Space.

    Raises:
        ValueError: a model or folder cannot be read, or gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("mmm play needs gradio, which is not installed; pip install 'masked-modelling[play]'")
    if config.export is not None:
        if config.folders:
            raise ValueError("--folders is for a page of this machine; a Space holds models only, so leave it out with --export")
        folder = export_space(config.models, Path(config.export), norm_pix=config.norm_pix)
        print(f"Space: {folder} (python {folder / 'app.py'} tries it here; upload the folder as a Space of the sdk gradio)")
        return {"folder": str(folder)}
    if missing := [folder for folder in config.folders if not Path(folder).expanduser().is_dir()]:
        raise ValueError(f"--folders {missing[0]} is not a folder; give one of images or videos")
    models = Models(config.models, device=choose_device(config.device), norm_pix=config.norm_pix)
    models.check()
    with tempfile.TemporaryDirectory(prefix="mmm-play-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # deleted with the server, also if a visitor left during an upload
        from mmm.play.page import serve

        page, address = serve(
            Player(models, config.folders, searched=config.searched), host=config.host, port=config.port, block=False
        )
        print(f"page: {address} (Ctrl+C ends it)", flush=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)
    return {"address": address}
