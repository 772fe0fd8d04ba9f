"""A run and its stages: what a stage says of itself, and the chain that it is asked about."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from detectkit.pipeline.basis import Basis, Estimate
from detectkit.pipeline.products import MODELS, Product, Role
from detectkit.spec import DataSource, Experiment, has_teacher

Command = list[str]  # the words after `detectkit`
SPEC = "spec.txt"  # in the folder of a run


class Chain(NamedTuple):
    """One spec, the folder of its run, and all stages that there are: see `stages.chain_of`."""

    experiment: Experiment
    folder: Path
    stages: tuple[RunStage, ...]

    def path(self, *parts: str) -> str:
        """Below the folder of the run; of what a stage makes, the stage's name comes first."""
        return str(self.folder.joinpath(*parts))

    @property
    def trains(self) -> bool:
        return self.experiment.HasField("training_config")

    @property
    def validates(self) -> bool:
        return self.experiment.dataset_config.WhichOneof("dataset_split_type") is not None

    @property
    def wanted(self) -> list[RunStage]:
        """The stages that the spec has sections for."""
        return [stage for stage in self.stages if stage.wanted(self)]

    @property
    def specs(self) -> dict[str, Experiment]:
        """The specs that the stages are given, by file name."""
        found = {SPEC: self.experiment}
        for stage in self.wanted:
            found |= stage.specs(self)
        return found

    @property
    def products(self) -> list[Product]:
        """What the run makes, in the order of its stages; after the model that it was given, where it trains none."""
        return [*self.given, *(product for stage in self.wanted for product in stage.makes(self))]

    @property
    def models(self) -> list[Product]:
        """What can be measured."""
        return [product for product in self._made() if product.role in MODELS]

    @property
    def given(self) -> list[Product]:
        """The model that the run starts from, where it trains none."""
        path = os.path.expanduser(self.experiment.model_config.pretrained_model_file)
        return [] if self.trains else [Product("float", "float", Role.NETWORK, path)]

    def last(self, *roles: Role, before: str | None = None) -> str:
        """The path of the last product of these roles, of those from before a stage. There is one."""
        return [product.path for product in self._made(before) if product.role in roles][-1]

    def sources(self, *, training: bool = True, validation: bool = True) -> list[str]:
        """The record patterns and image folders of these images."""
        config = self.experiment.dataset_config
        apart = config.HasField("validation_data_source")
        named: list[DataSource] = list(config.data_sources) if training or not apart else []
        named += [config.validation_data_source] if validation and apart else []
        found = [part for source in named for part in (source.tfrecords_path, source.image_directory_path)]
        return list(dict.fromkeys(part for part in found if part))

    def _made(self, before: str | None = None) -> Iterator[Product]:
        """Products without those of measuring, which ask what there is to measure."""
        yield from self.given
        for stage in self.stages:
            if stage.name == before:
                return
            if not stage.measures and stage.wanted(self):
                yield from stage.makes(self)


def teacher(experiment: Experiment) -> list[str]:
    """The file of the network that teaches in a training."""
    config = experiment.training_config.distillation
    return [os.path.expanduser(config.teacher_model_file)] if has_teacher(config) else []


def _nothing(chain: Chain) -> None:
    return None


class RunStage(NamedTuple):
    """One step of a run: all that the run and its report know of it."""

    name: str  # of its folder, and of `--from` and `--until`
    title: str
    # Whether the spec has what it is done for; only what `measures` asks for products.
    wanted: Callable[[Chain], bool]
    commands: Callable[[Chain], list[Command]]
    spec: Callable[[Chain], Experiment]  # what it reads of the spec
    reads: Callable[[Chain], list[str]]  # files, patterns of files, folders of images
    writes: Callable[[Chain], list[str]]  # files and patterns without which it has to be done again
    takes: Callable[[Chain, Basis], Estimate]  # from its beginning
    # For later stages and the report; asks for no products.
    makes: Callable[[Chain], list[Product]] = lambda chain: []
    # What its commands are given, if that is not SPEC, by file name.
    specs: Callable[[Chain], dict[str, Experiment]] = lambda chain: {}
    impossible: Callable[[Chain], str | None] = _nothing  # why it cannot be done on this machine
    tools: tuple[str, ...] = ()  # of `versions`; another version is a reason to do it again
    trains: bool = False  # goes on where it was, also after changes that a training allows
    is_kept: bool = False  # never begun anew unasked
    tells: Callable[[Chain], str | None] = _nothing  # its outcome in a few words
    measures: bool = False  # belongs to the stage before it, see --until
