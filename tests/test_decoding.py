"""Image files against Pillow's own pixels, and images that are scaled and cut against the arithmetic of the cut."""

import io
import resource
import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debride import imagecheck
from debride.errors import ImagesError
from debride.framing import fitted, scaled_size
from debride.images import load_images
from debride.pixels import decode, read_pixels
from tiny import tiny_spec

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
ImageCms = pytest.importorskip("PIL.ImageCms")
PngImagePlugin = pytest.importorskip("PIL.PngImagePlugin")

BLOCKS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
PIXELS = np.kron(BLOCKS, np.ones((8, 8, 1), np.uint8))
COLOUR = Image.fromarray(PIXELS)
GREY = COLOUR.convert("L")
DEEP = np.random.default_rng(1).integers(0, 1 << 16, (9, 11), dtype=np.uint16)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(image, alpha):
    joined = image.copy()
    joined.putalpha(alpha)
    return joined


def reread(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(saved(COLOUR, "PNG"), COLOUR, id="png"),
        pytest.param(saved(GREY, "PNG"), GREY, id="grey png"),
        pytest.param(saved(with_alpha(COLOUR, GREY), "PNG"), COLOUR, id="alpha"),
        pytest.param(saved(with_alpha(COLOUR, 0), "PNG"), COLOUR, id="all transparent"),
        pytest.param(saved(with_alpha(COLOUR, GREY), "WEBP", lossless=True, exact=True), COLOUR, id="webp alpha"),
        pytest.param(saved(with_alpha(GREY, COLOUR.getchannel(1)), "PNG"), GREY.convert("RGB"), id="grey and alpha"),
        pytest.param(saved(GREY, "PNG", transparency=3), GREY, id="grey with a transparent value"),
        pytest.param(saved(COLOUR.quantize(16), "PNG"), COLOUR.quantize(16).convert("RGB"), id="palette"),
        pytest.param(
            saved(COLOUR.quantize(16), "PNG", transparency=3), COLOUR.quantize(16).convert("RGB"), id="palette, alpha"
        ),
        pytest.param(saved(COLOUR.quantize(16), "BMP"), COLOUR.quantize(16).convert("RGB"), id="palette bmp"),
        pytest.param(saved(GREY.convert("1"), "PNG"), GREY.convert("1").convert("L"), id="one bit"),
        pytest.param(saved(GREY.convert("1"), "PPM"), GREY.convert("1").convert("L"), id="one bit pbm"),
        pytest.param(saved(Image.fromarray(DEEP), "PNG"), DEEP, id="16 bits grey"),
        pytest.param(saved(COLOUR, "BMP"), COLOUR, id="bmp"),
        pytest.param(saved(COLOUR, "PPM"), COLOUR, id="ppm"),
        pytest.param(saved(COLOUR, "WEBP", lossless=True), COLOUR, id="webp"),
        pytest.param(saved(COLOUR, "JPEG"), reread(saved(COLOUR, "JPEG")), id="jpeg"),
        pytest.param(
            saved(COLOUR, "JPEG", progressive=True), reread(saved(COLOUR, "JPEG", progressive=True)), id="progressive"
        ),
        pytest.param(saved(GREY, "JPEG"), reread(saved(GREY, "JPEG")), id="grey jpeg"),
        pytest.param(saved(COLOUR, "JPEG") + b"more", reread(saved(COLOUR, "JPEG")), id="bytes after the end"),
    ],
)
def test_files_give_the_pixels_that_pillow_reads(data, expected):
    found = read_pixels(data, "a")
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert found.dtype == np.asarray(expected).dtype


def test_cmyk_is_converted_as_pillow_does_but_for_rounding():
    data = saved(COLOUR.convert("CMYK"), "JPEG", quality=95)
    difference = read_pixels(data, "a").astype(int) - np.asarray(reread(data).convert("RGB"))
    assert np.abs(difference).max() <= 1


def test_16_bits_of_colour_keep_their_order():
    deep = np.random.default_rng(2).integers(0, 1 << 16, (9, 11, 4), dtype=np.uint16)
    data = cv2.imencode(".png", deep[:, :, [2, 1, 0, 3]])[1].tobytes()
    np.testing.assert_array_equal(read_pixels(data, "a"), deep[:, :, :3])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_honoured(kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = saved(COLOUR, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(read_pixels(data, "a"), np.asarray(ImageOps.exif_transpose(reread(data))))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("MPO", {"quality": 95})])
def test_of_several_images_in_a_file_the_first_is_taken(kind, options):
    data = saved(COLOUR, kind, save_all=True, append_images=[Image.fromarray(255 - PIXELS)], **options)
    expected = reread(saved(COLOUR, "JPEG", quality=95)) if kind == "MPO" else COLOUR
    np.testing.assert_array_equal(read_pixels(data, "a"), np.asarray(expected))


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_other_formats_are_refused(kind):
    with pytest.raises(ImagesError, match=r"^a\.x: no readable PNG"):
        read_pixels(saved(COLOUR, kind), "a.x")


# --- broken and hostile files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 2, 5, 20, 400])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
def test_a_file_that_is_not_whole_is_an_error(kind, missing):
    data = saved(COLOUR, kind)
    with pytest.raises(ImagesError, match=r"^half\.x: "):
        read_pixels(data[:-missing], "half.x")


def test_a_thumbnail_does_not_pass_for_the_end_of_the_image():
    thumbnail = saved(COLOUR, "JPEG")[:3000] + b"\xff\xd9"
    whole = saved(COLOUR, "JPEG", quality=95)
    data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + whole[2:]
    np.testing.assert_array_equal(read_pixels(data, "a"), np.asarray(reread(whole)))
    with pytest.raises(ImagesError, match=r"^a: ends before the image does"):
        read_pixels(data[:-2], "a")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
def test_more_pixels_than_allowed_are_told_from_the_header_alone(kind, monkeypatch):
    data = saved(COLOUR, kind)
    assert read_pixels(data, "a", max_pixels=40 * 56).shape == (56, 40, 3)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImagesError, match=r"^a: 40x56 pixels exceed the limit of 2239"):
        read_pixels(data, "a", max_pixels=40 * 56 - 1)


@pytest.mark.parametrize("header", [b"P6\n#a\r3000 3000 \n4 4\n255\n", b"P6\n4#3000\n4 4\n255\n", b"P5 4#9\n4\n255\n"])
def test_a_header_that_opencv_would_read_otherwise_is_refused_before_it_is_decoded(header, monkeypatch):
    decoded = []
    monkeypatch.setattr(cv2, "imdecode", lambda data, _: decoded.append(data))
    with pytest.raises(ImagesError, match=r"^a: "):
        read_pixels(header + bytes(3 * 16), "a", max_pixels=16)
    assert not decoded


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\xe1\0\2"])
def test_a_jpeg_of_endless_segments_is_given_up_soon(filler):
    data = b"\xff\xd8" + filler * (1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    with pytest.raises(ImagesError, match=r"^a: no readable"):
        read_pixels(data, "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 0.25


@pytest.mark.parametrize("size", [(4, 4), (41, 56)])
def test_a_png_whose_header_lies_about_its_size_is_an_error(size):
    data = bytearray(saved(COLOUR, "PNG"))
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ImagesError, match=r"^a: cannot be decoded"):
        read_pixels(bytes(data), "a")


def test_pixels_of_another_size_than_the_header_says_are_refused(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((56, 41, 3), np.uint8))
    with pytest.raises(ImagesError, match=r"^a: cannot be decoded"):
        read_pixels(saved(COLOUR, "PNG"), "a")


# --- files that would take long ----------------------------------------------------------------------------------

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ORIENTATION = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0%c\0\0\0\0\0\0"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png, *chunks):
    """`png` with chunks right after its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def png_of(size, packed, *, depth=8, colour=0, interlace=0):
    height, width = size
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    palette = chunk(b"PLTE", bytes(3 << depth)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def raw_rows(size, bits, interlace):
    """What a PNG's pixels inflate to, of noise, its rows unfiltered: counted pixel by pixel."""
    height, width = size
    noise, found = np.random.default_rng(3), b""
    for x, y, across, down in ADAM7 if interlace else ((0, 0, 1, 1),):
        columns = len(range(x, width, across))
        for _ in range(y, height, down) if columns else ():
            found += b"\0" + noise.bytes(-(-columns * bits // 8))
    return found


def interlaced(pixels):
    """`pixels` (H, W, 3) as an interlaced PNG, which Pillow reads and does not write."""
    rows = [b"\0" + row.tobytes() for x, y, dx, dy in ADAM7 for row in pixels[y::dy, x::dx] if row.size]
    return png_of(pixels.shape[:2], zlib.compress(b"".join(rows)), colour=2, interlace=1)


def not_decoded(*_):
    pytest.fail("decoded")


def scans_of(data, more):
    """A progressive JPEG with its last scan repeated."""
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * more + data[-2:]


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (56, 40), (8, 3)])
def test_interlaced_pngs_give_the_pixels_that_pillow_reads(size):
    data = interlaced(PIXELS[: size[0], : size[1]])
    found = read_pixels(data, "a")
    np.testing.assert_array_equal(found, np.asarray(reread(data)))
    np.testing.assert_array_equal(found, PIXELS[: size[0], : size[1]])


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize(
    ("colour", "depth"),
    [
        *((0, d) for d in (1, 2, 4, 8, 16)),
        *((3, d) for d in (1, 2, 4, 8)),
        *((c, d) for c in (2, 4, 6) for d in (8, 16)),
    ],
)
def test_a_png_may_inflate_to_its_pixels_and_to_no_byte_more(colour, depth, interlace, monkeypatch):
    monkeypatch.setattr(imagecheck, "_SLACK", 0)
    for size in ((1, 1), (3, 5), (17, 9), (2, 64)):
        raw = raw_rows(size, depth * CHANNELS[colour], interlace)
        kind = {"depth": depth, "colour": colour, "interlace": interlace}
        assert read_pixels(png_of(size, zlib.compress(raw), **kind), "a").shape[:2] == size
        with pytest.raises(
            ImagesError, match=rf"^a: inflates to more than the {len(raw)} bytes of {size[1]}x{size[0]}"
        ):
            read_pixels(png_of(size, zlib.compress(raw + b"\0"), **kind), "a")


def test_texts_profiles_and_animation_of_a_png_change_no_pixel_and_reach_no_decoder(monkeypatch):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * 500, zip=True)
    info.add_itxt("Title", "Grüße", "de", "Titel", zip=True)
    info.add_text("Author", "somebody")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rich = saved(COLOUR, "PNG", pnginfo=info, icc_profile=profile, dpi=(72, 72))
    rich = with_chunks(rich, chunk(b"gAMA", struct.pack(">I", 20_000)), chunk(b"sBIT", b"\5\6\5"))
    animated = saved(COLOUR, "PNG", save_all=True, append_images=[Image.fromarray(255 - PIXELS)], default_image=True)
    for data in (rich, animated):
        np.testing.assert_array_equal(read_pixels(data, "a"), PIXELS)
    given, decode_it = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: given.append(data.tobytes()) or decode_it(data, flags))
    for data in (rich, animated, saved(COLOUR, "PNG")):
        np.testing.assert_array_equal(read_pixels(data, "a"), PIXELS)
    for kind in (b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"pHYs", b"gAMA", b"sBIT"):
        assert kind in rich
        assert kind not in given[0]
    assert b"fdAT" in animated
    assert b"fdAT" not in given[1]
    assert given[2] == saved(COLOUR, "PNG")


def test_of_many_orientations_in_a_png_the_first_counts_and_no_line_is_written_for_each(capfd):
    plain = saved(COLOUR, "PNG")
    many = [chunk(b"eXIf", ORIENTATION % n) for n in (6, *[1] * 20_000)]
    np.testing.assert_array_equal(read_pixels(with_chunks(plain, *many), "a"), np.rot90(PIXELS, -1))
    assert capfd.readouterr().err.count("\n") <= 2


def test_a_png_whose_texts_inflate_to_gigabytes_is_only_its_pixels(monkeypatch):
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(8 << 20), 9))
    given, plain = [], saved(COLOUR, "PNG")
    monkeypatch.setattr(cv2, "imdecode", lambda data, _: given.append(data.tobytes()))
    with pytest.raises(ImagesError):
        read_pixels(with_chunks(plain, *[text] * 100), "a")
    assert given == [plain]


@pytest.mark.parametrize("parts", [1, 3000])
def test_a_png_that_inflates_to_more_than_its_pixels_is_refused_before_it_is_decoded(parts, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", not_decoded)
    packed = zlib.compress(bytes(64 << 20), 9)
    step = -(-len(packed) // parts)
    chunks = [chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step)]
    whole = png_of((28, 28), b"")
    with pytest.raises(ImagesError, match=r"^a: inflates to more than the 812 bytes of 28x28 pixels"):
        read_pixels(whole[:-12] + b"".join(chunks) + whole[-12:], "a")


def test_no_more_of_a_png_is_inflated_than_its_pixels_take(monkeypatch):
    found = []

    class Counting:
        def __init__(self):
            self._stream = zlib.decompressobj()
            self.decompress = lambda data, most: found.append(self._stream.decompress(data, most)) or found[-1]

        @property
        def eof(self):
            return self._stream.eof

    monkeypatch.setattr(imagecheck, "zlib", SimpleNamespace(decompressobj=Counting, error=zlib.error))
    with pytest.raises(ImagesError, match=r"^a: inflates"):
        read_pixels(png_of((28, 28), zlib.compress(bytes(64 << 20), 9)), "a")
    assert sum(map(len, found)) <= 812 + (1 << 20) + 1


def test_a_png_of_very_many_chunks_is_an_error():
    data = with_chunks(saved(COLOUR, "PNG"), chunk(b"tEXt", b"k\0a") * (1 << 16))
    with pytest.raises(ImagesError, match=r"^a: has more than 65536 chunks"):
        read_pixels(data, "a")


def test_a_jpeg_of_as_many_scans_as_tools_write_is_decoded_and_of_more_is_refused(monkeypatch):
    data = saved(COLOUR, "JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    most = scans_of(data, 100 - scans)
    np.testing.assert_array_equal(read_pixels(most, "a"), np.asarray(reread(most)))
    monkeypatch.setattr(cv2, "imdecode", not_decoded)
    for more in (101 - scans, 200_000):
        with pytest.raises(ImagesError, match=r"^a: has more than 100 scans"):
            read_pixels(scans_of(data, more), "a")


def test_what_looks_like_a_scan_and_is_none_does_not_count():
    data = saved(COLOUR, "JPEG", quality=95)
    comment = b"\xff\xfe" + struct.pack(">H", 2002) + b"\xff\xda" * 1000
    expected = np.asarray(reread(data))
    for where in (2, len(data) - 2):
        np.testing.assert_array_equal(read_pixels(data[:where] + comment + data[where:], "a"), expected)
    np.testing.assert_array_equal(read_pixels(data + b"\xff\xda" * 1000, "a"), expected)


@pytest.mark.parametrize("progressive", [0, 1])
def test_scans_with_restart_markers_are_walked_to_their_end(progressive):
    pixels = np.random.default_rng(4).integers(0, 256, (96, 80, 3), np.uint8)
    flags = [cv2.IMWRITE_JPEG_RST_INTERVAL, 1, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    data = cv2.imencode(".jpg", pixels, flags)[1].tobytes()
    assert data.count(b"\xff\xd3") > 1
    np.testing.assert_array_equal(read_pixels(data, "a"), np.asarray(reread(data)))
    with pytest.raises(ImagesError, match=r"^a: ends before the image does"):
        read_pixels(data[:-2], "a")


@pytest.mark.parametrize("segment", [b"\xff\xfe\0\2", b"\xff\xe1\0\2", b"\xff\xc4\0\2"])
def test_a_jpeg_of_very_many_segments_after_its_scan_is_refused(segment, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", not_decoded)
    data = saved(COLOUR, "JPEG")
    with pytest.raises(ImagesError, match=r"^a: has more than 16384 segments"):
        read_pixels(data[:-2] + segment * (1 << 20) + data[-2:], "a")


@pytest.mark.parametrize("end", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) - 1, 3 << 20])
def test_the_end_of_a_jpeg_is_found_wherever_it_lies(end):
    """It is searched in pieces of a mebibyte, from the end of the scan's header on."""
    data = saved(COLOUR, "JPEG", quality=95)
    begin = data.rindex(b"\xff\xda") + 2
    begin += struct.unpack_from(">H", data, begin)[0]
    for filler in (b"\0", b"\xff"):
        filled = data[:-2] + filler * (begin + end - (len(data) - 2)) + data[-2:]
        np.testing.assert_array_equal(read_pixels(filled, "a"), np.asarray(reread(data)))
        with pytest.raises(ImagesError, match=r"^a: ends before the image does"):
            read_pixels(filled[:-1], "a")


MEASURED = """
import sys
from debride.framing import fitted
from debride.pixels import read_pixels
data = open(sys.argv[1], "rb").read()
peak = lambda what: next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(what)) * 1024
before = peak("VmRSS")
fitted(read_pixels(data, "a"), int(sys.argv[2]), (224, 224), 256)
print(peak("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("depth", [1, 3])
def test_shrinking_a_large_image_takes_little_more_than_twice_its_bytes(depth, tmp_path):
    rows, columns = 4096, 4099
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), cv2.resize(BLOCKS, (columns, rows)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), str(depth)],
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= 2.5 * rows * columns * 3


# --- scaled and cut ----------------------------------------------------------------------------------------------


@given(height=st.integers(8, 60), width=st.integers(8, 60), crop=st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_without_scaling_the_cut_is_that_of_torchvision(height, width, crop):
    short = min(height, width)
    if short < max(crop):
        return
    pixels = np.arange(height * width, dtype=np.float32).reshape(height, width) / (height * width)
    top, left = round((height - crop[0]) / 2), round((width - crop[1]) / 2)
    expected = pixels[top : top + crop[0], left : left + crop[1]]
    if (height, width) != crop:
        np.testing.assert_array_equal(fitted(pixels, 1, crop, short)[0], expected)


@given(
    found=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    short=st.none() | st.integers(8, 64),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_the_scaled_size_is_what_images_are_scaled_to(found, short, size):
    scaled, seen = scaled_size(found, size, short), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("debride.framing.resized", lambda plane, to: seen.append(to) or np.zeros(to, np.float32))
        assert fitted(np.zeros(found, np.uint8), 1, size, short).shape == (1, *size)
    assert seen == [scaled]
    assert short is None or found == size or min(scaled) == short


@pytest.mark.parametrize("shape", [(100, 173), (173, 100), (64, 64), (40, 57), (31, 200)])
def test_the_short_side_is_scaled_and_the_centre_cut(shape):
    # A ramp tells which place of the image a pixel shows, whatever the filter.
    height, width = shape
    down, across = np.meshgrid(np.arange(height) / 256, np.arange(width) / 256, indexing="ij")
    pixels = np.dstack([down, across, np.zeros(shape)]).astype(np.float32)
    found = fitted(pixels, 3, (24, 32), 48)
    scaled = (48, int(48 * width / height)) if height <= width else (int(48 * height / width), 48)
    top, left = round((scaled[0] - 24) / 2), round((scaled[1] - 32) / 2)
    rows = ((np.arange(24) + top + 0.5) * height / scaled[0] - 0.5) / 256
    columns = ((np.arange(32) + left + 0.5) * width / scaled[1] - 0.5) / 256
    # A sixth of a pixel: an average over pixels that are cut through is not exact. Any other cut is off by 0.3 or more.
    np.testing.assert_allclose(found[0], np.broadcast_to(rows[:, None], (24, 32)), atol=1 / 6 / 256)
    np.testing.assert_allclose(found[1], np.broadcast_to(columns, (24, 32)), atol=1 / 6 / 256)


def test_what_has_the_models_size_already_is_not_cut_again():
    np.testing.assert_array_equal(fitted(PIXELS, 3, (56, 40), 256), PIXELS.transpose(2, 0, 1) / np.float32(255))


def test_an_image_too_elongated_to_be_scaled_is_an_error():
    with pytest.raises(ImagesError, match=r"^long: 100000x1 pixels are too elongated"):
        fitted(np.zeros((1, 100_000), np.uint8), 1, (8, 8), 256, "long")


def test_shrinking_plane_by_plane_is_shrinking_the_float_image():
    whole = cv2.resize(PIXELS.astype(np.float32) / np.float32(255), (11, 13), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(fitted(PIXELS, 3, (13, 11)), whole.transpose(2, 0, 1), atol=1.2e-7)
    grey = fitted(PIXELS, 1, (13, 11))[0]
    np.testing.assert_allclose(grey, whole @ np.array([0.299, 0.587, 0.114], np.float32), atol=2.4e-7)


def test_audit_and_serving_see_the_same_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(COLOUR, "PNG"))
    loaded = load_images(tmp_path, depth=3, size=(6, 5), resize=True, short_side=8)
    np.testing.assert_array_equal(loaded.images[0], fitted(PIXELS, 3, (6, 5), 8))
    assert not np.array_equal(loaded.images[0], fitted(PIXELS, 3, (6, 5)))
    np.testing.assert_array_equal(decode(saved(COLOUR, "PNG"), tiny_spec(), "a"), fitted(PIXELS, 3, (56, 40)))
