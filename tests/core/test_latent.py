"""Features of a teacher as the target against plain restatements; the teacher's moving average, and frozen teachers.

Shapes: B samples, N tokens, Q predicted tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mmm import Mask, MaskedModel
from mmm.core.rng import sample_keys
from mmm.core.tokens import take
from mmm.core.types import Input
from mmm.encoders import VisionTransformer
from mmm.evaluate.attention.decoder_attention import attention_weights, watching
from mmm.maskers import BernoulliMasker
from mmm.targets import LatentTarget
from mmm.targets.teachers import FrozenTimm
from mmm.tokenizers import Patches

Build = Callable[..., MaskedModel]
GRID, YES, NO = (3, 4), torch.tensor(True), torch.tensor(False)


def model_of(build: Build, **options: Any) -> tuple[MaskedModel, Tensor, Mask]:
    model = build(target=LatentTarget.Config(**options)).double()
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    return model, x, model.masker(sample_keys(0, 0, torch.arange(2)), GRID)


def no_samples(count: int) -> Iterator[Tensor]:
    return iter(())


def blocks_of(encoder: Any, x: Tensor) -> list[Tensor]:
    """Returns the output of each block, without the class token, computed block by block. (B, N, D) each."""
    tokens = F.conv2d(x, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=4).flatten(2).transpose(1, 2)
    tokens = torch.cat([encoder.cls_token.expand(len(x), -1, -1), tokens], dim=1) + encoder.pos_embed
    found = []
    for block in encoder.blocks:
        tokens = block(tokens)
        found.append(tokens[:, 1:])
    return found


def standard(values: Tensor, dim: int) -> Tensor:
    return (values - values.mean(dim, keepdim=True)) / (values.var(dim, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_ijepa_wants_the_normed_output_of_the_average(build: Build) -> None:
    model, x, mask = model_of(build)
    teacher: Any = model.target.teacher.encoder
    expected = take(standard(teacher.norm(blocks_of(teacher, x)[-1]), -1), mask.predict)
    output = model(x, mask=mask)
    assert (output.target - expected).abs().max() < 1e-12
    off = (output.prediction - expected).abs()
    assert output.loss.item() == pytest.approx(torch.where(off < 1, off**2 / 2, off - 0.5).mean().item(), rel=1e-12)


def test_data2vec_wants_the_mean_of_blocks_and_pulls_at_the_class_token(build: Build) -> None:
    """Instance norm over the tokens, mean over the blocks, layer norm (fairseq data2vec2.py); the class token predicts the tokens'
    mean."""
    model, x, mask = model_of(build, blocks=(1, 2), block_norm="instance", loss="mse", class_weight=0.5)
    first, second = blocks_of(model.target.teacher.encoder, x)
    every = standard((standard(first, 1) + standard(second, 1)) / 2, -1)
    output = model(x, mask=mask)
    tokens, pooled = output.target
    assert (tokens - take(every, mask.predict)).abs().max() < 1e-12
    assert (pooled - every.mean(1)).abs().max() < 1e-12
    seen = model.encoder(model.tokenizer.split(x), GRID, mask).last[:, 0]
    expected = F.mse_loss(output.prediction, tokens) + 0.5 * F.mse_loss(seen, pooled)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_mean_of_several_class_tokens_predicts_the_tokens_mean(build: Build) -> None:
    encoder = VisionTransformer.Config(width=24, depth=2, heads=2, class_tokens=3, registers=1)
    model = build(encoder=encoder, target=LatentTarget.Config(loss="mse", class_weight=0.5)).double()
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), GRID)
    output = model(x, mask=mask)
    tokens, pooled = output.target
    every = model.target.teach(x, model.tokenizer.split(x), GRID).tokens
    assert torch.equal(pooled, every.mean(1))
    seen = model.encoder(model.tokenizer.split(x), GRID, mask).last[:, :3].mean(1)
    expected = F.mse_loss(output.prediction, tokens) + 0.5 * F.mse_loss(seen, pooled)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_several_blocks_are_wanted_side_by_side(build: Build) -> None:
    model, x, mask = model_of(build, blocks=(1, 2), join=True, block_norm="layer", norm="none", loss="l1")
    expected = torch.cat([standard(one, -1) for one in blocks_of(model.target.teacher.encoder, x)], dim=-1)
    output = model(x, mask=mask)
    assert output.prediction.shape == (2, 9, 48)
    assert (output.target - take(expected, mask.predict)).abs().max() < 1e-12


def test_the_loss_compares_each_block_by_itself(build: Build) -> None:
    """UMT's loss is 1 - cosine at each level, averaged over levels and tokens; a token's weight applies to all levels."""
    model, x, mask = model_of(build, blocks=(1, 2), join=True, block_norm="layer", norm="none", loss="cosine")
    mask = replace(mask, weight=torch.rand(mask.predict.shape, dtype=torch.float64))
    output = model(x, mask=mask)
    plain = []
    for prediction, target, weight in zip(
        output.prediction.flatten(0, 1), output.target.flatten(0, 1), mask.weight.flatten(), strict=True
    ):
        for level in (slice(0, 24), slice(24, 48)):
            one, other = prediction[level], target[level]
            plain.append(weight * (1 - one @ other / one.norm() / other.norm()))
    assert output.loss.item() == pytest.approx(torch.stack(plain).mean().item(), rel=1e-12)
    assert model.target.widths == (24, 24)


def test_data2vec_wants_what_mlps_add(build: Build) -> None:
    """The target is the output of each block's MLP, before its factor and the sum; the loss is sqrt(D) times the mean square."""
    encoder = VisionTransformer.Config(width=24, depth=2, heads=2, layer_scale=0.5)
    target = LatentTarget.Config(blocks=(1, 2), block_output="mlp", block_norm="instance", loss="scaled_mse")
    model = build(encoder=encoder, target=target).double()
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), GRID)
    teacher: Any = model.target.teacher.encoder
    tokens = F.conv2d(x, teacher.patch_embed.proj.weight, teacher.patch_embed.proj.bias, stride=4).flatten(2).transpose(1, 2)
    tokens = torch.cat([teacher.cls_token.expand(2, -1, -1), tokens], dim=1) + teacher.pos_embed
    added = []
    for block in teacher.blocks:
        tokens = tokens + block.ls1(block.attn(block.norm1(tokens)))
        added.append(block.mlp(block.norm2(tokens)))
        tokens = tokens + block.ls2(added[-1])
    every = standard((standard(added[0][:, 1:], 1) + standard(added[1][:, 1:], 1)) / 2, -1)
    output = model(x, mask=mask)
    assert (output.target - take(every, mask.predict)).abs().max() < 1e-12
    plain = (output.prediction - output.target).square().sum(-1).mean() / 24**0.5
    assert output.loss.item() == pytest.approx(plain.item(), rel=1e-12)
    seen = model.encoder(model.tokenizer.split(x), GRID, None, (1, 2)).blocks[1]
    assert torch.allclose(seen[:, 1:], blocks_of(model.encoder, x)[0])  # the student's blocks are returned as before


def test_a_teacher_of_hidden_tokens_sees_nothing_else(build: Build) -> None:
    """SdAE shows the teacher only the predicted tokens; the other tokens have no effect."""
    model, x, mask = model_of(build, view="hidden", loss="cosine")
    output = model(x, mask=mask)
    patches = model.tokenizer.split(x)
    alone = model.target.teacher.encoder(patches, GRID, Mask(mask.predict, mask.visible)).tokens
    assert (output.target - standard(alone, -1)).abs().max() < 1e-12
    other = patches.scatter(1, mask.visible[..., None].expand(-1, -1, patches.shape[2]), 3.0)
    assert torch.equal(model(model.tokenizer.join(other, GRID), mask=mask).target, output.target)


def test_a_teacher_of_hidden_tokens_leaves_out_padding(build: Build) -> None:
    """Masks of Bernoulli draws are padded; each sample has the targets that it has alone."""
    model = build(target=LatentTarget.Config(view="hidden", loss="mse"), masker=BernoulliMasker.Config(ratio=0.5)).double()
    x = torch.randn(4, 3, 12, 16, dtype=torch.float64)
    mask = model.masker(sample_keys(0, 0, torch.arange(4)), GRID)
    assert not mask.valid_predict.all()
    output, patches = model(x, mask=mask), model.tokenizer.split(x)
    for row, (predict, valid) in enumerate(zip(mask.predict, mask.valid_predict, strict=True)):
        own = predict[valid][None]
        alone = model.target.teacher.encoder(patches[row : row + 1], GRID, Mask(own, own)).tokens
        assert (output.target[row, valid] - standard(alone, -1)[0]).abs().max() < 1e-12


def test_the_average_follows_its_schedule(build: Build) -> None:
    """average <- m average + (1 - m) encoder, m from 0.9 to 1 over the first half of the run; skipped updates leave it
    unchanged."""
    model, _, _ = model_of(build, decay=0.9, decay_end=1.0, decay_until=0.5)
    teacher: Any = model.target.teacher.encoder
    slow, fast = teacher.blocks[0].mlp.fc1.weight, model.encoder.blocks[0].mlp.fc1.weight
    for step, decay in enumerate((0.9, 0.92, 0.94, 0.96, 0.98, 1.0, 1.0), start=1):
        before = slow.clone()
        model.target.update(model, step, 10, NO)
        assert torch.equal(slow, before)
        model.target.update(model, step, 10, YES)
        assert torch.allclose(slow, decay * before + (1 - decay) * fast, atol=1e-14)
    assert not any(weight.requires_grad for weight in model.target.parameters())


def test_the_average_s_decay_may_turn_on_its_way() -> None:
    """BootMAE's decay goes from 0.999 to 0.9999 over an eighth of the run, and to 0.99999 at half of it."""
    config = LatentTarget.Config(decay=0.999, decay_middle=(0.9999, 0.125), decay_end=0.99999, decay_until=0.5)
    found = [config.decay_at(step, 800) for step in (1, 51, 101, 251, 401, 800)]
    assert found == pytest.approx([0.999, 0.99945, 0.9999, 0.999945, 0.99999, 0.99999], abs=1e-12)


def test_predictions_may_be_normed_too(build: Build) -> None:
    """BootMAE normalises predictions, too."""
    model, x, mask = model_of(build, norm_prediction=True, loss="mse")
    output = model(x, mask=mask)
    plain = (standard(output.prediction, -1) - output.target).square().mean()
    assert output.loss.item() == pytest.approx(plain.item(), rel=1e-12)


def test_a_training_begins_with_a_teacher_equal_to_the_encoder(build: Build) -> None:
    model, _, _ = model_of(build)
    assert not torch.equal(model.target.teacher.encoder.norm.weight, model.encoder.norm.weight)  # the fixture adds noise
    model.target.begin(model, lambda path: model, no_samples)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(model.target.teacher.encoder.state_dict()[name], value)


def test_the_teacher_drops_nothing(build: Build) -> None:
    encoder = VisionTransformer.Config(width=24, depth=2, heads=2, drop_path=0.5)
    model = build(encoder=encoder, target=LatentTarget.Config()).train()
    x = torch.randn(8, 3, 12, 16)
    first = model.target.teach(x, model.tokenizer.split(x), GRID).tokens
    assert torch.equal(first, model.target.teach(x, model.tokenizer.split(x), GRID).tokens)


# --- frozen teachers ----------------------------------------------------------------------------------------------------------


def test_a_frozen_teacher_is_read_and_never_saved(build: Build) -> None:
    teacher = build(encoder=VisionTransformer.Config(width=32, depth=3, heads=2))
    model = build(target=LatentTarget.Config(teacher="runs/teacher", teacher_width=32, loss="l1"))
    x, saved = torch.randn(2, 3, 12, 16), model.state_dict()
    with pytest.raises(ValueError, match="runs/teacher was not loaded, .*; call target.begin first"):
        model(x)
    asked = []
    model.target.begin(model, lambda path: asked.append(path) or teacher, no_samples)
    assert asked == ["runs/teacher"]
    mask = model.masker(sample_keys(0, 0, torch.arange(2)), GRID)
    output = model(x, mask=mask)
    assert torch.allclose(output.target, take(standard(teacher.encode(x).tokens, -1), mask.predict), atol=1e-5)
    assert output.prediction.shape == (2, 9, 32)
    pixels = x * torch.tensor(teacher.data.std).view(-1, 1, 1) + torch.tensor(teacher.data.mean).view(-1, 1, 1)
    teacher.data = replace(teacher.data, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
    model.target.begin(model, lambda path: teacher, no_samples)  # the teacher gets pixels with its own normalisation
    own = (pixels - torch.tensor(teacher.data.mean).view(-1, 1, 1)) / torch.tensor(teacher.data.std).view(-1, 1, 1)
    expected = take(standard(teacher.encode(own).tokens, -1), mask.predict)
    assert torch.allclose(model(x, mask=mask).target, expected, atol=1e-4)
    before = [value.clone() for value in teacher.encoder.state_dict().values()]
    model.target.update(model, 1, 10, YES)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.encoder.state_dict().values(), strict=True))
    assert model.state_dict().keys() == saved.keys()
    model.load_state_dict(saved, strict=True)
    assert len(model.target.unsaved()) == len(teacher.encoder.state_dict())


def unread(path: str) -> Any:
    raise AssertionError(path)


@pytest.mark.parametrize("blocks", [None, (2, 1)])
def test_a_frozen_teacher_of_timm(build: Build, tmp_path: Path, blocks: tuple[int, ...] | None) -> None:
    """The teacher gets pixels with its own normalisation, in a size that makes the same tokens; for a clip, it gets the first frame
    of each tube."""
    import timm

    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": (24, 32), "num_classes": 0}
    teacher = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments, "num_classes": 0, "pretrained_cfg": pixels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.nn.init.normal_(teacher.norm.weight)
    save_file(teacher.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    options: dict[str, Any] = {} if blocks is None else {"blocks": blocks, "join": True, "block_norm": "final"}
    target = LatentTarget.Config(teacher=f"timm:{tmp_path}", teacher_width=32, norm="none", **options)
    model = build(target=target)
    model.target.begin(model, unread, no_samples)
    unit = torch.rand(2, 3, 12, 16)
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (model.data.mean, model.data.std))
    x = (unit - mean) / std
    theirs = [torch.tensor(pixels[name]).view(-1, 1, 1) for name in ("mean", "std")]
    seen = F.interpolate((unit - theirs[0]) / theirs[1], size=(24, 32), mode="bicubic", antialias=True)
    with torch.no_grad():
        if blocks is None:
            expected = teacher.forward_features(seen)[:, 1:]
        else:
            tokens = teacher.pos_drop(teacher._pos_embed(teacher.patch_embed(seen)))
            first = teacher.blocks[0](tokens)
            expected = torch.cat([teacher.norm(one)[:, 1:] for one in (teacher.blocks[1](first), first)], dim=2)  # as UMT does
    found = model.target.teach(x, model.tokenizer.split(x), GRID).tokens
    assert torch.allclose(found, expected, atol=1e-4)
    looked = model.target.scores(x, model.tokenizer.split(x), GRID)
    attention = teacher.blocks[1].attn
    attention.fused_attn, weights = False, []
    attention.attn_drop.register_forward_hook(lambda _, inputs, output: weights.append(output))
    teacher(seen)
    assert torch.allclose(looked, weights[0].mean(1)[:, 0, 1:], atol=1e-5)  # the class token's attention
    clips = build((4, 12, 16), target=target)
    clips.target.begin(clips, unread, no_samples)
    clip = torch.stack([x, x.flip(0), x.flip(3), x], dim=2)
    last = model.target.teach(x.flip(3), clip, GRID).tokens
    assert torch.allclose(clips.target.teach(clip, clip, (2, *GRID)).tokens, torch.cat([found, last], dim=1), atol=1e-6)
    assert not [name for name in model.state_dict() if name.startswith("target.")]


@pytest.mark.parametrize("class_token", [True, False])
def test_scores_have_the_bias_of_relative_positions(class_token: bool, build: Build) -> None:
    encoder = VisionTransformer.Config(width=24, depth=2, heads=2, class_token=class_token, relative_bias="blocks")
    model = build(target=LatentTarget.Config(), encoder=encoder)
    teacher, x, seen = model.target.teacher, torch.randn(2, 3, 12, 16), []
    torch.nn.init.normal_(teacher.encoder.blocks[1].attn.relative_position_bias_table)
    patches = model.tokenizer.split(x)
    with torch.no_grad(), watching(teacher, lambda name, layer, inputs: seen.append(attention_weights(layer, inputs))):
        teacher(patches, GRID, None)
    expected = seen[-1][:, :, 0, 1:] if class_token else seen[-1].mean(2)  # (B, h, N)
    assert torch.allclose(model.target.scores(x, patches, GRID), expected.mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eva02_tiny_patch14_224", {"qkv_bias": False}),
        ("eva02_tiny_patch14_224", {"use_rot_pos_emb": False}),
        ("test_vit_relpos", {}),
        ("test_vit_relpos", {"shared_rel_pos": True}),
    ],
    ids=["rotary positions", "a bias of queries", "relative positions", "shared relative positions"],
)
def test_attention_that_is_more_than_a_joint_layer_is_refused(name: str, options: dict[str, Any]) -> None:
    import timm

    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": (12, 16)}
    teacher = FrozenTimm(timm.create_model(name, num_classes=0, **sizes, **options), Input(size=(12, 16)), 1, GRID)
    with pytest.raises(ValueError, match="cannot be followed; use one with a joint qkv layer, and without rotary positions"):
        teacher.scores(torch.randn(2, 3, 12, 16), GRID)


def test_a_frozen_teacher_of_transformers(build: Build, tmp_path: Path) -> None:
    """CLIP's vision model interpolates its positions for images of another size than its own."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    teacher = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=4)).eval()
    teacher.save_pretrained(tmp_path)
    model = build(target=LatentTarget.Config(teacher=f"transformers:{tmp_path}", teacher_width=32, blocks=(1,), norm="none"))
    model.target.begin(model, unread, no_samples)
    x = torch.randn(2, 3, 12, 16)
    with torch.no_grad():
        expected = teacher(pixel_values=x, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[1][:, 1:]
        eager = CLIPVisionModel.from_pretrained(tmp_path, attn_implementation="eager")
        weights = eager(pixel_values=x, output_attentions=True, interpolate_pos_encoding=True).attentions[1]
    looked = model.target.scores(x, model.tokenizer.split(x), GRID)
    assert torch.allclose(looked, weights.mean(1)[:, 0, 1:], atol=1e-6)
    assert torch.allclose(model.target.teach(x, model.tokenizer.split(x), GRID).tokens, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "vit", "tied"])
def test_the_last_output_of_a_teacher_of_transformers_is_normed_once(kind: str, build: Build, tmp_path: Path) -> None:
    """CLIP norms only its class token; ViT norms all tokens, also where its last hidden state is its normed output."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"image_size": 12, "patch_size": 4} | ({"tie_last_hidden_states": True} if kind == "tied" else {})
    teacher = CLIPVisionModel(CLIPVisionConfig(**sizes)) if kind == "clip" else ViTModel(ViTConfig(**sizes))
    norm = teacher.post_layernorm if kind == "clip" else teacher.layernorm
    torch.nn.init.normal_(norm.weight)
    teacher.eval().save_pretrained(tmp_path)
    model = build((12, 12), target=LatentTarget.Config(teacher=f"transformers:{tmp_path}", teacher_width=32, norm="none"))
    model.target.begin(model, unread, no_samples)
    x, last = torch.randn(2, 3, 12, 12), teacher.encoder.layers[-1] if kind == "clip" else teacher.layers[-1]
    raw: list[Tensor] = []
    last.register_forward_hook(lambda _, inputs, output: raw.append(output if isinstance(output, Tensor) else output[0]))
    with torch.no_grad():
        teacher(pixel_values=x)
        expected = norm(raw[0])[:, 1:]
    assert torch.allclose(model.target.teach(x, model.tokenizer.split(x), (3, 3)).tokens, expected, atol=1e-5)


@pytest.mark.parametrize("teacher", ["timm:resnet18_of_nobody", "timm:./nothing", "transformers:./nothing"])
def test_a_library_s_teacher_that_is_not_there_is_refused(teacher: str, build: Build) -> None:
    model = build(target=LatentTarget.Config(teacher=teacher))
    with pytest.raises(ValueError, match="cannot be read as a vision transformer of images"):
        model.target.begin(model, unread, no_samples)


@pytest.mark.parametrize(
    ("parts", "options", "words"),
    [
        ({"encoder": VisionTransformer.Config(width=32, depth=2, heads=2)}, {}, "target.teacher_width 32"),
        ({"tokenizer": Patches.Config(size=2)}, {}, r"\(6, 8\) tokens"),
        ({}, {"blocks": (1, 5)}, "blocks 1 to 2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(build: Build, parts: dict[str, Any], options: dict[str, Any], words: str) -> None:
    model = build(target=LatentTarget.Config(teacher="runs/teacher", **options))
    with pytest.raises(ValueError, match=words):
        model.target.begin(model, lambda path: build(**parts), no_samples)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a loss of classes": ({"loss": "cross_entropy"}, r"target\.loss"),
    "a decay above 1": ({"decay": 1.5}, r"target\.decay 1\.5"),
    "the average's norm": ({"block_norm": "final", "blocks": (1,)}, r"target\.block_norm final needs"),
    "MLPs of no block": ({"block_output": "mlp"}, r"target\.block_output mlp needs target\.blocks"),
    "joining nothing": ({"join": True}, r"target\.blocks"),
    "a block of 0": ({"blocks": (0, 1)}, r"target\.blocks"),
    "a block that is not there": ({"blocks": (3,)}, "blocks 1 to 2"),
    "a class token for a hidden view": ({"class_weight": 1.0, "view": "hidden"}, r"target\.class_weight"),
    "a class token of another width": ({"class_weight": 1.0, "join": True, "blocks": (1, 2)}, "as wide as the encoder"),
    "a turn after the end": ({"decay_middle": (0.5, 1.0)}, r"target\.decay_middle 0\.5 1"),
    "a width of the average": ({"teacher_width": 12}, r"target\.teacher_width"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_in_words(mistake: str, build: Build) -> None:
    options, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        build(target=LatentTarget.Config(**options))
    bare = VisionTransformer.Config(width=24, depth=2, heads=2, class_token=False)
    with pytest.raises(ValueError, match="needs a class token"):
        build(encoder=bare, target=LatentTarget.Config(class_weight=1.0))
