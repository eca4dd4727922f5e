"""Order, batches and bad inputs: samples and pixels do not depend on the processes, and every bad input is reported."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmm.data import BadInputs, Batch, Images, ImagesConfig, Order, Problem, eval_batches, open_images, train_batches

BAD = {3: b"", 8: b"no image at all"}
CONFIG = ImagesConfig(image_size=24, workers=0, max_bad=0.5)


def write_images(folder: Path, count: int = 13) -> Path:
    """Writes images of various sizes and formats, only some of which take the path for small images."""
    generator = np.random.default_rng(0)
    for i in range(count):
        height, width = generator.integers(20, 70, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        kind = ("png", "jpg", "bmp")[i % 3]
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"class{i % 2}" / f"{i:02d}.{kind}")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = write_images(tmp_path_factory.mktemp("images"))
    return open_images(replace(CONFIG, source=str(folder), holdout=0.0), "train")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Returns thirteen images, two of which cannot be read."""
    folder = write_images(tmp_path_factory.mktemp("damaged"))
    paths = sorted(folder.rglob("*.*"))
    for index, data in BAD.items():
        paths[index].write_bytes(data)
    return open_images(replace(CONFIG, source=str(folder), holdout=0.0), "train")


def joined(batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Returns all samples of a run, concatenated."""
    batches = list(batches)
    return {name: torch.cat([getattr(b, name) for b in batches]) for name in ("pixels", "keys", "index", "epoch", "labels")}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name, values in a.items():
        assert torch.equal(values, b[name]), name


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (3, 8), (7, 7), (1, 5)])
def test_every_epoch_is_a_permutation_and_no_batch_is_dropped(n: int, batch: int) -> None:
    order = Order(n, seed=5)
    parts = [order.at(first, batch) for first in range(0, 8 * n, batch)]
    epoch, index = (torch.cat(values)[: 8 * n] for values in zip(*parts, strict=True))
    assert torch.equal(epoch, torch.arange(8 * n) // n)
    for number in range(8):
        assert index[epoch == number].sort().values.tolist() == list(range(n))
    assert torch.equal(Order(n, seed=5).at(3 * n + 1, 2 * n)[1], index[3 * n + 1 : 5 * n + 1])


def test_orders_differ_between_epochs_and_seeds() -> None:
    first, second = Order(1000, 0).at(0, 2000)[1].chunk(2)
    other = Order(1000, 1).at(0, 1000)[1]
    assert (first == second).sum() < 10
    assert (first == other).sum() < 10


@pytest.mark.parametrize(("world", "accumulation", "workers"), [(1, 3, 0), (2, 1, 0), (4, 3, 0), (1, 1, 2), (2, 2, 1)])
def test_the_same_pixels_for_any_processes_micro_batches_and_workers(
    images: Images, world: int, accumulation: int, workers: int
) -> None:
    whole = joined(train_batches(images, CONFIG, seed=1, batch_size=12, steps=4))
    config, size = replace(CONFIG, workers=workers), 12 // world // accumulation
    runs = [
        list(train_batches(images, config, seed=1, batch_size=size, steps=4, accumulation=accumulation, world=world, rank=rank))
        for rank in range(world)
    ]
    in_order = [
        runs[rank][step * accumulation + micro] for step in range(4) for rank in range(world) for micro in range(accumulation)
    ]
    assert all(len(batch) == size for batch in in_order)
    assert_same(whole, joined(in_order))


def test_a_run_that_starts_in_the_middle_goes_on_as_the_whole_one(images: Images) -> None:
    whole = list(train_batches(images, CONFIG, seed=1, batch_size=5, steps=7, accumulation=2))
    rest = list(train_batches(images, CONFIG, seed=1, batch_size=5, steps=7, accumulation=2, start_step=4))
    assert len(whole) == 14
    assert_same(joined(whole[8:]), joined(rest))


def test_crops_differ_between_epochs_and_seeds(images: Images) -> None:
    first, second = (joined(train_batches(images, CONFIG, seed=seed, batch_size=26, steps=1)) for seed in (0, 1))
    for sample in range(13):
        mine, other = first["pixels"][first["index"] == sample], second["pixels"][second["index"] == sample]
        assert not torch.equal(mine[0], mine[1])
        assert not torch.equal(mine[0], other[0])


def test_labels_follow_the_samples(images: Images) -> None:
    batch = next(train_batches(images, CONFIG, seed=0, batch_size=13, steps=1))
    assert images.classes == ("class0", "class1")
    names = [images.name(int(index)) for index in batch.index]
    assert batch.labels is not None
    assert [f"class{label}" for label in batch.labels] == [name.split("/")[0] for name in names]


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (3, 0), (20, 0)])
def test_evaluation_sees_each_sample_once_in_order(images: Images, world: int, workers: int) -> None:
    config = replace(CONFIG, workers=workers)
    batches = [b for rank in range(world) for b in eval_batches(images, config, batch_size=4, world=world, rank=rank)]
    seen = joined(batches)
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12]]
    assert_same(joined(eval_batches(images, CONFIG, batch_size=13)), seen)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_left_alone(images: Images, workers: int) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(train_batches(images, replace(CONFIG, workers=workers), seed=0, batch_size=4, steps=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_sample_is_replaced_and_named(images: Images, damaged: Images, workers: int) -> None:
    clean = list(train_batches(images, CONFIG, seed=2, batch_size=13, steps=2))
    found = list(train_batches(damaged, replace(CONFIG, workers=workers), seed=2, batch_size=13, steps=2))
    for whole, batch in zip(clean, found, strict=True):
        bad = torch.isin(whole.index, torch.tensor(list(BAD)))
        assert bad.sum() == 2
        assert torch.equal(batch.keys, whole.keys)
        assert torch.equal(batch.index[~bad], whole.index[~bad])
        assert torch.equal(batch.pixels[~bad], whole.pixels[~bad])
        assert not set(batch.index.tolist()) & set(BAD)
        assert batch.pixels[bad].float().flatten(1).std(1).min() > 10  # not left blank
        reasons = {problem.index: (problem.name, problem.reason) for problem in batch.problems}
        assert reasons == {
            3: (damaged.name(3), "the file is empty"),
            8: (damaged.name(8), "not an image of a known format"),
        }
    assert (
        joined(found)["index"].tolist() == joined(train_batches(damaged, CONFIG, seed=2, batch_size=2, steps=13))["index"].tolist()
    )


def test_evaluation_leaves_out_what_it_cannot_read(damaged: Images) -> None:
    batches = list(eval_batches(damaged, CONFIG, batch_size=3))
    assert joined(batches)["index"].tolist() == [i for i in range(13) if i not in BAD]
    assert [problem.index for batch in batches for problem in batch.problems] == list(BAD)
    alone = list(eval_batches(damaged.subset(torch.tensor([3])), CONFIG, batch_size=3))
    assert len(alone[0]) == 0
    assert alone[0].problems[0].name == damaged.name(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_of_which_nothing_can_be_read_ends_in_one_line(damaged: Images, workers: int) -> None:
    batches = train_batches(
        damaged.subset(torch.tensor(list(BAD))), replace(CONFIG, workers=workers), seed=0, batch_size=2, steps=9
    )
    with pytest.raises(
        ValueError, match=r"^11 samples in a row cannot be read, the last class.*: (the file is empty|not an image .*)$"
    ):
        list(batches)


def test_bad_inputs_are_written_once_and_survive_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "bad_inputs.jsonl"
    one, two = Problem(7, "a.jpg", "the file is empty"), Problem(2, "b.jpg", "not an image")
    first = BadInputs(path, total=100, max_bad=0.02)
    assert first.report() == "every input could be read"
    first.add([one, one])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"index": 2, "na')  # the process was killed in the middle of a line
    assert BadInputs(path, total=100, max_bad=0.02, write=False).found == {"a.jpg": one}
    resumed = BadInputs(path, total=100, max_bad=0.02)
    resumed.add([one, two, two])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [one._asdict(), two._asdict()]
    assert resumed.report() == f"2 of 100 inputs cannot be read (a.jpg: the file is empty, all in {path})"
    resumed.check()
    resumed.add([Problem(9, "c.jpg", "not an image")])
    with pytest.raises(
        ValueError,
        match=rf"^3 of 100 inputs .* data\.max_bad 0\.02 allows; repair them and delete {path} \(mmm scan names all\), or",
    ):
        resumed.check()
    path.unlink()  # the inputs were repaired
    BadInputs(path, total=100, max_bad=0.02).check()


def test_a_run_stops_at_the_batch_that_shows_too_many(damaged: Images, tmp_path: Path) -> None:
    bad = BadInputs(tmp_path / "bad_inputs.jsonl", total=len(damaged), max_bad=(len(BAD) - 1) / len(damaged))
    seen = list[Batch]()

    def read() -> None:
        for batch in train_batches(damaged, CONFIG, seed=0, batch_size=2, steps=100):
            bad.note(batch.problems)
            seen.append(batch)

    with pytest.raises(ValueError, match=rf"^{len(BAD)} of {len(damaged)} inputs cannot be read .* more than data\.max_bad"):
        read()
    assert 0 < len({problem.name for batch in seen for problem in batch.problems}) < len(BAD)
    assert len((tmp_path / "bad_inputs.jsonl").read_text().splitlines()) == len(BAD)


def test_a_full_disk_loses_no_bad_input(tmp_path: Path) -> None:
    """The line is written together with the next one, and the run continues."""
    bad = BadInputs(tmp_path / "bad_inputs.jsonl", total=100, max_bad=0.5)
    assert bad.journal is not None
    (tmp_path / "full").symlink_to("/dev/full")
    path, bad.journal.path = bad.journal.path, tmp_path / "full"
    bad.add([Problem(7, "a.jpg", "the file is empty")])
    bad.journal.path = path
    bad.add([Problem(2, "b.jpg", "not an image")])
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["a.jpg", "b.jpg"]


def test_a_batch_moves_whole(images: Images) -> None:
    batch = next(train_batches(images, CONFIG, seed=0, batch_size=2, steps=1))
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in (moved.pixels, moved.keys, moved.index, moved.epoch, moved.labels)} == {"meta"}
