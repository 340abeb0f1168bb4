"""The zoo's features beside those of the libraries that weights come from.

`python -m tests.parity` prints the table: network, source, largest relative
difference of the stride-32 features. The other side writes random weights and
random BatchNorm statistics to a file in its own format and computes the
features itself: torch in torchvision's layout, Keras applications on Keras'
JAX backend, and Caffe by its prototxt and protobuf schema, layer by layer.
"""

import os
import pathlib
import re
import sys
import tempfile

import jax
import numpy as np

from fcrn_jax import models
from fcrn_jax.models import pretrained

BLOCKS = {
  18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip


def image(height, width):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (1, height, width, 3), np.uint8)


def relative(ours, theirs):
  theirs = np.asarray(theirs)
  assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
  return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def our_features(path, depth, images, stride=32, **options):
  """layer4 of the network with the file's weights and its preprocessing."""
  model = models.create(f"fcrn{depth}_s{stride}_k1_d1", {}, **options)
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32), train=False
    )
  )
  variables = models.load_pretrained(path, model, shapes)
  inputs = pretrained.preprocessing(path)(images)
  apply = jax.jit(
    lambda v, x: model.apply(v, x, train=False, capture=("layer4",))["layer4"]
  )
  return np.asarray(apply(variables, inputs))


# ----------------------------------------------------------------------- torch


def torch_resnet(depth, classes=10, stride_in_1x1=False):
  """torchvision's ResNet, its module names, in plain torch."""
  from torch import nn

  class Block(nn.Module):
    def __init__(self, inputs, channels, stride):
      super().__init__()
      if depth < 50:
        plan = [(channels, 3, stride), (channels, 3, 1)]
      elif stride_in_1x1:
        plan = [(channels, 1, stride), (channels, 3, 1), (channels * 4, 1, 1)]
      else:
        plan = [(channels, 1, 1), (channels, 3, stride), (channels * 4, 1, 1)]
      outputs = plan[-1][0]
      self.count, last = len(plan), inputs
      for index, (features, size, step) in enumerate(plan, 1):
        conv = nn.Conv2d(last, features, size, step, size // 2, bias=False)
        setattr(self, f"conv{index}", conv)
        setattr(self, f"bn{index}", nn.BatchNorm2d(features))
        last = features
      self.downsample = None
      if stride > 1 or inputs != outputs:
        self.downsample = nn.Sequential(
          nn.Conv2d(inputs, outputs, 1, stride, bias=False),
          nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
      y = x
      for index in range(1, self.count + 1):
        y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
        y = y.relu() if index < self.count else y
      return (y + (self.downsample(x) if self.downsample else x)).relu()

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
      self.bn1 = nn.BatchNorm2d(64)
      self.maxpool = nn.MaxPool2d(3, 2, 1)
      channels = 64
      for stage, blocks in enumerate(BLOCKS[depth]):
        layers = []
        for index in range(blocks):
          stride = 2 if index == 0 and stage > 0 else 1
          layers.append(Block(channels, 64 * 2**stage, stride))
          channels = 64 * 2**stage * (1 if depth < 50 else 4)
        setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
      self.fc = nn.Linear(channels, classes)

    def forward(self, x):
      x = self.maxpool(self.bn1(self.conv1(x)).relu())
      for stage in range(1, 5):
        x = getattr(self, f"layer{stage}")(x)
      return x

  return Net().eval()


def randomize_torch(net):
  """He weights and random statistics that keep activations of size 1."""
  import torch

  torch.manual_seed(0)
  with torch.no_grad():
    for name, value in net.state_dict().items():
      if name.endswith("running_mean") or name.endswith("bias"):
        value.normal_(0, 0.1)
      elif name.endswith("running_var"):
        value.uniform_(0.5, 1.5)
      elif value.ndim == 4:
        value.normal_(0, (2 / value[0].numel()) ** 0.5)
      elif value.ndim == 1:
        value.uniform_(0.3, 0.7)
  return net


def torch_features(net, images):
  import torch

  mean = np.array([0.485, 0.456, 0.406], np.float32)
  std = np.array([0.229, 0.224, 0.225], np.float32)
  inputs = (images.astype(np.float32) / 255 - mean) / std
  with torch.no_grad():
    out = net(torch.from_numpy(inputs.transpose(0, 3, 1, 2)))
  return out.numpy().transpose(0, 2, 3, 1)


def torch_case(depth, folder):
  import torch

  net = randomize_torch(torch_resnet(depth))
  path = pathlib.Path(folder) / f"resnet{depth}.pth"
  torch.save(net.state_dict(), path)
  images = image(65, 97)
  ours = our_features(path, depth, images, stride_in_1x1=False)
  return relative(ours, torch_features(net, images))


# ----------------------------------------------------------------------- Keras


def keras_resnet(depth):
  """Keras applications' ResNet with random weights and statistics."""
  os.environ["KERAS_BACKEND"] = "jax"
  import keras

  resnet = getattr(keras.applications, f"ResNet{depth}")
  net = resnet(weights=None, classes=10)
  rng = np.random.default_rng(0)
  for layer in net.layers:
    values = []
    for variable in layer.weights:
      shape, name = variable.shape, variable.name
      if name in ("bias", "beta", "moving_mean"):
        values.append(rng.normal(0, 0.1, shape))
      elif name == "moving_variance":
        values.append(rng.uniform(0.5, 1.5, shape))
      elif name == "gamma":
        values.append(rng.uniform(0.3, 0.7, shape))
      else:
        values.append(rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape))
    layer.set_weights(values)
  return net


def keras_features(net, depth, images):
  import keras

  resnet = getattr(keras.applications, f"ResNet{depth}")
  body = resnet(weights=None, include_top=False, input_shape=images.shape[1:])
  body.set_weights(net.get_weights()[:-2])  # all but the classifier's
  inputs = keras.applications.resnet.preprocess_input(np.float32(images))
  return jax.jit(lambda x: body(x, training=False))(inputs)


def keras_case(depth, folder):
  net = keras_resnet(depth)
  path = pathlib.Path(folder) / f"resnet{depth}.weights.h5"
  net.save_weights(path)
  images = image(65, 97)
  ours = our_features(path, depth, images)
  return relative(ours, keras_features(net, depth, images))


# ----------------------------------------------------------------------- Caffe


def parse_prototxt(text):
  """[{"name", "type", "bottom": [...], "top": [...], other fields}]"""
  layers = []
  for body in re.findall(r"^layer \{\n(.*?)^\}", text, re.M | re.S):
    layer = {"bottom": [], "top": []}
    for key, value in re.findall(r"(\w+): \"?([\w./]+)\"?", body):
      if key in ("bottom", "top"):
        layer[key].append(value)
      else:
        layer[key] = value
    layers.append(layer)
  return layers


def caffe_schema():
  """Message classes of the parts of caffe.proto that a net's weights use."""
  from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

  field = descriptor_pb2.FieldDescriptorProto
  schema = {
    "BlobShape": [("dim", 1, "INT64", True, True)],
    "BlobProto": [
      ("shape", 7, ".caffe.BlobShape", False, False),
      ("data", 5, "FLOAT", True, True),
      ("diff", 6, "FLOAT", True, True),
      ("double_data", 8, "DOUBLE", True, True),
      ("num", 1, "INT32", False, False),
      ("channels", 2, "INT32", False, False),
      ("height", 3, "INT32", False, False),
      ("width", 4, "INT32", False, False),
    ],
    "BatchNormParameter": [
      ("use_global_stats", 1, "BOOL", False, False),
      ("eps", 3, "FLOAT", False, False),
    ],
    "LayerParameter": [
      ("name", 1, "STRING", False, False),
      ("type", 2, "STRING", False, False),
      ("bottom", 3, "STRING", True, False),
      ("top", 4, "STRING", True, False),
      ("blobs", 7, ".caffe.BlobProto", True, False),
      ("phase", 10, "INT32", False, False),
      ("batch_norm_param", 139, ".caffe.BatchNormParameter", False, False),
    ],
    "V1LayerParameter": [("name", 4, "STRING", False, False)],
    "NetParameter": [
      ("name", 1, "STRING", False, False),
      ("layers", 2, ".caffe.V1LayerParameter", True, False),
      ("input", 3, "STRING", True, False),
      ("layer", 100, ".caffe.LayerParameter", True, False),
    ],
  }
  file = descriptor_pb2.FileDescriptorProto(
    name="caffe.proto", package="caffe", syntax="proto2"
  )
  for message, fields in schema.items():
    proto = file.message_type.add(name=message)
    for name, number, kind, repeated, packed in fields:
      entry = proto.field.add(name=name, number=number)
      entry.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
      if kind.startswith("."):
        entry.type, entry.type_name = field.TYPE_MESSAGE, kind
      else:
        entry.type = getattr(field, f"TYPE_{kind}")
      entry.options.packed = packed
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return {
    name: message_factory.GetMessageClass(
      pool.FindMessageTypeByName(f"caffe.{name}")
    )
    for name in schema
  }


def caffe_blobs(layers):
  """Random blobs by layer name; statistics are sums, as Caffe keeps them."""
  rng = np.random.default_rng(0)
  channels, blobs = {"data": 3}, {}
  for layer in layers:
    inputs = channels[layer["bottom"][0]]
    outputs = int(layer.get("num_output", inputs))
    if layer["type"] == "Convolution":
      size = int(layer["kernel_size"])
      scale = np.sqrt(2 / (inputs * size**2))
      values = [rng.normal(0, scale, (outputs, inputs, size, size))]
      if layer.get("bias_term") != "false":
        values.append(rng.normal(0, 0.1, outputs))
    elif layer["type"] == "BatchNorm":
      factor = 999.98236
      mean = rng.normal(0, 0.1, inputs) * factor
      values = [mean, rng.uniform(0.5, 1.5, inputs) * factor, [factor]]
    elif layer["type"] == "Scale":
      values = [rng.uniform(0.3, 0.7, inputs), rng.normal(0, 0.1, inputs)]
    elif layer["type"] == "InnerProduct":
      values = [rng.normal(0, 0.01, (outputs, inputs)), np.zeros(outputs)]
    else:
      values = []
    blobs[layer["name"]] = [np.asarray(v, np.float32) for v in values]
    channels[layer["top"][0]] = outputs
  return blobs


def write_caffemodel(path, layers, blobs, eps=None):
  net = caffe_schema()["NetParameter"](name="ResNet", input=["data"])
  for layer in layers:
    entry = net.layer.add(name=layer["name"], type=layer["type"], phase=1)
    entry.bottom.extend(layer["bottom"])
    entry.top.extend(layer["top"])
    if layer["type"] == "BatchNorm":
      entry.batch_norm_param.use_global_stats = True
      if eps is not None:
        entry.batch_norm_param.eps = eps
    for value in blobs[layer["name"]]:
      blob = entry.blobs.add()
      blob.shape.dim.extend(value.shape)
      blob.data.extend(value.ravel().tolist())
  pathlib.Path(path).write_bytes(net.SerializeToString())


def caffe_features(layers, blobs, images, last="res5c", eps=1e-5):
  """Caffe's forward pass of a prototxt; convolutions by torch."""
  import torch
  import torch.nn.functional as F

  mean = np.array([103.939, 116.779, 123.68], np.float32)
  inputs = images[..., ::-1].astype(np.float32) - mean
  tops = {"data": torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())}
  for layer in layers:
    x = tops[layer["bottom"][0]]
    values = [torch.from_numpy(v) for v in blobs[layer["name"]]]
    columns = [v.reshape(1, -1, 1, 1) for v in values]
    kind = layer["type"]
    if kind == "Convolution":
      stride, pad = int(layer.get("stride", 1)), int(layer.get("pad", 0))
      y = F.conv2d(x, *values, stride=stride, padding=pad)
    elif kind == "BatchNorm":
      factor = values[2].item()
      y = (x - columns[0] / factor) / torch.sqrt(columns[1] / factor + eps)
    elif kind == "Scale":
      y = x * columns[0] + columns[1]
    elif kind == "ReLU":
      y = x.relu()
    elif kind == "Eltwise":
      y = x + tops[layer["bottom"][1]]
    elif kind == "Pooling" and layer["pool"] == "MAX":
      size, stride = int(layer["kernel_size"]), int(layer["stride"])
      y = F.max_pool2d(x, size, stride, ceil_mode=True)
    else:
      break
    tops[layer["top"][0]] = y
  return tops[last].numpy().transpose(0, 2, 3, 1)


def caffe_case(depth, folder, prototxt_folder):
  text = pathlib.Path(prototxt_folder) / f"ResNet-{depth}-deploy.prototxt"
  layers = parse_prototxt(text.read_text())
  blobs = caffe_blobs(layers)
  path = pathlib.Path(folder) / f"ResNet-{depth}-model.caffemodel"
  write_caffemodel(path, layers, blobs)
  images = image(63, 96)
  ours = our_features(path, depth, images, caffe_pool=True)
  return relative(ours, caffe_features(layers, blobs, images))


def main(prototxt_folder):
  print(f"{'network':<12}{'source':<14}largest relative difference")
  for depth in BLOCKS:
    for source in ("torchvision", "caffe", "keras"):
      with tempfile.TemporaryDirectory() as folder:
        if source == "torchvision":
          value = torch_case(depth, folder)
        elif depth == 18:
          continue  # neither Caffe's nor Keras' networks have a ResNet-18
        elif source == "caffe":
          value = caffe_case(depth, folder, prototxt_folder)
        else:
          value = keras_case(depth, folder)
      print(f"ResNet-{depth:<5}{source:<14}{value:.1e}", flush=True)


if __name__ == "__main__":
  main(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/resnet_prototxt")
