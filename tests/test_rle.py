import numpy as np
import pytest

from fcrn_jax.data.builders import rle


def test_runs_go_down_the_columns_and_begin_with_zeros():
  # 3 x 4, down the columns: 2 zeros, 3 ones, 5 zeros, 2 ones.
  expected = [
    [0, 1, 0, 0],
    [0, 1, 0, 1],
    [1, 0, 0, 1],
  ]
  found = rle.from_counts([2, 3, 5, 2], 3, 4)
  np.testing.assert_array_equal(found, expected)


def test_a_compressed_string_by_hand():
  # 2, 3 and 5 fit in 4 bits: characters 48 + n. The fourth number is its
  # difference to the second, 2 - 3 = -1: the five bits 11111, sign included.
  assert rle.decompress("235O") == [2, 3, 5, 2]
  # 40 = 01000 + 32 * 1: low group with the bit for more, then the high one.
  assert rle.decompress(bytes([48 + 8 + 32, 48 + 1])) == [40]
  # 16 alone would be read as a sign, so it takes a second group.
  assert rle.decompress(bytes([48 + 16 + 32, 48])) == [16]


def test_polygon_of_whole_pixels():
  # Pixels are squares from k to k + 1; x from 1 to 4, y from 0 to 2.
  found = rle.decode([[1, 0, 4, 0, 4, 2, 1, 2]], 3, 5)
  expected = [
    [0, 1, 1, 1, 0],
    [0, 1, 1, 1, 0],
    [0, 0, 0, 0, 0],
  ]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ("segmentation", "words"),
  [
    ({"size": [3, 4], "counts": [2, 3]}, "sum to 5"),
    ({"size": [4, 3], "counts": [12]}, r"size is \[4, 3\]"),
    ([[0, 0, 1, 1, 2, 2, 3]], "7 coordinates"),
    ([[0, 0, 1, None, 2, 2]], "that are no numbers"),
    ([[0, 0, 1, float("inf"), 2, 2]], "that are no numbers"),
  ],
)
def test_broken_segmentations_are_refused(segmentation, words):
  with pytest.raises(ValueError, match=words):
    rle.decode(segmentation, 3, 4)


def test_a_polygon_of_two_points_covers_nothing():
  assert not rle.decode([[0, 0, 3, 2]], 3, 4).any()


def test_equals_pycocotools_on_random_polygons_and_masks():
  oracle = pytest.importorskip("pycocotools.mask")
  rng = np.random.default_rng(0)
  for trial in range(400):
    height, width = (int(n) for n in rng.integers(1, 40, 2))
    number = rng.integers(3, 9)
    # In, across and outside the image; fractions and whole numbers.
    points = rng.uniform(-10, 50, (number, 2))
    polygon = (points if trial % 2 else np.rint(points)).ravel().tolist()
    runs = oracle.frPyObjects([polygon], height, width)
    np.testing.assert_array_equal(
      rle.from_polygon(polygon, height, width), oracle.decode(runs[0])
    )
    mask = rng.random((height, width)) < rng.random()
    runs = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(rle.decode(runs, height, width), mask)


def test_equals_pycocotools_on_every_annotation_of_the_sample(real_data):
  oracle = pytest.importorskip("pycocotools.mask")
  import json

  file = real_data / "coco_sample" / "annotations" / "instances_sample.json"
  content = json.loads(file.read_text())
  sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
  assert len(content["annotations"]) == 1449
  for annotation in content["annotations"]:
    size = sizes[annotation["image_id"]]
    segmentation = annotation["segmentation"]
    runs = oracle.frPyObjects(segmentation, *size)
    runs = oracle.merge(runs) if isinstance(runs, list) else runs
    expected = oracle.decode(runs)
    np.testing.assert_array_equal(rle.decode(segmentation, *size), expected)
    compressed = {"size": list(size), "counts": runs["counts"].decode()}
    np.testing.assert_array_equal(rle.decode(compressed, *size), expected)
