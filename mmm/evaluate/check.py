"""Checks a user's evaluations and formats of weights on a small model with random weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from mmm.contract import SIZES, Finding, draw, fault_of, require, small_model
from mmm.data import ImagesConfig
from mmm.evaluate.evaluator import Context, Evaluator, evaluators
from mmm.model import MaskedModel
from mmm.weights.export import save
from mmm.weights.formats import FORMATS, Format, Options, Stored

SAMPLES, HEADS = 64, 2  # samples that an evaluation gets, at most; attention heads of a small model


def check_evaluator(name: str) -> list[Finding]:
    """Runs an evaluation with its default options on a few built-in photographs."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = small_model(SIZES["images"], {}).eval()
        data = ImagesConfig(source="builtin:photographs", image_size=SIZES["images"], holdout=0.1, workers=0)  # type: ignore[arg-type]
        context = Context(data=data, masker=model.masker, device=torch.device("cpu"), title=name, untrained=lambda: model)
        for part in ("train", "test"):
            samples = getattr(context, part)
            vars(context)[part] = samples.subset(torch.arange(min(SAMPLES, len(samples))))
        faults = {"it runs": fault_of(check_run, name, model, context)}
    return [Finding(f"evaluator {name}", "images", check, fault) for check, fault in faults.items()]


def check_run(name: str, model: MaskedModel, context: Context) -> None:
    """Checks the result of an evaluation, and that the evaluation does not change the model."""
    evaluator: Evaluator = evaluators.build(evaluators[name].Config())  # type: ignore[attr-defined]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    reason = evaluator.why_not(model, context)
    require(reason is None or isinstance(reason, str), f"why_not returns {type(reason).__name__}, and not a text or None")
    if reason is not None:
        return
    found = evaluator.run(model, context)
    require(isinstance(found, dict), f"run returns {type(found).__name__}, and not a dict of values by name")
    json.dumps(found)  # the results are written to evaluations.jsonl
    figures = evaluator.figures(found)
    wrong = [key for key, value in figures.items() if not isinstance(value, (int, float))]
    require(not wrong, f"figures returns values that are not numbers: {', '.join(wrong)}")
    require(isinstance(evaluator.format(found), str), "format does not return a text")
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    require(not changed, f"it changes the weights of the model, for instance {', '.join(changed[:1])}")


def check_format(form: Format) -> list[Finding]:
    """Writes small models in a format, and reads them again. A model that the format refuses to write is left out."""
    faults: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        whole = small_model(SIZES["images"], {}).eval()
        alone = MaskedModel(whole.tokenizer, whole.masker, whole.encoder, None, whole.target, data=whole.data).eval()
        ours = Path(folder) / "ours"
        save(whole, ours, license="unknown", results={})
        faults["it does not detect a folder of mmm's"] = fault_of(check_detect, form, ours)
        for title, model in (("a model with a decoder", whole), ("an encoder", alone)):
            faults[f"{title} is written and read again"] = fault_of(check_round_trip, form, model, Path(folder) / title)
    return [Finding(f"format {form.name}", "images", check, fault) for check, fault in faults.items()]


def check_detect(form: Format, folder: Path) -> None:
    """Checks that a format does not detect weights of other formats."""
    found = form.detect(Stored(folder))
    require(isinstance(found, bool), f"detect returns {type(found).__name__}, and not True or False")
    require(not found, "detect returns True for weights of another format, which could then not be loaded")


def check_round_trip(form: Format, model: MaskedModel, folder: Path) -> None:
    """Checks that what a format writes is detected, and read as the same model."""
    folder.mkdir()
    try:
        lines = form.write(model, folder)
    except ValueError:
        return  # the format cannot store such a model
    fine = isinstance(lines, list) and all(isinstance(line, str) for line in lines)
    require(fine, "write does not return a list of lines of Python")
    first = next((other for other in FORMATS.values() if other.detect(Stored(folder))), None)
    require(first is form, f"what it writes is detected as {'no format' if first is None else first.title}, which comes earlier")
    known = {"heads": HEADS, "decoder_heads": HEADS, "image_size": SIZES["images"]}
    given = {name: value for name, value in known.items() if name in form.options and (model.decoder or "decoder" not in name)}
    read = form.read(Stored(folder), Options(**given))  # type: ignore[arg-type]
    x, _ = draw(model)
    with torch.no_grad():
        before, after = (one.eval().encoder(one.tokenizer.split(x), one.tokenizer.grid(x), None).tokens for one in (model, read))
    require(torch.allclose(before, after, atol=1e-5), "the model that is read has other features than the one that was written")
