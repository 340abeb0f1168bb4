"""The same network in torch, for side-by-side timings."""

import torch
from torch import nn
from torch.nn import functional as F

from fcrn_jax.models import spec as fcrn_spec
from fcrn_jax.models.resnet import BLOCKS, Step, down_samplings


class Block(nn.Module):
  """A bottleneck; see fcrn_jax.models.resnet.Block."""

  def __init__(self, inputs, channels, step, stride_in_1x1):
    super().__init__()
    first = step.stride if stride_in_1x1 else 1
    second = step.stride // first
    dilation = step.after if stride_in_1x1 else step.before
    self.conv1 = nn.Conv2d(inputs, channels, 1, first, bias=False)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(
      channels, channels, 3, second, dilation, dilation, bias=False
    )
    self.bn2 = nn.BatchNorm2d(channels)
    self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * channels)
    self.downsample = None
    if inputs != 4 * channels:
      self.downsample = nn.Sequential(
        nn.Conv2d(inputs, 4 * channels, 1, step.stride, bias=False),
        nn.BatchNorm2d(4 * channels),
      )

  def forward(self, x):
    """The block's output after its last ReLU."""
    shortcut = x if self.downsample is None else self.downsample(x)
    x = F.relu(self.bn1(self.conv1(x)), inplace=True)
    x = F.relu(self.bn2(self.conv2(x)), inplace=True)
    return F.relu(self.bn3(self.conv3(x)).add_(shortcut), inplace=True)


class TorchFCRN(nn.Module):
  """FCRN-50, -101 or -152 with a linear dilated classifier."""

  def __init__(self, name, classes, stride_in_1x1=True):
    super().__init__()
    spec = fcrn_spec(name)
    if spec.depth < 50:
      raise ValueError(f"{name} has no bottlenecks; expected fcrn50 or deeper.")
    stem, pool, *downs = down_samplings(spec.stride)
    self.conv1 = nn.Conv2d(3, 64, 7, stem.stride, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(64)
    self.pool = nn.MaxPool2d(3, pool.stride, pool.before, pool.before)
    blocks, inputs = [], 64
    steps = [Step(1, pool.after, pool.after), *downs]
    for stage, step in enumerate(steps):
      for _ in range(BLOCKS[spec.depth][stage]):
        blocks.append(Block(inputs, 64 * 2**stage, step, stride_in_1x1))
        inputs = 256 * 2**stage
        step = Step(1, step.after, step.after)
    self.blocks = nn.Sequential(*blocks)
    padding = spec.dilation * (spec.kernel - 1) // 2
    self.classifier = nn.Conv2d(
      inputs, classes, spec.kernel, 1, padding, spec.dilation
    )

  def forward(self, x):
    """Logits b c h w."""
    x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
    return self.classifier(self.blocks(x))


def network(name, classes, device, frozen=True):
  """The network in channels_last; frozen: normalises by running statistics."""
  net = TorchFCRN(name, classes).to(device, memory_format=torch.channels_last)
  return net.eval() if frozen else net.train()


_TORCHVISION_OPERATORS = (
  "nms", "qnms", "roi_align", "qroi_align", "_roi_align_backward",
  "ps_roi_align", "_ps_roi_align_backward", "roi_pool", "_roi_pool_backward",
  "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d",
  "_deform_conv2d_backward",
)  # fmt: skip


def torchvision_segmentation(name, classes, **options):
  """A segmentation network of torchvision, from random weights.

  Its operators (nms) are not needed: they are declared here where the build of
  torchvision does not fit torch's.
  """
  try:
    from torchvision.models import segmentation
  except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for operator in _TORCHVISION_OPERATORS:
      library.define(f"{operator}(Tensor a) -> Tensor")
    from torchvision.models import segmentation

  create = getattr(segmentation, name)
  return create(
    weights=None, weights_backbone=None, num_classes=classes, **options
  )


def torchvision_fcn(name, classes, device):
  """torchvision's FCN-ResNet of the same depth, frozen; another classifier.

  It has no FCN-ResNet-152.
  """
  net = torchvision_segmentation(f"fcn_resnet{fcrn_spec(name).depth}", classes)
  net = net.to(device, memory_format=torch.channels_last).eval()
  return _Out(net)


class _Out(nn.Module):
  """The score map of torchvision's dictionary, before its upsampling."""

  def __init__(self, net):
    super().__init__()
    self.net = net

  def forward(self, x):
    """Logits b c h w."""
    return self.net.classifier(self.net.backbone(x)["out"])
