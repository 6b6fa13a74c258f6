"""Pictures as real folders hold them: each trap is made as a file and must come out right, or be refused by name."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from cutline.data import images
from cutline.data.images import Limits, Transform, as_rgb, find_pictures, open_picture, readable
from cutline.errors import DataError

RED, GREEN, BLUE, WHITE = (254, 0, 0), (0, 255, 1), (0, 0, 254), (255, 255, 255)


def quarters() -> Image.Image:
    """40 x 20, with another colour in each quarter, so that every turn and mirror shows."""
    picture = Image.new("RGB", (40, 20))
    for colour, box in zip((RED, GREEN, BLUE, WHITE), ((0, 0), (20, 0), (0, 10), (20, 10))):
        picture.paste(colour, (*box, box[0] + 20, box[1] + 10))
    return picture


def corners(picture: Image.Image) -> list[str]:
    """The colours at top left, top right, bottom left and bottom right."""
    width, height = picture.size
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white", (0, 0, 0): "black"}
    places = [(x, y) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    return [names[tuple(int(value > 127) for value in picture.getpixel(place))] for place in places]  # type: ignore


def saved(picture: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, for what Pillow will not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# What must come out right -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "MPO"])
def test_every_format_gives_the_same_picture(format: str, tmp_path: Path) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    file = tmp_path / "picture.wrong"  # the name decides nothing
    file.write_bytes(saved(quarters(), format))
    for source in (file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes())):
        picture = open_picture(source)
        assert (picture.mode, picture.size) == ("RGB", (40, 20))
        assert corners(picture) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    turn = Image.Transpose
    stored = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE}
    stored |= {6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = quarters()
    data = saved(upright.transpose(stored[orientation]) if orientation > 1 else upright, format, exif=exif)
    picture = open_picture(data)
    assert picture.size == (40, 20)
    assert corners(picture) == ["red", "green", "blue", "white"]
    assert picture.getexif().get(0x0112, 1) == 1


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_lose_the_picture(exif: bytes) -> None:
    assert corners(open_picture(saved(quarters(), "JPEG", exif=exif))) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled(mode: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (8, 1))
    if mode == "I":
        data = saved(Image.fromarray(ramp.astype(np.int32)), "TIFF")
    elif mode == "I;16B":
        data = saved(Image.frombytes("I;16B", (256, 8), ramp.astype(">u2").tobytes()), "TIFF")
    else:
        data = saved(Image.fromarray(ramp), "PNG")
    assert np.abs(np.asarray(open_picture(data))[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_a_dark_grey_map_of_sixteen_bits_stays_dark() -> None:
    dark = b"P5 2 2 65535\n" + struct.pack(">4H", 200, 200, 0, 200)
    assert np.asarray(open_picture(dark))[..., 0].tolist() == [[1, 1], [0, 1]]


def test_sixteen_bit_grey_with_a_transparent_value() -> None:
    grey = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 400, 20000), (b"tRNS", struct.pack(">H", 400)))
    picture = open_picture(grey)
    assert picture.getpixel((0, 0)) == WHITE
    assert picture.getpixel((1, 0)) == pytest.approx((78, 78, 78), abs=1)


def test_tiff_of_sixteen_bits_whose_white_is_zero() -> None:
    tags = {256: 2, 257: 1, 258: 16, 259: 1, 262: 0, 273: 8, 277: 1, 278: 1, 279: 4}
    entries = b"".join(struct.pack("<HHLL", tag, 3, 1, value) for tag, value in tags.items())
    file = b"II*\0" + struct.pack("<LHH", 12, 0, 45535) + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    picture = open_picture(file)
    assert picture.getpixel((0, 0)) == WHITE
    assert picture.getpixel((1, 0)) == pytest.approx((78, 78, 78), abs=1)


def test_sixteen_bit_colour_and_grey_with_alpha() -> None:
    rgb = png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65535, 32768, 0))
    assert open_picture(rgb).getpixel((0, 0)) == pytest.approx((255, 128, 0), abs=1)
    grey = png(2, 1, 16, 4, b"\0" + struct.pack(">HHHH", 20000, 65535, 0, 0))
    picture = open_picture(grey)
    assert picture.getpixel((0, 0)) == pytest.approx((78, 78, 78), abs=1)
    assert picture.getpixel((1, 0)) == WHITE


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (0.0, 65535.0), (-3.0, 5.0)])
def test_float_pictures_are_scaled(low: float, high: float) -> None:
    ramp = np.tile(np.linspace(low, high, 256, dtype=np.float32), (4, 1))
    ramp[3] = np.nan if low == 0 else low
    row = np.asarray(open_picture(saved(Image.fromarray(ramp), "TIFF")))[0, :, 0].astype(int)
    assert np.abs(row - np.arange(256)).max() <= 1


def test_tiff_of_twelve_bits() -> None:
    ramp = np.linspace(0, 4095, 256).round().astype(int)
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in ramp.reshape(-1, 2).tolist())
    tags = {256: len(ramp), 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    entries = b"".join(struct.pack("<HHLL", tag, 3, 1, value) for tag, value in tags.items())
    end = struct.pack("<H", len(tags)) + entries + struct.pack("<L", 0)
    file = b"II*\0" + struct.pack("<L", 8 + len(packed)) + packed + end
    row = np.asarray(open_picture(file))[0, :, 0].astype(int)
    assert np.abs(row - np.arange(256)).max() <= 1


def test_a_dark_float_picture_stays_dark() -> None:
    dark = np.full((4, 4), 0.1, dtype=np.float32)
    assert open_picture(saved(Image.fromarray(dark), "TIFF")).getpixel((0, 0)) == (26, 26, 26)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "palette with alpha", "RGB key", "L key"])
def test_transparency_becomes_white(mode: str) -> None:
    if mode == "RGB key":
        data = png(2, 1, 8, 2, b"\0" + bytes((9, 9, 9, 200, 0, 0)), (b"tRNS", struct.pack(">HHH", 9, 9, 9)))
    elif mode == "L key":
        data = png(2, 1, 8, 0, b"\0" + bytes((9, 200)), (b"tRNS", struct.pack(">H", 9)))
    elif mode == "palette with alpha":
        palette = (b"PLTE", bytes((0, 0, 0, 200, 0, 0)))
        data = png(2, 1, 8, 3, b"\0" + bytes((0, 1)), palette, (b"tRNS", bytes((0, 255))))
    elif mode == "P":
        picture = Image.new("P", (2, 1), 0)
        picture.putpalette([0, 0, 0, 200, 0, 0])
        picture.putpixel((1, 0), 1)
        data = saved(picture, "GIF", transparency=0)
    else:
        picture = Image.new(mode, (2, 1), (0,) * len(mode))
        picture.putpixel((1, 0), (200, 0, 0, 255) if mode == "RGBA" else (200, 255))
        data = saved(picture, "PNG")
    opened = open_picture(data)
    assert opened.getpixel((0, 0)) == WHITE
    assert opened.getpixel((1, 0)) == ((200, 200, 200) if mode[0] == "L" else (200, 0, 0))


def test_half_transparent_is_mixed_with_white() -> None:
    half = saved(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG")
    assert open_picture(half).getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    cmyk = saved(quarters().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in cmyk
    assert corners(open_picture(cmyk)) == ["red", "green", "blue", "white"]
    assert corners(open_picture(saved(quarters().convert("CMYK"), "TIFF"))) == ["red", "green", "blue", "white"]


def test_one_bit_and_grey() -> None:
    for mode in ("1", "L"):
        white = open_picture(saved(Image.new(mode, (3, 3), 255 if mode == "L" else 1), "PNG"))
        assert white.getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(format: str) -> None:
    frames = [quarters(), Image.new("RGB", (40, 20), "black"), Image.new("RGB", (40, 20), "green")]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    assert corners(open_picture(data)) == ["red", "green", "blue", "white"]


# What must be refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(format: str, share: float, tmp_path: Path) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, format)
    file = tmp_path / "cut.jpg"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"cut\.jpg: "):
        open_picture(file)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"plain words in a file", "not a picture but text"),
        (b"\n<!DOCTYPE html><html>404", "not a picture but a web page"),
        (b"%PDF-1.7 \x00", "not a picture but a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "vector drawing"),
        (b"\x00\x01\x02\x03" * 9, "no kind that is known"),
        (b"\xff\xd8\xff", "damaged JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
    ],
)
def test_other_files_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_picture(data)


def test_formats_beyond_the_list_are_refused() -> None:
    with pytest.raises(DataError, match="an icon"):
        open_picture(saved(quarters(), "ICO"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_is_refused_or_survived() -> None:
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        whole = saved(quarters(), format)
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                damaged[place] = rng.integers(256)
            with contextlib.suppress(DataError):
                assert open_picture(bytes(damaged), Limits(pixels=10**6)).mode == "RGB"


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    code = """if True:
        import resource, struct, sys, zlib
        from cutline.data.images import open_picture
        from cutline.errors import DataError
        row = zlib.compressobj(9)
        body = b"".join(row.compress(bytes(150_001)) for _ in range(300)) + row.flush()
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
        bomb = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            open_picture(bomb)
        except DataError as error:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(grown < 50_000, error)
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True picture: 50000 x 50000 pixels are more than the limit"), done
    assert done.stderr == ""


def test_limits_are_each_callers_own(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(saved(quarters(), "PNG"))
    with pytest.raises(DataError, match="40 x 20 pixels are more than the limit"):
        open_picture(file, Limits(pixels=799))
    assert open_picture(file, Limits(pixels=800)).size == (40, 20)
    size = file.stat().st_size
    for source in (file, file.read_bytes(), io.BytesIO(file.read_bytes())):
        with pytest.raises(DataError, match="larger than the limit"):
            open_picture(source, Limits(bytes=size - 1))
    assert open_picture(file, Limits(bytes=size)).size == (40, 20)


def test_limits_do_not_depend_on_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format in ("JPEG", "PNG", "BMP", "PPM"):
        assert open_picture(saved(quarters(), format)).size == (40, 20)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero"), tmp_path, tmp_path / "absent.jpg"):
        with pytest.raises(DataError, match=r"not a file|a folder|No such file"):
            open_picture(path)


# Resizing -----------------------------------------------------------------------------------------------------------


def test_squash_keeps_all_and_crop_keeps_the_middle() -> None:
    stripes = Image.new("RGB", (90, 30), RED)
    stripes.paste(GREEN, (30, 0, 60, 30))
    squashed = Transform(30, "squash")(stripes)
    assert squashed.shape == (30, 30, 3)
    assert squashed.dtype == np.uint8
    assert tuple(squashed[15, 2]) == RED
    assert tuple(squashed[15, 15]) == GREEN
    cropped = Transform(30, "crop")(stripes)
    assert (cropped == GREEN).all()
    tall = Transform(30, "crop")(stripes.transpose(Image.Transpose.ROTATE_90))
    assert (tall == GREEN).all()


def test_crop_pct_cuts_a_smaller_middle() -> None:
    framed = Image.new("RGB", (100, 100), RED)
    framed.paste(GREEN, (10, 10, 90, 90))
    assert (Transform(32, "crop", crop_pct=0.75)(framed) == GREEN).all()
    assert tuple(Transform(32, "crop", crop_pct=1.0)(framed)[0, 0]) == RED


def test_resizing_is_antialiased() -> None:
    fine = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (256, 128)))
    for interpolation in ("bilinear", "bicubic"):
        small = Transform(16, interpolation=interpolation)(fine)  # type: ignore[arg-type]
        assert np.abs(small.astype(int) - 127).max() < 12


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_extreme_shapes(size: tuple[int, int], fit: str) -> None:
    assert Transform(16, fit)(Image.new("RGB", size, RED)).tolist() == [[list(RED)] * 16] * 16  # type: ignore[arg-type]


def test_from_file_decodes_jpegs_smaller_and_sees_the_same() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((1600, 1200))
    data = saved(smooth, "JPEG", quality=95)
    assert open_picture(data, at_least=200).size == (400, 300)
    assert open_picture(data, at_least=301).size == (800, 600)
    for transform in (Transform(96), Transform(96, "crop", "bicubic", 0.875)):
        whole = transform(open_picture(data)).astype(int)
        assert np.abs(transform.from_file(data) - whole).mean() < 1.0


def test_transform_survives_json_and_refuses_strangers() -> None:
    transform = Transform(160, "crop", "bicubic", 0.875, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert Transform.from_dict(transform.to_dict()) == transform
    with pytest.raises(DataError, match="sharpen"):
        Transform.from_dict({**transform.to_dict(), "sharpen": 1})
    for wrong in ({"size": 0}, {"fit": "stretch"}, {"interpolation": "sinc"}, {"crop_pct": 0.0}, {"mean": (0.5,)}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            Transform(**wrong)  # type: ignore[arg-type]


def test_as_rgb_leaves_rgb_alone() -> None:
    picture = quarters()
    assert as_rgb(picture) is picture


# Finding pictures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ["10.jpg", "2.JPG", "b/1.png", ".hidden.jpg", "b/.cache/3.jpg", "__MACOSX/2.jpg", "notes.txt", "odd[1].jpg"]
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    return tmp_path


def test_folders_are_searched_in_natural_order(folder: Path) -> None:
    found = [path.relative_to(folder).as_posix() for path in find_pictures(str(folder))]
    assert found == ["2.JPG", "10.jpg", "odd[1].jpg", "b/1.png"]


def test_globs_files_and_names_that_look_like_globs(folder: Path) -> None:
    assert [path.name for path in find_pictures(f"{folder}/*.[jJ]*")] == ["2.JPG", "10.jpg", "odd[1].jpg"]
    assert [path.name for path in find_pictures(f"{folder}/**/*.png")] == ["1.png"]
    assert find_pictures(f"{folder}/odd[1].jpg") == [folder / "odd[1].jpg"]
    assert find_pictures(f"{folder}/notes.txt") == [folder / "notes.txt"]  # named outright: opening it says what it is


def test_finding_nothing_says_so(folder: Path) -> None:
    (folder / "empty").mkdir()
    for argument, message in (("empty", "no pictures in"), ("*.gif", "matches nothing"), ("*.txt", "but no picture")):
        with pytest.raises(DataError, match=message):
            find_pictures(f"{folder}/{argument}")
    with pytest.raises(DataError, match="there is no"):
        find_pictures(f"{folder}/absent.jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_that_holds_itself_ends(folder: Path) -> None:
    (folder / "b" / "loop").symlink_to(folder)
    assert len(find_pictures(str(folder))) == 4


def test_a_folder_that_may_not_be_looked_into_stands_for_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "lost+found"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "1.png")
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "lost+found":  # root may look into all of them
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert find_pictures(str(tmp_path)) == [tmp_path / "a" / "1.png", tmp_path / "lost+found"]


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_readable_are_those_that_can_be_decoded_to_their_end(format: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    whole, cut, gone = (tmp_path / name for name in ("whole", "cut", "gone"))
    Image.fromarray(noise).save(whole, format)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    assert list(readable([gone, cut, whole])) == [whole]


def test_a_disk_that_does_not_give_a_picture_back_is_told_as_any_other_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(file: object, name: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_identify", read)
    with pytest.raises(DataError, match=r"a\.png cannot be read: Input/output error"):
        open_picture(tmp_path / "a.png")


def test_what_pillow_refuses_by_a_limit_of_its_own_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [saved(quarters(), format) for format in ("TIFF", "WEBP")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for file in files:
        with pytest.raises(DataError, match="more pixels than Pillow takes of this format") as refused:
            open_picture(file)
        assert "damaged" not in str(refused.value)
