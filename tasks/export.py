"""Export a model to a folder with its weights in a common format, the preparation of pixels, and a model card.

mmm export runs/pretrain-1                                             runs/pretrain-1-export: for mmm.load
mmm export runs/pretrain-1 --encoder_only --out my-encoder
mmm export runs/pretrain-1/checkpoints/step_00000500 --to timm --out my-encoder-timm
mmm export runs/finetune-1 --to timm --license mit                     a classifier
mmm export runs/finetune-2 --to transformers                           after a fine-tuning with --pool.name class
mmm export runs/finetune-1 --to onnx                                   runs/finetune-1-onnx/model.onnx, for onnxruntime
mmm export mae_visualize_vit_base.pth --norm_pix false --to transformers --out vit-mae

A classifier of images becomes transformers' ViTForImageClassification, which classifies the class token. It is refused if it
classifies the mean of the tokens, which is the default of a fine-tuning; fine-tune with --pool.name class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from mmm.classifier import Classifier
from mmm.config.serialize import read_yaml
from mmm.core.checks import CheckedConfig
from mmm.evaluate.run_results import Record
from mmm.train.checkpoint.reader import BEST, checkpoint_at, step_at
from mmm.weights.export import export
from mmm.weights.formats import find_format, written_formats
from mmm.weights.formats.run import CONFIG, is_average, read_result, run_of
from mmm.weights.load import load
from mmm.weights.model_card import Origin

# --help shows this text; the list of formats is that of the registry
__doc__ = "\n".join([__doc__ or "", fill(f"Formats: {', '.join(written_formats())}", 120)])

POSITIONAL = "model"


@dataclass(frozen=True, kw_only=True)
class Config(CheckedConfig):
    """Export a model."""

    model: str | None = None
    """A run folder, a checkpoint or a file of weights in one (ema.safetensors: the moving average), or published weights."""

    to: str = "folder"
    """Format: folder (for mmm.load), another one of the list above, or your own (--use)."""

    encoder_only: bool = False
    """Export without the decoder."""

    norm_pix: bool | None = None
    """State that published weights predict standardised patches (true) or not (false); their file does not contain it."""

    license: str = "unknown"
    """Identifier of a licence on the hub, for instance mit or cc-by-nc-4.0."""

    out: str | None = None
    """Folder to write. None: the name of the run folder or of the file, followed by -export, -timm, -onnx and so on."""


def run(config: Config) -> dict[str, Any]:
    """Writes the folder, and prints how to load it."""
    if config.model is None:
        raise ValueError("--model is not set; give a run folder (runs/pretrain-1), a checkpoint in one, or published weights")
    find_format(config.to)
    path = Path(config.model).expanduser()
    model = load(path, norm_pix=config.norm_pix)
    if config.encoder_only:
        if isinstance(model, Classifier):
            raise ValueError(f"--encoder_only: {path} is a classifier; export the run that it was fine-tuned from")
        model.decoder = None
    out = _out(config, path)
    lines = export(model, config.to, out, origin_of(path, config.license))
    print("\n".join([f"written: {out}", *lines]))
    return {"out": str(out), "to": config.to, "load": lines}


def origin_of(path: Path, license: str) -> Origin:
    """Returns the source of a model."""
    run = run_of(path) if path.exists() else None
    if run is None:
        return Origin(path.name, license=license)
    config = read_yaml((run / CONFIG).read_text(encoding="utf-8"))
    evaluations = Record.read(run, trained=False, averaged=is_average(path)).evaluations
    if scored(path, run, config):
        evaluations = evaluations | {"test": read_result(run)}
    return Origin(run.resolve().name, config, step_at(path, run), evaluations, license=license)


def scored(path: Path, run: Path, config: Mapping[str, Any]) -> bool:
    """Returns whether result.json contains scores of weights of this kind: of the best weights of the run, or of the moving average
    if the run has one. `Origin` compares the steps."""
    checkpoint = checkpoint_at(path, run)
    best = checkpoint is not None and checkpoint.parent.name == BEST
    return best or is_average(path) == ((config.get("train") or {}).get("ema") is not None)


def _out(config: Config, path: Path) -> Path:
    """Returns the folder to write."""
    if config.out is not None:
        return Path(config.out)
    run = run_of(path) if path.exists() else None
    stem = path.with_suffix("") if run is None else run
    return stem.with_name(f"{stem.name}-{'export' if config.to == 'folder' else config.to}")
