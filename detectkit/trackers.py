"""Where a run can be watched: TensorBoard's files, Weights & Biases, ClearML. Each takes the same numbers and pictures."""

from __future__ import annotations

import contextlib
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from google.protobuf import json_format
from PIL import Image

from detectkit import spec
from detectkit.console import log
from detectkit.draw import sheet
from detectkit.errors import OutputError
from detectkit.files import atomic_write, make_directory

CONNECT_SECONDS = 30.0  # a service that has not answered by then is done without

Message = TypeVar("Message", spec.Experiment, spec.Inference)


class Tracker(Protocol):
    """Takes numbers and pictures by tag, at steps that do not decrease."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def images(
        self, pictures: Mapping[str, Sequence[Image.Image]], step: int, *, captions: Sequence[str] = ()
    ) -> None:
        """`captions`: of the pictures of every tag; shown where the service can."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files in a folder. Every method raises OutputError when they cannot be written.

    Args:
        first_step: what a cut run wrote from this step on is hidden.
    """

    def __init__(self, folder: Path, *, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        threading.excepthook = _without_traceback
        with self._written():
            self.writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with self._written():
            for tag, value in values.items():
                self.writer.add_scalar(tag, value, step)

    def images(
        self, pictures: Mapping[str, Sequence[Image.Image]], step: int, *, captions: Sequence[str] = ()
    ) -> None:
        """The pictures of a tag below each other, as one."""
        with self._written():
            for tag, shown in pictures.items():
                self.writer.add_image(tag, np.asarray(sheet(shown, columns=1)), step, dataformats="HWC")
            self.writer.flush()

    def close(self) -> None:
        with self._written():
            self.writer.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror or error}") from error


class WeightsAndBiases:
    """A run of Weights & Biases.

    Args:
        folder: keeps the run's id, and its files unless `wandb_dir` says otherwise.
        settings: what the run was started with, shown beside it.
        resumed: go on with the run whose id is in the folder.
    """

    def __init__(self, config: spec.WandBConfig, folder: Path, *, settings: dict[str, Any], resumed: bool):
        import wandb

        self.module: Any = wandb
        own = Path(config.wandb_dir).expanduser() if config.wandb_dir else folder
        known = folder / "wandb_id.txt"
        before = _read_id(known) if resumed else None
        mode: Any = spec.WandBConfig.MODE.Name(config.mode).lower() if config.HasField("mode") else None
        self.run: Any = wandb.init(
            project=config.project or None,
            entity=config.entity or None,
            name=config.name or None,
            notes=config.notes or None,
            tags=list(config.tags) or None,
            dir=str(make_directory(own)),
            mode=mode,
            reinit="finish_previous" if config.reinit else None,
            id=before,
            resume="allow" if before else None,
            config=settings,
            # Here the key is for this run alone: wandb.login would write it into the user's .netrc.
            settings=wandb.Settings(api_key=config.key or None, init_timeout=CONNECT_SECONDS),
        )
        _write_id(known, self.run.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def images(
        self, pictures: Mapping[str, Sequence[Image.Image]], step: int, *, captions: Sequence[str] = ()
    ) -> None:
        content = {tag: self._shown(shown, captions) for tag, shown in pictures.items()}
        self.run.log(content, step=step)

    def close(self) -> None:
        self.run.finish()

    def _shown(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[Any]:
        if not captions:
            return [self.module.Image(picture) for picture in pictures]
        pairs = zip(pictures, captions, strict=True)
        return [self.module.Image(picture, caption=caption) for picture, caption in pairs]


class ClearML:
    """A task of ClearML.

    Args:
        folder: keeps the task's id.
        spec_text: shown as the task's configuration.
        resumed: go on with the task whose id is in the folder.
    """

    def __init__(self, config: spec.ClearMLConfig, folder: Path, *, spec_text: str, resumed: bool):
        import clearml

        _require_server()
        known = folder / "clearml_id.txt"
        before = _read_id(known) if resumed else None
        self.task: Any = clearml.Task.init(
            project_name=config.project or None,
            task_name=config.task or None,
            tags=list(config.tags) or None,
            reuse_last_task_id=config.reuse_last_task_id,
            continue_last_task=before or config.continue_last_task,
            deferred_init=config.deferred_init,
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,  # it would take everything from TensorBoard a second time
        )
        if before:
            self.task.set_initial_iteration(0)  # our steps go on by themselves
        self.task.set_configuration_object("spec", config_text=spec_text)
        self.logger: Any = self.task.get_logger()
        _write_id(known, self.task.id)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self.logger.report_scalar(tag, tag, value, iteration=step)

    def images(
        self, pictures: Mapping[str, Sequence[Image.Image]], step: int, *, captions: Sequence[str] = ()
    ) -> None:
        for tag, shown in pictures.items():
            for number, picture in enumerate(shown):
                series = captions[number] if captions else str(number)
                self.logger.report_image(tag, series, iteration=step, image=np.asarray(picture))

    def close(self) -> None:
        self.task.close()


class Expendable:
    """A tracker that the work goes on without: its first failure is a warning, and the end of it.

    Args:
        name: of the service, for the warning.
        start: connects; what it needs may not be installed.
        secret: never shown.
    """

    def __init__(self, name: str, start: Callable[[], Tracker], *, secret: str = ""):
        self.name, self.secret = name, secret
        self.tracker: Tracker | None = None
        with self._spared():
            self.tracker = start()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self.tracker:
            with self._spared():
                self.tracker.scalars(values, step)

    def images(
        self, pictures: Mapping[str, Sequence[Image.Image]], step: int, *, captions: Sequence[str] = ()
    ) -> None:
        if self.tracker:
            with self._spared():
                self.tracker.images(pictures, step, captions=captions)

    def close(self) -> None:
        if self.tracker:
            with self._spared():
                self.tracker.close()

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            self._stop(f"the package {error.name} is not installed (pip install {error.name})")
        # Libraries that document no errors: nothing they raise may end a training.
        except Exception as error:
            self._stop(str(error).strip() or type(error).__name__)

    def _stop(self, reason: str) -> None:
        self.tracker = None
        reason = reason.replace(self.secret, "***") if self.secret else reason
        log.warning(f"nothing more is sent to {self.name}: {reason.splitlines()[0]}")


def training_trackers(experiment: spec.Experiment, folder: Path, *, first_step: int) -> list[Tracker]:
    """What `training_config.visualizer` asks for; `folder` is that of the event files, in the results.

    Raises:
        OutputError: TensorBoard's files cannot be written.
    """
    config, found = experiment.training_config.visualizer, list[Tracker]()
    resumed, results = first_step > 0, folder.parent
    if config.enabled:
        found.append(TensorBoard(folder, first_step=first_step))
    if config.wandb_config.enabled:
        found.append(wandb_tracker(config.wandb_config, experiment, results, resumed=resumed))
    if config.HasField("clearml_config"):
        text = spec.dumps(without_key(experiment))
        found.append(
            Expendable(
                "ClearML",
                lambda: ClearML(config.clearml_config, results, spec_text=text, resumed=resumed),
            )
        )
    return found


def wandb_tracker(
    config: spec.WandBConfig, message: Message, results: Path, *, resumed: bool = False
) -> Tracker:
    """Weights & Biases for the work that a spec describes."""
    settings = json_format.MessageToDict(without_key(message), preserving_proto_field_name=True)
    return Expendable(
        "Weights & Biases",
        lambda: WeightsAndBiases(config, results, settings=settings, resumed=resumed),
        secret=config.key,
    )


def without_key(message: Message) -> Message:
    """A copy of a spec that may be saved and shown: without the key of the Weights & Biases account."""
    copy = type(message)()
    copy.CopyFrom(message)
    if isinstance(copy, spec.Experiment):
        account = copy.training_config.visualizer.wandb_config
    else:
        account = copy.bbox_handler_config.wandb_config
    if account.HasField("key"):  # clearing it where there is none would make the sections around it
        account.ClearField("key")
    return copy


def _require_server() -> None:
    """Raise OSError when ClearML's server does not answer; its library would try again for hours."""
    from clearml import Task
    from clearml.backend_api import Session

    if Task.is_offline():
        return
    try:
        urllib.request.urlopen(Session.get_api_server_host(), timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except urllib.error.URLError as error:
        # A certificate that fails here is one that ClearML may have been told to take.
        if not isinstance(error.reason, ssl.SSLError):
            raise


def _read_id(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _write_id(path: Path, value: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(value + "\n", encoding="utf-8")


def _without_traceback(failure: threading.ExceptHookArgs) -> None:
    """Say nothing of a failed write in TensorBoard's thread: the writer raises it again in ours."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)
