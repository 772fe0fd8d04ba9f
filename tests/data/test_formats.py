"""Which files of a folder are images: the same everywhere, and told without anything heavy."""

import subprocess
import sys

from PIL import Image

from detectkit.data import images, readers
from detectkit.data.formats import IMAGE_EXTENSIONS
from detectkit.pipeline.converting import _count_images
from detectkit.pipeline.fingerprints import Fingerprints


def test_a_conversion_infer_and_run_see_the_same_images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for number, ending in enumerate(IMAGE_EXTENSIONS):
        Image.new("L", (8, 8)).save(folder / f"{number}{ending}")
        Image.new("L", (8, 8)).save(folder / f".{number}{ending}")
        Image.new("L", (8, 8)).save(tmp_path / "other" / f"{number}{ending.upper()}")
    (folder / "deep" / "link").symlink_to(tmp_path / "other")
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "notes.txt").write_text("")
    names = [f"{number}{ending}" for number, ending in enumerate(IMAGE_EXTENSIONS)]
    expected = {*names, *(f"deep/link/{name[0]}{name[1:].upper()}" for name in names)}
    listed = images.list_images(folder)
    assert {path.relative_to(folder).as_posix() for path in listed.files} == expected
    found = readers.find_images(folder, ".jpg", field="image_dir_name")
    assert {file for same in found.values() for file in same} == expected
    assert _count_images(folder) == len(expected)


def test_each_ending_counts_where_images_have_changed(tmp_path):
    prints = Fingerprints(tmp_path / "prints.json")
    for ending in IMAGE_EXTENSIONS:
        folder = tmp_path / ending
        folder.mkdir()
        (folder / f".hidden{ending}").write_text("a")
        assert prints.of(str(folder)) is None
        (folder / f"a{ending}").write_text("a")
        first = prints.of(str(folder))
        (folder / f"a{ending}").write_text("ab")
        assert None is not first != prints.of(str(folder))


def test_nothing_heavy_is_imported():
    code = "import sys; import detectkit.pipeline.fingerprints; print({'numpy', 'PIL', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"
