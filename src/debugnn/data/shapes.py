"""`shapes`: a procedural stand-in for CIFAR-10, for use where no data can be downloaded.

Each 3x32x32 image shows one textured silhouette of its class, in random pose and colour, on a
textured background with clutter and pixel noise.  The silhouette is the only reliable cue; the
shape's hue hints at the class in some of the images only.

The constants below set the difficulty: a small CNN overfits 4,000 training images within ten
epochs when left alone, and does not under dropout.
"""

from __future__ import annotations

import numpy as np
from numpy.random import PCG64, Generator

SIZE = 32  # image height and width, pixels
CHUNK = 128  # images rendered at a time: keeps the planes in the processor's cache

RADIUS_RANGE = (8.0, 12.0)  # radius of the shape's circumscribed circle, pixels
MAX_TILT = 0.4  # largest rotation of the shape either way, radians
MAX_STRETCH = 1.15  # ratio of the shape's axes at most: a square must not become a bar
BRIGHTNESS_RANGE = (0.2, 0.3)  # mean brightness of the background, in full scales
CHROMA_RANGE = (0.2, 0.3)  # swing of the three colour planes about the mean brightness
CONTRAST_RANGE = (0.4, 0.7)  # brightness step up from background to shape
TEXTURE_AMPLITUDE = 0.1  # largest brightness swing of a texture about its mean
TEXTURE_PERIODS = (0.3, 5.0)  # stripes across the image; less than one is a gradient
FRAGMENTS = 24  # distractors in an image, half of them in front of the shape
FRAGMENT_HALF_LENGTHS = (0.0, 4.0)  # pixels; the shortest are round blobs
FRAGMENT_RADII = (1.0, 2.4)  # half the stroke width, pixels
NOISE_RANGE = (0.0, 0.04)  # standard deviation of the pixel noise, in full scales
HINT_PROBABILITY = 0.6  # share of the images whose hue hints at the class
HINT_STD = 0.02  # spread of a hinted hue, turns; neighbouring classes are 0.1 turns apart


# One signed distance per class: points (x, y) of any common shape to the distance from the
# outline, negative inside, in radii of the circumscribed circle about the origin.  Away from
# the outline some are bounds rather than distances, where only their sign matters.


def disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from a disc."""
    return _norm(x, y) - 0.9


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from a square."""
    return _box(x, y, 0.75, 0.75)


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from an equilateral triangle."""
    return _regular_polygon(x, y, order=3)


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from a five-pointed star."""
    u, v = _fold(x, y, order=5)
    # In the folded half-sector the outline is one edge, from a tip (1, 0) to an inner corner.
    corner_x, corner_y = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    edge_length = np.hypot(1 - corner_x, corner_y)
    return ((u - 1) * corner_y + v * (1 - corner_x)) / edge_length


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from an upright cross."""
    return np.minimum(_box(x, y, 0.95, 0.28), _box(x, y, 0.28, 0.95))


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from a ring, open in the middle."""
    return np.abs(_norm(x, y) - 0.7) - 0.22


def hexagon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from a regular hexagon."""
    return _regular_polygon(x, y, order=6)


def crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from a crescent, horns towards +x."""
    return np.maximum(_norm(x, y) - 1, 0.85 - _norm(x - 0.55, y))


def bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from a bar along the x axis."""
    return _box(x, y, 1.0, 0.3)


def arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance of the points (x, y) from an arrow towards +x."""
    shaft = _box(x + 0.4, y, 0.6, 0.2)
    slanted_edges = (x - 1 + np.abs(y)) / np.sqrt(2)
    return np.minimum(shaft, np.maximum(slanted_edges, 0.1 - x))


def _norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Several times as fast as np.hypot, whose guard against overflow is not needed here.
    return np.sqrt(x * x + y * y)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _regular_polygon(x: np.ndarray, y: np.ndarray, order: int) -> np.ndarray:
    u, _ = _fold(x, y, order)
    return u - np.cos(np.pi / order)


def _fold(x: np.ndarray, y: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Map the points into the half-sector beside the +x axis of an `order`-fold symmetry."""
    sector = 2 * np.pi / order
    angle = np.arctan2(y, x)
    angle = np.abs(angle - sector * np.rint(angle / sector))
    radius = _norm(x, y)
    return radius * np.cos(angle), radius * np.sin(angle)


_SIGNED_DISTANCES = (
    disc,
    square,
    triangle,
    star,
    cross,
    ring,
    hexagon,
    crescent,
    bar,
    arrow,
)
CLASSES: tuple[str, ...] = tuple(function.__name__ for function in _SIGNED_DISTANCES)


def render(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Render `count` images of the classes in shuffled, balanced order.

    Args:
        count: number of images, at least 0.
        seed: seed of the random stream, at least 0; streams of different seeds are unrelated,
            so a test set is a render under another seed than the training set's.

    Returns:
        Images, uint8 (count, 3, 32, 32), red-green-blue planes of 0-255; and their labels,
        int64 (count,), indices into `CLASSES`.  Equal arguments give equal arrays.
    """
    rng = Generator(PCG64(seed))
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    images = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        images[start : start + CHUNK] = _render_chunk(rng, labels[start : start + CHUNK])
    return images, labels


def _render_chunk(rng: Generator, labels: np.ndarray) -> np.ndarray:
    """Return the uint8 images (n, 3, 32, 32) of the labels (n,)."""
    count = len(labels)
    background_colour, shape_colour = _colours(rng, labels)
    canvas = background_colour + _texture(rng, count)
    _draw_fragments(rng, canvas, FRAGMENTS // 2)
    _blend(canvas, shape_colour + _texture(rng, count), _silhouettes(rng, labels))
    _draw_fragments(rng, canvas, FRAGMENTS - FRAGMENTS // 2)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32)
    canvas += noise * _uniform(rng, NOISE_RANGE, count)[..., None]
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)


def _colours(rng: Generator, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean colours (n, 3, 1, 1) of the backgrounds and of the shapes."""
    count = len(labels)
    brightness = _uniform(rng, BRIGHTNESS_RANGE, count)
    step = _uniform(rng, CONTRAST_RANGE, count)
    hinted = _uniform(rng, (0, 1), count) < HINT_PROBABILITY
    deviation = HINT_STD * rng.standard_normal((count, 1, 1), dtype=np.float32)
    hint = labels[:, None, None].astype(np.float32) / len(CLASSES) + deviation
    hue = np.where(hinted, hint, _uniform(rng, (0, 1), count))
    background = _colour(rng, _uniform(rng, (0, 1), count), brightness)
    return background, _colour(rng, hue, brightness + step)


def _colour(rng: Generator, hue: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """Return colours (n, 3, 1, 1) of hues (n, 1, 1) in turns and brightnesses in [0, 1]."""
    primaries = np.arange(3, dtype=np.float32)[:, None, None] / 3
    chroma = _uniform(rng, CHROMA_RANGE, len(hue))[:, None]
    # Cosines a third of a turn apart sum to zero: the hue leaves the mean brightness alone.
    return brightness[:, None] + chroma * np.cos(2 * np.pi * (hue[:, None] - primaries))


def _texture(rng: Generator, count: int) -> np.ndarray:
    """Return brightness offsets (n, 1, 32, 32): stripes or a gradient, mixed with blotches."""
    u, _ = _rotated_grid(rng, count)
    frequency = _uniform(rng, TEXTURE_PERIODS, count) * np.float32(2 * np.pi / SIZE)
    stripes = np.sin(frequency * u + _uniform(rng, (0, 2 * np.pi), count))
    coarse = 2 * rng.random((count, SIZE // 4, SIZE // 4), dtype=np.float32) - 1
    blotches = coarse.repeat(4, axis=1).repeat(4, axis=2)
    stripes += _uniform(rng, (0, 1), count) * (blotches - stripes)
    return (_uniform(rng, (0, TEXTURE_AMPLITUDE), count) * stripes)[:, None]


def _silhouettes(rng: Generator, labels: np.ndarray) -> np.ndarray:
    """Return the coverage (n, 32, 32) in [0, 1] of the pixels by a shape in random pose."""
    radius = _uniform(rng, RADIUS_RANGE, len(labels))
    u, v = _rotated_grid(rng, len(labels), SIZE / 2 - radius, MAX_TILT)
    stretch = np.sqrt(_uniform(rng, (1 / MAX_STRETCH, MAX_STRETCH), len(labels)))
    u, v = u / (radius * stretch), v * (stretch / radius)
    distance = np.empty_like(u)
    for label, signed_distance in enumerate(_SIGNED_DISTANCES):
        chosen = labels == label
        distance[chosen] = signed_distance(u[chosen], v[chosen])
    return _coverage(distance * radius)


def _draw_fragments(rng: Generator, canvas: np.ndarray, fragments: int) -> None:
    """Draw blobs and short strokes, smaller than any shape, at random on each image."""
    count = len(canvas)
    for _ in range(fragments):
        u, v = _rotated_grid(rng, count, reach=SIZE / 2)
        beyond_end = np.maximum(np.abs(u) - _uniform(rng, FRAGMENT_HALF_LENGTHS, count), 0)
        distance = _norm(beyond_end, v) - _uniform(rng, FRAGMENT_RADII, count)
        colour = _colour(rng, _uniform(rng, (0, 1), count), _uniform(rng, (0, 1), count))
        _blend(canvas, colour, _coverage(distance))


def _rotated_grid(
    rng: Generator, count: int, reach: float | np.ndarray = 0.0, max_angle: float = np.pi
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates u, v (n, 32, 32) in frames of random centre and rotation.

    The centres lie within `reach` pixels of the image's centre along either axis.
    """
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x = axis[None, None, :] - reach * _uniform(rng, (-1, 1), count)
    y = axis[None, :, None] - reach * _uniform(rng, (-1, 1), count)
    angle = _uniform(rng, (-max_angle, max_angle), count)
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Return the share of a pixel inside an outline `distance` pixels from its centre."""
    return np.clip(0.5 - distance, 0, 1)


def _blend(canvas: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> None:
    """Paint `colour` in place over the share `coverage` (n, 32, 32) of the canvas's pixels."""
    canvas += coverage[:, None] * (colour - canvas)


def _uniform(rng: Generator, bounds: tuple[float, float], count: int) -> np.ndarray:
    """Return one float32 draw an image, (n, 1, 1) to broadcast over its pixels."""
    low, high = bounds
    return low + (high - low) * rng.random((count, 1, 1), dtype=np.float32)


def read(root: str, download: bool) -> tuple[np.ndarray, ...]:
    """Return the arrays of `data=shapes`: 4,000 training and 1,000 test images with their labels.

    This reader is defined here and not in `readers`, because the cache is invalidated when the
    source of the reader's module changes.
    """
    return (*render(4000, seed=0), *render(1000, seed=1))
