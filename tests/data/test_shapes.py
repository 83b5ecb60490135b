"""The drawn images, the silhouettes, and how weakly the hue hints at the class."""

import numpy as np
import pytest

from debugnn.data import shapes

SAMPLES = 200
EXTENT = 1.1


@pytest.fixture(scope="module")
def train_set():
    return shapes.render(600, seed=0)


@pytest.fixture(scope="module")
def test_set():
    return shapes.render(400, seed=1)


def inside_mask(name: str) -> np.ndarray:
    """Return which points of a square grid over the unrotated shape lie inside it."""
    axis = np.linspace(-EXTENT, EXTENT, SAMPLES)
    x, y = np.meshgrid(axis, axis)
    return getattr(shapes, name)(x, y) < 0


def is_inside(name: str, x: float, y: float) -> bool:
    return bool(getattr(shapes, name)(np.array([x]), np.array([y]))[0] < 0)


def radius_at(name: str, angles: np.ndarray) -> np.ndarray:
    """Return how far along each direction the last point inside the shape lies."""
    radii = np.linspace(0, 1.2, 601)[:, None]
    inside = getattr(shapes, name)(radii * np.cos(angles), radii * np.sin(angles)) < 0
    return np.where(inside, radii, 0).max(axis=0)


def is_convex(name: str) -> bool:
    """True if the midpoints of a fixed random sample of points inside are inside."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-EXTENT, EXTENT, (4000, 2))
    signed_distance = getattr(shapes, name)
    inside = points[signed_distance(*points.T) < 0]
    midpoints = (inside + rng.permutation(inside)) / 2
    return bool(np.all(signed_distance(*midpoints.T) < 1e-9))


def count_lobes(name: str) -> int:
    """Return the number of maxima of the outline's radius around the origin."""
    radius = radius_at(name, np.linspace(0, 2 * np.pi, 720, endpoint=False) + 0.001)
    tall = radius > (radius.min() + radius.max()) / 2
    return int(np.sum(tall & ~np.roll(tall, 1)))


def test_classes_are_the_ten_in_order():
    assert shapes.CLASSES == (
        "disc", "square", "triangle", "star", "cross",
        "ring", "hexagon", "crescent", "bar", "arrow",
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 137])
def test_types_and_shapes(count):
    images, labels = shapes.render(count, seed=3)
    assert images.shape == (count, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.shape == (count,)
    assert labels.dtype == np.int64


def test_pixels_use_the_whole_range(train_set):
    images, _ = train_set
    assert images.min() == 0
    assert images.max() == 255
    assert images.reshape(len(images), -1).std(axis=1).min() > 10, "no image is blank"


def test_equal_arguments_give_equal_arrays():
    first, second = shapes.render(150, seed=7), shapes.render(150, seed=7)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_another_seed_gives_other_images_and_order():
    first, second = shapes.render(150, seed=7), shapes.render(150, seed=8)
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(first[1], second[1])


@pytest.mark.parametrize("count", [200, 137])
def test_classes_are_balanced_and_shuffled(count):
    _, labels = shapes.render(count, seed=2)
    occurrences = np.bincount(labels, minlength=10)
    assert len(occurrences) == 10
    assert occurrences.max() - occurrences.min() <= 1
    assert not np.array_equal(labels, np.arange(count) % 10)
    assert len(set(labels[:20])) > 2, "not sorted by class"


def test_no_image_occurs_twice_within_or_across_the_streams(train_set, test_set):
    images = np.concatenate([train_set[0], test_set[0]])
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_every_shape_fits_the_unit_circle_and_nearly_fills_it(name):
    reach = radius_at(name, np.linspace(0, 2 * np.pi, 720, endpoint=False)).max()
    assert 0.85 < reach < 1.08


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_signed_distance_is_one_pixel_steep_at_the_outline(name):
    """Anti-aliasing relies on the distance being exact near the outline: its slope must be 1."""
    axis = np.linspace(-EXTENT, EXTENT, 501)
    x, y = np.meshgrid(axis, axis)
    distance = getattr(shapes, name)(x, y)
    slope = np.hypot(*np.gradient(distance, axis[1] - axis[0]))
    near = np.abs(distance) < 0.02
    assert np.median(slope[near]) == pytest.approx(1, abs=0.02)


def test_only_the_ring_and_the_crescent_are_open_in_the_middle():
    hollow = {name for name in shapes.CLASSES if not is_inside(name, 0.0, 0.0)}
    assert hollow == {"ring", "crescent"}


def test_ring_closes_around_its_hole_and_the_crescent_does_not():
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    assert radius_at("ring", angles).min() > 0
    assert radius_at("crescent", angles).min() == 0
    assert is_inside("crescent", -0.7, 0.0)
    assert not is_inside("crescent", 0.7, 0.0)


def test_convexity():
    convex = {name for name in shapes.CLASSES if is_convex(name)}
    assert convex == {"disc", "square", "triangle", "hexagon", "bar"}


@pytest.mark.parametrize(
    ("name", "lobes"), [("triangle", 3), ("square", 4), ("cross", 4), ("star", 5), ("hexagon", 6)]
)
def test_number_of_points(name, lobes):
    assert count_lobes(name) == lobes


def test_only_the_disc_and_the_ring_are_round():
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    spread = {name: np.ptp(radius_at(name, angles)) for name in shapes.CLASSES}
    assert {name for name in spread if spread[name] < 0.05} == {"disc", "ring"}


def test_only_the_bar_is_elongated_beyond_what_stretching_makes_of_a_square():
    def elongation(name: str) -> float:
        inside = inside_mask(name)
        return max(inside.any(axis=0).sum(), 1) / max(inside.any(axis=1).sum(), 1)

    assert elongation("square") == pytest.approx(1)
    assert elongation("bar") > 2 * shapes.MAX_STRETCH


def test_only_the_arrow_has_both_a_point_and_a_shaft():
    width = inside_mask("arrow").sum(axis=0)
    columns = np.flatnonzero(width)
    tail, tip = width[columns[10]], width[columns[-3]]
    assert width.max() > 3 * tail > 3 * tip > 0


def test_the_rendered_shape_is_the_labelled_one(train_set):
    """Shapes are brighter than backgrounds, so a class's mean brightness follows its area."""
    images, labels = train_set
    brightness = [images[labels == label].mean() for label in range(10)]
    area = [inside_mask(name).mean() for name in shapes.CLASSES]
    assert np.corrcoef(brightness, area)[0, 1] > 0.9


def test_mean_colour_hardly_gives_the_class_away(train_set, test_set):
    (train_images, train_labels), (test_images, test_labels) = train_set, test_set
    train_colours, test_colours = train_images.mean(axis=(2, 3)), test_images.mean(axis=(2, 3))
    means = np.array([train_colours[train_labels == label].mean(axis=0) for label in range(10)])
    distances = ((test_colours[:, None] - means) ** 2).sum(axis=2)
    assert np.mean(distances.argmin(axis=1) == test_labels) < 0.35
