"""Weights of other libraries: parity of features, and files that are wrong."""

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fcrn_jax import models
from fcrn_jax.models import pretrained, readers
from fcrn_jax.types import Preprocessing
from tests import parity

IMAGES = jnp.zeros((1, 32, 32, 3))


def network(name="fcrn18_s32_k1_d1", heads=None, **options):
  """(model, variables), the variables random numbers of the right shapes."""
  model = models.create(name, heads or {}, **options)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), IMAGES, train=False)
  )
  rng = np.random.default_rng(1)
  return model, jax.tree.map(
    lambda x: rng.uniform(0.5, 1, x.shape).astype(np.float32), shapes
  )


def torch_names(depth=18, classes=10, seed=0):
  """A torchvision state dict of random numbers, by numpy alone."""
  rng = np.random.default_rng(seed)
  arrays = {}

  def conv(name, i, o, size):
    arrays[f"{name}.weight"] = rng.normal(size=(o, i, size, size))

  def norm(name, features):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
      arrays[f"{name}.{leaf}"] = rng.uniform(0.5, 1, features)

  conv("conv1", 3, 64, 7)
  norm("bn1", 64)
  inputs = 64
  for stage, blocks in enumerate(parity.BLOCKS[depth]):
    c = 64 * 2**stage
    out = c if depth < 50 else 4 * c
    for block in range(blocks):
      at = f"layer{stage + 1}.{block}"
      if depth < 50:
        plan = [(inputs, c, 3), (c, c, 3)]
      else:
        plan = [(inputs, c, 1), (c, c, 3), (c, out, 1)]
      for k, layer in enumerate(plan, 1):
        conv(f"{at}.conv{k}", *layer)
        norm(f"{at}.bn{k}", layer[1])
      if inputs != out:
        conv(f"{at}.downsample.0", inputs, out, 1)
        norm(f"{at}.downsample.1", out)
      inputs = out
  arrays["fc.weight"] = rng.normal(size=(classes, inputs))
  arrays["fc.bias"] = rng.normal(size=classes)
  return {k: v.astype(np.float32) for k, v in arrays.items()}


@pytest.fixture(scope="module")
def state_dict():
  return torch_names()


@pytest.fixture(scope="module")
def saved(state_dict, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
  safetensors.numpy.save_file(state_dict, path)
  return path


# ---------------------------------------------------------------------- parity


# The other depths, which differ from these in numbers of blocks only:
# python -m tests.parity.


@pytest.mark.parametrize("depth", [18, 50, 152])
def test_features_equal_torch(depth, tmp_path):
  pytest.importorskip("torch")
  assert parity.torch_case(depth, tmp_path) < 1e-4


def test_features_equal_caffe_101(tmp_path, real_data):
  pytest.importorskip("torch")
  assert parity.caffe_case(101, tmp_path, real_data / "resnet_prototxt") < 1e-4


def test_features_equal_caffe_with_a_biased_conv1(tmp_path, real_data):
  """ResNet-50's conv1 has a bias; here the file states an epsilon, too."""
  pytest.importorskip("torch")
  text = (real_data / "resnet_prototxt/ResNet-50-deploy.prototxt").read_text()
  layers = parity.parse_prototxt(text)
  blobs = parity.caffe_blobs(layers)
  assert len(blobs["conv1"]) == 2
  path = tmp_path / "net.caffemodel"
  parity.write_caffemodel(path, layers, blobs, eps=2e-2)
  images = parity.image(32, 63)
  theirs = parity.caffe_features(layers, blobs, images, eps=2e-2)
  right = parity.our_features(path, 50, images, caffe_pool=True)
  assert parity.relative(right, theirs) < 1e-4
  with pytest.raises(ValueError, match="would see other features"):
    parity.our_features(path, 50, images)


def test_features_equal_keras(tmp_path):
  os.environ["KERAS_BACKEND"] = "jax"
  pytest.importorskip("keras")
  net = parity.keras_resnet(50)
  paths = tmp_path / "new.weights.h5", tmp_path / "old.h5"
  net.save_weights(paths[0])
  net.save(paths[1])
  images = parity.image(65, 97)
  ours = parity.our_features(paths[0], 50, images)
  theirs = parity.keras_features(net, 50, images)
  assert parity.relative(ours, theirs) < 1e-4
  new, old = (pretrained.read(path) for path in paths)
  assert new.unknown == old.unknown == ()
  jax.tree.map(np.testing.assert_array_equal, new.variables, old.variables)


def test_stride_8_meets_stride_32_exactly(saved):
  images = parity.image(65, 97)
  dense = parity.our_features(saved, 18, images, stride=8)
  coarse = parity.our_features(saved, 18, images, stride=32)
  assert dense.shape[1:3] == (9, 13)
  np.testing.assert_array_equal(dense[:, ::4, ::4], coarse)


# ---------------------------------------------------------------- file formats


def test_every_format_gives_the_same_arrays(state_dict, saved, tmp_path):
  torch = pytest.importorskip("torch")
  tensors = {k: torch.from_numpy(v) for k, v in state_dict.items()}
  tensors["bn1.num_batches_tracked"] = torch.tensor(7)
  # A view with an offset and with strides that are not row by row.
  larger = torch.zeros(2, 7, 7, 3, 64)
  larger[1] = tensors["conv1.weight"].permute(2, 3, 1, 0)
  tensors["conv1.weight"] = larger[1].permute(3, 2, 0, 1)
  parallel = {f"module.{k}": v for k, v in tensors.items()}
  torch.save(collections.OrderedDict(tensors), tmp_path / "zip.pth")
  torch.save(
    {"epoch": 3, "state_dict": parallel}, tmp_path / "nested.pt",
    _use_new_zipfile_serialization=False,
  )  # fmt: skip
  np.savez(tmp_path / "numpy.npz", **state_dict)
  expected = pretrained.read(saved)
  for name in ("zip.pth", "nested.pt", "numpy.npz"):
    found = pretrained.read(tmp_path / name)
    assert found.unknown == ()
    jax.tree.map(
      np.testing.assert_array_equal, found.variables, expected.variables
    )


def test_half_precision_is_read(tmp_path):
  torch = pytest.importorskip("torch")
  for dtype in (torch.bfloat16, torch.float16, torch.float64):
    value = torch.arange(6).reshape(2, 3).to(dtype)
    torch.save({"x": value}, tmp_path / "x.pth")
    arrays, _ = readers.read_arrays(tmp_path / "x.pth")
    np.testing.assert_array_equal(
      arrays["x"].astype(np.float32), [[0, 1, 2], [3, 4, 5]]
    )


def test_layout_of_a_torch_file(state_dict, saved):
  variables = pretrained.read(saved).variables
  kernel = variables["params"]["backbone"]["layer2_0"]["downsample_conv"]
  theirs = state_dict["layer2.0.downsample.0.weight"]
  np.testing.assert_array_equal(kernel["kernel"][0, 0], theirs[..., 0, 0].T)
  stats = variables["batch_stats"]["backbone"]["layer3_1"]["bn2"]
  np.testing.assert_array_equal(
    stats["var"], state_dict["layer3.1.bn2.running_var"]
  )


def test_caffe_factor_and_bias_fold():
  """mean = 6/2 - 0.5, var = 8/2 + (1e-3 - 1e-5); a factor of 0 gives 0."""
  from fcrn_jax.models import naming

  arrays = {
    "conv1/0": np.zeros((1, 3, 7, 7)), "conv1/1": np.array([0.5]),
    "bn_conv1/0": np.array([6.0]), "bn_conv1/1": np.array([8.0]),
    "bn_conv1/2": np.array([2.0]), "bn_conv1/eps": np.float32(1e-3),
    "scale_conv1/0": np.array([3.0]), "scale_conv1/1": np.array([4.0]),
    "res4b22_branch2c/0": np.zeros((1, 1, 1, 1)),
    "bn4b22_branch2c/0": np.array([6.0]), "bn4b22_branch2c/1": np.array([8.0]),
    "bn4b22_branch2c/2": np.array([0.0]),
    "res5c_branch2a/0": np.zeros((1, 1, 1, 1)),
  }  # fmt: skip
  flat, unknown = naming.convert("caffe", arrays)
  assert unknown == []
  np.testing.assert_allclose(flat["batch_stats/backbone/bn1/mean"], [2.5])
  np.testing.assert_allclose(flat["batch_stats/backbone/bn1/var"], [4.00099])
  assert flat["params/backbone/bn1/scale"] == [3.0]
  assert flat["params/backbone/bn1/bias"] == [4.0]
  assert "params/backbone/conv1/bias" not in flat
  assert flat["batch_stats/backbone/layer3_22/bn3/mean"] == [0.0]
  assert "params/backbone/layer4_2/conv1/kernel" in flat


# -------------------------------------------------------------------- mismatch


def test_another_class_count_is_skipped_with_one_line(saved, caplog):
  model, variables = network(heads={"semantic": 21, "boxes": 20})
  loaded = models.load_pretrained(saved, model, variables)
  lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
  assert [line for line in lines if "semantic" in line] == [
    "resnet18.safetensors: classifier of head 'semantic' skipped:"
    " 10 outputs, the model has 21."
  ]
  assert any("no head 'boxes'" in line for line in lines)
  for head in ("semantic", "boxes"):
    jax.tree.map(
      np.testing.assert_array_equal,
      loaded["params"][head],
      variables["params"][head],
    )
  theirs = pretrained.read(saved).variables["params"]["backbone"]
  jax.tree.map(
    np.testing.assert_array_equal, loaded["params"]["backbone"], theirs
  )


def test_an_imagenet_classifier_of_the_same_count_is_loaded(state_dict, saved):
  model, variables = network(heads={"semantic": 10})
  loaded = models.load_pretrained(saved, model, variables)
  head = loaded["params"]["semantic"]["classifier"]
  np.testing.assert_array_equal(head["kernel"][0, 0], state_dict["fc.weight"].T)
  np.testing.assert_array_equal(head["bias"], state_dict["fc.bias"])


def test_a_hidden_layer_needs_no_partner_in_an_imagenet_file(saved):
  model, variables = network(heads={"semantic": 21}, classifier_width=8)
  models.load_pretrained(saved, model, variables)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s.pop("layer1.0.bn1.weight"), r"Missing.*layer1_0/bn1/scale"),
    (lambda s: s.update({"se.weight": np.ones(2)}), r"Unexpected: se\.weight"),
    (
      lambda s: s.update({"layer2.0.conv1.weight": np.ones((8, 64, 3, 3))}),
      r"Of another shape: .*layer2_0/conv1/kernel \(3, 3, 64, 8\)",
    ),
    (
      lambda s: s.update({"layer2.0.conv1.weight": np.ones(3)}),
      "none of a torchvision ResNet",
    ),
  ],
)
def test_any_other_mismatch_lists_the_keys(
  change, message, state_dict, tmp_path
):
  arrays = dict(state_dict)
  change(arrays)
  np.savez(tmp_path / "x.npz", **arrays)
  with pytest.raises(ValueError, match=message):
    models.load_pretrained(tmp_path / "x.npz", *network())


def test_another_depth_lists_some_keys(saved):
  with pytest.raises(ValueError, match=r"resnet18.*fcrn34.*layer1_2.*more"):
    models.load_pretrained(saved, *network("fcrn34_s32_k1_d1"))


def test_the_place_of_the_stride_must_match(tmp_path, caplog):
  np.savez(tmp_path / "resnet50.npz", **torch_names(50))
  default = network("fcrn50_s32_k1_d1")
  with pytest.raises(ValueError, match=r"config\.model\.stride_in_1x1=False"):
    models.load_pretrained(tmp_path / "resnet50.npz", *default)
  with pytest.raises(ValueError, match=r"config\.model\.caffe_pool=True"):
    models.load_pretrained(tmp_path / "resnet50.npz", *default, source="caffe")
  right = network("fcrn50_s32_k1_d1", stride_in_1x1=False)
  models.load_pretrained(tmp_path / "resnet50.npz", *right)
  assert "they expect" not in caplog.text  # what images get by default
  # Caffe's weights under torchvision's names.
  original = network("fcrn50_s32_k1_d1", caffe_pool=True)
  models.load_pretrained(tmp_path / "resnet50.npz", *original, source="caffe")
  assert "they expect Preprocessing(mean=(103.939" in caplog.text
  caplog.clear()
  found = pretrained.preprocessing(tmp_path / "resnet50.npz", "caffe")
  models.load_pretrained(
    tmp_path / "resnet50.npz", *original, source="caffe", preprocessing=found
  )
  assert "they expect" not in caplog.text
  assert found == Preprocessing(
    (103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr"
  )


def test_another_preprocessing_is_refused(saved):
  model, variables = network()
  scale = (0.017125, 0.017507, 0.017429)
  rounded = Preprocessing((123.68, 116.28, 103.53), scale)
  models.load_pretrained(saved, model, variables, preprocessing=rounded)
  for other in (
    Preprocessing(channel_order="bgr"),
    Preprocessing((103.939, 116.779, 123.68)),
  ):
    with pytest.raises(ValueError, match=r"expects Preprocessing.*the images"):
      models.load_pretrained(saved, model, variables, preprocessing=other)


# ------------------------------------------------------------------- own files


def test_own_files_keep_everything(tmp_path, caplog):
  heads = {"semantic": 4, "boxes": 3}
  model, variables = network("fcrn_tiny", heads)
  pixels = Preprocessing((1.0, 2.0, 3.0), (0.1, 0.2, 0.3), "bgr")
  conventions = pretrained.Conventions(
    pixels, True, False, 16.0, normalize=True, input_scale=2.0
  )
  path = tmp_path / "own.safetensors"
  pretrained.write(path, variables, conventions, {"step": 7})
  found = pretrained.read(path)
  assert found.conventions == conventions
  (tmp_path / "other").touch()
  assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
  with pytest.raises(ValueError, match=r"box_unit=16\.0"):
    models.load_pretrained(path, model, variables)
  model, _ = network("fcrn_tiny", heads, box_unit=16.0)
  zeros = jax.tree.map(np.zeros_like, variables)
  loaded = models.load_pretrained(path, model, zeros)
  assert "), normalized images, images at 2.0 times their size." in caplog.text
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  assert jax.tree.structure(loaded) == jax.tree.structure(variables)


def test_own_names_without_conventions_need_a_source(tmp_path):
  model, variables = network("fcrn_tiny", {"semantic": 4})
  from flax import traverse_util

  flat = traverse_util.flatten_dict(variables, sep="/")
  np.savez(tmp_path / "x.npz", **flat)
  with pytest.raises(ValueError, match="pass source"):
    models.load_pretrained(tmp_path / "x.npz", model, variables)
  models.load_pretrained(
    tmp_path / "x.npz", model, variables, source="torchvision"
  )


def test_command_converts(saved, tmp_path):
  command = [sys.executable, "-m", "experiments.convert_weights"]
  out = tmp_path / "out.safetensors"
  done = subprocess.run(
    [*command, f"--input={saved}", f"--output={out}"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0 and "channel_order='rgb'" in done.stdout
  before, after = pretrained.read(saved), pretrained.read(out)
  assert after.conventions == before.conventions
  jax.tree.map(np.testing.assert_array_equal, after.variables, before.variables)
  done = subprocess.run(
    [*command, f"--input={tmp_path}/x.pth", f"--output={out}"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 1 and "x.pth is not a file" in done.stderr


# ----------------------------------------------------------- broken and hostile


class Evil:
  def __reduce__(self):
    return os.system, ("touch /tmp/fcrn_jax_was_executed",)


def torch_zip(path, pickled, **entries):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickled)
    for name, data in entries.items():
      archive.writestr(f"archive/data/{name}", data)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("as_zip", [True, False])
def test_nothing_executes(protocol, as_zip, tmp_path):
  data = pickle.dumps({"state_dict": {"x": Evil()}}, protocol)
  path = tmp_path / "evil.pth"
  torch_zip(path, data) if as_zip else path.write_bytes(data)
  with pytest.raises(ValueError, match=r"evil.pth.*posix.system"):
    pretrained.read(path)
  assert not os.path.exists("/tmp/fcrn_jax_was_executed")


def test_object_arrays_are_refused(tmp_path):
  np.savez(tmp_path / "x.npz", x=np.array([Evil()], object))
  with pytest.raises(ValueError, match=r"x\.npz.*allow_pickle"):
    pretrained.read(tmp_path / "x.npz")


class Storage:
  def __init__(self, key, count):
    self.pid = ("storage", "FloatStorage", key, "cpu", count)


def pickled_tensor(offset, shape, strides, count=4):
  """A data.pkl of one float tensor x, as torch writes it."""
  out = io.BytesIO()

  class Pickler(pickle.Pickler):
    def persistent_id(self, value):
      return value.pid if isinstance(value, Storage) else None

    def reducer_override(self, value):
      if isinstance(value, Rebuild):
        return Rebuild.function, value.arguments
      return NotImplemented

  class Rebuild:
    arguments = (Storage("0", count), offset, shape, strides, False, {})

    @staticmethod
    def function():
      pass

  Rebuild.function.__module__ = "torch._utils"
  Rebuild.function.__qualname__ = "_rebuild_tensor_v2"
  torch = pytest.importorskip("torch")
  original = torch._utils._rebuild_tensor_v2
  torch._utils._rebuild_tensor_v2 = Rebuild.function
  try:
    Pickler(out, 2).dump({"x": Rebuild()})
  finally:
    torch._utils._rebuild_tensor_v2 = original
  return out.getvalue().replace(
    pickle.dumps("FloatStorage", 2)[2:-3], b"ctorch\nFloatStorage\n"
  )


@pytest.mark.parametrize(
  ("offset", "shape", "strides", "good"),
  [
    (0, (2, 2), (2, 1), True),
    (1, (3,), (1,), True),
    (0, (2, 3), (2, 1), False),  # reaches element 4 of 0 ... 3
    (0, (5,), (1,), False),
    (2, (3,), (1,), False),
    (0, (2,), (4,), False),
    (-1, (2,), (1,), False),
    (3, (2,), (-1,), False),
    (0, (10**9, 10**9), (0, 0), False),
    (0, (0, 10**9), (1, 1), True),
  ],
)
def test_tensors_stay_within_their_storage(
  offset, shape, strides, good, tmp_path
):
  data = pickled_tensor(offset, shape, strides)
  values = np.arange(4, dtype=np.float32)
  torch_zip(tmp_path / "x.pth", data, **{"0": values.tobytes()})
  if good:
    arrays, _ = readers.read_arrays(tmp_path / "x.pth")
    assert arrays["x"].shape == shape
    assert np.isin(arrays["x"], values[max(offset, 0) :]).all()
  else:
    with pytest.raises(ValueError, match=r"x\.pth.*leaves storage"):
      readers.read_arrays(tmp_path / "x.pth")


@pytest.mark.parametrize(
  "name", ["a.pth", "b.pth", "a.safetensors", "a.npz", "a.caffemodel", "a.h5"]
)
def test_cut_files_are_named(name, tmp_path):
  whole, path = tmp_path / f"whole_{name}", tmp_path / name
  values = {"layer1.0.conv1.weight": np.ones((64, 3, 3, 9), np.float32)}
  if name.endswith("pth"):
    torch = pytest.importorskip("torch")
    tensors = {k: torch.from_numpy(v) for k, v in values.items()}
    torch.save(tensors, whole, _use_new_zipfile_serialization=name == "a.pth")
  elif name.endswith("safetensors"):
    safetensors.numpy.save_file(values, whole)
  elif name.endswith("npz"):
    np.savez(whole, **values)
  elif name.endswith("h5"):
    with h5py.File(whole, "w") as file:
      file["conv2_block1_1_conv/kernel"] = values["layer1.0.conv1.weight"]
  else:
    layer = [{"name": "res2a_branch1", "type": "C", "bottom": [], "top": []}]
    parity.write_caffemodel(whole, layer, {"res2a_branch1": [*values.values()]})
  readers.read_arrays(whole)
  data = whole.read_bytes()
  for size in (0, 3, 100, len(data) // 2, len(data) - 5):
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=name):
      readers.read_arrays(path)
  path.write_bytes(bytes(reversed(data)))
  with pytest.raises(ValueError, match=name):
    readers.read_arrays(path)


def test_other_formats_are_told_apart(tmp_path):
  with pytest.raises(ValueError, match=r"\.onnx.*\.pth.*\.caffemodel"):
    pretrained.read(tmp_path / "x.onnx")
  with pytest.raises(ValueError, match="not a file"):
    pretrained.read(tmp_path / "x.pth")
  (tmp_path / "pickle").write_bytes(pickle.dumps({}))
  with tarfile.open(tmp_path / "old.pth", "w") as archive:
    archive.add(tmp_path / "pickle", "pickle")
  with pytest.raises(ValueError, match="tar format"):
    pretrained.read(tmp_path / "old.pth")
  schema = parity.caffe_schema()
  net = schema["NetParameter"]()
  net.layers.add(name="conv1")
  (tmp_path / "v1.caffemodel").write_bytes(net.SerializeToString())
  with pytest.raises(ValueError, match="V1LayerParameter"):
    pretrained.read(tmp_path / "v1.caffemodel")
  np.savez(tmp_path / "vgg.npz", conv1_1=np.ones(3))
  with pytest.raises(ValueError, match=r"no ResNet.*conv1_1"):
    pretrained.read(tmp_path / "vgg.npz")


def test_hdf5_does_not_reach_outside(tmp_path):
  (tmp_path / "secret").write_bytes(struct.pack("<4f", 1, 2, 3, 4))
  with h5py.File(tmp_path / "x.h5", "w") as file:
    file.create_dataset(
      "conv2_block1_1_conv/kernel", (4,), "<f4",
      external=[(str(tmp_path / "secret"), 0, 16)],
    )  # fmt: skip
  with pytest.raises(ValueError, match="outside of the file"):
    readers.read_arrays(tmp_path / "x.h5")


def test_caffe_blobs_in_every_form(tmp_path):
  """Legacy sizes, doubles and unpacked numbers, beside the usual form."""
  net = parity.caffe_schema()["NetParameter"]()
  layer = net.layer.add(name="res2a_branch1")
  old = layer.blobs.add(num=1, channels=2, height=1, width=3)
  old.data.extend(range(6))
  double = layer.blobs.add()
  double.shape.dim.extend([2])
  double.double_data.extend([0.5, 0.25])
  data = net.SerializeToString()
  # BlobProto {shape {dim: 2 (unpacked)} data: 1.5 data: 2.5 (unpacked)}
  blob = b"\x3a\x02\x08\x02" + b"".join(
    b"\x2d" + struct.pack("<f", value) for value in (1.5, 2.5)
  )
  body = b"\x0a\x01x" + b"\x3a" + bytes([len(blob)]) + blob
  data += b"\xa2\x06" + bytes([len(body)]) + body
  (tmp_path / "x.caffemodel").write_bytes(data)
  arrays, _ = readers.read_arrays(tmp_path / "x.caffemodel")
  np.testing.assert_array_equal(
    arrays["res2a_branch1/0"], np.arange(6).reshape(1, 2, 1, 3)
  )
  np.testing.assert_array_equal(arrays["res2a_branch1/1"], [0.5, 0.25])
  np.testing.assert_array_equal(arrays["x/0"], [1.5, 2.5])


def test_the_backbone_of_another_network_is_read(state_dict, saved, tmp_path):
  """As torchvision's FCN and DeepLab and mmsegmentation's files name it."""
  arrays = {
    f"model.backbone.{name}": value
    for name, value in state_dict.items()
    if not name.startswith("fc.")
  }
  arrays["model.classifier.4.weight"] = np.zeros((21, 512, 1, 1), np.float32)
  arrays["step"] = np.zeros(1, np.float32)
  path = tmp_path / "segmentation.npz"
  np.savez(path, **arrays)
  found, expected = pretrained.read(path), pretrained.read(saved)
  assert found.unknown == ()
  for kind in ("params", "batch_stats"):
    jax.tree.map(
      np.testing.assert_array_equal,
      found.variables[kind]["backbone"],
      expected.variables[kind]["backbone"],
    )
  assert "semantic" not in found.variables["params"]


def test_a_narrower_network_is_told_of_its_width(saved):
  model, variables = network(heads={"semantic": 21}, width=16)
  with pytest.raises(ValueError, match=r"width is 16; .*model\.width=64"):
    models.load_pretrained(saved, model, variables)
