"""Every setting with its default; the other configs change what differs.

Values marked [P] are the paper's, [A] those of its authors' later public code
(ademxapp), the rest are ours: the paper does not state them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The paper's settings as far as it states them; locked."""
  config = ConfigDict()
  config.seed = 0
  # These three are filled in from the data when training starts.
  config.categories = ()
  config.category_ids = ()  # of COCO's json
  config.background = "background"  # the name of label 0

  config.model = ConfigDict()
  config.model.name = "fcrn50_s8_k5_d12"
  config.model.heads = ("semantic", "boxes")  # [P] trains one net for each
  config.model.stride_in_1x1 = True  # the 2015 network [P]
  config.model.caffe_pool = False  # True for weights of a .caffemodel
  config.model.batch_norm = "frozen"  # [A] frozen | local | synced
  config.model.dtype = "float32"  # or bfloat16
  config.model.remat = False  # recompute activations: less memory, slower
  config.model.dropout = False  # [P] Table 2's test row only
  config.model.classifier_width = 0  # 0: linear classifier; [A] 512
  config.model.box_unit = 64.0  # pixels per unit of the box head's output
  config.model.width = 64  # as named; scales the channels of all layers

  config.weights = ""  # ImageNet weights to start from [P]; see BUILD.md
  config.preprocessing = ConfigDict()
  config.preprocessing.mean = (123.675, 116.28, 103.53)
  config.preprocessing.scale = (1 / 58.395, 1 / 57.12, 1 / 57.375)
  config.preprocessing.channel_order = "rgb"

  config.data = ConfigDict()
  config.data.name = "folder"
  config.data.path = ""
  config.data.train_split = "train"
  config.data.val_split = "val"
  config.data.crop = (504, 504)  # [A] 500, padded to the stride
  config.data.scale = (0.7, 1.3)  # [A]
  config.data.input_scale = 1.0  # the network sees images at this scale
  config.data.aspect = 0.0  # these: see data.pipeline.PipelineOptions
  config.data.flip = True  # [A] p = 0.5, left-right
  config.data.rot90 = False  # quarter turns
  config.data.rotation = 0.0
  config.data.elastic = 0.0
  config.data.normalize = False
  config.data.brightness = 0.0
  config.data.contrast = 0.0
  config.data.gamma = 0.0
  config.data.noise = 0.0
  config.data.invert = 0.0
  # Pixels of the network's input per category label of the loss, whose logits
  # are interpolated then; 0: the network's stride [A].
  config.data.label_stride = 0
  config.data.full_boxes = True  # of the whole instance, not the crop's part
  config.data.box_weighting = "area"  # 1 / (height x width); [P] names both
  config.data.num_workers = 0  # processes that prepare batches
  config.data.cache = False  # keep decoded images in memory
  # Images of more instances are drawn more often: once an epoch for so many,
  # and at least once; 0: each once.
  config.data.instances_per_visit = 0
  config.data.on_error = "raise"  # or skip, counted and logged
  config.data.partial = False  # accept a part of an official data set
  config.data.categories = ""  # of coco: "voc" for VOC's twenty
  config.data.num_train = 0  # images of "shapes"; 0: the data set's default
  config.data.num_val = 0

  config.batch_size = 16  # over all devices [A]
  config.num_steps = 30_000
  # Share of the steps, the first, that train every second cell alone, with the
  # same weights at twice the stride: two to three times as fast.
  config.coarse = 0.0
  config.optim = ConfigDict()
  config.optim.name = "sgd"
  config.optim.lr = 0.0016  # [A]
  # [A] only falls after 140 epochs, and doubles the rate of biases.
  config.optim.schedule = "linear"
  config.optim.warmup_steps = 0
  config.optim.momentum = 0.9  # [A]
  config.optim.weight_decay = 5e-4  # [A]
  config.optim.clip_norm = 0.0
  config.accumulate = 1  # parts of a batch, one after the other: less memory
  config.ema = 0.0  # decay of the average of weights; 0: none

  config.loss = ConfigDict()
  config.loss.k = 512  # hardest pixels kept a crop [P]; 0: all
  config.loss.threshold = 0.0  # [A] 0.6; 0: by k alone
  config.loss.scope = "crop"  # [P] one crop per mini-batch
  config.loss.box_k = 512
  config.loss.box_weight = 1.0
  # Pixels beyond which the box loss turns linear; 0: model.box_unit.
  config.loss.box_unit = 0.0

  # In steps; 0: at the end only.
  config.log_every = 100
  config.checkpoint_every = 1000
  config.eval_every = 0

  config.inference = ConfigDict()
  config.inference.flip = False
  config.inference.transpose = False  # rows and columns exchanged
  config.inference.scales = (1.0,)
  config.inference.shifts = 1  # k x k sub-stride moves
  config.inference.tile = 2048  # longest side that goes in whole; 0: any
  config.inference.tile_overlap = 256

  config.instances = ConfigDict()  # see instances.Options
  config.instances.num_masks = 1
  config.instances.score_floor = 0.05
  config.instances.min_score = 0.0
  config.instances.iou_threshold = 0.5
  config.instances.max_instances = 100
  config.instances.room = 4  # slots while voting per slot of the result
  config.instances.region_overlap = 0.0  # any shared pixel, as in SDS
  config.instances.min_area = 0.0
  config.instances.min_fill = 0.05
  config.instances.min_extent = 0.4
  config.instances.min_agreement = 0.0
  config.instances.masks = "boxes"
  config.instances.seeds = "scores"
  config.protocol = "sds"  # [P]
  config.allow_leak = False  # validate on training images, marked as such
  config.eval_images = 0  # of an evaluation on the way; 0: all
  return config.lock()


def caffe() -> ConfigDict:
  """The settings, unlocked, for weights of the original ResNets [P]."""
  config = get_config().unlock()
  config.model.caffe_pool = True
  config.preprocessing.mean = (103.939, 116.779, 123.68)
  config.preprocessing.scale = (1.0, 1.0, 1.0)
  config.preprocessing.channel_order = "bgr"
  return config


def from_random_weights() -> ConfigDict:
  """The settings, unlocked, for training without weights to start from."""
  config = get_config().unlock()
  # Every pixel is hard then: the hardest few alone teach nothing but uniform
  # scores.
  config.loss.k = 0
  config.loss.box_k = 0
  config.optim.name = "adamw"
  config.optim.schedule = "cosine"
  config.optim.weight_decay = 1e-2
  return config


def use_large_gpu(config: ConfigDict) -> None:
  """Batch, precision and optimizer for one large GPU."""
  config.model.dtype = "bfloat16"
  config.data.num_workers = 8
  config.batch_size = 16
  config.optim.lr = 2e-3
  config.optim.warmup_steps = 500
  config.ema = 0.999


def check_row(arg: str, rows) -> None:
  """Refuses a config argument that is no row of a table."""
  if arg not in rows:
    raise ValueError(f"no row {arg!r}; expected one of {', '.join(rows)}.")
