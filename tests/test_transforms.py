import cv2
import numpy as np
import pytest

from fcrn_jax import boxes as box_algebra
from fcrn_jax.data import pipeline, transforms

FILL = (124, 117, 104)


def test_instance_boxes_typed_out():
  instances = np.array(
    [
      [1, 1, 0, 0, 2],
      [0, 1, 0, 0, 2],
      [0, 0, 4, 0, 0],
      [2, 0, 4, 4, 0],
    ],
    np.int32,
  )
  # 2 is in two parts, rows 0 ... 3 and columns 0 ... 4; 3 is not there.
  np.testing.assert_array_equal(
    transforms.instance_boxes(instances, 4),
    [[0, 0, 2, 2], [0, 0, 4, 5], [0, 0, 0, 0], [2, 2, 4, 4]],
  )


def test_instance_boxes_equal_a_naive_loop():
  rng = np.random.default_rng(0)
  for _ in range(50):
    shape = rng.integers(1, 12, 2)
    instances = rng.integers(0, 6, shape) * (rng.random(shape) < 0.4)
    found = transforms.instance_boxes(instances.astype(np.int32), 6)
    for k in range(1, 7):
      y, x = np.nonzero(instances == k)
      expected = [0] * 4
      if y.size:
        expected = [y.min(), x.min(), y.max() + 1, x.max() + 1]
      assert found[k - 1].tolist() == expected


def test_box_targets_typed_out():
  # Stride 4: points at 2, 6, 10. Instance 1, category 5, has the box
  # (0, 0, 8, 4): centre (4, 2), size (8, 4). Instance 2, category 3, reaches
  # out of the crop: (-4, 4, 8, 20), centre (2, 12), size (12, 16).
  instances = np.array([[1, 2, 2], [0, 0, 2]], np.int32)
  boxes = np.array([[0, 0, 8, 4], [-4, 4, 8, 20]], np.float32)
  classes = np.array([5, 3], np.uint8)
  targets = transforms.box_targets(instances, boxes, classes, 4, "area")
  zero = [0, 0, 0, 0]
  np.testing.assert_array_equal(
    targets["boxes"],
    [
      [[2, 0, 8, 4], [0, 6, 12, 16], [0, 2, 12, 16]],
      [zero, zero, [-4, 2, 12, 16]],
    ],
  )
  assert targets["classes"].tolist() == [[5, 3, 3], [0, 0, 3]]
  assert targets["valid"].tolist() == [[True, True, True], [False, False, True]]
  # Raw weights 1/32 once and 1/192 three times: sum 9/192 over 4 cells, so
  # the mean 1 comes by 4 * 192 / 9: 6 * 4 / 9 and 4 / 9.
  np.testing.assert_allclose(
    targets["weights"],
    [[24 / 9, 4 / 9, 4 / 9], [0, 0, 4 / 9]],
    rtol=1e-6,
  )
  decoded = box_algebra.decode(
    targets["boxes"], box_algebra.cell_points(2, 3, 4, np)
  )
  for cell, instance in {(0, 0): 0, (0, 1): 1, (0, 2): 1, (1, 2): 1}.items():
    np.testing.assert_array_equal(decoded[cell], boxes[instance])


@pytest.mark.parametrize(
  ("weighting", "ratio"), [("area", 16), ("sqrt_area", 4), ("none", 1)]
)
def test_weights_are_equal_within_an_instance_and_have_mean_1(weighting, ratio):
  instances = np.array([[1, 1, 2, 0]], np.int32)
  boxes = np.array([[0, 0, 16, 8], [0, 0, 2, 4]], np.float32)
  weights = transforms.box_targets(
    instances, boxes, np.array([1, 1], np.uint8), 4, weighting
  )["weights"][0]
  assert weights[0] == weights[1]
  assert weights[3] == 0
  np.testing.assert_allclose(weights[2] / weights[0], ratio, rtol=1e-6)
  np.testing.assert_allclose(weights[:3].mean(), 1, rtol=1e-6)


def test_a_crop_without_instances_has_no_weight():
  empty = np.zeros((2, 2), np.int32)
  none = np.zeros((0, 4), np.float32), np.zeros(0, np.uint8)
  targets = transforms.box_targets(empty, *none, 8, "area")
  for name in ("boxes", "classes", "valid", "weights"):
    assert not targets[name].any()
  with pytest.raises(ValueError, match="box_weighting is 'size'"):
    transforms.box_targets(empty, *none, 8, "size")


def ramp(height=100, width=120):
  """Red is 2 y, green 2 x, and pixel (y, x) is instance y * width + x + 1."""
  y, x = np.mgrid[:height, :width]
  instances = (y * width + x + 1).astype(np.int32)
  example = {
    "image": np.stack([2 * y, 2 * x, 0 * y], -1).astype(np.uint8),
    "semantic": np.ones((height, width), np.uint8),
    "instances": instances,
    "classes": np.ones(height * width, np.uint8),
    "boxes": transforms.instance_boxes(instances, height * width),
  }
  return example


def source_pixels(instances, width=120):
  """(y, x) of the pixel that an instance number stands for."""
  return np.stack(np.divmod(instances - 1, width), -1)


def colors_at_points(image, stride):
  """Red and green at the cells' points: between pixels if stride is even."""
  smooth = image[..., :2].astype(float)
  a, b = (stride - 1) // 2, stride // 2
  return (
    smooth[a::stride, a::stride] + smooth[a::stride, b::stride]
    + smooth[b::stride, a::stride] + smooth[b::stride, b::stride]
  ) / 4  # fmt: skip


def away_from_edges(mask, distance):
  """The mask's pixels with no other, and no border, within the distance."""
  kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
  padded = np.pad(mask, distance).astype(np.uint8)
  inside = np.s_[distance:-distance, distance:-distance]
  return cv2.erode(padded, kernel)[inside] > 0


@pytest.mark.parametrize("stride", [1, 3, 4, 8])
@pytest.mark.parametrize(
  "options",
  [
    {"scale": (1.0, 1.0)},
    {"scale": (0.45, 0.7), "rot90": True},
    {"scale": (1.3, 2.2), "rot90": True, "aspect": 0.3},
    {"scale": (0.8, 1.2), "input_scale": 0.5, "flip": True},
  ],
)
def test_image_labels_and_boxes_move_together(stride, options):
  # A pixel's colour and its instance both tell where it comes from. Resizing
  # keeps a ramp a ramp, so the colour at a cell's point is its source
  # coordinate c as 2 (c - 0.5), and its instance is the pixel k <= c < k + 1.
  options = pipeline.PipelineOptions(crop=(72, 96), stride=stride, **options)
  example = ramp()
  biases = []
  for seed in range(12):
    rng = np.random.default_rng(seed)
    cut = augment_to_crop(example, options, rng)
    batch = pipeline.augment(example, options, np.random.default_rng(seed))
    np.testing.assert_array_equal(batch["image"], cut["image"])
    valid = batch["valid"]
    assert valid.mean() > 0.1
    # Interpolation knows less at the image's border.
    inner = away_from_edges(valid, 1)
    error = colors_at_points(batch["image"], stride) / 2 - source_pixels(
      cut["instances"]
    )
    if inner.any():
      assert np.abs(error[inner]).max() < 1.1
      biases.append(error[inner].mean(axis=0))
    # A pixel's box holds the point and is as large as a scaled pixel.
    points = box_algebra.cell_points(*valid.shape, stride, np)
    boxes = box_algebra.decode(batch["boxes"], points)[valid]
    points = points[valid]
    assert (boxes[:, :2] <= points + 1e-2).all()
    assert (points <= boxes[:, 2:] + 1e-2).all()
    factor = options.input_scale * np.array(options.scale)
    factor *= np.exp([-options.aspect / 2, options.aspect / 2])
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert factor[0] * 0.98 - 1e-2 < sizes.min()
    assert sizes.max() < factor[1] * 1.02 + 1e-2
    # Outside of the image: padding, void, no instance.
    assert (batch["semantic"][~valid] == 255).all()
  # At scale 1 the point between two pixels takes the second: half a pixel.
  half = options.scale == (1.0, 1.0) and stride % 2 == 0
  assert np.abs(np.mean(biases, axis=0)).max() < (0.51 if half else 0.3)


def augment_to_crop(example, options, rng):
  """What pipeline.augment holds before it makes targets."""
  kept = {}
  original = transforms.random_crop

  def remember(*arguments):
    kept.update(original(*arguments))
    return kept

  transforms.random_crop = remember
  try:
    pipeline.augment(example, options, rng)
  finally:
    transforms.random_crop = original
  return kept


@pytest.mark.parametrize(
  ("flip", "rot90", "number"),
  [(False, False, 1), (True, False, 2), (False, True, 8), (True, True, 8)],
)
def test_all_ways_round_are_as_likely(flip, rot90, number):
  example = ramp(8, 8)
  options = pipeline.PipelineOptions(
    crop=(8, 8), stride=4, flip=flip, rot90=rot90
  )
  rng = np.random.default_rng(0)
  seen = [
    pipeline.augment(example, options, rng)["image"].tobytes()
    for _ in range(800)
  ]
  counts = np.unique(seen, return_counts=True)[1]
  assert len(counts) == number
  np.testing.assert_allclose(counts, 800 / number, rtol=0.25)


def test_scale_and_aspect_are_those_of_the_options(monkeypatch):
  seen, crop = [], transforms.random_crop
  monkeypatch.setattr(
    transforms, "random_crop", lambda *a: seen.append(a[2]) or crop(*a)
  )
  options = pipeline.PipelineOptions(
    crop=(8, 8), stride=4, scale=(0.5, 2.0), input_scale=3.0, aspect=0.4
  )
  rng, example = np.random.default_rng(0), ramp(20, 20)
  for _ in range(300):
    pipeline.augment(example, options, rng)
  height, width = np.array(seen).T
  aspect, scale = np.log(height / width), np.sqrt(height * width) / 3
  assert -0.4 <= aspect.min() < -0.35 < 0.35 < aspect.max() <= 0.4
  assert 0.5 <= scale.min() < 0.55 < 1.95 < scale.max() <= 2
  assert abs(scale.mean() - 1.25) < 0.08  # uniform


def test_intensities_are_those_of_the_options(monkeypatch):
  seen = []
  monkeypatch.setattr(
    transforms, "jitter_intensity", lambda image, rng, *a: seen.append(a)
  )
  options = pipeline.PipelineOptions(
    brightness=1.0, contrast=2.0, gamma=3.0, noise=4.0, invert=5.0
  )
  pipeline.augment(ramp(20, 20), options, np.random.default_rng(0))
  assert seen == [(1, 2, 3, 4, 5)]


def test_padding_is_mean_colour_and_void():
  # 10 x 12 in a crop of 21 x 21 at stride 8: canvas 24 x 24, cells 3 x 3 at
  # points 4, 12, 20.
  example = ramp(10, 12)
  rng = np.random.default_rng(0)
  cut = transforms.random_crop(
    example, rng, (1.0, 1.0), (21, 21), 8, FILL, True
  )
  assert cut["image"].shape == (24, 24, 3)
  padding = (cut["image"] == FILL).all(-1)
  assert padding.sum() == 24 * 24 - 10 * 12
  assert not padding[~padding.all(1)][:, ~padding.all(0)].any()
  assert padding[21:].all()
  assert padding[:, 21:].all()
  np.testing.assert_array_equal(cut["semantic"] == 255, padding[4::8, 4::8])
  np.testing.assert_array_equal(cut["instances"] == 0, padding[4::8, 4::8])


def test_finer_labels_and_void_instances():
  # Stride 4, labels of stride 2: points at 2, 6 and at 1, 3, 5, 7. Of the
  # cells' points, (2, 6) is void: its instance is left out, though labels 1
  # and 3 beside it are not void.
  example = ramp(8, 8) | {"boxes": np.zeros((64, 4), np.float32)}
  example["semantic"] = np.ones((8, 8), np.uint8)
  example["semantic"][2, 6] = 255
  example["semantic"][3, 5] = 7
  cut = transforms.random_crop(
    example, np.random.default_rng(0), (1.0, 1.0), (8, 8), 4, FILL, True, 2
  )
  expected = np.ones((4, 4), np.uint8)
  expected[1, 2] = 7
  np.testing.assert_array_equal(cut["semantic"], expected)
  pixels = 8 * np.array([[2, 2], [6, 6]]) + [2, 6] + 1
  np.testing.assert_array_equal(cut["instances"], pixels * [[1, 0], [1, 1]])


def test_full_boxes_reach_out_of_the_crop_and_visible_ones_do_not():
  example = {
    "image": np.zeros((64, 64, 3), np.uint8),
    "semantic": np.ones((64, 64), np.uint8),
    "instances": np.ones((64, 64), np.int32),
    "classes": np.ones(1, np.uint8),
    "boxes": np.array([[0, 0, 64, 64]], np.float32),
  }
  for full in (True, False):
    cut = transforms.random_crop(
      example, np.random.default_rng(3), (2.0, 2.0), (32, 32), 8, FILL, full
    )
    y0, x0, y1, x1 = cut["boxes"][0]
    if full:
      assert (y1 - y0, x1 - x0) == (128, 128)
      assert y0 < 0 < 32 < y1
    else:
      assert [y0, x0, y1, x1] == [0, 0, 32, 32]


def test_warp_moves_image_and_maps_together():
  example = ramp()
  for seed in range(4):
    rng = np.random.default_rng(seed)
    warped = transforms.warp(example, rng, 180.0, 3.0, FILL)
    seen = warped["instances"] > 0
    assert 0.4 < seen.mean() < 1
    assert (warped["semantic"][~seen] == 255).all()
    # Away from the border, where the fill is mixed in.
    inner = away_from_edges(seen, 2)
    color = warped["image"][..., :2][inner] / 2
    pixels = source_pixels(warped["instances"][inner])
    assert np.abs(color - pixels).max() < 1
    ids = warped["instances"][50, 60]
    y, x = np.nonzero(warped["instances"] == ids)
    assert warped["boxes"][ids - 1].tolist() == [
      y.min(), x.min(), y.max() + 1, x.max() + 1,
    ]  # fmt: skip


def test_warp_by_nothing_is_the_identity():
  example = ramp()
  warped = transforms.warp(example, np.random.default_rng(0), 0.0, 0.0, FILL)
  for name in ("image", "semantic", "instances", "boxes"):
    np.testing.assert_array_equal(warped[name], example[name])


class Most(np.random.Generator):
  """Its uniform numbers are the highest."""

  def uniform(self, low, high):
    return high


def test_a_quarter_turn_is_about_the_centre():
  example, most = ramp(20, 20), Most(np.random.PCG64(0))
  warped = transforms.warp(example, most, 90.0, 0.0, FILL)
  for name in ("image", "semantic", "instances"):
    np.testing.assert_array_equal(warped[name], np.rot90(example[name]))
  # Of a diamond in the square, the corners are what is not there.
  warped = transforms.warp(example, most, 45.0, 0.0, FILL)
  assert warped["image"][0, 0].tolist() == list(FILL)
  assert warped["semantic"][0, 0] == 255


def test_the_bend_is_as_large_and_as_smooth_as_it_says():
  # Cubic between nodes of deviation 3: 2.4 over all pixels. Over a quarter of
  # the nodes' distance it changes by half of that, one way and the other.
  y, x = np.mgrid[:200, :240]
  bends = []
  for seed in range(8):
    example = ramp(200, 240)
    warped = transforms.warp(
      example, np.random.default_rng(seed), 0.0, 3.0, FILL
    )
    bend = source_pixels(warped["instances"], 240) - np.stack([y, x], -1)
    bends.append(bend[15:-15, 15:-15])
  bends = np.array(bends)
  assert 2 < bends[..., 0].std() < 2.8
  assert 2 < bends[..., 1].std() < 2.8
  assert (bends[:, 12:] - bends[:, :-12]).std() < 1.9
  assert (bends[:, :, 12:] - bends[:, :, :-12]).std() < 1.9
  both = np.corrcoef(bends[..., 0].ravel(), bends[..., 1].ravel())
  assert abs(both[0, 1]) < 0.3


@pytest.mark.parametrize("size", [1, 30, 64, 101])
@pytest.mark.parametrize("factor", [0.1, 0.37, 0.7, 1.0, 1.3, 2.9])
def test_a_span_fills_the_crop_where_it_can_and_is_anywhere(size, factor):
  extent, length, rng = 32, size * factor, np.random.default_rng(0)
  found = [transforms._span(rng, size, factor, extent) for _ in range(1000)]
  starts, places = {s.start for s in found}, {s.place for s in found}
  span = found[0]
  assert span.shown == min(extent, max(1, round(length)))
  assert span.resized == max(1, round(span.length * factor))
  # Every pixel at every end is seen, whether the crop is smaller or larger.
  assert starts == set(range(size - span.length + 1))
  assert places == set(range(extent - span.shown + 1))
  # No more is cut than what is shown, rounded to whole pixels.
  assert span.length == size or (span.length - 1) * factor < extent


def test_images_shrink_by_areas_and_grow_by_cubics():
  stripes = np.zeros((8, 8, 3), np.uint8)
  stripes[:, ::4] = 200
  assert (transforms._resize(stripes, 8, 2) == 50).all()
  step = np.full((4, 8, 3), 60, np.uint8)
  step[:, 4:] = 180
  grown = transforms._resize(step, 4, 32)
  assert grown.min() < 60 and grown.max() > 180  # beyond the step's ends


def test_images_too_large_to_warp_are_named():
  example = ramp(2, 2)
  for name in ("image", "semantic", "instances"):
    example[name] = example[name].repeat(2**14, axis=1)
  with pytest.raises(ValueError, match="2 x 32768 pixels, and rotation"):
    transforms.warp(example, np.random.default_rng(0), 5.0, 0.0, FILL)
  for name in ("image", "semantic", "instances"):
    example[name] = example[name][:, : 2**15 - 2]
  transforms.warp(example, np.random.default_rng(0), 5.0, 0.0, FILL)


def test_intensities_typed_out():
  image = np.array([[[0, 51, 255]]], np.uint8)
  rng = np.random.default_rng(0)

  def jitter(brightness=0.0, contrast=0.0, gamma=0.0, noise=0.0, invert=0.0):
    return transforms.jitter_intensity(
      image, rng, brightness, contrast, gamma, noise, invert
    )

  assert jitter() is image
  assert jitter(invert=1.0).tolist() == [[[255, 204, 0]]]
  darks = [jitter(gamma=1.0)[0, 0] for _ in range(50)]
  # Gamma leaves the ends, and moves 51 = 0.2: 0.2^e is 3.2, 0.2^(1/e) 141.
  assert all(d[0] == 0 and d[2] == 255 for d in darks)
  assert min(d[1] for d in darks) >= 3
  assert max(d[1] for d in darks) <= 142
  assert np.ptp([d[1] for d in darks]) > 60
  shifts = [jitter(brightness=0.1)[0, 0, 1] for _ in range(50)]
  assert 25 <= min(shifts) < 40 < 65 < max(shifts) <= 77
  # Contrast turns around 127.5: 51 stays within 127.5 - 76.5 e^(+-0.5).
  turned = [jitter(contrast=0.5)[0, 0, 1] for _ in range(50)]
  assert min(turned) < 30 < 70 < max(turned) <= 82
  flat = np.full((64, 64, 3), 128, np.uint8)
  noisy = [
    transforms.jitter_intensity(flat, rng, 0.0, 0.0, 0.0, 0.1, 0.0)
    for _ in range(20)
  ]
  deviations = [image.std() for image in noisy]
  assert min(deviations) < 0.04 * 255 < 0.06 * 255 < max(deviations)
  assert max(deviations) < 0.1 * 255 * 1.1
  assert abs(np.mean(noisy) - 128) < 1


def test_normalize_intensity_stretches_a_dark_image():
  # 1,000 pixels: the 1 and 99.8 percentiles are 20 and 100, so 20 -> 0,
  # 40 -> 63.75 -> 64, 60 -> 127.5 and 100 -> 255.
  values = [10] * 5 + [20] * 300 + [40] * 395 + [60] * 293 + [100] * 6 + [200]
  values = np.array(values).reshape(20, 50, 1)
  image = np.repeat(values, 3, -1).astype(np.uint8)
  out = transforms.normalize_intensity(image)[..., 0].ravel()
  assert out[[0, 5, 305, 993, 999]].tolist() == [0, 0, 64, 255, 255]
  assert out[700] in (127, 128)
  flat = np.full((3, 3, 3), 9, np.uint8)
  assert not transforms.normalize_intensity(flat).any()
