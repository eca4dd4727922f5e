"""The rendered scenes have exact labels and are the same in every rendering."""

from __future__ import annotations

import numpy as np

from mmm.data.sources.scenes import CLASSES, COUNTS, NEAR, SIDE, VISIBLE, object_masks, render, scenes


def test_labels_of_pixels_and_of_objects_agree() -> None:
    for scene in scenes("validation"):
        masks = object_masks(scene)
        assert len(masks) == len(scene.labels) > 0
        assert masks.flatten(1).sum(1).min() >= VISIBLE
        assert masks.sum(0).max() == 1
        for mask, label in zip(masks.numpy(), scene.labels, strict=True):
            assert (scene.classes[0][mask] == label).all()
            assert np.ptp(scene.depth[0][mask]) == 0  # an object has a single depth
        assert ((scene.instances > 0) == (scene.classes > 0)).all()


def test_what_is_near_hides_what_is_far() -> None:
    """Instances are numbered from far to near, and every object is nearer than the ground behind its lowest row."""
    hidden = 0
    for index in range(COUNTS["validation"]):
        scene = render("validation", index)
        masks = object_masks(scene).numpy()
        depths = [scene.depth[0][mask][0] for mask in masks]
        assert depths == sorted(depths, reverse=True)
        rows = [np.flatnonzero(mask.any(1)) for mask in masks]
        hidden += sum(
            depth < scene.depth[0][row[-1] + 1].max() for depth, row in zip(depths, rows, strict=True) if row[-1] + 1 < SIDE
        )
        assert scene.depth.min() >= NEAR
    assert hidden > 0


def test_a_clip_moves_and_begins_with_its_image() -> None:
    clip = render("train", 3, frames=4)
    for name in ("pixels", "classes", "instances", "depth"):
        assert np.array_equal(getattr(clip, name)[:1], getattr(render("train", 3), name))
    assert not np.array_equal(clip.instances[0], clip.instances[3])
    moved = [np.argwhere(clip.instances[frame] == 1).mean(0) for frame in (0, 1, 2)]
    assert np.linalg.norm(moved[1] - moved[0]) < 3


def test_every_class_is_in_every_split_and_grey_values_do_not_tell_it() -> None:
    for split in ("validation", "test"):
        assert {label for scene in scenes(split) for label in scene.labels} == set(range(1, len(CLASSES)))
    means = [
        np.mean([scene.pixels[0][mask].mean() for scene in scenes("test") for mask, own in _objects(scene) if own == label])
        for label in range(1, len(CLASSES))
    ]
    assert np.ptp(means) < 20  # of 255; within a class the range is 75


def _objects(scene):  # type: ignore[no-untyped-def]
    return zip(object_masks(scene).numpy(), scene.labels, strict=True)
