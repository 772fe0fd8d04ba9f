"""The backbones by `model_config.arch`: what a spec can say about each. `detectkit.model.backbones` builds them."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import NamedTuple

from detectkit.errors import ModelError
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.model_pb2 import ModelConfig

KERAS_FILES = (".hdf5", ".h5")  # how the names of plain Keras files end
ENCRYPTED_FILES = (".tlt", ".etlt", ".ckzip")  # those of TLT that nobody can read without its key


class Architecture(NamedTuple):
    """What the fields of `model_config` can mean for one backbone."""

    depths: tuple[int, ...]  # values of num_layers, the default first; empty: the network has one depth
    blocks: tuple[int, ...]  # values of freeze_blocks
    stride: int = 16  # input pixels per grid cell
    pooling: bool = False  # use_pooling chooses between two forms
    projections: bool = False  # all_projections chooses between two forms
    batch_norm: bool | None = None  # None: use_batch_norm chooses; otherwise always or never
    v1d: bool = False  # deep_stem and average_pooled_shortcuts choose between two forms each
    in_tlt: bool = True  # TLT has this family, so layout chooses
    in_tensorflow: bool = False  # layout chooses TensorFlow's, too
    more_blocks: int = 0  # that go on behind `blocks` where a head takes a map at a stride of 32

    def depth(self, num_layers: int) -> int:
        """The depth that `num_layers` asks for: 0 is the default; networks of one depth have 0."""
        return (num_layers or self.depths[0]) if self.depths else 0


EFFICIENTNET = Architecture((), tuple(range(9)), stride=32, batch_norm=True, in_tensorflow=True)
LITE_BLOCKS = (12, 16, 16, 18, 22)  # of lite0 to lite4, with the first convolution
LITE_MORE_BLOCKS = (5, 6, 6, 7, 9)
NETWORKS: dict[str, Architecture] = {
    "resnet": Architecture(
        (18, 10, 34, 50, 101, 152, 200), tuple(range(5)), pooling=True, projections=True, v1d=True
    ),
    "vgg": Architecture((16, 19), tuple(range(1, 6)), pooling=True),
    "darknet": Architecture((19, 53), tuple(range(6)), stride=32),
    "mobilenet_v1": Architecture((), tuple(range(12)), more_blocks=2),
    "mobilenet_v2": Architecture((), tuple(range(14)), more_blocks=4),
    "squeezenet": Architecture((), tuple(range(9)), batch_norm=False),
    "googlenet": Architecture((), tuple(range(10))),
    **{
        f"efficientnet_lite{number}": Architecture(
            (), tuple(range(blocks)), batch_norm=True, in_tlt=False, more_blocks=more
        )
        for number, (blocks, more) in enumerate(zip(LITE_BLOCKS, LITE_MORE_BLOCKS))
    },
    **{f"efficientnet_b{number}": EFFICIENTNET for number in range(8)},
}


def is_keras(path: str) -> bool:
    """Whether a file is one of Keras, by its name."""
    return PurePath(path).suffix.lower() in KERAS_FILES


def is_of_tlt(path: str) -> bool:
    """Whether a file of weights is TLT's, by its name."""
    return PurePath(path).suffix.lower() in (*KERAS_FILES, *ENCRYPTED_FILES)


def spec_to_use(
    given: Experiment | None, stored: Experiment, model_file: str | os.PathLike[str]
) -> Experiment:
    """The spec that a command goes by: the given one, else that of the model.

    Args:
        stored: the model's; that of a Keras file is made of the given one, with TLT's layout, and goes before it.

    Raises:
        ModelError: it would be that of the model, which lacks a section that no image can do without.
    """
    if given is not None and not is_keras(os.fspath(model_file)):
        return given
    pre = stored.augmentation_config.preprocessing
    needed = {
        "augmentation_config": pre.output_image_width and pre.output_image_height,
        "cost_function_config": stored.cost_function_config.target_classes,
        "postprocessing_config": stored.postprocessing_config.target_class_config
        or not is_grid(stored.model_config),
    }
    missing = [section for section, content in needed.items() if not content]
    if missing:
        raise ModelError(
            f"{os.fspath(model_file)}: the spec in it lacks {', '.join(missing)}: give the spec that it was trained with, -e SPEC"
        )
    return stored


def is_grid(config: ModelConfig) -> bool:
    """Whether the head is the grid; a spec without a head, which is a mistake, is taken for one of the grid."""
    return config.WhichOneof("head") in (None, "objective_set")


def layout_of(config: ModelConfig) -> ModelConfig.Layout:
    """Whose form of the network it is, see `model_config.layout`: not AS_PRETRAINED, and none that the network does not have."""
    network, layout = NETWORKS.get(config.arch), config.layout
    if layout == ModelConfig.AS_PRETRAINED and is_keras(config.pretrained_model_file):
        layout = ModelConfig.TLT
    if network is not None:
        forms = {ModelConfig.TLT: network.in_tlt, ModelConfig.TENSORFLOW: network.in_tensorflow}
        if forms.get(layout):
            return layout
    return ModelConfig.TORCHVISION


def has_tlt_layout(config: ModelConfig) -> bool:
    """Whether the network is in TLT's form."""
    return layout_of(config) == ModelConfig.TLT
