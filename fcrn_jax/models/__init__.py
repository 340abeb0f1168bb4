"""The zoo: every network of the paper by name.

Names are fcrn{18,34,50,101,152}_s{1,2,4,8,16,32}_k{1,3,5,7}_d{1,2,6,12,18}
(depth, output stride, kernel and dilation of the classifier) and fcrn_tiny.
"""

import difflib
import itertools
import numbers
import re
from collections.abc import Mapping

import flax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fcrn_jax.models.fcrn import FCRN, HEADS, PaperRow, Spec
from fcrn_jax.models.masking import apply_within
from fcrn_jax.models.pretrained import load_pretrained
from fcrn_jax.models.resnet import STRIDES

__all__ = [
  "apply_within", "create", "list_models", "load_pretrained", "spec",
]  # fmt: skip

_DEPTHS = (18, 34, 50, 101, 152)
_KERNELS = (1, 3, 5, 7)
_DILATIONS = (1, 2, 6, 12, 18)
_TINY = Spec("fcrn_tiny", 10, 4, 3, 1, base_width=4)

# Ours: for training from random weights, and for small objects.
RECOMMENDED = (
  "fcrn18_s2_k3_d6",
  "fcrn18_s4_k3_d2",
  "fcrn18_s4_k3_d6",
  "fcrn18_s8_k3_d2",
  "fcrn18_s8_k3_d12",
  "fcrn34_s2_k3_d6",
  "fcrn34_s4_k3_d6",
  "fcrn34_s8_k5_d12",
  "fcrn50_s4_k5_d12",
)


def _rows(table, dataset, setting, rows):
  """Names with their rows, of (name, pixel and mean accuracy, mean IoU)."""
  return [
    (f"fcrn{name}", PaperRow(table, dataset, setting, *figures))
    for name, *figures in rows
  ]


_PAPER = (
  _rows(1, "voc2012", "vanilla", [
    ("50_s16_k3_d6", 92.74, 78.68, 69.09),
    ("50_s8_k3_d6", 92.50, 77.60, 67.61),
    ("50_s8_k3_d12", 93.03, 79.51, 69.94),
    ("50_s8_k3_d18", 93.02, 79.28, 70.01),
    ("50_s8_k5_d6", 92.98, 79.34, 69.81),
    ("50_s8_k5_d12", 93.25, 79.84, 71.10),
    ("50_s8_k7_d6", 93.14, 79.54, 70.67),
    ("101_s16_k3_d6", 93.22, 80.16, 70.93),
    ("101_s8_k3_d6", 93.20, 79.87, 70.20),
    ("101_s8_k3_d12", 93.68, 81.29, 72.34),
    ("101_s8_k3_d18", 93.67, 81.15, 72.37),
    ("101_s8_k5_d6", 93.52, 81.00, 71.97),
    ("101_s8_k5_d12", 93.87, 81.87, 73.41),
    ("101_s8_k7_d6", 93.61, 81.34, 72.56),
  ])
  + _rows(3, "cityscapes", "vanilla", [
    ("50_s16_k3_d6", 93.83, 74.67, 66.41),
    ("50_s8_k3_d6", 94.38, 74.89, 66.58),
    ("50_s8_k3_d12", 94.47, 75.91, 67.68),
    ("50_s8_k3_d18", 94.53, 76.52, 68.38),
    ("50_s8_k5_d6", 94.48, 76.17, 68.04),
    ("50_s8_k5_d12", 94.61, 76.68, 68.71),
    ("50_s8_k5_d18", 94.64, 76.34, 68.53),
    ("50_s8_k7_d6", 94.58, 76.88, 68.79),
    ("50_s8_k7_d12", 94.64, 76.57, 68.79),
    ("101_s16_k3_d6", 94.11, 76.26, 67.62),
    ("101_s8_k3_d6", 94.68, 77.15, 68.58),
    ("101_s8_k3_d12", 94.78, 78.30, 69.99),
    ("101_s8_k3_d18", 94.82, 78.21, 70.00),
    ("101_s8_k5_d6", 94.75, 78.11, 69.89),
    ("101_s8_k5_d12", 94.87, 79.17, 71.16),
    ("101_s8_k7_d6", 94.75, 78.43, 70.40),
    ("152_s16_k3_d6", 94.26, 76.89, 68.30),
    ("152_s8_k3_d6", 94.82, 78.30, 69.69),
    ("152_s8_k3_d12", 94.94, 78.79, 70.66),
    ("152_s8_k3_d18", 94.93, 79.19, 70.92),
    ("152_s8_k5_d6", 94.88, 78.77, 70.61),
    ("152_s8_k5_d12", 95.00, 79.38, 71.51),
    ("152_s8_k7_d6", 94.91, 79.08, 70.87),
  ])
  + _rows(5, "pascal_context", "best", [("101_s8_k5_d12", 72.9, 54.8, 44.5)])
  + _rows(7, "voc2012", "256 pixels", [("101_s8_k5_d12", 94.11, 81.44, 74.41)])
  + _rows(7, "voc2012", "512 pixels", [("101_s8_k5_d12", 94.23, 82.09, 74.80)])
  + _rows(7, "voc2012", "1024 pixels", [("101_s8_k5_d12", 94.08, 81.84, 74.17)])
  + _rows(7, "cityscapes", "256 pixels", [("152_s8_k5_d12", 95.41, 81.37, 73.97)])  # noqa: E501
  + _rows(7, "cityscapes", "512 pixels", [("152_s8_k5_d12", 95.46, 82.04, 74.64)])  # noqa: E501
  + _rows(7, "cityscapes", "1024 pixels", [("152_s8_k5_d12", 95.38, 81.00, 73.45)])  # noqa: E501
  + [
    # Table 6 gives the depth only; the rest is the best setting of Table 1.
    (name, PaperRow(6, "voc2012_sbd", setting, None, None, None, *figures))
    for name, setting, *figures in [
      ("fcrn50_s8_k5_d12", "vanilla", 57.2, 40.5, 52.5),
      ("fcrn50_s8_k5_d12", "512 pixels", 58.7, 42.0, 53.8),
      ("fcrn50_s8_k5_d12", "512 pixels, weighted", 59.8, 43.5, 54.7),
      ("fcrn101_s8_k5_d12", "512 pixels, weighted", 60.9, 44.6, 55.5),
      ("fcrn101_s8_k5_d12", "512 pixels, weighted, COCO", 61.5, 46.6, 56.4),
    ]
  ]
)  # fmt: skip


def list_models() -> list[str]:
  """Names of the paper's networks, then the recommended ones."""
  return list(dict.fromkeys([*(name for name, _ in _PAPER), *RECOMMENDED]))


def spec(name: str) -> Spec:
  """What a name says, and the paper's rows for it."""
  if name == _TINY.name:
    return _TINY
  match = re.fullmatch(r"fcrn(\d+)_s(\d+)_k(\d+)_d(\d+)", name)
  allowed = (_DEPTHS, STRIDES, _KERNELS, _DILATIONS)
  values = [int(value) for value in match.groups()] if match else []
  if not match or any(v not in a for v, a in zip(values, allowed, strict=True)):
    names = [_TINY.name] + [
      "fcrn{}_s{}_k{}_d{}".format(*v) for v in itertools.product(*allowed)
    ]
    close = difflib.get_close_matches(name, list_models(), 1, 0.9)
    close = close or difflib.get_close_matches(name, names, 1, 0)
    raise ValueError(
      f"There is no model {name!r}. Did you mean {close[0]!r}? Names are"
      " fcrn{18,34,50,101,152}_s{1,2,4,8,16,32}_k{1,3,5,7}_d{1,2,6,12,18}."
    )
  return Spec(name, *values, paper=tuple(r for n, r in _PAPER if n == name))


def create(
  name: str,
  heads: Mapping[str, int],
  *,
  stride_in_1x1: bool = True,
  batch_norm: str = "frozen",
  dtype: DTypeLike = jnp.float32,
  remat: bool = False,
  dropout: bool = False,
  classifier_width: int = 0,
  box_unit: float = 1.0,
  width: int = 64,
  caffe_pool: bool = False,
) -> FCRN:
  """The network of that name, a Flax module.

  Args:
    name: see list_models.
    heads: "semantic": number of classes with background, "boxes": number of
      foreground categories, or both on one backbone; none for features only.
    stride_in_1x1: the 2015 network; False puts a bottleneck's stride into its
      3 x 3 (torchvision's weights).
    batch_norm: "frozen", "local" or "synced" (over the axis "batch").
    dtype: of the computation; parameters and outputs are float32.
    remat: recomputes each block in the backward pass to save memory.
    dropout: 0.3 and 0.5 in the last two blocks (rngs={"dropout": key}).
    classifier_width: channels of a hidden classifier layer, 0 for none.
    box_unit: pixels per unit of the box head's raw output.
    width: 64 for the network as named; scales the channels of all its layers.
    caffe_pool: the max-pool windows of Caffe, which lie one cell further down
      and right: exact for the original weights. Where conv1 has an odd size,
      Caffe drops the last cell and we keep it.
  """
  wrong = [
    head for head, count in heads.items()
    if head not in HEADS
    or not isinstance(count, numbers.Integral)
    or count < 1
  ]  # fmt: skip
  if wrong:
    raise ValueError(
      f"heads is {dict(heads)}; expected counts above 0 for any of {HEADS}."
    )
  if not isinstance(classifier_width, numbers.Integral) or classifier_width < 0:
    raise ValueError(
      f"classifier_width is {classifier_width}; expected a number of channels,"
      " or 0 for a linear classifier."
    )
  if batch_norm not in ("frozen", "local", "synced"):
    raise ValueError(
      f"batch_norm is {batch_norm!r}; expected 'frozen', 'local' or 'synced'."
    )
  try:
    floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
  except TypeError:
    floating = False
  if not floating:
    raise ValueError(
      f"dtype is {dtype!r}; expected one of floats, such as jnp.bfloat16."
    )
  found = spec(name)
  least = -(-64 // found.base_width)
  if not isinstance(width, numbers.Integral) or width < least:
    raise ValueError(
      f"width is {width}; expected a whole number of at least {least}."
    )
  return FCRN(
    spec=found,
    heads=flax.core.FrozenDict(heads),  # hashable: a static argument of jit
    stride_in_1x1=stride_in_1x1,
    batch_norm=batch_norm,
    dtype=dtype,
    remat=remat,
    dropout=dropout,
    classifier_width=classifier_width,
    box_unit=box_unit,
    width=width,
    caffe_pool=caffe_pool,
  )
