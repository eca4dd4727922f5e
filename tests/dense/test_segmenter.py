"""Segmenters: heads, windows, biases, scores, and a whole run, resumed and loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import reset_accelerate
from safetensors.torch import load_file
from test_segment_data import DATA, write_pair

import mmm
from mmm import MaskedModel
from mmm.core.registry import REGISTRIES
from mmm.core.types import Input, Shape, Stage
from mmm.data.annotated.maps import IGNORE
from mmm.dense.heads import ConvolutionalHead, LinearHead, UperNetHead, default_taps
from mmm.dense.maps import stage_map
from mmm.dense.relative_bias import add_relative_bias
from mmm.dense.segmenter import Segmenter
from mmm.dense.sliding import score_image, slide, window_starts
from mmm.encoders import VisionTransformer
from mmm.encoders.hiera import Hiera
from mmm.evaluate.dense.patch_knn import Patches, patch_labels, vote
from mmm.evaluate.dense.segmentation import SegmentationScore
from mmm.layers.relative_bias import relative_index
from mmm.objectives.segment import pixel_cross_entropy
from mmm.tokenizers import Patches as PatchTokens
from mmm.train.config import TrainConfig
from mmm.weights.export import write_files
from mmm.weights.model_card import model_card
from tasks import segment
from tasks.export import origin_of

HEADS = {
    "linear": LinearHead.Config(),
    "convolutional": ConvolutionalHead.Config(channels=8),
    "uper_net": UperNetHead.Config(channels=8),
}


@pytest.fixture(autouse=True)
def _one_accelerator() -> Iterator[None]:
    yield
    reset_accelerate()


# --- scores -----------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_plain_counting() -> None:
    """One confusion matrix covers all images, ignored pixels are left out, and absent classes have no IoU."""
    classes, random = 7, torch.Generator().manual_seed(1)
    score, pairs = SegmentationScore(classes), []
    for size in ((4, 9), (8, 3), (5, 5)):
        labels, predicted = (torch.randint(0, 5, (1, *size), generator=random) for _ in range(2))
        predicted[predicted == 4] = 5  # class 5 is predicted but never a label; 6 is neither
        labels[torch.rand(1, *size, generator=random) < 0.2] = IGNORE
        score.add(predicted, labels)
        pairs.append((labels[labels != IGNORE], predicted[labels != IGNORE]))
    truth, guess = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    wanted: list[float | None] = []
    for number in range(classes):
        either = ((truth == number) | (guess == number)).sum()
        wanted.append(((truth == number) & (guess == number)).sum() / either if either else None)
    found = score.result()
    assert found["iou"][:6] == pytest.approx(wanted[:6])
    assert found["iou"][6] is None
    assert found["iou"][5] == 0
    assert found["miou"] == pytest.approx(np.mean([value for value in wanted if value is not None]))
    assert found["pixel_accuracy"] == pytest.approx((truth == guess).mean())


def test_an_image_without_labels_counts_nothing() -> None:
    score = SegmentationScore(3)
    score.add(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), IGNORE))
    with pytest.raises(ValueError, match="no evaluated pixel"):
        score.result()


def test_the_loss_is_divided_by_all_pixels() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0, :2] = IGNORE
    kept = labels != IGNORE
    share = logits.log_softmax(1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), -(share * kept).sum() / 32)
    halves = [pixel_cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), torch.stack(halves).mean())  # samples are independent


# --- windows ----------------------------------------------------------------------------------------------------------------


def test_windows_are_those_of_mmsegmentation() -> None:
    assert window_starts(683, 512) == [0, 171]
    assert window_starts(512, 512) == [0]
    assert window_starts(2048, 512) == [0, 341, 682, 1023, 1364, 1536]


def test_scores_that_depend_on_a_pixel_alone_are_the_same_in_windows() -> None:
    x = torch.randn(1, 3, 23, 31)
    torch.testing.assert_close(slide(lambda part: 2 * part + 1, x, (8, 10)), 2 * x + 1)
    assert score_image(lambda part: part[:, :2], x, (8, 8), (4, 4), whole=False).shape == (1, 2, 23, 31)
    seen: list[tuple[int, ...]] = []
    score_image(lambda part: seen.append(tuple(part.shape[2:])) or part, x, (8, 8), (4, 4), whole=True)  # type: ignore[func-returns-value]
    assert seen == [(8, 12)]


# --- heads ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(HEADS))
def test_every_head_scores_every_place_and_trains_every_weight(build: Callable[..., MaskedModel], name: str) -> None:
    model = build((16, 16))
    segmenter = Segmenter.build(model.tokenizer, model.encoder, HEADS[name], classes=5, data=model.data, seed=0)
    logits = segmenter.train()(torch.randn(3, 3, 16, 16))
    assert [one.shape[:2] for one in logits] == [(3, 5)] * len(segmenter.head.weights)
    torch.stack([one.square().mean() for one in logits]).sum().backward()
    idle = {part for part, weight in segmenter.named_parameters() if weight.requires_grad and weight.grad is None}
    assert idle == (set() if name != "uper_net" else {"encoder.norm.weight", "encoder.norm.bias"})  # UperNet skips this norm
    assert segmenter.segment(torch.randn(1, 3, 21, 40)).shape == (1, 5, 21, 40)
    assert segmenter.training


def test_stages_of_a_hierarchical_encoder_are_its_maps() -> None:
    """Each token of the output holds the finer tokens at its place; UperNet trains on all four stages of Hiera."""
    stage = Stage(1, 2, (2, 2))
    whole = torch.arange(4 * 6 * 2.0).view(1, 4, 6, 2)  # rows, columns and values of the stage
    tokens = whole.view(1, 2, 2, 3, 2, 2).transpose(2, 3).reshape(1, 6, 8)  # grouped by token of the output: 2 x 3
    assert torch.equal(stage_map(tokens, (2, 3), stage), whole.movedim(-1, 1))
    config = Hiera.Config(width=8, heads=1, stages=(1, 1, 1, 1))
    data = Input(size=(64, 64), mean=(0.5,) * 3, std=(0.2,) * 3)
    tokenizer = PatchTokens(PatchTokens.Config(size=config.token), channels=3)
    head = UperNetHead.Config(channels=8, auxiliary=8)
    required = replace(head.required_features(config.shape), blocks=())
    encoder = Hiera(config, token=tokenizer.size, channels=3, grid=tokenizer.grid_of(data.size), required=required)
    segmenter = Segmenter.build(tokenizer, encoder, head, classes=3, data=data, seed=0).train()
    logits = segmenter(torch.randn(2, 3, 64, 64))
    assert logits[0].shape == (2, 3, 16, 16)  # the first stage has patches of 4 pixels
    torch.stack([one.square().mean() for one in logits]).sum().backward()
    assert {name for name, weight in segmenter.named_parameters() if weight.grad is None} == set()


def test_all_heads_are_tested() -> None:
    assert set(REGISTRIES["dense_head"].parts) == set(HEADS)
    assert default_taps(12) == (4, 6, 8, 12)
    assert default_taps(24) == (6, 12, 18, 24)


def test_the_linear_head_is_a_linear_probe_of_standardised_tokens() -> None:
    """In training the statistics are those of the batch; the class token is appended to each token on request."""
    from mmm.core.types import Features

    head = LinearHead(LinearHead.Config(dropout=0.0, class_token=True), shape=Shape(4, 2, 1), classes=3)
    tokens = torch.randn(2, 1 + 6, 4)
    (logits,) = head(Features(tokens, 1, torch.arange(6)[None]), (2, 3))
    values = torch.cat([tokens[:, 1:], tokens[:, :1].expand(-1, 6, -1)], dim=2).flatten(0, 1)  # (12, 8)
    normed = (values - values.mean(0)) / (values.var(0, unbiased=False) + 1e-6).sqrt()
    wanted = normed @ head.linear.weight[:, :, 0, 0].T + head.linear.bias
    torch.testing.assert_close(logits.movedim(1, -1).reshape(12, 3), wanted, rtol=1e-4, atol=1e-5)


def test_a_frozen_encoder_stays_as_it_is(build: Callable[..., MaskedModel]) -> None:
    model = build((16, 16), encoder=VisionTransformer.Config(width=24, depth=2, heads=2, drop_path=0.5))
    segmenter = Segmenter.build(model.tokenizer, model.encoder, LinearHead.Config(dropout=0.0), classes=2, frozen=True).train()
    x = torch.randn(2, 3, 16, 16)
    segmenter(x)[0].sum().backward()
    assert {name.split(".")[0] for name, weight in segmenter.named_parameters() if weight.grad is not None} == {"head"}
    assert not segmenter.encoder.training


# --- relative positions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 1])
def test_pairs_at_the_same_relative_position_share_a_bias(prefix: int) -> None:
    height, width = 3, 4
    index = relative_index((height, width), torch.arange(height * width)[None], prefix)[0]
    places = [(row, column) for row in range(height) for column in range(width)]
    rows: dict[Any, set[int]] = {}
    for i, one in enumerate(places):
        for j, other in enumerate(places):
            rows.setdefault((one[0] - other[0], one[1] - other[1]), set()).add(int(index[i + prefix, j + prefix]))
    assert all(len(shared) == 1 for shared in rows.values())
    assert len({next(iter(shared)) for shared in rows.values()}) == (2 * height - 1) * (2 * width - 1) == len(rows)
    if prefix:
        special = {int(index[0, 0]), int(index[0, 1]), int(index[1, 0])}
        assert len(special) == 3
        assert min(special) == len(rows)


def test_a_bias_changes_nothing_at_first_and_one_grid_is_all_it_knows(build: Callable[..., MaskedModel]) -> None:
    model, x = build((12, 16)), torch.randn(2, 3, 12, 16)
    before = model.encode(x).last
    add_relative_bias(model.encoder, model.encoder.home)
    torch.testing.assert_close(model.encode(x).last, before, rtol=1e-5, atol=1e-5)
    table: Any = model.encoder.blocks[0].attn.attention.table  # type: ignore
    with torch.no_grad():
        table[0] += 5
    assert not torch.allclose(model.encode(x).last, before, atol=1e-3)
    with pytest.raises(ValueError, match="a grid of 3 x 4 tokens; evaluate in windows"):
        model.encode(torch.randn(1, 3, 16, 16))


# --- nearest patches --------------------------------------------------------------------------------------------------------


def test_pixels_of_a_patch_vote_at_their_own_places() -> None:
    features = torch.eye(4)
    labels = torch.tensor([[0, 1], [0, 2], [2, 2], [IGNORE, 1]])
    train = Patches(features, labels, torch.arange(4))
    queries = torch.tensor([[3.0, 2, 1, 0], [0, 0, 0, 9.0]])
    found = vote(train, queries, distance="cosine", ks=(1, 3), classes=3)
    assert found[1].tolist() == [[0, 1], [0, 1]]  # the only neighbour of the second query has no label at the first place
    assert found[3][0].tolist() == [0, 2]  # 0 0 2 at the first place, 1 2 2 at the second
    assert patch_labels(np.arange(16, dtype=np.uint16).reshape(4, 4), (2, 2), (2, 2))[1].tolist() == [2, 3, 6, 7]


# --- a whole run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes sixteen training images of blocks with the labels 0 to 2, one of which has a mask with a label that does not exist."""
    root, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for number in range(20):
        labels = random.integers(0, 3, (3, 4)).repeat(8, 0).repeat(8, 1)
        labels[:2] = 9 if number == 5 else labels[:2]
        write_pair(root, f"{number:02d}", labels, split="training" if number < 16 else "validation")
    return root


def small(source: Path, folder: Path, **changes: Any) -> segment.Config:
    train: dict[str, Any] = {
        "steps": 4,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 3e-3,
        "save_every": 2,
        "log_every": 1,
    }
    plain: dict[str, Any] = {
        "data": replace(DATA, source=str(source), holdout=0.02, flip=0.5, classes=3, photometric=True),
        "tokenizer": PatchTokens.Config(size=4),
        "encoder": VisionTransformer.Config(width=16, depth=4, heads=2, drop_path=0.2),
        "head": UperNetHead.Config(channels=8, auxiliary=8),
        "relative_bias": True,
        "layer_decay": 0.8,
        "train": TrainConfig(**train | {"scale_learning_rate": None, "keep_last": None, "evaluate_every": 2}),
        "folder": str(folder),
    }
    return segment.Config(**plain | changes)


def test_a_run_is_resumed_and_loaded(pairs: Path, tmp_path: Path, caplog: Any) -> None:
    """A resumed run equals the uninterrupted one bit for bit, the wrong mask is reported, and the loaded model equals the saved
    one."""
    result = segment.run(small(pairs, tmp_path / "run"))
    reset_accelerate()
    assert "training/05.png" in (tmp_path / "run" / "bad_inputs.jsonl").read_text()
    assert result["samples"] == 4
    assert (tmp_path / "run" / "pictures" / "segmentation_00000004.png").stat().st_size > 1000
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_00000004")
    again = segment.run(small(pairs, tmp_path / "again", resume=True))
    assert {**again, "run": 0} == {**result, "run": 0}
    one, other = (load_file(tmp_path / name / "checkpoints/step_00000004/model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["miou"] == result["miou"]

    model = mmm.load(tmp_path / "run")
    assert isinstance(model, Segmenter)
    assert f"| test | miou | {result['miou']:.4g} |" in str(model_card(model, origin_of(tmp_path / "run", "mit"), []))
    x = torch.randn(1, 3, 24, 32)
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(Segmenter.from_pretrained(tmp_path / "saved").segment(x), model.segment(x))
    with pytest.raises(ValueError, match="biases of relative positions"):
        MaskedModel.from_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="--to timm does not support a segmenter"):
        write_files(model, "timm", tmp_path)


def test_a_frozen_linear_head_on_a_pretrained_model(build: Callable[..., MaskedModel], pairs: Path, tmp_path: Path) -> None:
    model = build((12, 12), encoder=VisionTransformer.Config(width=16, depth=2, heads=2))
    model.data = Input(size=(12, 12), mean=(0.5,) * 3, std=(0.25,) * 3)
    model.save_pretrained(tmp_path / "model")
    config = small(
        pairs, tmp_path / "run", model=str(tmp_path / "model"), head=LinearHead.Config(), frozen=True, relative_bias=False
    )
    segment.run(config)
    found: Any = mmm.load(tmp_path / "run")
    kept = {name: value for name, value in model.encoder.state_dict().items() if name != "pos_embed"}  # depends on the image size
    assert all(torch.equal(found.encoder.state_dict()[name], value) for name, value in kept.items())
    reset_accelerate()
    scores = segment.run(replace(config, knn=True, train=replace(config.train, precision="fp32")))
    assert scores["samples"] == 4
    assert scores["unreadable"] == 1
    assert 0 < scores["miou"] <= 1
    with pytest.raises(ValueError, match="^--data.source is not set"):
        segment.run(replace(config, knn=True, data=replace(config.data, source=None)))
    with pytest.raises(ValueError, match=r"give --data\.mean 0\.5 0\.5 0\.5"):
        segment.run(replace(config, knn=True, data=replace(config.data, mean=(0.4,) * 3)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": TrainConfig(steps=1, batch_size=2, micro_batch_size=1, learning_rate=1.0)}, "needs micro-batches of at least 2"),
        ({"frozen": True}, "relative_bias is trained in the encoder"),
        ({"head": UperNetHead.Config(blocks=(1, 2, 3, 9))}, "head.blocks 9: the encoder has the blocks 1 to 4"),
        ({"knn": True}, "--knn needs features"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(
    pairs: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        segment.run(small(pairs, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
