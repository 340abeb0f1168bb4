import cv2
import numpy as np
import pytest

from fcrn_jax import data
from fcrn_jax.data import shapes
from fcrn_jax.types import IGNORE


@pytest.fixture(scope="module")
def examples():
  dataset = data.load("shapes", split="val", options={"num_images": 200})
  return [dataset[i] for i in range(200)]


def without_void(example):
  """Category and instance maps with void filled from the nearest pixel."""
  semantic, instances = example["semantic"], example["instances"]
  void = semantic == IGNORE
  if not void.any():
    return semantic, instances
  _, nearest = cv2.distanceTransformWithLabels(
    void.astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
  )
  table = np.zeros((nearest.max() + 1, 2), int)
  table[nearest[~void]] = np.stack([semantic, instances], -1)[~void]
  return table[nearest][..., 0], table[nearest][..., 1]


def test_image_depends_on_seed_split_and_index_only():
  a = data.load("shapes", options={"num_images": 9})
  b = data.load("shapes", options={"num_images": 3})
  a[5], b[1]  # other reads in between change nothing
  for name in ("image", "semantic", "instances", "classes"):
    np.testing.assert_array_equal(a[2][name], b[2][name])
  other = data.load("shapes", options={"num_images": 3, "seed": 1})
  assert (a[2]["image"] != other[2]["image"]).any()


def test_no_image_is_in_two_splits():
  seen = [
    data.load("shapes", split, options={"num_images": 60})[i]["image"].tobytes()
    for split in ("train", "val", "test")
    for i in range(60)
  ]
  assert len(set(seen)) == len(seen)


def test_maps_agree(examples):
  for example in examples:
    semantic, instances = example["semantic"], example["instances"]
    number = len(example["classes"])
    assert 2 <= number <= 12
    assert example["image"].shape == (96, 96, 3)
    assert example["image"].dtype == np.uint8
    assert instances.dtype == np.int32
    assert set(np.unique(instances)) - {0} == set(range(1, number + 1))
    inside = instances > 0
    np.testing.assert_array_equal(
      semantic[inside], example["classes"][instances[inside] - 1]
    )
    assert set(np.unique(semantic[~inside])) <= {0, IGNORE}
    assert set(example["classes"]) <= {1, 2, 3, 4}


def test_some_images_have_void_borders_between_objects(examples):
  share = np.mean([(e["semantic"] == IGNORE).any() for e in examples])
  assert 0.3 < share < 0.7


def test_sizes_differ_widely(examples):
  areas = np.concatenate(
    [np.bincount(e["instances"].ravel())[1:] for e in examples]
  )
  assert np.percentile(areas, 95) > 8 * np.percentile(areas, 5)


def test_connected_components_do_badly(examples):
  # Of the objects, how many does a component of the perfect category map
  # meet with an IoU of 0.7? And how many images hold a touching pair of one
  # category?
  met = total = touching = 0
  for example in examples:
    semantic, instances = without_void(example)
    pieces = []
    for category in range(1, 5):
      number, parts = cv2.connectedComponents(np.uint8(semantic == category))
      pieces += [parts == k for k in range(1, number)]
    owners = [len(set(instances[piece])) for piece in pieces]
    touching += max(owners) > 1
    for k in range(1, len(example["classes"]) + 1):
      truth = instances == k
      met += any(
        (truth & piece).sum() / (truth | piece).sum() >= 0.7 for piece in pieces
      )
      total += 1
  assert met / total < 0.4
  assert touching / len(examples) > 0.8


def test_colour_does_not_tell_the_category(examples):
  colors = {category: [] for category in range(1, 5)}
  for example in examples:
    for k, category in enumerate(example["classes"], 1):
      mask = example["instances"] == k
      colors[category].append(example["image"][mask].mean(axis=0))
  means = np.array([np.mean(colors[category], axis=0) for category in colors])
  spread = np.std(np.concatenate(list(colors.values())), axis=0)
  assert (np.ptp(means, axis=0) < 0.6 * spread).all()


def square(y, x, side):
  """A square of pixels y ... y + side - 1, as _outline gives it."""
  last = side - 1
  corners = [(x, y), (x + last, y), (x + last, y + last), (x, y + last)]
  return [np.array(corners, np.int32) * 2**shapes._SHIFT]


def test_later_objects_cover_earlier_ones():
  # An 8 x 8 square at (0, 0), then one at (4, 4) over its corner.
  owner, kept = shapes._occlude([square(0, 0, 8), square(4, 4, 8)], 16, 16)
  expected = np.zeros((16, 16), int)
  expected[0:8, 0:8] = 1
  expected[4:12, 4:12] = 2
  np.testing.assert_array_equal(owner, expected)
  assert kept == [0, 1]


def test_nearly_hidden_objects_are_left_out():
  # B, 24 x 24 at (6, 6), shows 576 - 484 = 92 pixels around C, 22 x 22 at
  # (8, 8): 16 %. Without it A, 12 x 12 at (0, 0), loses to C only 4 x 4.
  a, b, c = square(0, 0, 12), square(6, 6, 24), square(8, 8, 22)
  owner, kept = shapes._occlude([a, b, c], 48, 48)
  assert kept == [0, 2]
  assert np.bincount(owner.ravel())[1:].tolist() == [144 - 16, 484]
  # As few as 39 pixels are too few even in full sight.
  assert shapes._occlude([square(0, 0, 6), c], 48, 48)[1] == [1]


def test_options():
  dataset = data.load("shapes", options={"size": (64, 80), "num_images": 2})
  assert len(dataset) == 2
  assert dataset[1]["image"].shape == (64, 80, 3)
  assert dataset[-1]["id"] == "train_000001"
  assert [e["id"] for e in (dataset[0], dataset[1])] == dataset.ids
  with pytest.raises(IndexError):
    dataset[2]
  with pytest.raises(ValueError, match="no split 'validation'"):
    data.load("shapes", "validation")
  with pytest.raises(ValueError, match=r"sise.*num_images"):
    data.load("shapes", options={"sise": 3})
  with pytest.raises(ValueError, match="size"):
    data.load("shapes", options={"size": (8, 8)})
