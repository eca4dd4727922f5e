"""Write a model for others: a folder with a card that mmm.load takes, a file for timm, or a folder for transformers.

mmm export runs/pretrain-1                                             runs/pretrain-1-export: weights, config.yaml, README.md
mmm export runs/pretrain-1 --encoder_only --out my-encoder
mmm export runs/pretrain-1/checkpoints/step_00000500 --to timm --out encoder.safetensors
mmm export mae_visualize_vit_base.pth --norm_pix false --to transformers --out vit-mae
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from mmm.config.serialize import read_yaml
from mmm.evaluate.loaded_model import parts_of
from mmm.evaluate.run_results import Record
from mmm.model import MaskedModel
from mmm.train.checkpoint.writer import newest
from mmm.weights.export import to_timm, write_transformers
from mmm.weights.formats.bundle import CARD, data_of, refuse_full, write_folder
from mmm.weights.formats.run import CONFIG, run_of
from mmm.weights.formats.timm_arguments import timm_call
from mmm.weights.load import load
from mmm.weights.model_card import Origin, model_card

POSITIONAL = "model"
ENDS = {"folder": "-export", "timm": "-timm.safetensors", "transformers": "-transformers"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Export a model."""

    model: str | None = None
    """A run folder, a checkpoint or a file of weights in one (ema.safetensors: the moving average), or published weights."""

    to: Literal["folder", "timm", "transformers"] = "folder"
    """folder: for mmm.load, with a card; timm: a file of the encoder; transformers: a folder for from_pretrained."""

    encoder_only: bool = False
    """Leave the decoder out."""

    norm_pix: bool | None = None
    """For published weights, whether they predict standardised patches, which their file does not say."""

    out: str | None = None
    """What to write; none: the run's folder or the file's name, with -export, -timm.safetensors or -transformers after it."""


def run(config: Config) -> dict[str, Any]:
    """Writes, and says how to load it."""
    if config.model is None:
        raise ValueError("--model is not set; give a run folder (runs/pretrain-1), a checkpoint in one, or published weights")
    path = Path(config.model).expanduser()
    model = load(path, norm_pix=config.norm_pix)
    parts, out = parts_of(model), _out(config, path)
    if config.encoder_only:
        model.decoder = None
    refuse_full(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if config.to == "timm":
        lines = ["import timm", f"model = {timm_call(model, str(out))}"]
        save_file({name: value.contiguous() for name, value in to_timm(model).items()}, out, {"format": "pt"})
    elif config.to == "transformers":
        name = write_transformers(model, out)
        lines = [f"from transformers import {name}", f"model = {name}.from_pretrained({str(out)!r})"]
        card = model_card(model, parts, _data(path, model), origin_of(path), lines)
        (out / CARD).write_text(card, encoding="utf-8")
    else:
        lines = ["import mmm", f"model = mmm.load({str(out)!r})"]
        card = model_card(model, parts, _data(path, model), origin_of(path), [*lines, *_usage(model)])
        write_folder(model, parts, _data(path, model), card, out)
    print("\n".join([f"written: {out}", *lines]))
    return {"out": str(out), "to": config.to, "load": lines}


def origin_of(path: Path) -> Origin:
    """What the run's folder says of the model."""
    run = run_of(path)
    if run is None:
        return Origin(path.name)
    config = read_yaml((run / CONFIG).read_text(encoding="utf-8"))
    return Origin(run.resolve().name, config, _step(path, run), Record.read(run).evaluations)


def _step(path: Path, run: Path) -> int | None:
    """Of the checkpoint that a path means."""
    folder = next((one for one in (path, path.parent) if one.name.startswith("step_")), None) or newest(run / "checkpoints")
    return None if folder is None else int(folder.name.removeprefix("step_"))


def _data(path: Path, model: MaskedModel) -> dict[str, Any]:
    """The data's choices."""
    run = run_of(path)
    return data_of(model) if run is None else read_yaml((run / CONFIG).read_text(encoding="utf-8"))["data"]


def _usage(model: MaskedModel) -> list[str]:
    """How it is called."""
    shape = "(B, C, H, W)" if len(model.tokenizer.size) == 2 else "(B, C, T, H, W)"
    loss = [f"loss = model(x).loss  # of hidden tokens, x: {shape}"] if model.decoder is not None else []
    return [f"features = model.encode(x).tokens  # x: normalised pixels, {shape}", *loss]


def _out(config: Config, path: Path) -> Path:
    """What to write."""
    if config.to == "timm" and config.out is not None and Path(config.out).suffix != ".safetensors":
        raise ValueError(f"--out {config.out}: weights for timm are written as .safetensors; let its name end so")
    if config.out is not None:
        return Path(config.out)
    run = run_of(path)
    stem = path.with_suffix("") if run is None else run
    return stem.with_name(stem.name + ENDS[config.to])
