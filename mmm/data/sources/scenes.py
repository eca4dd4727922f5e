"""Built-in scenes with exact labels: textured shapes on a ground plane, rendered from the photographs in scikit-image's wheel.

Nothing is downloaded and nothing is drawn by hand: class, instance and depth of each pixel are those that the renderer used.
The class of a shape is the photograph that its texture is cut from, and does not depend on its outline. Near shapes are larger
and lower, and have a coarser texture and less haze, so that depth can be estimated from an image. In a clip, shapes and
background move at constant speeds.

Textures of the three splits are cut from the regions of the photographs that `builtin:photographs` uses, so that no pixel is in
two splits. Every texture gets a random brightness and contrast, so that grey values do not reveal the class.

Shapes: T frames, S side of a frame in pixels, n objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from mmm.core.checks import suggest
from mmm.core.rng import Stream, sample_keys, stream, uniform
from mmm.data.sources.builtin_images import BRIGHTNESS, DEVIATION, STRIPS, photograph
from mmm.system.files import digest

MATERIALS = ("brick.png", "coins.png", "grass.png", "gravel.png", "ihc.png", "text.png")
BACKGROUNDS = ("chelsea.png", "coffee.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "page.png")
CLASSES = ("background", *(file.rsplit(".", 1)[0] for file in MATERIALS))
COUNTS = {"train": 400, "validation": 60, "test": 120}
SIDE = 64  # pixels
FRAMES = 12  # number of frames of a clip
OBJECTS = (2, 6)  # smallest number of objects, and the first that is too large
VISIBLE = 24  # smallest number of visible pixels of an object in the first frame; an object with fewer is left out of the scene
HORIZON = 0.25  # row of the horizon, as a share of the side
NEAR, FAR = 2.0, 10.0  # depth of the lowest row and largest depth, metres
DISTANCES = (2.2, 6.0)  # depth of an object, metres, with a uniform logarithm
RADIUS = (0.45, 0.8)  # radius of an object in sides, at a depth of one metre
SPEED = 1.25  # largest speed of an object along an axis, pixels per frame; the background moves at most a third as fast
ZOOM = 3.0  # depth in metres at which a texture has the scale of its photograph
HAZE, HAZE_DEPTH = 140.0, 12.0  # grey value of the haze, and the depth in metres over which contrast falls by e
VERSION = 1  # version of the renderer; changes the fingerprint


@dataclass(frozen=True)
class Scene:
    """A rendered clip, with one frame if it is an image.

    Attributes:
        pixels: uint8 (T, S, S), grey.
        classes: uint8 (T, S, S), numbers in CLASSES.
        instances: uint8 (T, S, S), 0 for the background, then 1 to n, from far to near.
        depth: float32 (T, S, S), metres.
        labels: classes of the objects, (n,).
    """

    pixels: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    depth: NDArray[np.float32]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class _Object:
    """One textured shape: a regular polygon or an ellipse, upright on the ground."""

    label: int
    depth: float
    centre: tuple[float, float]  # row and column in the first frame, pixels
    speed: tuple[float, float]  # rows and columns per frame
    radius: float  # pixels
    corners: int  # 2: an ellipse
    angle: float  # radians
    stretch: float  # factor of the columns
    texture: tuple[float, float]  # where it is cut from its photograph, shares of the region
    brightness: float
    deviation: float


def check_scenes(name: str, channels: int) -> None:
    """Raises ValueError if the text after `builtin:` is not `scenes`, or if scenes do not have these channels; the other names are
    handled before."""
    if name != "scenes":
        raise ValueError(f"data.source builtin:{name}: no such built-in data with masks{suggest(name, ['scenes', 'nuclei'])}")
    if channels not in (1, 3):
        raise ValueError(f"data.channels {channels}: builtin:scenes has 1 (grey), or 3 equal ones")


@cache
def scenes(split: str) -> tuple[Scene, ...]:
    """Renders all images of a split, about 2 ms each. Each depends only on the split and its index."""
    return tuple(render(split, index) for index in range(COUNTS[split]))


def scenes_fingerprint(split: str) -> str:
    """Returns a hash that changes with the scenes of a split."""
    looks = (SIDE, OBJECTS, VISIBLE, HORIZON, NEAR, FAR, DISTANCES, RADIUS, ZOOM, HAZE, HAZE_DEPTH, BRIGHTNESS, DEVIATION)
    return digest(["scenes", VERSION, split, COUNTS[split], STRIPS[split][:2], MATERIALS, BACKGROUNDS, looks])


def render(split: str, index: int, frames: int = 1) -> Scene:
    """Renders one scene; its first frame does not depend on the number of frames."""
    key = stream(sample_keys(0, list(STRIPS).index(split), index), Stream.AUGMENT)
    draws = uniform(key, 16 * (OBJECTS[1] + 1))[0].double().tolist()
    count = OBJECTS[0] + int(draws[0] * (OBJECTS[1] - OBJECTS[0]))
    objects = sorted((_draw(draws[16 * (n + 1) :]) for n in range(count)), key=lambda one: -one.depth)
    while True:
        scene = _paint(objects, draws[:16], split, frames)
        seen = np.bincount(scene.instances[0].ravel(), minlength=len(objects) + 1)[1:]
        if (seen >= VISIBLE).all():
            return scene
        objects = [one for one, pixels in zip(objects, seen, strict=True) if pixels >= VISIBLE]


def _draw(draws: list[float]) -> _Object:
    """Makes an object from 14 random numbers in [0, 1)."""
    depth = DISTANCES[0] * (DISTANCES[1] / DISTANCES[0]) ** draws[0]
    radius = SIDE * (RADIUS[0] + draws[1] * (RADIUS[1] - RADIUS[0])) / depth
    ground = SIDE * (HORIZON + (1 - HORIZON) * NEAR / depth)  # row of the ground at this depth
    return _Object(
        label=1 + int(draws[2] * len(MATERIALS)),
        depth=depth,
        centre=(ground - radius, draws[3] * SIDE),
        speed=(0.4 * SPEED * (2 * draws[4] - 1), SPEED * (2 * draws[5] - 1)),
        radius=radius,
        corners=2 + int(draws[6] * 5),
        angle=draws[7] * 2 * math.pi,
        stretch=0.75 + draws[8] / 2,
        texture=(draws[9], draws[10]),
        brightness=BRIGHTNESS[0] + draws[11] * (BRIGHTNESS[1] - BRIGHTNESS[0]),
        deviation=DEVIATION[0] * (DEVIATION[1] / DEVIATION[0]) ** draws[12],
    )


def _paint(objects: list[_Object], draws: list[float], split: str, frames: int) -> Scene:
    """Paints the background and the objects over it, from far to near."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    below = np.maximum(rows / SIDE - HORIZON, 1e-6)
    ground = np.minimum(NEAR * (1 - HORIZON) / below, FAR)  # (S, S)
    background = BACKGROUNDS[int(draws[1] * len(BACKGROUNDS))]
    pans = [SPEED / 3 * (2 * draw - 1) for draw in draws[2:4]]
    brightness = BRIGHTNESS[0] + draws[6] * (BRIGHTNESS[1] - BRIGHTNESS[0])
    deviation = DEVIATION[0] * (DEVIATION[1] / DEVIATION[0]) ** draws[7]
    shape = (frames, SIDE, SIDE)
    pixels, depth = np.empty(shape), np.empty(shape)
    classes, instances = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for frame in range(frames):
        places = (rows - pans[0] * frame, columns - pans[1] * frame)
        pixels[frame] = _hazy(brightness + deviation * _texture(background, split, (draws[4], draws[5]), *places), ground)
        depth[frame] = ground
        for number, one in enumerate(objects, start=1):
            down = rows - one.centre[0] - one.speed[0] * frame
            right = columns - one.centre[1] - one.speed[1] * frame
            inside = _inside(one, down, right)
            zoom = one.depth / ZOOM
            values = _texture(MATERIALS[one.label - 1], split, one.texture, down[inside] * zoom, right[inside] * zoom)
            pixels[frame][inside] = _hazy(one.brightness + one.deviation * values, one.depth)
            depth[frame][inside], classes[frame][inside], instances[frame][inside] = one.depth, one.label, number
    grey = pixels.round().clip(0, 255).astype(np.uint8)
    return Scene(grey, classes, instances, depth.astype(np.float32), tuple(one.label for one in objects))


def _inside(one: _Object, down: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Marks the pixels whose centres an object covers, (S, S)."""
    right = right / one.stretch
    distance = np.hypot(down, right)
    if one.corners == 2:
        return distance < one.radius
    sector = 2 * math.pi / one.corners
    turned = np.mod(np.arctan2(down, right) - one.angle, sector) - sector / 2
    inside: NDArray[np.bool_] = distance * np.cos(turned) < one.radius * math.cos(sector / 2) ** 0.5  # of about a disc's area
    return inside


def _hazy(values: NDArray[np.float64], depth: NDArray[np.float64] | float) -> NDArray[np.float64]:
    clear = np.exp(-(depth - NEAR) / HAZE_DEPTH)
    return HAZE + (values - HAZE) * clear


def _texture(
    file: str, split: str, start: tuple[float, float], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolates a mirrored photograph bilinearly at places in pixels from a start. Returns values of mean 0 and deviation
    1."""
    plane = _plane(file, split)
    rows, columns = rows + start[0] * plane.shape[0], columns + start[1] * plane.shape[1]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    below, beside = rows - top, columns - left

    def at(row: int, column: int) -> NDArray[np.float64]:
        values: NDArray[np.float64] = plane[(top + row) % plane.shape[0], (left + column) % plane.shape[1]]
        return values

    upper = at(0, 0) * (1 - beside) + at(0, 1) * beside
    return upper * (1 - below) + (at(1, 0) * (1 - beside) + at(1, 1) * beside) * below


@cache
def _plane(file: str, split: str) -> NDArray[np.float64]:
    """Returns one period of a split's region of a photograph, mirrored, (2 H, 2 W), with mean 0 and deviation 1."""
    first, last, _ = STRIPS[split]
    grey = np.asarray(photograph(file).convert("L"), dtype=np.float64)
    part = grey[:, round(first * grey.shape[1]) : round(last * grey.shape[1])]
    part = (part - part.mean()) / part.std()
    half = np.concatenate([part, part[:, ::-1]], axis=1)
    return np.concatenate([half, half[::-1]], axis=0)


def object_masks(scene: Scene, frame: int = 0) -> torch.Tensor:
    """Returns the visible pixels of each object, bool (n, S, S)."""
    numbers = torch.arange(1, len(scene.labels) + 1)[:, None, None]
    return torch.from_numpy(scene.instances[frame].astype(np.int64)) == numbers
