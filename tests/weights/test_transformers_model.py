"""Any vision model of transformers loads as an encoder of whole images, with its own features and hidden states."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_parity_mae import noisy

from mmm import Mask, MaskedModel
from mmm.weights.formats import FORMATS, written_formats
from mmm.weights.load import load

VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 99}


def original(name: str) -> Any:
    if name == "CLIP":
        model: Any = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))
    elif name == "Beit":
        model = transformers.BeitModel(
            transformers.BeitConfig(**VISION, use_relative_position_bias=True, use_shared_relative_position_bias=True)
        )
    else:
        model = transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=64)
        )
    noisy(model)
    return model.eval()


@pytest.mark.parametrize(("name", "side", "prefix"), [("CLIP", 8, 1), ("Beit", 8, 1), ("ConvNext", 32, 0)])
def test_features_are_theirs(name: str, side: int, prefix: int, tmp_path: Path) -> None:
    theirs = original(name)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert isinstance(model, MaskedModel)
    assert (model.tokenizer.size, model.encoder.shape.prefix) == ((side, side), prefix)
    size = 64 if name == "ConvNext" else 32
    x = torch.randn(2, 3, size, size)
    own = theirs.vision_model if name == "CLIP" else theirs
    wanted = own(pixel_values=x, output_hidden_states=True)
    last = wanted.last_hidden_state.flatten(2).transpose(1, 2) if name == "ConvNext" else wanted.last_hidden_state
    found = model.encode(x)
    assert (found.last - last).abs().max() < 1e-6
    assert not any(weight.requires_grad for weight in model.encoder.parameters())
    if name != "ConvNext":
        assert (model.encode(x, blocks=(1,)).blocks[1] - wanted.hidden_states[1]).abs().max() < 1e-6
    tokens = torch.arange(found.tokens.shape[1])[None].expand(2, -1)
    with pytest.raises(ValueError, match="takes no masks"):
        model.encode(x, mask=Mask(tokens[:, :2], tokens[:, 2:]))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original("ConvNext").save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"is a folder of transformers \(convnext\).*pip install transformers"):
        load(tmp_path)


def test_it_is_not_written(tmp_path: Path) -> None:
    assert set(FORMATS) - set(written_formats()) == {"transformers_model"}
    with pytest.raises(ValueError, match="can be loaded, but not exported"):
        FORMATS["transformers_model"].write(MaskedModel.__new__(MaskedModel), tmp_path)


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be run for its features"):
        load(tmp_path)
