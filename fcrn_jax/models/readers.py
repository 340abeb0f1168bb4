"""Weight files of other libraries as flat dicts of numpy arrays.

Each format is read by its own few lines; nothing in a file is executed and
neither torch, Keras nor Caffe is needed. A file that is not what its name
says, or is cut short, is a ValueError that names it.
"""

import io
import os
import pathlib
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import ml_dtypes
import numpy as np
import safetensors

Arrays = dict[str, np.ndarray]


def read_arrays(path: str | os.PathLike) -> tuple[Arrays, dict[str, str]]:
  """(arrays by name, the file's own metadata) of a weight file.

  Names are the file's own: "layer1.0.conv1.weight" (torch), "conv1_conv/kernel"
  (Keras), "res2a_branch1/0" for blob 0 of a layer and "bn2a_branch1/eps"
  (Caffe). The format goes by the suffix.
  """
  path = pathlib.Path(path)
  reader = _READERS.get(path.suffix.lower())
  if reader is None:
    raise ValueError(
      f"{path} has the suffix {path.suffix!r}; weights are read from"
      f" {', '.join(_READERS)}."
    )
  if not path.is_file():
    raise ValueError(f"{path} is not a file; weights were expected there.")
  try:
    arrays, metadata = reader(path)
  except _BROKEN as error:
    raise ValueError(
      f"{path} is no whole, plain {path.suffix} weight file: {error}"
    ) from error
  if not arrays:
    raise ValueError(f"{path} holds no arrays.")
  return arrays, metadata


# What the parsers below and the libraries under them raise on a bad file.
_BROKEN = (
  ArithmeticError,
  AttributeError,
  EOFError,
  LookupError,
  MemoryError,
  NotImplementedError,
  OSError,
  RuntimeError,
  TypeError,
  ValueError,
  pickle.UnpicklingError,
  struct.error,
  safetensors.SafetensorError,
  zipfile.BadZipFile,
  zlib.error,
)


def _read_safetensors(path):
  with safetensors.safe_open(path, framework="numpy") as file:
    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return arrays, dict(file.metadata() or {})


def _read_npz(path):
  with np.load(path, allow_pickle=False) as file:
    return {name: file[name] for name in file.files}, {}


# ---------------------------------------------------------------- torch (.pth)

_STORAGES = {
  "BFloat16Storage": ml_dtypes.bfloat16,
  "BoolStorage": np.bool_,
  "ByteStorage": np.uint8,
  "CharStorage": np.int8,
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "IntStorage": np.int32,
  "LongStorage": np.int64,
  "ShortStorage": np.int16,
}
_MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of torch.save before 1.6


class _Tensor(NamedTuple):
  """A tensor as the pickle describes it; its bytes are elsewhere."""

  storage: tuple  # (dtype name, key of the storage, number of elements)
  offset: int
  shape: tuple
  strides: tuple


class _Unpickler(pickle.Unpickler):
  """Builds containers, numbers, strings and tensor descriptions, no more."""

  def find_class(self, module, name):
    if (module, name) == ("collections", "OrderedDict"):
      return OrderedDict
    if module == "torch" and name in _STORAGES:
      return name
    # New functions for every file: a pickle may set attributes of what it got.
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return lambda storage, offset, shape, strides, *_: _Tensor(
        storage, offset, tuple(shape), tuple(strides)
      )
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      return lambda data, *_: data
    raise pickle.UnpicklingError(
      f"its pickle asks for {module}.{name}, which is not a part of a state"
      " dict; nothing was executed. Save model.state_dict() alone."
    )

  def persistent_load(self, pid):
    kind, dtype, key, _, count, *view = pid
    if kind != "storage" or dtype not in _STORAGES or any(view):
      raise pickle.UnpicklingError(f"unknown storage {pid!r}")
    return dtype, str(key), int(count)


def _read_torch(path):
  if zipfile.is_zipfile(path):
    tree, storages = _open_torch_zip(path)
  elif tarfile.is_tarfile(path):
    raise ValueError(
      "it is in the tar format of PyTorch before 0.2; load and save it once"
      " with a newer PyTorch"
    )
  else:
    tree, storages = _open_torch_stream(path)
  while isinstance(tree, dict):
    inner = [
      k for k in ("state_dict", "model") if isinstance(tree.get(k), dict)
    ]
    if not inner:
      break
    tree = tree[inner[0]]
  if not isinstance(tree, dict):
    raise ValueError(f"it holds a {type(tree).__name__}, not a state dict")
  return {
    str(name): _tensor_array(value, storages)
    for name, value in tree.items()
    if isinstance(value, _Tensor)
  }, {}


def _open_torch_zip(path):
  """(object, storage bytes by key) of a file of torch.save since 1.6."""
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its zip is compressed, which torch.save never does")
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise ValueError("it is a zip without data.pkl, not of torch.save")
    prefix = pickles[0].removesuffix("data.pkl")
    order = f"{prefix}byteorder"
    if order in names and archive.read(order) != b"little":
      raise ValueError("it is big-endian; save it on a little-endian machine")
    tree = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
    data = f"{prefix}data/"
    storages = {
      name.removeprefix(data): archive.read(name)
      for name in names
      if name.startswith(data)
    }
  return tree, storages


def _open_torch_stream(path):
  """(object, storage bytes by key) of a file of torch.save before 1.6."""
  with open(path, "rb") as file:
    if _Unpickler(file).load() != _MAGIC:
      raise ValueError("it is not a file of torch.save")
    _protocol, system = _Unpickler(file).load(), _Unpickler(file).load()
    if not system.get("little_endian", True):
      raise ValueError("it is big-endian; save it on a little-endian machine")
    sizes: dict[str, int] = {}

    class Recorder(_Unpickler):
      # The stream gives element counts, so the element sizes are noted here.
      def persistent_load(self, pid):
        dtype, key, count = super().persistent_load(pid)
        sizes[key] = np.dtype(_STORAGES[dtype]).itemsize
        return dtype, key, count

    tree = Recorder(file).load()
    storages = {}
    for key in _Unpickler(file).load():
      (count,) = struct.unpack("<q", file.read(8))
      if count < 0:
        raise ValueError(f"storage {key} has {count} elements")
      storages[str(key)] = file.read(count * sizes[str(key)])
  return tree, storages


def _tensor_array(tensor: _Tensor, storages: dict[str, bytes]) -> np.ndarray:
  """The described array, copied out of its storage after a bounds check."""
  dtype_name, key, count = tensor.storage
  dtype = np.dtype(_STORAGES[dtype_name])
  data = np.frombuffer(storages[key], dtype)
  if data.size < count:
    raise ValueError(f"storage {key} has {data.size} of {count} elements")
  numbers = (tensor.offset, *tensor.shape, *tensor.strides)
  size = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
  last = tensor.offset + sum(
    (n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True)
  )
  fits = size == 0 or (size <= data.size and last < data.size)
  if not all(isinstance(n, int) and n >= 0 for n in numbers) or not fits:
    raise ValueError(f"a tensor of shape {tensor.shape} leaves storage {key}")
  view = np.lib.stride_tricks.as_strided(
    data[tensor.offset :],
    tensor.shape,
    [step * dtype.itemsize for step in tensor.strides],
    writeable=False,
  )
  return np.array(view)


# ---------------------------------------------------- Keras (.h5/.weights.h5)

# Order of a layer's variables where the file only numbers them.
_KERAS_VARIABLES = {
  2: ("kernel", "bias"),
  4: ("gamma", "beta", "moving_mean", "moving_variance"),
}


def _read_keras(path):
  """Arrays as "layer/variable", whichever of Keras' three layouts it is."""
  arrays = {}

  def visit(name, item):
    if not isinstance(item, h5py.Dataset) or "optimizer" in name:
      return
    if item.external or item.is_virtual:
      raise ValueError(f"{name} points to data outside of the file")
    *_, group, variable = name.split("/")
    if group == "vars":  # Keras 3: layers/conv2d_1/vars/0
      layer = item.parent.attrs.get("name")
      if layer is None:
        raise ValueError(
          f"{name} carries no layer name (a Keras older than 3.6); load and"
          " save it once with a newer Keras"
        )
      group, variable = layer, _KERAS_VARIABLES[len(item.parent)][int(variable)]
    arrays[f"{group}/{variable.removesuffix(':0')}"] = item[()]

  with h5py.File(path, "r") as file:
    file.visititems(visit)
  return arrays, {}


# --------------------------------------------------------- Caffe (.caffemodel)


def _read_caffe(path):
  """Blobs as "layer/index", and "layer/eps" where the file sets one.

  Field numbers are those of caffe.proto: NetParameter.layer = 100,
  LayerParameter.name = 1, blobs = 7, batch_norm_param = 139 (eps = 3).
  """
  arrays = {}
  for number, layer in _fields(memoryview(path.read_bytes())):
    if number == 2 and isinstance(layer, memoryview):
      raise ValueError(
        "it has the layers of Caffe before 2015 (V1LayerParameter); convert it"
        " with Caffe's upgrade_net_proto_binary"
      )
    if number != 100:
      continue
    name, blobs, eps = "", [], None
    for field, value in _fields(layer):
      if field == 1:
        name = bytes(value).decode()
      elif field == 7:
        blobs.append(_blob(value))
      elif field == 139:
        eps = [v for f, v in _fields(value) if f == 3] or None
    arrays |= {f"{name}/{index}": blob for index, blob in enumerate(blobs)}
    if blobs and eps is not None:
      arrays[f"{name}/eps"] = np.frombuffer(eps[-1], "<f4")[0]
  return arrays, {}


def _blob(message: memoryview) -> np.ndarray:
  """A BlobProto: shape = 7 (or num ... width = 1 ... 4), data = 5 or 8."""
  shape, legacy, chunks = None, {}, []
  for field, value in _fields(message):
    if field == 7:
      shape = []
      for number, dims in _fields(value):
        if number == 1:
          packed = isinstance(dims, memoryview)
          shape += list(_varints(dims)) if packed else [dims]
    elif field in (1, 2, 3, 4):
      legacy[field] = value
    elif field in (5, 8):
      chunks.append(np.frombuffer(value, "<f4" if field == 5 else "<f8"))
  data = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
  if shape is None:
    shape = [legacy.get(field, 1) for field in (1, 2, 3, 4)]
  return data.reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
  """(field number, value) of a protobuf message on the wire.

  The value is an int for a varint, else the field's bytes.
  """
  position = 0
  while position < len(message):
    key, position = _varint(message, position)
    number, kind = key >> 3, key & 7
    if kind == 0:
      value, position = _varint(message, position)
      yield number, value
      continue
    if kind == 2:
      size, position = _varint(message, position)
    elif kind in (1, 5):
      size = 8 if kind == 1 else 4
    else:
      raise ValueError(f"wire type {kind} at byte {position}, not protobuf")
    if position + size > len(message):
      raise ValueError("it ends within a field")
    yield number, message[position : position + size]
    position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
  """(value, position after it) of the varint at `position`."""
  value = 0
  for shift in range(0, 70, 7):
    if position >= len(message):
      raise ValueError("it ends within a number")
    byte = message[position]
    position += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, position
  raise ValueError(f"overlong number at byte {position}, not protobuf")


def _varints(message: memoryview) -> Iterator[int]:
  position = 0
  while position < len(message):
    value, position = _varint(message, position)
    yield value


_READERS = {
  ".pth": _read_torch,
  ".pt": _read_torch,
  ".safetensors": _read_safetensors,
  ".npz": _read_npz,
  ".caffemodel": _read_caffe,
  ".h5": _read_keras,
}
