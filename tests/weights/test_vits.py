"""Formats of recent vision transformers: outputs equal transformers' classes, at the home size and at another one, and weights are
read and written bit for bit. The official layouts are made from the same weights by rules that are restated here."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_load_mae import assert_same
from test_parity_mae import noisy
from timm.models.beit import Beit
from torch import Tensor, nn
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3

from mmm import Mask, MaskedModel
from mmm.decoders import LinearDecoder
from mmm.encoders import VisionTransformer
from mmm.maskers import RandomMasker
from mmm.weights.formats import FORMATS
from mmm.weights.formats.capi import frequencies
from mmm.weights.initialize import initialise_from
from mmm.weights.load import load

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4}
DINO = TINY | {"image_size": 12}
GATED = DINO | {"intermediate_size": 96, "use_gated_mlp": True, "hidden_act": "silu"}
BEIT = DINO | {"intermediate_size": 96, "use_mask_token": True}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {  # by the case's name: transformers' class, the format, its config
    "dinov2": ("Dinov2", "dinov2_transformers", DINO),
    "dinov2, gated": ("Dinov2", "dinov2_transformers", DINO | {"use_swiglu_ffn": True, "qkv_bias": False}),
    "dinov2, registers": ("Dinov2WithRegisters", "dinov2_transformers", DINO),
    "dinov3": ("DINOv3ViT", "dinov3_transformers", DINO | {"intermediate_size": 96, "num_register_tokens": 4}),
    "dinov3, gated": (
        "DINOv3ViT",
        "dinov3_transformers",
        DINO | {"intermediate_size": 96, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "pixio": ("Pixio", "pixio_transformers", DINO),
    "beit": ("Beit", "beit_transformers", BEIT | {"use_shared_relative_position_bias": True, "use_mean_pooling": False}),
    "beit, fine-tuned": ("Beit", "beit_transformers", BEIT | {"use_relative_position_bias": True}),
    "data2vec": (
        "Data2VecVision",
        "beit_transformers",
        BEIT | {"use_absolute_position_embeddings": True, "use_relative_position_bias": True, "layer_scale_init_value": 0.0},
    ),
    "vjepa2": (
        "VJEPA2",
        "vjepa2_transformers",
        TINY
        | {"crop_size": 12, "frames_per_clip": 4, "mlp_ratio": 48 / 11}
        | {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
    ),
}


def original(case: str) -> Any:
    """Returns transformers' model, small, with random weights."""
    name, _, config = KINDS[case]
    settings = getattr(transformers, f"{name}Config")(**config)
    settings._attn_implementation = "sdpa"
    model = getattr(transformers, f"{name}Model")(settings)
    noisy(model)
    return model.eval()


def features(model: Any, x: Tensor) -> Tensor:
    """Returns the output of transformers' encoder for images or clips."""
    if x.dim() == 5:
        return model.encoder(x.transpose(1, 2)).last_hidden_state
    return model(x).last_hidden_state


def at_size(case: str, theirs: Any, size: tuple[int, ...]) -> Any:
    """Returns transformers' model for samples of a size; V-JEPA 2's model takes its positions from its config."""
    if case != "vjepa2":
        return theirs
    settings = copy.deepcopy(theirs.config)
    settings.frames_per_clip, settings.crop_size, _ = size
    moved = type(theirs)(settings)
    moved.load_state_dict(theirs.state_dict())
    return moved.double().eval()


@pytest.mark.parametrize("case", KINDS)
def test_features_equal_transformers_at_home_and_elsewhere(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = original(case)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert isinstance(model, MaskedModel)
    home, sizes = ((4, 12, 12), [(4, 16, 16), (8, 12, 12)]) if case == "vjepa2" else ((12, 12), [(16, 8)])
    theirs, model = theirs.double(), model.double()
    if case.startswith("dinov3"):  # its angles are computed in fp32 for any precision of the model
        places = dinov3.get_patches_center_coordinates
        monkeypatch.setattr(
            dinov3, "get_patches_center_coordinates", lambda *size, dtype, device: places(*size, torch.float64, device)
        )
        theirs.rope_embeddings.inv_freq = 1 / theirs.config.rope_theta ** torch.arange(0, 1, 4 / 12, dtype=torch.float64)
    for size in (home, *sizes):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        # transformers interpolates learned positions in fp32
        limit = 2e-5 if size != home and case.startswith(("dinov2", "pixio")) else 1e-9
        assert (model.encode(x).last - features(at_size(case, theirs, size), x)).abs().max() < limit, size
    assert model.data is not None
    assert model.data.size == home


@pytest.mark.parametrize("case", KINDS)
def test_bf16_is_as_exact_as_transformers(case: str, tmp_path: Path) -> None:
    """The error of bf16, relative to the features in fp64, is at most that of transformers' model, within chance."""
    theirs = original(case)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert isinstance(model, MaskedModel)
    x = torch.randn(4, 3, *((4, 12, 12) if case == "vjepa2" else (12, 12)))
    exact = features(copy.deepcopy(theirs).double(), x.double()).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, other = model.encode(x).last, features(theirs, x)
    errors = [float((found.double() - exact).norm() / exact.norm()) for found in (ours, other)]
    assert 0 < errors[0] < 1.5 * errors[1], errors
    assert errors[0] < 0.05


@pytest.mark.parametrize("case", KINDS)
def test_what_is_written_is_theirs_bit_for_bit(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = original(case)
    theirs.save_pretrained(tmp_path / "theirs")
    with caplog.at_level(logging.WARNING, "mmm"):
        model = load(tmp_path / "theirs")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    unread = () if KINDS[case][1] == "beit_transformers" else ("embeddings.mask_token",)
    left = [name for name in before if name.startswith(("predictor.", "pooler.", *unread))]
    assert all(name in caplog.text or "more" in caplog.text for name in left)
    (tmp_path / "ours").mkdir()
    FORMATS[KINDS[case][1]].write(model, tmp_path / "ours")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    spelled = {name: value for name, value in before.items() if name not in left}
    if case == "pixio":
        spelled = {name.replace(".intermediate.dense.", ".mlp.fc1."): value for name, value in spelled.items()}
        spelled = {
            name if "attention" in name else name.replace(".output.dense.", ".mlp.fc2."): one for name, one in spelled.items()
        }
    assert_same({name: value for name, value in after.items() if not name.startswith(unread or "none")}, spelled)
    again = getattr(transformers, f"{KINDS[case][0]}Model").from_pretrained(tmp_path / "ours").eval()
    x = torch.randn(1, 3, *((4, 12, 12) if case == "vjepa2" else (12, 12)))
    assert (features(again, x) - features(theirs, x)).abs().max() < 1e-6
    second = load(tmp_path / "ours")
    assert_same(dict(second.state_dict()), dict(model.state_dict()))
    assert second.encoder.config == model.encoder.config


# --- official layouts -------------------------------------------------------------------------------------------------------

PLAIN = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def saved(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)  # type: ignore[operator]
    return load_file(folder / "model.safetensors")


def dinov2_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {
        "cls_token": state["embeddings.cls_token"],
        "mask_token": state["embeddings.mask_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        **({"register_tokens": state["embeddings.register_tokens"]} if "embeddings.register_tokens" in state else {}),
    }
    for kind in ("weight", "bias"):
        made[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        made[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        for number in range(2):
            block, own = f"encoder.layer.{number}", f"blocks.{number}"
            parts = [f"{block}.attention.attention.{one}.{kind}" for one in ("query", "key", "value")]
            if parts[0] in state:
                made[f"{own}.attn.qkv.{kind}"] = torch.cat([state[part] for part in parts])
            names = PLAIN | {"mlp.w12": "mlp.weights_in", "mlp.w3": "mlp.weights_out"}
            found = {f"{own}.{ours}.{kind}": f"{block}.{there}.{kind}" for ours, there in names.items()}
            made |= {ours: state[there] for ours, there in found.items() if there in state}
            made[f"{own}.ls1.gamma"] = state[f"{block}.layer_scale1.lambda1"]
            made[f"{own}.ls2.gamma"] = state[f"{block}.layer_scale2.lambda1"]
    return made


def dinov3_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {"cls_token": state["embeddings.cls_token"], "mask_token": state["embeddings.mask_token"][0]}
    registers = state["embeddings.register_tokens"]
    made |= {"storage_tokens": registers} if registers.numel() else {}
    made["rope_embed.periods"] = (100.0 ** (torch.arange(3) / 3)).bfloat16()  # heads have a width of 12
    for kind in ("weight", "bias"):
        made[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.{kind}"]
        made[f"norm.{kind}"] = state[f"norm.{kind}"]
        for number in range(2):
            block, own = f"layer.{number}", f"blocks.{number}"
            parts = [state.get(f"{block}.attention.{one}_proj.{kind}", torch.zeros(48)) for one in "qkv"]
            made[f"{own}.attn.qkv.{kind}"] = torch.cat(parts)
            gated = f"{block}.mlp.gate_proj.weight" in state
            names = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj"}
            names |= {"mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj"} if gated else {"mlp.fc1": "mlp.up_proj"}
            names |= {"mlp.w3" if gated else "mlp.fc2": "mlp.down_proj"}
            made |= {f"{own}.{ours}.{kind}": state[f"{block}.{there}.{kind}"] for ours, there in names.items()}
            made[f"{own}.ls1.gamma"] = state[f"{block}.layer_scale1.lambda1"]
            made[f"{own}.ls2.gamma"] = state[f"{block}.layer_scale2.lambda1"]
            made[f"{own}.attn.qkv.bias_mask"] = torch.cat([torch.ones(48), torch.zeros(48), torch.ones(48)])
    return made


@pytest.mark.parametrize("case", ["dinov2", "dinov2, gated", "dinov2, registers", "dinov3", "dinov3, gated"])
def test_official_files_of_dino(case: str, tmp_path: Path) -> None:
    theirs = original(case)
    state = saved(theirs, tmp_path)
    name = case.split(",", maxsplit=1)[0]
    weights = {"dinov2": dinov2_file, "dinov3": dinov3_file}[name](state)
    torch.save(weights, tmp_path / "official.pth")
    options = {"image_size": 12} if name == "dinov3" else {}
    model = load(tmp_path / "official.pth", heads=4, **options)
    x = torch.randn(2, 3, 12, 12)
    # DINOv2's official norms have an epsilon of 1e-6, as the config here
    assert (model.encode(x).last - theirs(x).last_hidden_state).abs().max() < 1e-5
    FORMATS[name].write(model, tmp_path)
    again = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert_same(again, weights | {"mask_token": torch.zeros(1, 48)})
    del weights["blocks.1.norm2.bias"]
    torch.save(weights, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"lacks blocks\.1\.norm2\.bias"):
        load(tmp_path / "broken.pth", heads=4, **options)


def test_official_files_of_pixio(tmp_path: Path) -> None:
    """Pixio's files use MAE's names and have several class tokens."""
    theirs = original("pixio")
    state = saved(theirs, tmp_path)
    state = {name.replace(".intermediate.dense.", ".mlp.fc1."): value for name, value in state.items()}
    state = {name if "attention" in name else name.replace(".output.dense.", ".mlp.fc2."): one for name, one in state.items()}
    weights = {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
    for kind in ("weight", "bias"):
        weights[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        weights[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        for number in range(2):
            block, own = f"encoder.layer.{number}", f"blocks.{number}"
            parts = [state[f"{block}.attention.attention.{one}.{kind}"] for one in ("query", "key", "value")]
            weights[f"{own}.attn.qkv.{kind}"] = torch.cat(parts)
            weights |= {f"{own}.{ours}.{kind}": state[f"{block}.{there}.{kind}"] for ours, there in PLAIN.items()}
    torch.save(weights, tmp_path / "official.pth")
    model = load(tmp_path / "official.pth", heads=4)
    x = torch.randn(2, 3, 12, 12)
    assert (model.encode(x).last - theirs(x).last_hidden_state).abs().max() < 1e-5
    assert torch.allclose(model.encode(x).class_token, theirs(x).last_hidden_state[:, :8].mean(1), atol=1e-5)
    FORMATS["pixio"].write(model, tmp_path)
    assert_same(torch.load(tmp_path / "checkpoint.pth", weights_only=True), weights)


def test_official_files_of_vjepa2(tmp_path: Path) -> None:
    """The moving average is read; the predictor is not; the first V-JEPA is refused as another model."""
    theirs = original("vjepa2")
    state = saved(theirs, tmp_path)
    weights = {f"norm.{kind}": state[f"encoder.layernorm.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        weights[f"patch_embed.proj.{kind}"] = state[f"encoder.embeddings.patch_embeddings.proj.{kind}"]
        for number in range(2):
            block, own = f"encoder.layer.{number}", f"blocks.{number}"
            parts = [state[f"{block}.attention.{one}.{kind}"] for one in ("query", "key", "value")]
            weights[f"{own}.attn.qkv.{kind}"] = torch.cat(parts)
            names = PLAIN | {"attn.proj": "attention.proj"}
            weights |= {f"{own}.{ours}.{kind}": state[f"{block}.{there}.{kind}"] for ours, there in names.items()}
    average = {f"module.backbone.{name}": value for name, value in weights.items()}
    student = {name: torch.randn_like(value) for name, value in average.items()}
    table = {"module.backbone.pos_embed": torch.randn(1, 18, 48)}
    masks = {f"module.backbone.mask_tokens.{number}": torch.zeros(1, 1, 24) for number in range(10)}
    content = {"encoder": student, "predictor": masks, "target_encoder": average | table, "epoch": 3}
    torch.save(content, tmp_path / "vitl.pt")
    model = load(tmp_path / "vitl.pt", heads=4, image_size=12, frames=4)
    x = torch.randn(2, 3, 4, 12, 12)
    assert (model.encode(x).last - features(theirs, x)).abs().max() < 1e-5
    FORMATS["vjepa2"].write(model, tmp_path)
    assert_same(torch.load(tmp_path / "checkpoint.pth", weights_only=True)["target_encoder"], average)
    torch.save(content | {"predictor": dict(list(masks.items())[:2])}, tmp_path / "v1.pt")
    with pytest.raises(ValueError, match="first V-JEPA"):
        load(tmp_path / "v1.pt", heads=4, image_size=12, frames=4)


@pytest.mark.parametrize("kind", ["shared", "blocks"])
def test_official_files_of_beit(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The official files have timm's names, and timm's model computes the features to compare with."""
    options: dict[str, Any] = {"use_shared_rel_pos_bias": True} if kind == "shared" else {"use_rel_pos_bias": True}
    theirs = Beit(12, 4, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2, init_values=0.1, num_classes=5, **options)
    noisy(theirs)  # its classifier has fc_norm, and no norm after the last block
    if kind == "shared":  # as in files of pretraining
        theirs.norm, theirs.fc_norm, theirs.head = nn.LayerNorm(48, eps=1e-6), nn.Identity(), nn.Identity()
    theirs = theirs.eval()
    weights = {name: value.clone() for name, value in theirs.state_dict().items()}
    weights |= {"mask_token": torch.randn(1, 1, 48)} if kind == "shared" else {}
    besides = {"lm_head.weight": torch.zeros(7, 48)} if kind == "shared" else {}
    places = ("rel_pos_bias",) if kind == "shared" else ("blocks.0.attn", "blocks.1.attn")
    index = {f"{place}.relative_position_index": torch.zeros(10, 10, dtype=torch.long) for place in places}
    torch.save({"model": weights | besides | index}, tmp_path / "beit.pth")
    with caplog.at_level(logging.WARNING, "mmm"):
        model = load(tmp_path / "beit.pth")
    left = [*besides, *(name for name in weights if name.startswith(("fc_norm.", "head.")))]
    assert left
    assert all(name in caplog.text for name in left)
    x = torch.randn(2, 3, 12, 12).double()
    assert (model.double().encode(x).last - theirs.double().forward_features(x)).abs().max() < 1e-9
    FORMATS["beit"].write(model.float(), tmp_path)
    again = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["model"]
    assert_same(again, {name: value for name, value in weights.items() if name not in left})
    assert model.data is not None
    assert model.data.mean == (0.5,) * 3
    torch.save({"model": weights | besides | index}, tmp_path / "beitv2_tiny.pth")
    second = load(tmp_path / "beitv2_tiny.pth")
    assert second.data is not None
    assert second.data.mean != (0.5,) * 3  # BEiT v2 is trained with ImageNet's mean
    with pytest.raises(ValueError, match=r"has 25 relative positions, not those of \(16, 12\) pixels"):
        load(tmp_path / "beit.pth", image_size=(16, 12))


def test_the_head_s_norm_of_beit_is_not_its_encoder_s(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.BeitConfig(**BEIT, use_mean_pooling=False, use_relative_position_bias=True)
    theirs = transformers.BeitForMaskedImageModeling(config)
    noisy(theirs)
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "mmm"):
        model = load(tmp_path)
    assert "norm of the head is left out (layernorm.bias, layernorm.weight)" in caplog.text
    x = torch.randn(2, 3, 12, 12)
    assert (model.encode(x).last - theirs.eval().beit(x).last_hidden_state).abs().max() < 1e-5


def test_names_and_options_of_beit_in_transformers(tmp_path: Path) -> None:
    """The names of the weights in the fifth version are read too; other activations are refused."""
    settings = transformers.BeitConfig(**BEIT | {"image_size": [12, 12]}, use_relative_position_bias=True, use_mean_pooling=False)
    theirs = transformers.BeitModel(settings)
    noisy(theirs)
    theirs.save_pretrained(tmp_path)
    old = load(tmp_path)
    save_file({f"beit.{name}": value.clone() for name, value in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    assert_same(dict(load(tmp_path).state_dict()), dict(old.state_dict()))
    assert old.data is not None
    assert old.data.mean == (0.5,) * 3
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"gelu"', '"gelu_new"'))
    with pytest.raises(ValueError, match="hidden_act is 'gelu_new'; only 'gelu' is supported"):
        load(tmp_path)


def test_a_training_starts_with_the_mask_token_of_beit(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    theirs = original("beit")
    theirs.save_pretrained(tmp_path)
    encoder = VisionTransformer.Config(
        width=48, depth=2, heads=4, mlp_ratio=2, relative_bias="shared", positions="none", qkv_bias="qv"
    )
    encoder = replace(encoder, layer_scale=0.1, norm_epsilon=1e-12)
    model = build((12, 12), masker=RandomMasker.Config(blank=True), encoder=encoder, decoder=LinearDecoder.Config())
    assert initialise_from(model, tmp_path) == {"encoder"}
    assert torch.equal(model.encoder.mask_token, theirs.embeddings.mask_token)
    (tmp_path / "again").mkdir()
    model.decoder = None
    FORMATS["beit_transformers"].write(model, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").encoder.mask_token, model.encoder.mask_token)


@pytest.mark.parametrize("name", ["beit", "beit_transformers", "dinov2", "pixio"])
def test_a_layout_with_a_class_token_refuses_an_encoder_without_one(
    name: str, build: Callable[..., MaskedModel], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"positions": "learned"}
    if name.startswith("beit"):
        options = {"relative_bias": "shared", "qkv_bias": "qv", "positions": "none"}
    model = build((12, 12), encoder=VisionTransformer.Config(width=24, depth=2, heads=2, class_token=False, **options))
    model.decoder = None
    with pytest.raises(ValueError, match=r"encoder\.class_token False"):
        FORMATS[name].write(model, tmp_path)


class Residual(nn.Module):
    """CAPI's residual branch, restated: x + f(norm x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.RMSNorm(48, eps=1e-5), inner

    def forward(self, x: Tensor, *places: Tensor) -> Tensor:
        return x + self.fn(self.norm(x), *places)


class Turned(nn.Module):
    """CAPI's attention, restated: channels i and i + c / 2 are rotated by angles of different axes."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(48, 48, bias=False) for _ in range(4))
        self.rope = nn.Module()
        self.rope.freqs = nn.Parameter(torch.zeros(2, 12))
        steps = [7 * (7 / 7e-4) ** -(i / 2) * 2 * torch.pi for i in range(3)]
        with torch.no_grad():
            self.rope.freqs[0, :6] = torch.tensor(steps + steps)
            self.rope.freqs[1, 6:] = torch.tensor(steps + steps)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        def heads(values: Tensor) -> Tensor:
            return values.unflatten(2, (4, 12)).transpose(1, 2)

        angles = (places @ self.rope.freqs)[:, None]

        def turn(values: Tensor) -> Tensor:
            first, second = values.chunk(2, -1)
            return values * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

        q, k, v = turn(heads(self.q_proj(x))), turn(heads(self.k_proj(x))), heads(self.v_proj(x))
        found = ((q @ k.transpose(2, 3)) / 12**0.5).softmax(-1) @ v
        return self.proj(found.transpose(1, 2).flatten(2))


class Hidden(nn.Module):
    """CAPI's MLP, restated."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(48, 192, bias=False), nn.Linear(192, 48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Capi(nn.Module):
    """CAPI's encoder (model.py), restated for images and any visible tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.randn(1, 16, 48))
        self.patch_embed = nn.Conv2d(3, 48, 4, 4)
        self.encoder = nn.Module()
        parts = ({"residual1": Residual(Turned()), "residual2": Residual(Hidden())} for _ in range(2))
        self.encoder.blocks = nn.ModuleList(map(nn.ModuleDict, parts))

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        high, wide = x.shape[2] // 4, x.shape[3] // 4
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        rows, columns = torch.linspace(0, 1, high, dtype=x.dtype), torch.linspace(0, 1, wide, dtype=x.dtype)
        places = torch.cartesian_prod(rows, columns).expand(len(x), -1, -1)
        if visible is not None:
            tokens, places = (one.gather(1, visible[..., None].expand(-1, -1, one.shape[2])) for one in (tokens, places))
        edge = [(step / 4, 0) for step in range(4)] + [(1, step / 4) for step in range(4)]
        edge += [(1 - step / 4, 1) for step in range(4)] + [(0, 1 - step / 4) for step in range(4)]
        low, high_ = places.amin(1, keepdim=True), places.amax(1, keepdim=True)
        tokens = torch.cat([self.registers.expand(len(x), -1, -1), tokens], 1)
        places = torch.cat([low + torch.tensor(edge, dtype=x.dtype) * (high_ - low), places], 1)
        for block in self.encoder.blocks:
            tokens = block["residual2"](block["residual1"](tokens, places))
        return nn.functional.rms_norm(tokens, (48,), eps=1e-5)


def test_official_files_of_capi(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = Capi().eval()
    weights = {f"backbone.{name}": value.clone() for name, value in theirs.state_dict().items()}
    besides = {"backbone.mask_token": torch.zeros(1, 48), "head.last_layer.weight_v": torch.zeros(4, 48)}
    save_file(weights | besides, tmp_path / "capi.safetensors")
    with caplog.at_level(logging.WARNING, "mmm"):
        model = load(tmp_path / "capi.safetensors", heads=4, image_size=12)
    assert all(name in caplog.text for name in besides)
    theirs, model = theirs.double(), model.double()
    for size in ((12, 12), (16, 24)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        # the file's frequencies are in fp32
        assert (model.encode(x).last - theirs(x)).abs().max() < 1e-5
    order = torch.rand(2, 24).argsort(1)
    mask = Mask(order[:, :10], order[:, 10:])
    found = model.encode(x, mask=mask).last
    assert (found - theirs(x, mask.visible)).abs().max() < 1e-5  # registers are placed around the visible tokens
    assert torch.allclose(frequencies(12), theirs.encoder.blocks[0]["residual1"].fn.rope.freqs.float(), rtol=1e-6)
    FORMATS["capi"].write(model.float(), tmp_path)
    again = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    kept = {name: value for name, value in weights.items() if not name.endswith("freqs")}
    assert_same({name: value for name, value in again.items() if not name.endswith("freqs")}, kept)
    assert again.keys() == weights.keys()


def test_a_layout_refuses_what_it_cannot_hold(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    model = build(encoder=VisionTransformer.Config(width=24, depth=2, heads=2))
    with pytest.raises(ValueError, match="only an encoder"):
        FORMATS["dinov2"].write(model, tmp_path)
    model.decoder = None
    for name, flag in {
        "dinov2": "positions sine",
        "dinov3": "rotary none",
        "pixio": "positions sine",
        "beit": "qkv_bias all",
        "beit_transformers": "qkv_bias all",
        "capi": "rotary none",
    }.items():
        with pytest.raises(ValueError, match=rf"encoder\.{flag}"):
            FORMATS[name].write(model, tmp_path)
    with pytest.raises(ValueError, match="is for clips"):
        FORMATS["vjepa2"].write(model, tmp_path)
