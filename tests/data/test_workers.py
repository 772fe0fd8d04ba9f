from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from detectkit.data.batch import Sample
from detectkit.data.dataset import Dataset
from detectkit.data.records import training_frames
from detectkit.data.workers import loader, training_order
from detectkit.errors import DataError
from tests.data.conftest import CLASSES, augmentation, config, load_all, make, record


class TestLoader:
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        sizes = [(40, 30), (36, 34), (20, 20), (40, 30), (50, 10)]
        make(tmp_path, {"t": [record(f"f{i}", size=size) for i, size in enumerate(sizes)]})
        return training_frames(config(tmp_path), CLASSES)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_workers_give_what_the_caller_would(self, dataset: Dataset, workers: int) -> None:
        order = [4, 0, 3, 1, 2, 4, 0]
        alone, helped = (load_all(dataset, order=order, workers=count) for count in (0, workers))
        assert [batch.frame_ids for batch in helped] == [["f4", "f0"], ["f3", "f1"], ["f2", "f4"], ["f0"]]
        for one, other in zip(alone, helped, strict=True):
            for name, value in one._asdict().items():
                theirs = getattr(other, name)
                assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_keeps_its_own_text(self, dataset: Dataset, workers: int) -> None:
        Path(dataset.frames[2].path).write_bytes(b"")
        with pytest.raises(DataError) as caught:
            load_all(dataset, workers=workers)
        assert str(caught.value).startswith("cannot read the image ") and "Traceback" not in str(caught.value)

    def test_global_random_state_stays(self, dataset: Dataset) -> None:
        before = torch.get_rng_state()
        load_all(dataset, workers=1)
        assert torch.equal(before, torch.get_rng_state())

    def test_stopping_early(self, dataset: Dataset) -> None:
        batches = loader(dataset, augmentation(), batch_size=1, order=range(5), workers=1)
        assert next(batches).frame_ids == ["f0"]
        batches.close()  # type: ignore[attr-defined]

    def test_a_worker_that_is_killed(self, dataset: Dataset) -> None:
        before = set(multiprocessing.active_children())
        batches = loader(dataset, augmentation(), batch_size=1, order=[0] * 50, workers=1)
        next(batches)
        on_child_exit = signal.getsignal(signal.SIGCHLD)
        (worker,) = set(multiprocessing.active_children()) - before
        worker.kill()
        worker.join()
        assert signal.getsignal(signal.SIGCHLD) is on_child_exit is signal.SIG_DFL  # nothing is raised here
        with pytest.raises(DataError, match=r"a loader process died \(.*: lower training_config.workers, or"):
            list(batches)

    def test_a_worker_without_shared_memory(self, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(tensor: torch.Tensor) -> None:
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

        monkeypatch.setattr(torch.Tensor, "share_memory_", full)
        with pytest.raises(DataError, match="No space left on device.*: lower training_config.workers, or"):
            load_all(dataset, workers=1)

    def test_a_worker_that_is_killed_while_it_asks_whether_to_go_on(self, dataset: Dataset) -> None:
        class Killed(Dataset):
            def sample(self, index: int, **_: object) -> Sample:
                frame = sys._getframe()
                while "done_event" not in frame.f_locals:  # torch's loop
                    assert frame.f_back is not None
                    frame = frame.f_back
                event = frame.f_locals["done_event"]
                getattr(event, "_cond", nullcontext()).__enter__()  # the lock of multiprocessing's
                os.kill(os.getpid(), signal.SIGKILL)
                raise AssertionError

        with pytest.raises(DataError, match="a loader process died"):
            load_all(Killed(dataset.frames), workers=1)

    def test_a_worker_without_a_socket(
        self, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / ("long" * 30)  # the path of a socket has 107 characters at most
        folder.mkdir()
        config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        monkeypatch.setitem(config, "tempdir", str(folder))
        with pytest.raises(DataError, match="cannot open a socket below .*path too long.*: set TMPDIR to"):
            load_all(dataset, workers=1)

    def test_workers_ignore_what_stops_a_run_and_end_with_the_loader(self, dataset: Dataset) -> None:
        before = set(multiprocessing.active_children())
        batches = loader(dataset, augmentation(), batch_size=1, order=[0] * 50, workers=2)
        next(batches)
        workers = set(multiprocessing.active_children()) - before
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid or 0, number)
        assert len(list(zip(batches, range(40)))) == 40
        assert all(worker.is_alive() for worker in workers)
        start = time.monotonic()
        batches.close()  # type: ignore[attr-defined]
        assert not any(worker.is_alive() for worker in workers) and time.monotonic() - start < 4

    def test_workers_of_a_loader_that_is_never_closed_end_with_the_program(self, dataset: Dataset) -> None:
        program = (
            # Makes Python's finalizers run after multiprocessing, which waits for its processes.
            "import tempfile; early = tempfile.TemporaryDirectory();"
            "import sys; from detectkit.data.dataset import image_files; from detectkit.data.workers import loader;"
            "from detectkit.spec import AugmentationConfig;"
            "batches = loader(image_files(sys.argv[1]), AugmentationConfig(), batch_size=1, order=[0] * 50, workers=2);"
            "next(batches); cycle = [batches]; cycle.append(cycle)"
        )
        folder = os.path.dirname(dataset.frames[0].path)
        finished = subprocess.run([sys.executable, "-c", program, folder], timeout=60)
        assert finished.returncode == 0

    @pytest.mark.spec_field("AugmentationConfig.Preprocessing.output_image_channel")
    def test_grey(self, dataset: Dataset) -> None:
        assert load_all(dataset, channels=1)[0].images.shape == (2, 1, 34, 40)


class TestTrainingOrder:
    def test_every_index_once_then_wrap_around(self) -> None:
        order = training_order([range(10)], 4, seed=1, epoch=0)
        assert len(order) == 12 and sorted(order[:10]) == list(range(10)) and order[10:] == order[:2]

    def test_fewer_images_than_a_batch(self) -> None:
        order = training_order([range(3)], 8, seed=1, epoch=0)
        assert len(order) == 8 and order[3:6] == order[:3] and order[6:] == order[:2]

    def test_seed_and_epoch_decide(self) -> None:
        first = training_order([range(50)], 5, seed=1, epoch=0)
        assert first == training_order([range(50)], 5, seed=1, epoch=0)
        assert first != training_order([range(50)], 5, seed=1, epoch=1) and first != training_order(
            [range(50)], 5, seed=2, epoch=0
        )

    def test_several_groups_are_drawn_from_equally(self) -> None:
        small, large = range(3), range(3, 30)
        order = training_order([small, large], 10, seed=1, epoch=0)
        assert len(order) == 30
        from_small = [index for index in order if index in small]
        assert sorted(from_small) == [0] * 5 + [1] * 5 + [2] * 5  # 15 of 30, each of the three as often
        assert len(set(order) - set(small)) == 15  # no image of the large one twice
        assert set(order) != set(training_order([small, large], 10, seed=1, epoch=1))

    @pytest.mark.parametrize(
        "mode, counts", [("PROPORTIONAL", {2, 6}), ("USER_DEFINED", {2, 6}), ("UNIFORM", {4})]
    )
    @pytest.mark.spec_field("DatasetConfig.sampling_mode")
    def test_sampling_mode_chooses(self, tmp_path: Path, mode: str, counts: set[int]) -> None:
        make(tmp_path, {"few": [record("a"), record("b")], "many": [record(f"m{n}") for n in range(6)]})
        few, many = (config(tmp_path, pattern=pattern, mapping="") for pattern in ("few", "many"))
        both = config(tmp_path, f"sampling_mode: {mode}", pattern="few")
        both.data_sources.extend(many.data_sources)
        assert list(both.data_sources)[0] == few.data_sources[0]
        frames = training_frames(both, CLASSES)
        order = training_order(frames.groups(), 1, seed=3, epoch=0)
        drawn = [frames.frames[index].source for index in order]
        assert {drawn.count(0), drawn.count(1)} == counts and len(drawn) == 8
