from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest

from detectkit import spec
from detectkit.console import log
from detectkit.data.dataset import class_counts
from detectkit.data.labels import BACKGROUND, DONTCARE
from detectkit.data.records import training_frames, validation_frames
from detectkit.errors import DataError
from tests.data.conftest import CLASSES, config, load_all, make, picture, record


class TestRecords:
    @pytest.mark.spec_field("DataSource.tfrecords_path", "DataSource.image_directory_path")
    def test_records_become_frames(self, tmp_path: Path) -> None:
        make(
            tmp_path, {"train": [record("image_2/a", names=("car", "person")), record("image_2/b", names=())]}
        )
        training = training_frames(config(tmp_path), CLASSES)
        assert validation_frames(config(tmp_path), CLASSES) is None and len(training) == 2
        sample = training.sample(0, channels=3)
        assert sample.frame_id == "image_2/a" and sample.original_size == (40, 30)
        assert sample.objects.boxes.tolist() == [[1, 2, 11, 22], [2, 2, 12, 22]]
        assert sample.objects.classes.tolist() == [1, 0]
        assert sample.image.shape == (3, 30, 40)
        assert np.array_equal(sample.image, np.asarray(picture(40, 30)).transpose(2, 0, 1))

    @pytest.mark.spec_field("DatasetConfig.target_class_mapping")
    def test_mapping_is_by_label_name_and_applied_once(self, tmp_path: Path) -> None:
        chain = 'target_class_mapping { key: "Car" value: "person" } target_class_mapping { key: "person" value: "vehicle" }'
        make(tmp_path, {"train": [record("a", names=("CAR", "person", "tram"))]})
        training = training_frames(config(tmp_path, mapping=chain), CLASSES)
        objects = training.sample(0, channels=3).objects
        assert objects.classes.tolist() == [0, 1, BACKGROUND]  # car -> person, and not on to vehicle
        assert objects.names == ("car", "person", "tram")
        targets, raw = class_counts(training)
        assert targets == {"person": 1, "vehicle": 1}
        assert raw == {"CAR": 1, "person": 1, "tram": 1}

    @pytest.mark.parametrize(
        ("key", "name"),
        [("Hot dog", "hotdog"), ("hotdog", "hot\u00a0Dog"), ("cafe\u0301", "CAF\u00c9"), (" car ", "car")],
    )
    def test_blanks_and_forms_of_letters_do_not_part_labels(
        self, tmp_path: Path, key: str, name: str
    ) -> None:
        make(tmp_path, {"train": [record("a", names=(name, "tram"))]})
        mapping = f'target_class_mapping {{ key: "{key}" value: "person" }}'
        training = training_frames(config(tmp_path, mapping=mapping), CLASSES)
        assert training.sample(0, channels=3).objects.classes.tolist() == [0, BACKGROUND]

    def test_a_target_without_boxes_counts_zero(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record("a"), record("b")]})
        assert class_counts(training_frames(config(tmp_path), CLASSES))[0] == {"person": 0, "vehicle": 2}

    def test_boxes_without_area_are_dropped(self, tmp_path: Path) -> None:
        bad = record("a", names=("car", "car"))
        bad.boxes[0] = [5, 5, 5, 9]
        make(tmp_path, {"train": [bad]})
        assert len(training_frames(config(tmp_path), CLASSES).sample(0, channels=3).objects.boxes) == 1

    @pytest.mark.spec_field("DatasetConfig.validation_fold")
    def test_validation_fold_over_all_sources(self, tmp_path: Path) -> None:
        for source in ("one", "two"):
            names = [f"k-fold-{fold:03d}-of-002-shard-00000-of-00001" for fold in (0, 1)]
            make(tmp_path / source, {name: [record(f"{source}{name[9]}")] for name in names})
        both = config(tmp_path / "one", "validation_fold: 0")
        both.data_sources.append(config(tmp_path / "two").data_sources[0])
        training, validation = training_frames(both, CLASSES), validation_frames(both, CLASSES)
        assert validation is not None
        assert [frame.frame_id for frame in training.frames] == ["one1", "two1"]
        assert [frame.frame_id for frame in validation.frames] == ["one0", "two0"]

    def test_validation_data_source_trains_on_all_folds(self, tmp_path: Path) -> None:
        make(tmp_path / "a", {"k-fold-000-of-002": [record("x")], "k-fold-001-of-002": [record("y")]})
        make(tmp_path / "b", {"v": [record("z")]})
        paths = f'tfrecords_path: "{tmp_path}/b/records/v" image_directory_path: "{tmp_path}/b"'
        split = config(tmp_path / "a", f"validation_data_source {{ {paths} }}")
        training, validation = training_frames(split, CLASSES), validation_frames(split, CLASSES)
        assert len(training) == 2 and validation is not None and validation.frames[0].frame_id == "z"

    def test_shards_that_are_not_there_are_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        log.propagate = True
        names = [
            f"k-fold-{fold:03d}-of-002-shard-{part:05d}-of-00003" for fold in (0, 1) for part in range(3)
        ]
        make(tmp_path, {name: [record(name)] for name in names})
        training_frames(config(tmp_path), CLASSES)
        training_frames(config(tmp_path, pattern="*shard-00001*"), CLASSES)  # the others are there
        assert caplog.text == ""
        for name in names[3:5]:
            (tmp_path / "records" / name).unlink()
        training_frames(config(tmp_path), CLASSES)
        told = (
            f"2 of the 3 shards of {tmp_path}/records/k-fold-001-of-002 are not there, nor are their images"
        )
        assert told in caplog.text and "fold-000" not in caplog.text

    def test_records_in_a_store_are_read_by_the_spec_that_the_user_names(
        self, tmp_path: Path, bucket: Path, tiny_text: str
    ) -> None:
        content = io.BytesIO()
        picture(40, 30).save(content, "PNG")
        make(tmp_path, {"t": [record("a", image=content.getvalue(), image_format="png")]})
        (tmp_path / "records" / "t").rename(bucket / "t-fold-001-of-002")
        source = re.search(r'tfrecords_path: "[^"]*"', tiny_text)
        assert source is not None
        text = tiny_text.replace(source[0], 'tfrecords_path: "s3://bucket/t-*"')
        received = spec.loads(text)
        assert isinstance(received, spec.Experiment)
        with pytest.raises(DataError, match="s3://bucket/t-.* is not opened: it is named in a model"):
            training_frames(received.dataset_config, CLASSES)
        (tmp_path / "own.txt").write_text(text)
        own = spec.load_experiment(tmp_path / "own.txt")
        training = training_frames(own.dataset_config, CLASSES)
        assert training.sample(0, channels=3).original_size == (40, 30)

    def test_validation_data_is_read_without_training_data(self, tmp_path: Path) -> None:
        make(tmp_path, {"v": [record("z")]})
        paths = f'tfrecords_path: "{tmp_path}/records/v" image_directory_path: "{tmp_path}"'
        split = config(tmp_path / "elsewhere", f"validation_data_source {{ {paths} }}")
        validation = validation_frames(split, CLASSES)
        assert validation is not None and [frame.frame_id for frame in validation.frames] == ["z"]
        with pytest.raises(DataError, match="no files match tfrecords_path.*elsewhere"):
            training_frames(split, CLASSES)

    def test_fold_that_takes_nothing_or_everything(self, tmp_path: Path) -> None:
        make(tmp_path, {"k-fold-000-of-001": [record("a")]})
        with pytest.raises(DataError, match="fold-007-of-"):
            validation_frames(config(tmp_path, "validation_fold: 7"), CLASSES)
        with pytest.raises(DataError, match="nothing is left to train on"):
            training_frames(config(tmp_path, "validation_fold: 0"), CLASSES)

    @pytest.mark.spec_field("DataSource.source_weight")
    def test_source_weights(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            make(tmp_path / name, {"t": [record(name)]})
        both = config(tmp_path / "one")
        both.data_sources.append(config(tmp_path / "two").data_sources[0])
        both.data_sources[1].source_weight = 0.25
        [batch] = load_all(training_frames(both, CLASSES))
        assert batch.weights.tolist() == [1, 0.25]

    def test_pattern_without_files(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": [record("a")]})
        with pytest.raises(DataError, match="no files match tfrecords_path.*valid\\*"):
            training_frames(config(tmp_path, pattern="valid*"), CLASSES)

    def test_shards_without_records(self, tmp_path: Path) -> None:
        make(tmp_path, {"train": []})
        with pytest.raises(DataError, match="no records in .*train"):
            training_frames(config(tmp_path), CLASSES)

    @pytest.mark.parametrize("extension", ["jpg", ".jpg"])
    @pytest.mark.spec_field("DatasetConfig.image_extension")
    def test_image_extension_with_or_without_dot(self, tmp_path: Path, extension: str) -> None:
        make(tmp_path, {"train": [record("a")]}, images=False)
        picture(40, 30).save(tmp_path / "a.jpg")
        training = training_frames(config(tmp_path, f'image_extension: "{extension}"'), CLASSES)
        assert training.sample(0, channels=3).image_path.endswith("a.jpg")

    def test_embedded_images_need_no_image_files(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        picture(40, 30).save(buffer, "PNG")
        plain = record("b")
        make(tmp_path, {"train": [record("a", image=buffer.getvalue(), image_format="png"), plain]})
        training = training_frames(config(tmp_path), CLASSES)
        first, second = (training.sample(i, channels=3).image for i in (0, 1))
        assert np.array_equal(first, np.asarray(picture(40, 30)).transpose(2, 0, 1))
        assert second.shape == first.shape

    def test_dontcare_labels_and_unmapped_ones_are_kept_apart(self, tmp_path: Path) -> None:
        item = record("a", names=("DontCare", "car", "tram"))
        item.truncation[1], item.occlusion[1] = 0.25, 2
        make(tmp_path, {"train": [item]})
        training = training_frames(config(tmp_path, 'dontcare_labels: "DontCare"'), CLASSES)
        assert class_counts(training)[0] == {"person": 0, "vehicle": 1}
        [batch] = load_all(training)
        assert batch.classes.tolist() == [DONTCARE, 1, BACKGROUND]
        assert batch.names == ["dontcare", "car", "tram"]
        assert batch.truncation.tolist() == [0, 0.25, 0] and batch.occlusion.tolist() == [0, 2, 0]


def test_a_sample_is_evenly_spaced_over_the_shards(tiny):
    names = ["square", "bar"]
    every = training_frames(tiny.dataset_config, names)
    some = training_frames(tiny.dataset_config, names, at_most=6)
    assert [frame.frame_id for frame in some.frames] == [frame.frame_id for frame in every.frames[::3]]
    assert (len(some), some.total, every.total) == (6, 18, 18)
    few = validation_frames(tiny.dataset_config, names, at_most=100)
    assert few is not None and (len(few), few.total) == (6, 6)
