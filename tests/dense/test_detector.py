"""Detection: COCO's files and their errors, objects that follow crops, windows, AP, and a whole run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import reset_accelerate
from PIL import Image
from safetensors.torch import load_file

import mmm
from mmm import MaskedModel
from mmm.core.registry import REGISTRIES
from mmm.core.types import Input, RequiredFeatures
from mmm.data.annotated.config import ObjectsConfig
from mmm.data.annotated.detection import open_objects
from mmm.data.annotated.objects import Objects, Placement, as_pixels, mask_api, paste_masks
from mmm.data.loading.loader import eval_batches, train_batches
from mmm.data.sources.scenes import CLASSES
from mmm.data.transforms.crop import flip
from mmm.dense.detector import Detector, Detr, MaskRCNN
from mmm.dense.detr import to_shares
from mmm.dense.windows import WindowedEncoder, default_global_blocks, in_windows
from mmm.encoders import Hiera, Swin, VisionTransformer, encoders
from mmm.evaluate.dense.detection import DetectionScore, in_image
from mmm.maskers import RandomMasker
from mmm.tokenizers import Patches
from mmm.train.config import TrainConfig
from tasks import detect

DATA = ObjectsConfig(image_size=32, mean=(0.0,) * 3, std=(0.25,) * 3, workers=0, max_bad=1.0, holdout=0.0, flip=0.5)
DETECTOR = MaskRCNN.Config(window=3, channels=8, hidden=16, convolutions=1, proposals=20, detections=10)


DETR = Detr.Config(window=2, queries=4, width=16, depth=1, heads=2, hidden=32, dropout=0.0, detections=3)


@pytest.fixture(autouse=True)
def _one_accelerator() -> Iterator[None]:
    yield
    reset_accelerate()


def rectangle(left: float, top: float, wide: float, high: float) -> list[list[float]]:
    return [[left, top, left + wide, top, left + wide, top + high, left, top + high]]


def write_coco(folder: Path) -> Path:
    """Writes COCO's layout: white rectangles on black, of two classes, on images of 40 x 30 pixels; one image has no object."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        (folder / split).mkdir()
        images, rows = [], []
        for number in range(count):
            pixels = np.zeros((30, 40, 3), np.uint8)
            for _ in range(2 if number else 0):
                left, top, wide, high = (int(random.integers(*limits)) for limits in ((0, 25), (0, 15), (8, 15), (8, 15)))
                pixels[top : top + high, left : left + wide] = 255
                box = [left, top, wide, high]
                rows.append({"bbox": box, "segmentation": rectangle(*box), "category_id": int(random.choice([3, 7]))})
                rows[-1] |= {"id": len(rows), "image_id": number + 10, "area": wide * high, "iscrowd": 0}
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            images.append({"id": number + 10, "file_name": f"{number}.png", "width": 40, "height": 30})
        tree = {"images": images, "annotations": rows, "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "fork"}]}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
    return folder


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path)


def change(coco: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edits the training annotations."""
    file = coco / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    edit(tree)
    file.write_text(json.dumps(tree))


# --- data -------------------------------------------------------------------------------------------------------------------


def test_objects_follow_their_images_into_crops_and_flips(coco: Path) -> None:
    """The pixels of a sample are white exactly inside its masks, except at blurred edges; boxes end where masks end."""
    data = replace(DATA, source=str(coco), scale=(0.5, 2.0))
    part = open_objects(data, "train")
    seen = 0
    for batch in train_batches(part, data, seed=0, batch_size=12, steps=3):
        pixels = flip(batch.pixels, batch.keys, data.flip)[:, 0]
        for image, target in zip(pixels, batch.targets, strict=True):
            masks = target["masks"].bool()
            assert masks.shape[1:] == (32, 32)
            union = masks.any(0) if len(masks) else torch.zeros(32, 32, dtype=torch.bool)
            sure = (image < 3) | (image > 252)
            assert ((image > 252)[sure] == union[sure]).float().mean() > 0.97  # polygons are filled to the nearest half pixel
            for mask, (left, top, right, bottom) in zip(masks, target["boxes"].tolist(), strict=True):
                rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
                ends = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert np.abs(np.array(ends) - [left, top, right, bottom]).max() < 1.6
                seen += 1
            assert set(target["labels"].tolist()) <= {1, 2}
    assert seen > 30


def test_evaluation_shows_whole_images_and_maps_back(coco: Path) -> None:
    part = open_objects(replace(DATA, source=str(coco)), "eval")
    (batch,) = eval_batches(part, part.config, batch_size=3)
    assert batch.targets == ()
    assert (batch.pixels[:, :, 24:] == 0).all()  # 40 x 30 becomes 32 x 24; the rest is filled with the mean
    for index in range(3):
        objects, placement = part.objects(index), part.placement(index, None)
        torch.testing.assert_close(placement.original(placement.boxes(objects.boxes), objects.size), objects.boxes)


def test_masks_of_boxes_are_pasted_where_the_boxes_are() -> None:
    masks = paste_masks(torch.ones(1, 1, 28, 28), torch.tensor([[3.0, 2.0, 9.0, 7.0]]), (12, 15))
    truth = torch.zeros(12, 15, dtype=torch.bool)
    truth[2:7, 3:9] = True
    assert torch.equal(masks[0], truth)
    half = torch.zeros(1, 1, 28, 28)
    half[..., :14] = 1
    left = paste_masks(half, torch.tensor([[3.0, 2.0, 9.0, 8.0]]), (12, 15))[0]
    assert left.any(0).nonzero()[:, 0].tolist() == [3, 4, 5]


def test_masks_of_all_kinds_are_the_same_pixels() -> None:
    """The kinds are polygons, uncompressed and compressed run lengths, and plain pixels, also placed in a crop."""
    api, truth = mask_api(), np.zeros((10, 12), bool)
    truth[2:7, 3:9] = True
    runs = [len(list(run)) for _, run in groupby(truth.T.ravel().tolist())]  # along the columns, zeros first
    kinds = [
        rectangle(3, 2, 6, 5),
        {"size": [10, 12], "counts": runs},
        api.encode(np.asfortranarray(truth.astype(np.uint8))),
        truth,
    ]
    assert all(np.array_equal(as_pixels(kind, (10, 12)), truth) for kind in kinds)
    placement = Placement((2.0, 2.0), (-2.0, -4.0), (16, 16), (16, 16), flipped=True)
    first, *others = (placement.mask(kind, (10, 12)) for kind in kinds)
    assert all(torch.equal(first, other) for other in others)
    assert placement.boxes(torch.tensor([[3.0, 2.0, 9.0, 7.0]])).tolist() == [[2.0, 2.0, 14.0, 12.0]]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tree: tree["annotations"][0].update(bbox=[35, 5, 20, 10]), "1 annotations have a box that ends outside the image"),
        (lambda tree: tree["annotations"][0].update(bbox=[50, 5, 20, 10]), "have a box without an area inside the image"),
        (lambda tree: tree["annotations"][0].update(bbox=[5, 5, 0, 10]), "have a box without an area inside the image"),
        (lambda tree: tree["annotations"][0].pop("bbox"), "have no box of four numbers"),
        (lambda tree: tree["annotations"][0]["segmentation"].append([1, 2, 3, 4]), "have a polygon of fewer than three corners"),
        (lambda tree: None, "1 of 6 images have no object"),
    ],
)
def test_what_is_wrong_with_an_annotation_is_counted(coco: Path, caplog: Any, edit: Any, said: str) -> None:
    change(coco, edit)
    assert len(open_objects(replace(DATA, source=str(coco)), "train")) == 6
    assert said in caplog.text


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tree: tree["annotations"].clear(), "has no annotations"),
        (lambda tree: tree["images"].clear(), "has no images"),
        (lambda tree: tree.pop("categories"), "has no list `categories`"),
        (lambda tree: tree["images"][0].pop("width"), "an entry of `images` has no width"),
        (lambda tree: tree["annotations"][0].update(category_id=5), "has category_id 5, which the file does not list"),
        (lambda tree: tree["annotations"][0].update(image_id=99), "has image_id 99, which the file does not list"),
        (lambda tree: tree["images"][1].update(id=10), "several images or categories with the same id"),
        (lambda tree: tree["annotations"][0].pop("segmentation"), "1 objects of .* have no mask; .* --detector.masks false"),
    ],
)
def test_files_that_cannot_be_used_are_refused(coco: Path, edit: Any, said: str) -> None:
    change(coco, edit)
    with pytest.raises(ValueError, match=said):
        open_objects(replace(DATA, source=str(coco)), "train")


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), ("{", "is no JSON"), ("[]", "has no list `images`")])
def test_files_that_are_no_annotations_are_refused(coco: Path, text: str, said: str) -> None:
    (coco / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        open_objects(replace(DATA, source=str(coco)), "train")


def test_sources_that_are_not_there_are_refused(coco: Path) -> None:
    for source, said in (
        (None, "data.source is not set"),
        ("nowhere", "is not a folder"),
        (str(coco / "train"), "has no annotations/"),
    ):
        with pytest.raises(ValueError, match=said):
            open_objects(replace(DATA, source=source), "train")
    own = replace(DATA, source=str(coco / "train"), annotations=str(coco / "annotations" / "instances_train.json"))
    assert len(open_objects(own, "train")) == 6


def test_an_image_of_another_size_than_annotated_is_named(coco: Path) -> None:
    Image.new("RGB", (41, 30)).save(coco / "train" / "2.png")
    part = open_objects(replace(DATA, source=str(coco)), "train")
    found = [problem for batch in eval_batches(part, part.config, batch_size=6) for problem in batch.problems]
    assert [(one.name, one.reason) for one in found] == [("train/2.png", "has 30 x 41 pixels, and its annotation says 30 x 40")]


def test_scenes_have_their_objects() -> None:
    data = ObjectsConfig(source="builtin:scenes", image_size=64, channels=1, mean=(0.5,), std=(0.2,))
    part = open_objects(data, "validation")
    assert part.classes == CLASSES[1:]
    same = open_objects(replace(data, one_class=True), "validation")
    assert same.classes == ("object",)
    assert not any(same.objects(index).labels.any() for index in range(len(same)))
    assert torch.equal(same.objects(3).boxes, part.objects(3).boxes)
    for index in range(5):
        objects = part.objects(index)
        for mask, (left, top, right, bottom) in zip(objects.masks, objects.boxes.int().tolist(), strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert all(line.any() for line in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]))


# --- average precision ------------------------------------------------------------------------------------------------------


def test_average_precision_is_that_of_pycocotools() -> None:
    """The inputs are random objects and predictions of three classes, boxes and masks, with a crowd."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    api, random = mask_api(), np.random.default_rng(3)
    score = DetectionScore(3, masks=True)
    tree: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label, "name": str(label)} for label in range(3)],
    }
    tree["info"] = {}
    results = []
    for number in range(6):
        size = (60, 80)
        count = int(random.integers(0, 5))
        starts = random.integers(0, 40, (count, 2))
        sides = random.integers(6, 38, (count, 2))
        boxes = np.concatenate([starts, np.minimum(starts + sides, (80, 60))], 1)
        labels, masks = random.integers(0, 3, count), np.zeros((count, *size), bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[top:bottom, left:right] = True
            mask[top, left] = False
        crowd = np.zeros(count, bool)
        crowd[:1] = number == 4
        # predictions: the true objects moved a little, some with another class, and one that is not an object
        moved = np.concatenate([boxes + random.integers(-4, 5, boxes.shape), [[2, 2, 20, 25]]])
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 2)
        moved = np.clip(moved, 0, [79, 59, 80, 60])
        guessed = np.concatenate([np.where(random.random(count) < 0.8, labels, 0), [1]])
        scores = random.random(len(moved))
        drawn = np.zeros((len(moved), *size), bool)
        for mask, (left, top, right, bottom) in zip(drawn, moved, strict=True):
            mask[top:bottom, left:right] = True
        objects = Objects(
            size,
            torch.from_numpy(boxes).float(),
            torch.from_numpy(labels),
            torch.from_numpy(crowd),
            tuple(masks),
        )
        found = {"boxes": torch.from_numpy(moved).float(), "scores": torch.from_numpy(scores).float()}
        score.add(found | {"labels": torch.from_numpy(guessed), "masks": torch.from_numpy(drawn)}, objects)
        tree["images"].append({"id": number, "width": 80, "height": 60})
        for box, label, mask, many in zip(boxes.tolist(), labels.tolist(), masks, crowd.tolist(), strict=True):
            row = {"id": len(tree["annotations"]) + 1, "image_id": number, "category_id": label, "iscrowd": int(many)}
            row |= {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "area": float(mask.sum())}
            tree["annotations"].append(row | {"segmentation": api.encode(np.asfortranarray(mask.astype(np.uint8)))})
        for box, label, mask, one in zip(moved.tolist(), guessed.tolist(), drawn, scores.tolist(), strict=True):
            row = {"image_id": number, "category_id": label, "score": float(np.float32(one))}
            row["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append(row | {"segmentation": api.encode(np.asfortranarray(mask.astype(np.uint8)))})
    truth = COCO()
    truth.dataset = tree
    truth.createIndex()
    got = score.result()
    for kind, title in (("bbox", "box"), ("segm", "mask")):
        plain = [
            {key: value for key, value in row.items() if key != ("segmentation" if kind == "bbox" else "bbox")} for row in results
        ]
        judge = COCOeval(truth, truth.loadRes(plain), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        for name, place in (("ap", 0), ("ap50", 1), ("ap75", 2), ("ap_small", 3), ("ap_medium", 4)):
            assert got[title][name] == pytest.approx(judge.stats[place], abs=1e-4), (title, name)
        assert 0.05 < got[title]["ap"] < 0.95
        assert got[title]["ap_large"] is None  # no object is that large


# --- windows and layers -----------------------------------------------------------------------------------------------------


def test_windows_do_not_see_each_other() -> None:
    class Mix(torch.nn.Module):
        """Adds the mean over the tokens of a sample."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.mean(1, keepdim=True)

    x = torch.randn(2, 5, 7, 3)
    found = in_windows(Mix(), x, 3)
    assert found.shape == x.shape
    for top in range(0, 5, 3):
        for left in range(0, 7, 3):
            part = x[:, top : top + 3, left : left + 3]
            expected = part + part.sum((1, 2), keepdim=True) / 9  # padding is zeros
            torch.testing.assert_close(found[:, top : top + 3, left : left + 3], expected)


@pytest.mark.parametrize("relative", [True, False])
def test_global_attention_is_the_encoders_own(build: Callable[..., MaskedModel], relative: bool) -> None:
    """Without windows, and with untrained relative positions, the map equals the output of the blocks without a class token."""
    encoder: Any = build((16, 24), encoder=VisionTransformer.Config(width=24, depth=2, heads=2, class_token=False)).encoder
    patches = torch.randn(2, 24, 48)
    before = encoder(patches, (4, 6), None, blocks=(2,)).blocks[2]
    windowed = WindowedEncoder(encoder, (4, 6), window=None, global_blocks=(), relative=relative)
    torch.testing.assert_close(windowed(encoder, patches).flatten(2).transpose(1, 2), before, rtol=1e-4, atol=1e-5)
    if relative:
        with torch.no_grad():
            encoder.blocks[0].attn.attention.rows.normal_()
        assert not torch.allclose(windowed(encoder, patches).flatten(2).transpose(1, 2), before, atol=1e-2)


def test_relative_biases_are_those_of_a_plain_loop() -> None:
    from mmm.dense.windows import DecomposedBias

    layer = DecomposedBias(2, 4, (2, 3))
    torch.nn.init.normal_(layer.rows), torch.nn.init.normal_(layer.columns)
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    places = [(row, column) for row in range(2) for column in range(3)]
    scores = q @ k.transpose(-1, -2) / 2
    for i, (row, column) in enumerate(places):
        for j, (other, beside) in enumerate(places):
            bias = q[:, :, i] @ layer.rows[row - other + 1] + q[:, :, i] @ layer.columns[column - beside + 2]
            scores[:, :, i, j] = scores[:, :, i, j] + bias
    torch.testing.assert_close(layer.attend(q, k, v), scores.softmax(-1) @ v)


def test_a_detector_trains_every_weight_and_finds_objects(build: Callable[..., MaskedModel]) -> None:
    model = build((32, 32))
    assert model.data is not None
    x = torch.rand(1, 3, 32, 32)
    features = model.encode(x).last
    detector = Detector.build(model.tokenizer, model.encoder, DETECTOR, classes=2, data=model.data, seed=0).train()
    assert torch.equal(model.encode(x).last, features)  # the model keeps its own encoder
    targets = [
        {
            "boxes": torch.tensor([[4.0, 4.0, 20.0, 18.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, 32, 32, dtype=torch.uint8),
        },
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 32, 32, dtype=torch.uint8),
        },
    ]
    losses = detector(torch.randn(2, 3, 32, 32), targets)
    assert len(losses) == 5
    torch.stack(list(losses.values())).sum().backward()
    idle = {name for name, weight in detector.named_parameters() if weight.requires_grad and weight.grad is None}
    assert idle <= {"encoder.norm.weight", "encoder.norm.bias", "encoder.cls_token"}
    for one in detector.eval()(torch.randn(2, 3, 32, 32)):
        assert set(one) == {"boxes", "labels", "scores", "masks"}
    assert set(REGISTRIES["detector"].parts) == {"mask_rcnn", "detr"}
    assert default_global_blocks(12) == (3, 6, 9, 12)
    assert default_global_blocks(32) == (8, 16, 24, 32)


def test_detr_learns_where_an_object_is(build: Callable[..., MaskedModel], tmp_path: Path) -> None:
    """The detector finds boxes and classes in two images with one object each after 50 updates; then it is saved and loaded."""
    pytest.importorskip("scipy")
    model = build((32, 32))
    assert model.data is not None
    detector = Detector.build(model.tokenizer, model.encoder, DETR, classes=2, data=model.data, seed=0).train()
    x, boxes = torch.zeros(2, 3, 32, 32), torch.tensor([[4.0, 4.0, 20.0, 18.0], [12.0, 10.0, 30.0, 28.0]])
    x[0, :, 4:18, 4:20], x[1, :, 10:28, 12:30] = 2.0, -2.0
    targets = [{"boxes": boxes[:1], "labels": torch.tensor([1])}, {"boxes": boxes[1:], "labels": torch.tensor([2])}]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-2)
    for _ in range(50):
        (loss,) = detector(x, targets).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for one, box, label in zip(detector.eval()(x), boxes, (1, 2), strict=True):
        assert len(one["boxes"]) == 3
        assert (one["boxes"][0] - box).abs().max() < 4
        assert one["labels"][0] == label
    detector.save_pretrained(tmp_path / "detr")
    again: Any = mmm.load(tmp_path / "detr")
    torch.testing.assert_close(again(x)[0]["boxes"], detector(x)[0]["boxes"])
    torch.testing.assert_close(to_shares(boxes, (64, 32))[0], torch.tensor([12 / 32, 11 / 64, 16 / 32, 14 / 64]))


STAGED: dict[str, Any] = {
    "hiera": (16, Hiera.Config(width=8, heads=1, stages=(1, 1, 1, 1))),  # the last two stages have the same grid
    "hiera, pooled thrice": (32, Hiera.Config(width=8, heads=1, stages=(1, 1, 1, 1), pools=3)),
    "swin": (32, Swin.Config(width=8, heads=1, stages=(1, 1, 1, 1), window=4)),
}


@pytest.mark.parametrize(
    ("name", "detector", "sides"),
    [*((name, DETECTOR, [16, 8, 4, 2]) for name in STAGED), ("hiera", DETR, [16, 8, 4, 2]), ("swin", DETR, [16, 8, 4, 2])],
    ids=lambda value: getattr(value, "name", None),
)
def test_hierarchical_encoders_bring_their_own_levels(name: str, detector: Any, sides: list[int]) -> None:
    """The detector gets maps at 1/4 to 1/32 of the image, the loss of a fixed batch falls, and every weight gets a gradient."""
    if detector is DETR:
        pytest.importorskip("scipy")
    token, config = STAGED[name]
    data, tokenizer = Input(size=(64, 64), mean=(0.5,) * 3, std=(0.2,) * 3), Patches(Patches.Config(size=token), channels=3)
    x, boxes = torch.zeros(2, 3, 64, 64), torch.tensor([[8.0, 8.0, 40.0, 36.0], [24.0, 20.0, 60.0, 56.0]])
    x[0, :, 8:36, 8:40], x[1, :, 20:56, 24:60] = 2.0, -2.0
    masks = (x.abs().amax(1) > 1).byte()[:, None]
    targets = [
        {"boxes": box[None], "labels": torch.tensor([label]), "masks": mask}
        for box, label, mask in zip(boxes, (1, 2), masks, strict=True)
    ]
    torch.manual_seed(0)
    context: Any = {"token": tokenizer.size, "channels": 3, "grid": tokenizer.grid_of(data.size)}
    encoder = encoders.build(config, **context, required=RequiredFeatures(last=False))
    model = Detector.build(tokenizer, encoder, detector, classes=2, data=data, seed=0).train()
    seen: list[int] = []
    model.layers.register_forward_pre_hook(lambda _, inputs: seen.extend(one.shape[-1] for one in inputs[0]))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2 if detector is DETR else 3e-3), []
    for _ in range(10):
        losses.append(torch.stack(list(model(x, targets).values())).sum())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert seen == 10 * sides
    assert losses[-1] < losses[0] - 0.03, [loss.item() for loss in losses]
    assert {part for part, weight in model.named_parameters() if weight.grad is None} == set()
    assert len(model.eval()(x)) == 2


def test_a_detector_of_a_pretrained_swin_is_trained_and_loaded(
    build: Callable[..., MaskedModel], coco: Path, tmp_path: Path
) -> None:
    token, config = STAGED["swin"]
    model = build((64, 64), tokenizer=Patches.Config(size=token), encoder=config, masker=RandomMasker.Config(blank=True))
    model.data = Input(size=(64, 64), mean=DATA.mean, std=DATA.std)
    model.save_pretrained(tmp_path / "model")
    changes: dict[str, Any] = {"data": replace(DATA, image_size=128), "train": {"learning_rate": 1e-9}}
    result = detect.run(small(coco, tmp_path / "run", model=str(tmp_path / "model"), **changes))
    assert result["samples"] == 3
    found: Any = mmm.load(tmp_path / "run")
    torch.testing.assert_close(found.encoder.patch_embed.proj.weight, model.encoder.patch_embed.proj.weight)
    assert set(found(torch.randn(1, 3, 128, 128))[0]) == {"boxes", "labels", "scores", "masks"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"encoder": Hiera.Config(width=8, heads=1, stages=(1, 1), pools=0), "tokenizer": Patches.Config(size=4)},
            "reads four stages",
        ),
        ({"tokenizer": Patches.Config(size=6), "data": replace(DATA, image_size=36)}, "a power of 2"),
        ({"data": replace(DATA, image_size=36)}, "detection needs even numbers"),
        ({"detector": replace(DETECTOR, global_blocks=(9,))}, "detector.global_blocks 9: the encoder has the blocks 1 to 2"),
        ({"encoder": VisionTransformer.Config(width=16, depth=2, heads=2, rotary="axial")}, "detection needs encoder.rotary none"),
    ],
)
def test_what_cannot_be_built_is_said(coco: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        detect.run(small(coco, tmp_path / "run", **changes))


# --- a whole run ------------------------------------------------------------------------------------------------------------


def small(source: Path, folder: Path, **changes: Any) -> detect.Config:
    data = replace(changes.pop("data", DATA), source=str(source))
    train: dict[str, Any] = {"steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, "scale_learning_rate": None}
    train |= changes.pop("train", {})
    plain: dict[str, Any] = {
        "data": data,
        "tokenizer": Patches.Config(size=4),
        "encoder": VisionTransformer.Config(width=16, depth=2, heads=2, drop_path=0.2),
        "detector": DETECTOR,
        "layer_decay": 0.8,
        "train": TrainConfig(**train, save_every=1, log_every=1, keep_last=None),
        "folder": str(folder),
    }
    return detect.Config(**plain | changes)


def test_a_run_is_resumed_and_loaded(coco: Path, tmp_path: Path) -> None:
    (coco / "train" / "3.png").write_bytes(b"no picture")
    result = detect.run(small(coco, tmp_path / "run"))
    reset_accelerate()
    assert "train/3.png" in (tmp_path / "run" / "bad_inputs.jsonl").read_text()
    assert result["samples"] == 3
    assert set(result["box"]) == set(result["mask"])
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_00000002")
    detect.run(small(coco, tmp_path / "again", resume=True))
    one, other = (load_file(tmp_path / name / "checkpoints/step_00000002/model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    model: Any = mmm.load(tmp_path / "run")
    assert isinstance(model, Detector)
    assert model.labels == ("cup", "fork")
    model.save_pretrained(tmp_path / "saved")
    x = torch.randn(1, 3, 32, 32)
    for name, value in Detector.from_pretrained(tmp_path / "saved")(x)[0].items():
        torch.testing.assert_close(value, model(x)[0][name])


def test_found_objects_are_moved_into_their_image(coco: Path) -> None:
    part = open_objects(replace(DATA, source=str(coco)), "eval")
    found = {"boxes": torch.tensor([[0.0, 0.0, 16.0, 12.0]]), "masks": torch.ones(1, 1, 28, 28)}
    moved = in_image(found, part, 0)
    assert moved["boxes"].tolist() == [[0.0, 0.0, 20.0, 15.0]]
    assert moved["masks"].shape == (1, 30, 40)
    assert moved["masks"].sum() == 300
