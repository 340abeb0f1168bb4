"""Views and tiles of oracles: every geometry undone gives the oracle back."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import boxes as box_algebra
from fcrn_jax import inference, models, views
from fcrn_jax.inference import Options
from fcrn_jax.types import FILL
from tests import workdirs

STRIDE = 4


def scene(height, width):
  """Two red, green rectangles with a margin; channel > 127 is the object."""
  image = np.zeros((height, width, 3), np.uint8)
  # Edges between cell centres, where a mirrored oracle sees the same.
  objects = {0: (8, 12, 48, 52), 1: (28, 20, 60, 44)}
  for channel, (y0, x0, y1, x1) in objects.items():
    image[y0:y1, x0:x1] = 0
    image[y0:y1, x0:x1, channel] = 255
  return image


def see(images, sizes):
  """A perfect network of two categories: red objects and green ones.

  Finds each object's box in the very image it is given, so that it is right
  for any view that shows the objects whole.
  """
  images = np.asarray(images)
  b, height, width, _ = images.shape
  h, w = height // STRIDE, width // STRIDE
  points = box_algebra.cell_points(h, w, STRIDE, np)
  centers = (slice(None), *(slice(STRIDE // 2, None, STRIDE),) * 2)
  logits = np.zeros((b, h, w, 3), np.float32)
  boxes = np.zeros((b, h, w, 2, 4), np.float32)
  for k, (here, other) in enumerate([(0, 1), (1, 0)]):
    mask = (images[..., here] > 127) & (images[..., other] < 127)
    mask &= images[..., 2] < 60
    logits[..., k + 1] = np.where(mask[centers], 30, -30)
    for i in range(b):
      ys, xs = np.where(mask[i])
      box = np.float32([ys.min(), xs.min(), ys.max() + 1, xs.max() + 1])
      boxes[i, :, :, k] = box_algebra.encode(box, points)
  return {"semantic": jnp.asarray(logits), "boxes": jnp.asarray(boxes)}


def _true_maps(image, stride):
  h, w = (math.ceil(n / stride) for n in image.shape[:2])
  ys = np.minimum(np.arange(h) * stride + stride // 2, image.shape[0] - 1)
  xs = np.minimum(np.arange(w) * stride + stride // 2, image.shape[1] - 1)
  colours = image[ys][:, xs]
  classes = np.where(
    colours[..., 0] > 127, 1, np.where(colours[..., 1] > 127, 2, 0)
  )
  boxes = []
  for k in range(2):
    rows, columns = np.where(image[..., k] > 127)
    boxes.append([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
  return classes, np.broadcast_to(np.float32(boxes), (h, w, 2, 4))


VIEWS = {
  "one": Options(),
  "flip": Options(flip=True),
  "transpose": Options(transpose=True),
  "transpose and more": Options(flip=True, shifts=2, transpose=True),
  "shifts": Options(shifts=2),
  "flip and shifts": Options(flip=True, shifts=2),
  "double": Options(scales=(2.0,)),
  "scales": Options(scales=(1.0, 1.5, 2.0), flip=True),
  "all": Options(scales=(0.5, 1.0, 2.0), flip=True, shifts=2),
}


@pytest.mark.parametrize("size", [(96, 128), (93, 107)])
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_an_oracle_give_the_oracle_back(name, size):
  options = VIEWS[name]
  image = scene(*size)
  maps = inference.predict_maps(see, image, STRIDE, options)
  stride = STRIDE // options.shifts
  classes, boxes = _true_maps(image, stride)
  assert maps.probs.shape == (*classes.shape, 3)
  np.testing.assert_allclose(maps.probs.sum(-1), 1, atol=1e-5)
  # Away from borders by a cell of the coarsest view, scores are certain.
  reach = 1 if options.scales == (1.0,) else int(2 / min(options.scales))
  inner = np.ones(classes.shape, bool)
  h, w = classes.shape
  for dy in range(-reach, reach + 1):
    for dx in range(-reach, reach + 1):
      ys = np.clip(np.arange(h) + dy, 0, h - 1)
      xs = np.clip(np.arange(w) + dx, 0, w - 1)
      inner &= classes[ys][:, xs] == classes
  if options.scales == (1.0,):
    inner[:] = True  # flips and moves are exact in every cell
  assert inner.mean() > 0.5
  np.testing.assert_array_equal(maps.probs.argmax(-1)[inner], classes[inner])
  assert maps.probs.max(-1)[inner].min() > 0.999
  # A resized image shows the objects' edges to about a pixel of its own.
  tolerance = 1e-4 if options.scales == (1.0,) else 1.5 / min(options.scales)
  np.testing.assert_allclose(maps.boxes, boxes, atol=tolerance)


def test_moves_are_not_the_same_view_twice():
  # A network that reports its own column sees other columns when moved; the
  # interleaved map must hold the image's, in order.
  image = np.zeros((64, 64, 3), np.uint8)
  image[:] = np.arange(64, dtype=np.uint8)[None, :, None]

  def column(images, sizes):
    x = jnp.asarray(images)[:, 2::4, 2::4, :1].astype(jnp.float32)
    return {"semantic": jnp.concatenate([x * 0, jnp.log(x + 1e-3)], -1)}

  maps = inference.predict_maps(column, image, 4, Options(shifts=2))
  assert maps.probs.shape == (32, 32, 2)
  x = maps.probs[..., 1] / maps.probs[..., 0]
  # Cells of 2 pixels with centre 1, 3, 5 ...: the pixel right of the centre.
  np.testing.assert_allclose(x[5], np.arange(1, 64, 2), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_moved_views_repeat_the_edge_that_they_are_moved_from(flip):
  image = np.random.default_rng(0).integers(0, 255, (30, 41, 3), np.uint8)
  seen = []

  def apply_fn(images, sizes):
    seen.extend(zip(images, sizes, strict=True))
    return {"semantic": jnp.zeros((1, *np.array(images.shape[1:3]) // 4, 2))}

  inference.predict_maps(apply_fn, image, 4, Options(flip=flip, shifts=2))
  assert len(seen) == 4 * (1 + flip)
  for number, (canvas, (height, width)) in enumerate(seen):
    view = image[:, ::-1] if number >= 4 else image
    before = (height - 30, 0), (width - 41, 0), (0, 0)
    expected = np.pad(view, before, "edge")
    np.testing.assert_array_equal(canvas[:height, :width], expected)
    assert (canvas[height:] == FILL).all() and (canvas[:, width:] == FILL).all()
  assert any(size[0] > 30 and size[1] > 41 for _, size in seen)


@pytest.mark.parametrize("shifts", [0, 3, 4])
def test_impossible_shifts_are_refused(shifts):
  with pytest.raises(ValueError, match="shifts is"):
    inference.map_stride(4, Options(shifts=shifts))


def test_one_view_keeps_the_tiles():
  options = inference.Options(
    True, (1.0, 2.0), 2, tile=64, tile_overlap=8, transpose=True
  )
  assert options.one_view() == inference.Options(tile=64, tile_overlap=8)


def test_buckets_hold_their_sizes_and_are_few():
  sizes = [inference.bucket(n) for n in range(1, 4097)]
  assert all(b >= n for n, b in enumerate(sizes, 1))
  assert all(b % 32 == 0 for b in sizes)
  assert sorted(set(sizes))[:10] == [
    32, 64, 96, 128, 192, 256, 384, 512, 640, 768
  ]  # fmt: skip
  assert len(set(sizes)) == 20
  assert all(inference.bucket(b) == b for b in set(sizes))


def test_two_hundred_sizes_compile_few_times(capsys):
  traced = []

  @jax.jit
  def network(images, sizes):
    traced.append(images.shape)
    x = images[:, ::4, ::4].astype(jnp.float32)
    return {
      "semantic": x,
      "boxes": jnp.stack([x, x], -1)[..., :2, [0, 1, 0, 1]],
    }

  rng = np.random.default_rng(0)
  sizes = rng.integers(100, 500, (200, 2))
  for height, width in sizes:
    image = np.zeros((height, width, 3), np.uint8)
    maps = inference.batch_maps(network, [image], 4)
    assert np.isfinite(np.asarray(maps.probs)).all()
  with capsys.disabled():
    print(f"\n{len(set(map(tuple, sizes)))} sizes, {len(traced)} compilations")
  assert len(traced) <= 25


def test_cells_beyond_the_image_repeat_its_last_ones():
  image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
  maps = inference.batch_maps(_pointwise, [image], STRIDE)
  assert maps.probs.shape == (1, 16, 24, 3)
  probs = np.asarray(maps.probs[0])
  np.testing.assert_array_equal(
    probs[13:], np.broadcast_to(probs[12:13], probs[13:].shape)
  )
  np.testing.assert_array_equal(
    probs[:, 18:], np.broadcast_to(probs[:, 17:18], probs[:, 18:].shape)
  )


@jax.jit
def _pointwise(images, sizes):
  """A network whose receptive field is one pixel."""
  x = images[:, 2::4, 2::4].astype(jnp.float32) / 50
  boxes = jnp.stack([x, 10 * x[..., ::-1]], axis=-2)[..., [0, 1, 2, 2]]
  return {"semantic": x, "boxes": boxes}


@pytest.mark.parametrize("options", [
  Options(tile=64, tile_overlap=16),
  Options(tile=96, tile_overlap=0),
  Options(tile=64, tile_overlap=32, flip=True, shifts=2),
  Options(tile=64, tile_overlap=32, flip=True, transpose=True),
])  # fmt: skip
def test_tiles_of_a_pointwise_network_equal_the_whole(options):
  image = np.random.default_rng(1).integers(0, 255, (131, 250, 3), np.uint8)
  whole = inference.predict_maps(
    _pointwise, image, STRIDE, options._replace(tile=0)
  )
  for batch_size in (1, 4):
    tiled = inference.predict_maps(
      _pointwise, image, STRIDE, options, batch_size=batch_size
    )
    np.testing.assert_allclose(tiled.probs, whole.probs, atol=1e-6)
    np.testing.assert_allclose(tiled.boxes, whole.boxes, atol=1e-4)


def _blur_network(reach):
  """Mean over (2 reach + 1)^2 pixels about each cell's point, as logits."""
  size = 2 * reach + 1
  kernel = jnp.ones((size, size, 1, 3)) / size**2

  @jax.jit
  def apply(images, sizes):
    x = images.astype(jnp.float32) / 20
    x = jax.lax.conv_general_dilated(
      x, kernel, (4, 4), [(reach - 2, reach + 1)] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3,
    )  # fmt: skip
    return {"semantic": x, "boxes": jnp.stack([x, x], -2)[..., [0, 1, 2, 2]]}

  return apply


def test_overlap_of_the_receptive_field_makes_tiles_exact():
  image = np.random.default_rng(2).integers(0, 255, (300, 420, 3), np.uint8)
  apply_fn = _blur_network(reach=16)  # receptive field 33
  run = functools.partial(inference.predict_maps, apply_fn, image, STRIDE)
  whole = run(Options(tile=0))
  exact = run(Options(tile=128, tile_overlap=33 + 4 * STRIDE))
  short = run(Options(tile=128, tile_overlap=16))
  # The image's own border: what lies beyond is the network's padding in one
  # case and ours in the other.
  inner = (slice(5, -5), slice(5, -5))
  assert np.abs(exact.probs - whole.probs)[inner].max() < 1e-5
  assert np.abs(exact.boxes - whole.boxes)[inner].max() < 1e-3
  assert np.abs(short.probs - whole.probs)[inner].max() > 1e-3


@pytest.fixture(scope="module")
def tiny():
  """An untrained fcrn_tiny, whose receptive field is about 203 pixels."""
  model = models.create(
    "fcrn_tiny", {"semantic": 3, "boxes": 2}, batch_norm="local"
  )
  variables = workdirs.draw(model, np.random.default_rng(0))

  @jax.jit
  def apply(images, sizes):
    images = images.astype(jnp.float32) / 128 - 1
    return models.apply_within(model, variables, images, sizes)

  return apply


def test_tiles_of_a_network_equal_the_whole_up_to_the_borders(tiny):
  image = np.random.default_rng(4).integers(0, 255, (590, 555, 3), np.uint8)
  run = functools.partial(inference.predict_maps, tiny, image, STRIDE)
  whole = run(Options(tile=0))
  tiled = run(Options(tile=512, tile_overlap=220))
  assert np.abs(tiled.probs - whole.probs).max() < 1e-5
  assert np.abs(tiled.boxes - whole.boxes).max() < 1e-3
  short = run(Options(tile=256, tile_overlap=0))
  assert np.abs(short.probs - whole.probs).max() > 1e-4


def test_padding_changes_nothing(tiny, monkeypatch):
  image = np.random.default_rng(5).integers(0, 255, (61, 90, 3), np.uint8)
  options = Options(flip=True, scales=(1.0, 1.5))
  maps = inference.predict_maps(tiny, image, STRIDE, options)
  monkeypatch.setattr(inference, "bucket", lambda size: 192)
  monkeypatch.setattr(views, "FILL", (255, 0, 0))
  more = inference.predict_maps(tiny, image, STRIDE, options)
  # But for the less than a stride on the left of mirrored images.
  one_view = inference.predict_maps(tiny, image, STRIDE)
  monkeypatch.undo()
  np.testing.assert_allclose(
    one_view.probs,
    inference.predict_maps(tiny, image, STRIDE).probs,
    atol=1e-5,
  )
  assert np.abs(more.probs - maps.probs).max() < 0.1


def test_memory_mapped_and_gray_images(tmp_path):
  rng = np.random.default_rng(3)
  image = rng.integers(0, 255, (200, 300), np.uint8)
  np.save(tmp_path / "image.npy", image)
  mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
  options = Options(tile=128, tile_overlap=32)
  one = inference.predict_maps(_pointwise, mapped, STRIDE, options)
  two = inference.predict_maps(
    _pointwise, np.stack([image] * 3, -1), STRIDE, options
  )
  np.testing.assert_array_equal(one.probs, two.probs)


@pytest.mark.parametrize("options", [
  Options(tile=100), Options(tile=128, tile_overlap=100),
])  # fmt: skip
def test_impossible_tiles_are_refused(options):
  image = np.zeros((300, 300, 3), np.uint8)
  with pytest.raises(ValueError, match=r"inference.tile"):
    inference.predict_maps(_pointwise, image, STRIDE, options)


def test_networks_of_two_strides_meet_on_the_finer_grid():
  image = scene(96, 128)

  def two(images, sizes):
    fine = see(images, sizes)
    coarse = fine["semantic"][:, ::2, ::2]
    return {"semantic": coarse, "boxes": fine["boxes"]}

  maps = inference.predict_maps(two, image, STRIDE)
  _, boxes = _true_maps(image, STRIDE)
  assert maps.probs.shape == (24, 32, 3)
  np.testing.assert_allclose(maps.boxes, boxes, atol=1e-4)

  def spoilt(images, sizes, value):
    found = two(images, sizes)
    semantic = np.array(found["semantic"])
    rows, columns = -(-sizes[0] // 8)
    assert rows < semantic.shape[1] and columns < semantic.shape[2]
    semantic[:, rows:] = semantic[:, :, columns:] = value
    return {"semantic": semantic, "boxes": found["boxes"]}

  # 80 rows are 10 coarse cells, 100 columns 13; what lies beyond is padding,
  # between which and the last cell the last fine one would be.
  rough = [
    inference.predict_maps(
      functools.partial(spoilt, value=value), image[:80, :100], STRIDE
    )
    for value in ([0.0, 0, 9], [0.0, 9, 0])
  ]
  np.testing.assert_array_equal(rough[0].probs, rough[1].probs)

  # Boxes of a coarse cell are those of its four fine ones.
  y, x = np.mgrid[:12.0, :16.0].astype(np.float32)
  absolute = np.stack([y, x, y + 20, x + 30], -1)[:, :, None].repeat(2, 2)

  def other(images, sizes):
    points = box_algebra.cell_points(12, 16, 8, np)[:, :, None]
    coarse = box_algebra.encode(absolute, points)
    return {"semantic": see(images, sizes)["semantic"], "boxes": coarse[None]}

  maps = inference.predict_maps(other, image, STRIDE)
  fine = absolute.repeat(2, axis=0).repeat(2, axis=1)
  np.testing.assert_allclose(maps.boxes, fine, atol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.5])
def test_maps_of_resized_views_are_interpolated(scale):
  # Boxes of one pixel at the cells' points: linear over the map.
  def linear(images, sizes):
    shape = 1, images.shape[1] // 4, images.shape[2] // 4
    boxes = np.tile(np.float32([0.5, 0.5, 1, 1]), (*shape, 1, 1))
    return {"semantic": np.zeros((*shape, 2), np.float32), "boxes": boxes}

  image = np.zeros((80, 120, 3), np.uint8)
  maps = inference.predict_maps(linear, image, 4, Options(scales=(scale,)))
  points = box_algebra.cell_points(20, 30, 4, np)
  expected = np.concatenate([points, points + 1 / scale], axis=-1)
  inner = slice(2, -2), slice(2, -2)
  np.testing.assert_allclose(maps.boxes[:, :, 0][inner], expected[inner], 1e-4)
