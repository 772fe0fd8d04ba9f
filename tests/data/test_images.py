"""Image files as people have them: turned by a camera, of more than 8 bits, too large, or no images at all."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from detectkit.data import images
from detectkit.data.dataset import image_files
from detectkit.data.readers import image_size, require_size
from detectkit.data.workers import loader
from detectkit.errors import DataError
from detectkit.spec import AugmentationConfig

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n(made) (w) file closefile\nshowpage\n%%EOF\n"


def picture(width: int, height: int) -> Image.Image:
    """Smooth, so that JPEG keeps it, and alike no way round."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 90, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def save(path: Path, orientation: int, size: tuple[int, int] = (40, 30)) -> Path:
    """A picture whose file says how to turn it."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    picture(*size).save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


def decoded(path: Path, target_size: tuple[int, int] | None = None, *, channels: int = 3) -> images.Decoded:
    with images.open_image(str(path), name=str(path)) as image:
        return images.decode(image, channels=channels, target_size=target_size, name=str(path))


def shown(path: Path) -> np.ndarray:
    """What viewers show, as Pillow has it: [3, h, w]."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(size: tuple[int, int], rows: bytes, *, bits: int = 8, kind: int = 0) -> bytes:
    """A PNG file of this header, and of these rows whatever it says."""
    header = b"".join(side.to_bytes(4, "big") for side in size) + bytes([bits, kind, 0, 0, 0])
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


class TestOrientation:
    @pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_images_are_turned_as_viewers_show_them(
        self, tmp_path: Path, ending: str, orientation: int
    ) -> None:
        path = save(tmp_path / f"a.{ending}", orientation)
        found = decoded(path)
        assert np.array_equal(found.pixels, shown(path))
        wanted = (30, 40) if orientation > 4 else (40, 30)
        assert found.size == image_size(path) == (*wanted, orientation > 1)

    def test_tiff_of_every_compression(self, tmp_path: Path) -> None:
        for name in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
            exif = Image.Exif()
            exif[images.ORIENTATION] = 6
            picture(40, 30).save(tmp_path / "a.tif", exif=exif, compression=name)
            assert np.array_equal(decoded(tmp_path / "a.tif").pixels, shown(tmp_path / "a.tif"))

    @pytest.mark.parametrize("orientation", range(2, 9))
    @pytest.mark.parametrize("size", [(640, 480), (323, 245), (326, 244)], ids=str)
    @pytest.mark.parametrize("ending", ["jpg", "png"])
    def test_turned_images_are_reduced_in_place(
        self, tmp_path: Path, orientation: int, size: tuple[int, int], ending: str
    ) -> None:
        """A pixel of the reduced image lies where the boxes of the full one say."""
        path = save(tmp_path / f"a.{ending}", orientation, size)
        found = decoded(path, (32, 24))
        factor, whole = found.reduction, shown(path).astype(float)
        assert factor >= 6 and found.pixels.shape[1:] == tuple(-(-side // factor) for side in whole.shape[1:])
        rows, columns = (side // factor for side in whole.shape[1:])
        blocks = whole[:, : rows * factor, : columns * factor].reshape(3, rows, factor, columns, factor)
        assert np.abs(found.pixels[:, :rows, :columns] - blocks.mean(axis=(2, 4))).max() < 3

    @pytest.mark.parametrize(
        "data", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk"]
    )
    def test_exif_data_that_says_nothing(self, tmp_path: Path, data: bytes) -> None:
        picture(40, 30).save(tmp_path / "a.png", exif=data)
        assert decoded(tmp_path / "a.png").size == (40, 30, False)

    @pytest.mark.parametrize("orientation", [0, 9, 600])
    def test_orientations_that_do_not_exist(self, tmp_path: Path, orientation: int) -> None:
        assert decoded(save(tmp_path / "a.jpg", orientation)).size == (40, 30, False)

    def test_grey_and_wide_images_are_turned(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[images.ORIENTATION] = 8
        values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
        Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
        turned = np.rot90(np.rint(values / 257))
        assert np.array_equal(decoded(tmp_path / "a.png", channels=1).pixels[0], turned)

    def test_labels_for_the_pixels_as_stored_are_told_from_others(self, tmp_path: Path) -> None:
        size = image_size(save(tmp_path / "a.jpg", 6))
        require_size(size, (30, 40))
        with pytest.raises(
            ValueError, match="30x40 pixels when its EXIF orientation turns it.*labels are for 40x30"
        ):
            require_size(size, (40, 30))
        with pytest.raises(ValueError, match="^the image is 30x40 pixels, but its labels are for 41x30$"):
            require_size(size, (41, 30))
        with pytest.raises(ValueError, match="^the image is 40x30 pixels, but its labels are for 30x40$"):
            require_size(image_size(save(tmp_path / "b.jpg", 1)), (30, 40))


class TestFormats:
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.eps", "a"])
    def test_postscript_starts_nothing(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / "gs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(
            DataError, match=f"{name}: it is no image of the formats BMP, JPEG, PNG, PPM, TIFF, WEBP"
        ):
            decoded(tmp_path / name)
        with pytest.raises(ValueError, match="not a readable image"):
            image_size(tmp_path / name)
        with pytest.raises(DataError, match="it is no image"):
            images.open_image(io.BytesIO(EPS), name="embedded")
        assert not (tmp_path / "started").exists()

    @pytest.mark.parametrize("kind", ["GIF", "ICO", "PCX", "TGA", "PDF", "JPEG2000"])
    def test_other_formats_are_refused_whatever_their_name(self, tmp_path: Path, kind: str) -> None:
        picture(40, 30).save(tmp_path / "a.png", format=kind)
        with pytest.raises(DataError, match="it is no image of the formats"):
            decoded(tmp_path / "a.png")

    def test_what_phones_write_as_jpg_holds_several_pictures(self, tmp_path: Path) -> None:
        picture(400, 300).save(
            tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (90, 90))]
        )
        found = decoded(tmp_path / "a.jpg", (100, 75))
        assert found.size[:2] == (400, 300) and found.reduction == 4
        assert np.abs(found.pixels.astype(float) - np.asarray(picture(100, 75)).transpose(2, 0, 1)).max() < 5

    def test_every_image_is_opened_in_one_place(self) -> None:
        package = Path(images.__file__).parents[1]
        opening = {path for path in package.rglob("*.py") if "Image.open(" in path.read_text()}
        assert opening == {Path(images.__file__)}


class TestRange:
    """Grey of more than 8 bits: one gain for images of one camera, and a word where it is a guess."""

    @pytest.mark.parametrize(
        "values, wanted, words",
        [
            (np.array([[0, 257, 25700, 65535]], np.uint16), [0, 1, 100, 255], ""),
            (
                np.array([[0, 2048, 4095]], np.uint16),
                [0, 128, 255],
                "values up to 4095, which are taken for 12 bits",
            ),
            (np.array([[0, 3000]], np.uint16), [0, 187], "up to 3000, which are taken for 12 bits"),
            (np.array([[0, 512, 1023]], np.uint16), [0, 128, 255], "10 bits"),
            (np.array([[0, 8192, 16383]], np.uint16), [0, 128, 255], "14 bits"),
            (np.array([[0, 7, 255]], np.uint16), [0, 7, 255], "8 bits"),
            (np.array([[0, 7, 255]], np.int32), [0, 7, 255], "8 bits"),
            (np.array([[0, 4095]], np.int32), [0, 255], "12 bits"),
            (np.array([[0, 65535]], np.int32), [0, 255], ""),
            (np.array([[0, 2**20 - 1]], np.int32), [0, 255], "20 bits"),
            (
                np.array([[-100, 0, 155]], np.int32),
                [0, 100, 255],
                "values of -100 to 155, which are stretched",
            ),
            (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255], "fractions of 0 to 1"),
            (np.array([[0, 0.25]], np.float32), [0, 64], "fractions of 0 to 1"),
            (np.array([[-1, 0, 1]], np.float32), [0, 128, 255], "fractions of -1 to 1"),
            (np.array([[0, 99.6, 255]], np.float32), [0, 100, 255], "8 bits"),
            (np.array([[0, 4095]], np.float32), [0, 255], "12 bits"),
            (np.array([[-40, 60]], np.float32), [0, 255], "values of -40 to 60"),
            (np.zeros((1, 2), np.float32), [0, 0], "fractions"),
            (np.full((1, 2), -7, np.float32), [0, 0], "values of -7 to -7"),
        ],
    )
    def test_values_are_stretched_by_their_range(
        self, tmp_path: Path, values: np.ndarray, wanted: list[int], words: str
    ) -> None:
        Image.fromarray(values).save(tmp_path / "a.tif")
        found = decoded(tmp_path / "a.tif", channels=1)
        assert np.abs(found.pixels.ravel().astype(int) - wanted).max() <= 1
        assert words in found.stretched and bool(words) == bool(found.stretched)

    def test_rows_beyond_the_first_strip(self, tmp_path: Path) -> None:
        values = np.arange(600 * 5, dtype=np.uint16).reshape(600, 5)
        Image.fromarray(values).save(tmp_path / "a.png")
        assert np.array_equal(
            decoded(tmp_path / "a.png", channels=1).pixels[0], np.rint(values * (255 / 4095))
        )

    def test_pgm_says_its_own_maximum(self, tmp_path: Path) -> None:
        (tmp_path / "a.pgm").write_bytes(b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes())
        found = decoded(tmp_path / "a.pgm", channels=1)
        assert found.pixels.ravel().tolist() == [0, 128, 255] and not found.stretched
        (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + np.array([0, 2048, 4095], ">u2").tobytes())
        assert decoded(tmp_path / "a.pgm", channels=1).pixels.ravel().tolist() == [0, 8, 16]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_no_numbers(self, tmp_path: Path, value: float) -> None:
        Image.fromarray(np.array([[1, value]], np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match="a.tif: it holds values that are no finite numbers; replace it"):
            decoded(tmp_path / "a.tif")

    @pytest.mark.parametrize(
        "high, wanted, words", [(65535, 255, ""), (4095, 255, "need 12 of 16 bits"), (0, 0, "")]
    )
    def test_colours_of_16_bits(self, tmp_path: Path, high: int, wanted: int, words: str) -> None:
        row = b"\0" + np.array([0, 0, 0, high, high, high], ">u2").tobytes()
        (tmp_path / "a.png").write_bytes(png((2, 1), row, bits=16, kind=2))
        found = decoded(tmp_path / "a.png")
        assert found.pixels[:, 0].T.tolist() == [[0] * 3, [wanted] * 3] and words in found.stretched

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_data_set_says_it_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
    ) -> None:
        for number in range(6):
            Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(tmp_path / f"{number}.png")
        dataset = image_files(tmp_path)
        with caplog.at_level(logging.WARNING, "detectkit"):
            logging.getLogger("detectkit").propagate = True
            for _ in range(2):
                for _ in loader(dataset, AugmentationConfig(), batch_size=2, order=range(6), workers=workers):
                    pass
        (line,) = caplog.messages
        assert line.startswith(f"{tmp_path}/0.png holds values up to 3000, which are taken for 12 bits")


class TestLimits:
    @pytest.mark.parametrize(
        "size, words",
        [
            (
                (170_000_000, 1),
                "170000000x1 pixels, and at most 250,000,000 pixels and sides of 65,535 are read",
            ),
            ((1, 70_000), "1x70000 pixels, and at most"),
            ((13_000, 13_000), "13000x13000 pixels in .* bytes, so it holds next to nothing"),
            ((16_000, 16_000), "16000x16000 pixels, and at most|more than 250,000,000 pixels"),
            ((60_000, 60_000), "more than 250,000,000 pixels"),
        ],
        ids=str,
    )
    def test_bombs_are_refused_at_once(self, tmp_path: Path, size: tuple[int, int], words: str) -> None:
        (tmp_path / "a.png").write_bytes(png(size, bytes(170_000)))
        start = time.perf_counter()
        with pytest.raises(DataError, match=f"cannot read the image .*a.png: .*({words})"):
            decoded(tmp_path / "a.png", (96, 64))
        with pytest.raises(ValueError, match="not a readable image"):
            image_size(tmp_path / "a.png")
        assert time.perf_counter() - start < 1

    def test_a_large_photograph_is_read_reduced_without_a_word_of_pillow(self, tmp_path: Path) -> None:
        """99 megapixels, of which Pillow would warn."""
        size = 11_648, 8_500
        small = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=90)
        code = (
            "import sys; from pathlib import Path; from detectkit.data import images\n"
            "with images.open_image(sys.argv[1], name='a') as image:\n"
            "    found = images.decode(image, channels=3, target_size=(960, 544), name='a')\n"
            "print(found.pixels.shape, found.reduction)\n"
            # The most of this program alone: what the system tells of a process begins with that of its parent.
            "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.jpg")], capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr
        assert int(done.stdout.split()[-1]) < 1500 * 1024  # KiB

    def test_a_scan_of_182_megapixels_is_within_the_limits(self, tmp_path: Path) -> None:
        """Pillow would refuse it."""
        (tmp_path / "a.png").write_bytes(png((15_600, 11_700), np.random.default_rng(0).bytes(400_000)))
        assert image_size(tmp_path / "a.png") == (15_600, 11_700, False)

    def test_corrupt_exif_data_is_no_matter_for_the_terminal(self, tmp_path: Path) -> None:
        data = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x0f\0\x02\0\0\xff\xff\0\0\xff\xff"
        picture(40, 30).save(tmp_path / "a.jpg", exif=data)
        code = "import sys; from pathlib import Path; from detectkit.data import images; print(images.file_size(Path(sys.argv[1])))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.jpg")], capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr


class TestListing:
    def test_sub_folders_hidden_files_and_others(self, tmp_path: Path) -> None:
        for name in ("a.png", "cam/0.tif", "cam/deep/0.webp", ".hidden/0.png", "._a.png", "cam/._0.tif"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            picture(8, 8).save(tmp_path / name)
        for name in ("notes.txt", "b.heic", "cam/c.heic", "README"):
            (tmp_path / name).write_bytes(b"x")
        found = images.list_images(tmp_path)
        assert [str(path.relative_to(tmp_path)) for path in found.files] == [
            "a.png",
            "cam/0.tif",
            "cam/deep/0.webp",
        ]
        assert found.others == {"hidden": 2, ".txt": 1, ".heic": 2, "without an ending": 1}
        assert [frame.frame_id for frame in image_files(tmp_path).frames] == ["a", "cam/0", "cam/deep/0"]
        assert len(images.list_images(tmp_path, without=[tmp_path / "cam"]).files) == 1

    def test_links_that_lead_round_in_circles(self, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        (tmp_path / "elsewhere").mkdir()
        picture(8, 8).save(tmp_path / "elsewhere" / "a.png")
        (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
        assert [path.name for path in images.list_images(tmp_path / "set").files] == ["a.png"]

    def test_a_link_to_another_folder_of_the_set_is_an_alias_and_no_circle(self, tmp_path: Path) -> None:
        (tmp_path / "z" / "deep").mkdir(parents=True)
        for name in ("a.png", "z/deep/b.png"):
            picture(8, 8).save(tmp_path / name)
        (tmp_path / "alias").symlink_to("z/deep")
        (tmp_path / "loop").symlink_to(".")
        (tmp_path / "z" / "deep" / "up").symlink_to("../..")
        (tmp_path / "itself").symlink_to("itself")
        found = images.list_images(tmp_path)
        assert [str(path.relative_to(tmp_path)) for path in found.files] == [
            "a.png",
            "alias/b.png",
            "z/deep/b.png",
        ]
        assert found.others == {"without an ending": 1}  # what leads nowhere

    def test_a_folder_without_images_says_what_it_has(self, tmp_path: Path) -> None:
        (tmp_path / "a.heic").write_bytes(b"x")
        with pytest.raises(DataError, match=r"no images in .*: files must end in .bmp.* \(it has 1 .heic\)"):
            image_files(tmp_path)
