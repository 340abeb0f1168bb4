"""Own data as two functions: one gives an image, one its labels.

Every reader in data/builders is such a pair, so check_data, prepare_data and
the tfds builders treat all data alike.
"""

import collections
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from fcrn_jax.data import pictures
from fcrn_jax.types import IGNORE, Array


@dataclasses.dataclass(frozen=True)
class Functions:
  """A data set (see data.load) made of two functions of an id, all different.

  image_fn(id): a path, the bytes of an image file, or an array H W or H W 3
  of uint8. labels_fn(id): a dict of "semantic" H W (0 background, 1 ... C,
  255 void) and, if has_instances, "instances" H W (0 none, 1 ... m) and
  "classes" m. Worker processes need functions that pickle: defined at the top
  of a module, or functools.partial of such.

  `category_ids`: what COCO's json calls the categories, for results.
  `membership` names sets of ids; each example then carries a bool for each.
  `source`, by default the path: in data sets of one source, equal ids are the
  same image.
  """

  ids: list[str]
  image_fn: Callable[[str], Any]
  labels_fn: Callable[[str], Mapping[str, Any]]
  categories: tuple[str, ...]
  name: str = "functions"
  split: str = "train"
  path: pathlib.Path | None = None
  background: str = "background"
  has_instances: bool = True
  category_ids: tuple[int, ...] = ()
  membership: Mapping[str, Set[str]] = dataclasses.field(default_factory=dict)
  source: Any = None

  def __post_init__(self):
    if not 1 <= len(self.categories) < IGNORE:
      raise ValueError(
        f"{self.name} has {len(self.categories)} categories; expected 1 to 254:"
        " a label is a byte, and 255 is void."
      )
    if len({self.background, *self.categories}) <= len(self.categories):
      raise ValueError(
        f"{self.name} has two labels of one name among"
        f" {(self.background, *self.categories)}; rename one."
      )
    if not self.ids:
      raise ValueError(
        f"{self.name} has no images in split {self.split!r}"
        + (f" at {self.path}." if self.path else ": ids is empty.")
      )
    if wrong := [key for key in self.ids if not isinstance(key, str)]:
      raise ValueError(
        f"{self.name} has ids that are no text, such as {wrong[0]!r}; pass"
        " str(id)."
      )
    counts = collections.Counter(self.ids)
    if twice := [key for key, count in counts.items() if count > 1]:
      raise ValueError(
        f"{self.name} {self.split} has ids that are there twice"
        f" ({twice[:10]}); scores are kept by id: drop the repeats."
      )

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, index: int) -> dict[str, Any]:
    key = self.ids[index]
    where = f"{self.name} {self.split} {key}"
    try:
      image, labels = self.image_fn(key), self.labels_fn(key)
    except OSError as error:  # so that on_error="skip" can leave it out
      raise ValueError(f"{where} cannot be read: {error}") from error
    example = {"id": key, "image": _image(image, where)}
    example |= _labels(labels, example["image"].shape[:2], self, where)
    if self.membership:
      example["membership"] = {
        flag: key in members for flag, members in self.membership.items()
      }
    return example

  def image_file(self, index: int) -> Any:
    """What image_fn gives: a path or the bytes of a file, if not an array."""
    return self.image_fn(self.ids[index])


def source_of(dataset: Any) -> str | None:
  """Where a data set's ids mean what they mean: its source, or its path."""
  source = getattr(dataset, "source", None) or dataset.path
  return None if source is None else os.path.realpath(source)


def _image(source: Any, where: str) -> UInt8[Array, "H W 3"]:
  """The RGB image of what an image_fn gave."""
  if isinstance(source, bytes):
    file = io.BytesIO(source)
    file.name = where
    return pictures.load_image(file)
  if isinstance(source, str | os.PathLike):
    return pictures.load_image(source)
  image = np.asarray(source)
  if image.ndim == 2:
    image = np.repeat(image[..., None], 3, axis=-1)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(
      f"{where}: the image is {image.dtype} of shape {image.shape}; expected "
      "uint8 of H W or H W 3 (RGB), a path, or the bytes of a file."
    )
  return image


def _labels(
  labels: Mapping[str, Any],
  shape: tuple[int, int],
  dataset: Functions,
  where: str,
) -> dict[str, Array]:
  """Checked labels of one image, in the dtypes of data.load's examples."""
  expected = ("semantic", "instances", "classes")
  if not dataset.has_instances:
    expected = expected[:1]
  if missing := [name for name in expected if name not in labels]:
    raise ValueError(
      f"{where}: labels_fn gave no {missing[0]!r}; add it, or say"
      " has_instances=False where there are only categories."
    )
  semantic = np.asarray(labels["semantic"])
  num_categories = len(dataset.categories)
  _check_map(semantic, shape, where, "semantic")
  wrong = (semantic < 0) | (semantic > num_categories) & (semantic != IGNORE)
  if wrong.any():
    raise ValueError(
      f"{where} has labels {np.unique(semantic[wrong])[:10].tolist()}; "
      f"expected 0 ... {num_categories} or 255 (void)."
    )
  checked = {"semantic": semantic.astype(np.uint8)}
  if dataset.has_instances:
    instances = np.asarray(labels["instances"])
    classes = np.asarray(labels["classes"], np.int64).reshape(-1)
    _check_map(instances, shape, where, "instance")
    if instances.min() < 0 or instances.max() > len(classes):
      raise ValueError(
        f"{where} has instance ids {instances.min()} ... {instances.max()}, "
        f"but categories for {len(classes)}; expected 0 ... {len(classes)}."
      )
    if (
      classes.size and not 1 <= classes.min() <= classes.max() <= num_categories
    ):
      raise ValueError(
        f"{where} has instances of categories {np.unique(classes).tolist()}; "
        f"expected 1 ... {num_categories}."
      )
    checked["instances"] = instances.astype(np.int32)
    checked["classes"] = classes.astype(np.uint8)
  return checked


def _check_map(
  labels: Array, shape: tuple[int, int], where: str, kind: str
) -> None:
  """ValueError unless `labels` is an integer map of the image's size."""
  if labels.shape != shape or labels.dtype.kind not in "ui":
    raise ValueError(
      f"{where}: the {kind} map is {labels.dtype} of shape {labels.shape}, "
      f"the image {shape}; expected integers of the image's size."
    )


def number_instances(
  instances: Integer[Array, "H W"], classes: Integer[Array, "m"]
) -> dict[str, Array]:
  """ "instances" 1 ... m' without gaps and their "classes".

  `classes[k - 1]` is the category of id k; ids without a pixel are dropped.
  """
  present = np.bincount(instances.ravel(), minlength=len(classes) + 1)[1:] > 0
  table = np.concatenate([[0], np.cumsum(present) * present])
  return {
    "instances": table[instances].astype(np.int32),
    "classes": np.asarray(classes)[present].astype(np.uint8),
  }
