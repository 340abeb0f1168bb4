"""The chain of grouping: typed-out grids and a naive loop over everything."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from fcrn_jax import instances
from fcrn_jax.types import Instances


def two_squares():
  """Two touching 3 x 3 objects of one category and a 2 x 2 of another."""
  grid = np.array([
    [1, 1, 1, 2, 2, 2, 0, 0],
    [1, 1, 1, 2, 2, 2, 0, 0],
    [1, 1, 1, 2, 2, 2, 3, 3],
    [0, 0, 0, 0, 0, 0, 3, 3],
  ])  # fmt: skip
  category = np.array([0, 1, 1, 2])[grid]
  corners = np.array(
    [[0, 0, 1, 1], [0, 0, 3, 3], [0, 3, 3, 6], [2, 6, 4, 8]], np.float32
  )
  top = np.array([0.8, 0.9, 0.8, 0.7])[grid][..., None]
  probs = np.where(category[..., None] == np.arange(3), top, (1 - top) / 2)
  boxes = np.repeat(corners[grid][:, :, None], 2, axis=2)
  return grid, probs.astype(np.float32), boxes


@pytest.mark.parametrize(
  ("mode", "stride"),
  [("boxes", 1), ("boxes", 4), ("scores", 4), ("blocks", 4), ("full", 1)],
)
def test_touching_objects_are_told_apart(mode, stride):
  grid, probs, boxes = two_squares()
  options = instances.Options(masks=mode, num_masks=1, max_instances=5)
  size = (4 * stride, 8 * stride)
  found = instances.extract(probs, boxes * stride, options, size, stride)
  assert found.valid.dtype == bool
  assert found.valid.tolist() == [True] * 3 + [False] * 2
  assert found.classes.tolist() == [1, 1, 2, 0, 0]
  np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7, 0, 0], rtol=1e-6)
  truth = np.array([[0, 0, 3, 3], [0, 3, 3, 6], [2, 6, 4, 8]]) * stride
  np.testing.assert_array_equal(found.boxes[:3], truth)
  assert not found.truncated
  blocks = np.kron(grid, np.ones((stride, stride), int))
  for k in (1, 2, 3):
    mask, truth = np.asarray(found.masks[k - 1]), blocks == k
    iou = (mask & truth).sum() / (mask | truth).sum()
    assert iou == 1 if stride == 1 else iou > 0.7


def test_cells_of_padding_do_not_vote():
  grid, probs, boxes = two_squares()
  options = instances.Options(num_masks=1, score_floor=0.0)
  # Of the fourth row nothing is seen, of the seventh column one pixel.
  size = np.array([3 * 4, 6 * 4 + 1])
  found = instances.find(probs, boxes * 4, options, size, 4)
  voted = np.asarray(found.owners >= 0).any((0, 1))
  expected = grid > 0
  expected[3:] = expected[:, 7:] = False
  np.testing.assert_array_equal(voted, expected)


def test_instances_without_a_pixel_are_left_out():
  # Between cells the weak one in the middle of a strong one wins nowhere: of
  # its pixels 0.75 x 0.25 + 0.25 x 1 is above 0.75 x 0.4.
  grid = np.array([[1, 1, 1, 0, 3, 3], [1, 2, 1, 0, 3, 3], [1, 1, 1, 0, 3, 3]])
  top = np.array([1, 1, 0.4, 0.39])[grid][..., None]
  probs = np.where(grid[..., None] == np.arange(4), top, (1 - top) / 3)
  probs[1, 1] = [0.35, 0.25, 0.4, 0]
  corners = np.array([[0, 0, 1, 1], [0, 0, 3, 3], [1, 1, 2, 2], [0, 4, 3, 6]])
  boxes = np.repeat(2 * corners[grid][:, :, None], 3, axis=2)
  options = instances.Options(num_masks=1, max_instances=4)
  chain = (
    probs.astype(np.float32),
    boxes.astype(np.float32),
    options,
    (6, 12),
    2,
  )
  assert instances.find(*chain).classes.tolist() == [1, 2, 3, 0]
  found = instances.extract(*chain)
  assert found.classes.tolist() == [1, 3, 0, 0]
  assert found.valid.tolist() == [True, True, False, False]
  np.testing.assert_allclose(found.scores, [1, 0.39, 0, 0], rtol=1e-6)
  np.testing.assert_array_equal(found.boxes[1], 2 * corners[3])
  assert (np.asarray(found.boxes[2:]) == 0).all()
  assert found.masks.any((1, 2)).tolist() == found.valid.tolist()


def test_it_says_why():
  grid, probs, boxes = two_squares()
  boxes[0, 0] += 0.5  # one vote is off by half a pixel both ways
  found = instances.find(probs, boxes, instances.Options(num_masks=1))
  assert found.seeds[:3].tolist() == [[0, 0], [0, 3], [2, 6]]
  assert found.num_votes[:3].tolist() == [9, 9, 4]
  # The seed is the one that is off: the others are sqrt(0.5) away from it.
  square = 0.5 * 8 / 9
  np.testing.assert_allclose(found.spread[:3] ** 2, [square, 0, 0], rtol=1e-5)
  np.testing.assert_allclose(found.fill[:3], 1)
  np.testing.assert_array_equal(found.owners[0, 0], grid - 1)


def fragment_case():
  """A 4 x 6 object of which the last column votes for a box of 4 x 24."""
  probs = np.zeros((4, 24, 2), np.float32)
  probs[..., 0] = 1
  probs[:, :6] = [0.1, 0.9]
  boxes = np.zeros((4, 24, 1, 4), np.float32)
  boxes[:, :5] = [0, 0, 4, 6]
  boxes[:, 5] = [0, 0, 4, 24]
  return probs, boxes


def test_fragments_go_to_the_object_that_they_agree_with_best():
  probs, boxes = fragment_case()
  options = instances.Options(
    num_masks=1, masks="blocks", min_fill=0.0, min_extent=0.0
  )
  found = instances.find(probs, boxes, options)
  np.testing.assert_allclose(found.fill[:3], [20 / 24, 4 / 96, 0])
  # IoU of the two boxes is 1/4.
  for changes, areas in [
    ({"min_fill": 0.0}, [20, 4]),
    ({"min_fill": 0.25}, [20]),
    # The fragment's votes lie in a column of 4 x 1.
    ({"min_extent": 0.04}, [20, 4]),
    ({"min_extent": 0.05}, [20]),
    ({"min_fill": 0.25, "masks": "boxes", "min_agreement": 0.3}, [20]),
    ({"min_fill": 0.25, "masks": "boxes", "min_agreement": 0.2}, [24]),
  ]:
    changed = dataclasses.replace(options, **changes)
    found = instances.extract(probs, boxes, changed)
    assert found.valid.sum() == len(areas)
    assert found.masks.sum((1, 2))[: len(areas)].tolist() == areas


def test_thin_objects_are_no_fragments():
  """A diagonal fills little of its box, but reaches from end to end."""
  probs = np.zeros((12, 12, 2), np.float32)
  probs[..., 0] = 1
  probs[np.arange(12), np.arange(12)] = [0.1, 0.9]
  boxes = np.broadcast_to(np.float32([0, 0, 12, 12]), (12, 12, 1, 4))
  found = instances.extract(probs, boxes, instances.Options(num_masks=1))
  assert found.valid.sum() == 1
  assert found.masks[0].sum() == 12


@pytest.mark.parametrize(
  ("seeds", "seed"), [("scores", 0), ("centers", 3), ("agreement", 5)]
)
def test_seeds(seeds, seed):
  """A strip of one object: whose box counts for all of them?"""
  probs = np.tile(np.float32([0.4, 0.6]), (1, 8, 1))
  probs[0, 0] = [0.395, 0.605]
  boxes = np.zeros((1, 8, 1, 4), np.float32)
  boxes[0, :, 0] = [0, 0, 1, 8]
  # Cell 3 alone is at the centre of its box; cells 4 to 6 agree.
  boxes[0, :4, 0, 3] = [9, 8.4, 8.6, 7]
  options = instances.Options(num_masks=1, seeds=seeds)
  found = instances.find(probs, boxes, options)
  assert found.valid.sum() == 1
  assert found.seeds[0].tolist() == [0, seed]
  np.testing.assert_array_equal(found.boxes[0], boxes[0, seed, 0])
  np.testing.assert_allclose(found.scores[0], probs[0, :, 1].mean())


def test_small_clusters_are_dropped_by_area_in_image_pixels():
  _, probs, boxes = two_squares()
  for area, count in [(4 * 16, 3), (4 * 16 + 1, 2), (9 * 16 + 1, 0)]:
    options = instances.Options(num_masks=1, min_area=area)
    found = instances.find(probs, boxes * 4, options, None, 4)
    assert found.valid.sum() == count


def test_unsure_instances_are_dropped():
  _, probs, boxes = two_squares()
  for least, classes in ((0.0, [1, 1, 2]), (0.75, [1, 1]), (0.85, [1])):
    options = instances.Options(num_masks=1, min_score=least, max_instances=3)
    found = instances.extract(probs, boxes, options)
    assert found.classes[found.valid].tolist() == classes


def test_second_mask_recalls_what_background_wins():
  # A 2 x 2 object with 0.45 against the background's 0.55.
  probs = np.zeros((4, 4, 3), np.float32)
  probs[..., 0] = 1
  probs[:2, :2] = [0.55, 0.45, 0]
  boxes = np.zeros((4, 4, 2, 4), np.float32)
  boxes[:2, :2] = [0, 0, 2, 2]
  for num, valid in [(1, 0), (2, 1)]:
    found = instances.extract(probs, boxes, instances.Options(num_masks=num))
    assert found.valid.sum() == valid
  np.testing.assert_allclose(found.scores[0], 0.45)
  assert found.masks[0].sum() == 4


def naive_iou(a, b):
  shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
  shared *= max(min(a[3], b[3]) - max(a[1], b[1]), 0)
  areas = [max(x[2] - x[0], 0) * max(x[3] - x[1], 0) for x in (a, b)]
  return shared / max(sum(areas) - shared, 1e-9)


def naive_chain(probs, boxes, options):
  """Steps 3 to 6, category by category and mask by mask."""
  height, width, channels = probs.shape
  rank = np.argsort(np.argsort(-probs, axis=-1, kind="stable"), axis=-1)
  clusters = []
  for k in range(options.num_masks):
    in_mask = []
    for c in range(1, channels):
      left = np.argwhere(
        (rank[..., c] <= k) & (probs[..., c] >= options.score_floor)
      )
      left = {tuple(place) for place in left}
      while left:
        seed = min(left, key=lambda p, c=c: (-probs[*p, c], p))
        box = boxes[*seed, c - 1].astype(np.float64)
        cells = {
          p
          for p in left
          if p == seed
          or naive_iou(boxes[*p, c - 1].astype(np.float64), box)
          > options.iou_threshold
        }
        left -= cells
        # Rounded as ours is, so that ties are the same.
        best = probs[*seed, c]
        less = sum(probs[*p, c] - best for p in cells)
        mean = best + less / np.float32(len(cells))
        in_mask.append((c, seed, frozenset(cells), mean, k, box))
    # As found when all categories compete: the order of ties in score.
    in_mask.sort(key=lambda x: (-probs[*x[1], x[0]], x[1], rank[*x[1], x[0]]))
    clusters += in_mask
  kept = []
  for cluster in sorted(clusters, key=lambda x: -x[3]):
    category, _, cells, _, _, box = cluster
    visible = np.clip(box, 0, [height, width, height, width])
    area = np.prod(np.maximum(visible[2:] - visible[:2], 0))
    if len(cells) < options.min_fill * max(area, 1):
      continue
    if len(cells) < options.min_area:
      continue
    places = np.array(list(cells))
    extent = [*places.min(0), *places.max(0) + 1]
    if naive_iou(extent, visible) < options.min_extent:
      continue
    rivals = [other[2] for other in kept if other[0] == category]
    if all(
      len(cells & rival) <= options.region_overlap * len(cells | rival)
      for rival in rivals
    ):
      kept.append(cluster)
  return kept


@pytest.mark.parametrize("num_masks", [1, 2, 3])
def test_equals_naive_chain(num_masks):
  """Scores are eighths, so that ties abound and sums are exact."""
  rng = np.random.default_rng(num_masks)
  height, width, categories, cases = 6, 5, 3, 150
  shape = (cases, height, width)
  probs = rng.integers(0, 9, (*shape, categories + 1)).astype(np.float32) / 8
  corner = rng.integers(-2, 6, (*shape, categories, 2))
  size = rng.integers(0, 7, (*shape, categories, 2))
  boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
  # Half of the cases have few distinct boxes, so that clusters are large.
  boxes[::2] = boxes[::2, :1, :1] + rng.integers(0, 2, boxes[::2].shape).astype(
    np.float32
  )
  choices = {
    "score_floor": (0.25, 0.5),
    "iou_threshold": (0.25, 0.5, 0.7),
    "min_fill": (0.0, 0.25),
    "min_extent": (0.0, 0.37),
    "min_area": (0.0, 3.0),
    "region_overlap": (0.0, 0.25, 0.5),
  }
  thresholds = {n: rng.choice(c, cases) for n, c in choices.items()}
  find = jax.jit(jax.vmap(lambda p, b, t: instances.find(
    p, b, instances.Options(num_masks=num_masks, max_instances=100, **t)
  )))  # fmt: skip
  found = jax.tree.map(np.asarray, find(
    probs, boxes, {n: np.float32(v) for n, v in thresholds.items()}
  ))  # fmt: skip
  number = 0
  for i in range(cases):
    options = instances.Options(
      num_masks=num_masks, **{n: float(v[i]) for n, v in thresholds.items()}
    )
    expected = naive_chain(probs[i], boxes[i], options)
    number += len(expected)
    one = jax.tree.map(lambda x, i=i: x[i], found)
    assert one.valid.sum() == len(expected)
    assert not one.truncated
    for j, (category, seed, cells, mean, k, box) in enumerate(expected):
      assert (one.classes[j], one.level[j]) == (category, k)
      assert tuple(one.seeds[j]) == seed
      assert one.scores[j] == mean
      np.testing.assert_array_equal(one.boxes[j], box)
      owned = np.argwhere((one.owners == j).any((0, 1)))
      assert {tuple(place) for place in owned} == cells
  assert number > 3 * cases


def random_maps(rng, *shape):
  probs = rng.dirichlet([1, 1, 1], shape).astype(np.float32)
  corner = rng.uniform(0, 20, (*shape, 2, 2))
  size = rng.uniform(5, 20, (*shape, 2, 2))
  return probs, np.concatenate([corner, corner + size], -1).astype(np.float32)


def test_a_batch_equals_its_images():
  probs, boxes = random_maps(np.random.default_rng(0), 3, 7, 9)
  options = instances.Options(max_instances=7, min_extent=0.0)
  extract = functools.partial(instances.extract, image_size=(28, 36), stride=4)
  batch = jax.vmap(lambda p, b: extract(p, b, options))(probs, boxes)
  for i in range(3):
    one = extract(probs[i], boxes[i], options)
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), batch, one
    )
  assert batch.truncated.any()


def test_exports_with_symbolic_sizes():
  export.register_namedtuple_serialization(Instances, serialized_name="test")
  options = instances.Options(max_instances=9, min_extent=0.0)

  def extract(probs, boxes):
    size = (4 * probs.shape[0], 4 * probs.shape[1])
    return instances.extract(probs, boxes, options, size, 4)

  h, w = export.symbolic_shape("h, w")
  program = export.export(jax.jit(extract), platforms=("cpu", "cuda", "tpu"))(
    jax.ShapeDtypeStruct((h, w, 3), jnp.float32),
    jax.ShapeDtypeStruct((h, w, 2, 4), jnp.float32),
  )
  program = export.deserialize(bytearray(program.serialize()))
  rng = np.random.default_rng(0)
  for shape in [(5, 7), (40, 33)]:
    probs, boxes = random_maps(rng, *shape)
    found = program.call(probs, boxes)
    assert found.valid.any()
    jax.tree.map(np.testing.assert_array_equal, found, extract(probs, boxes))


def test_thresholds_do_not_recompile():
  probs, boxes = random_maps(np.random.default_rng(0), 6, 6)
  extract = jax.jit(lambda p, b, o: instances.extract(p, b, o))
  for threshold in (0.3, 0.5):
    extract(probs, boxes, instances.Options(iou_threshold=threshold))
  assert extract._cache_size() == 1


def test_paper_is_to_the_letter():
  options = instances.Options.paper()
  assert options.min_fill == options.min_extent == options.min_area == 0
  assert options.region_overlap == 0
  assert options.masks == "blocks"
  probs, boxes = fragment_case()
  found = instances.extract(probs, boxes, options)
  assert found.valid.sum() == 2


def test_mistakes_are_named():
  probs, boxes = random_maps(np.random.default_rng(0), 4, 4)
  with pytest.raises(ValueError, match="one channel more in probs"):
    instances.extract(probs, boxes[:, :, :1])
  with pytest.raises(ValueError, match="masks is 'pixels'"):
    instances.Options(masks="pixels")
  with pytest.raises(ValueError, match="seeds is 'pixels'"):
    instances.Options(seeds="pixels")
  with pytest.raises(ValueError, match="iou_threshold is 1"):
    instances.Options(iou_threshold=1.0)
  with pytest.raises(ValueError, match="num_masks is 0"):
    instances.Options(num_masks=0)


def test_no_candidates_give_no_votes():
  nothing = jnp.zeros(0), jnp.zeros((0, 4)), jnp.zeros(0, bool)
  votes = instances.vote(*nothing, max_instances=3)
  assert votes.keeper.tolist() == [-1, -1, -1] and votes.owner.shape == (0,)
  assert not votes.valid.any() and not votes.truncated


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_maps_of_half_precision(dtype):
  """What they hold is grouped as the same values in full precision are."""
  rng = np.random.default_rng(0)
  probs = jax.nn.softmax(jnp.asarray(rng.normal(size=(5, 7, 3))), -1)
  corner = rng.uniform(0, 40, (5, 7, 2, 2))
  boxes = np.concatenate([corner, corner + 20], -1)
  half = jnp.asarray(probs, dtype), jnp.asarray(boxes, dtype)
  full = [x.astype(jnp.float32) for x in half]
  arguments = instances.Options(), (37, 53), 8
  jax.tree.map(
    np.testing.assert_array_equal,
    instances.extract(*half, *arguments),
    instances.extract(*full, *arguments),
  )


@pytest.mark.parametrize(
  "wrong",
  [
    {"min_fill": -0.1}, {"min_area": -3.0}, {"score_floor": 3},
    {"iou_threshold": np.float32(2)}, {"num_masks": 0},
  ],
)  # fmt: skip
def test_settings_out_of_range_are_named(wrong):
  with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
    instances.Options(**wrong)


def test_maps_that_do_not_fit_together_are_refused():
  with pytest.raises(ValueError, match="one channel more in probs"):
    instances.find(
      jnp.zeros((4, 4, 4)), jnp.zeros((4, 4, 1, 4)), instances.Options()
    )


@pytest.mark.parametrize("side", [1, 3, 5])
def test_an_object_that_is_the_whole_of_a_small_image_is_found(side):
  probs, boxes = (
    jnp.array([[[0.0, 1.0]]]),
    jnp.array([[[[0.0, 0, side, side]]]]),
  )
  found = instances.find(probs, boxes, instances.Options(), (side, side), 8)
  assert found.valid.sum() == 1
