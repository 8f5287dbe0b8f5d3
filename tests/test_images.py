import struct
import zipfile
from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from debride.errors import ImagesError
from debride.framing import fitted
from debride.images import check_labels, decode, draw_per_class, encode, load_images, split
from debride.imagesize import image_size
from debride.types import Samples
from tiny import tiny_spec

RGB = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 2
GREY = RGB[:, :, 0]


def coded(pixels, suffix=".png"):
    ordered = pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]
    ok, data = cv2.imencode(suffix, ordered)
    assert ok
    return data.tobytes()


def planes(pixels):
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def class_folders(root, names, per_class=2, pixels=RGB):
    for value, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            (root / name / f"{i}.png").write_bytes(coded(np.full_like(pixels, 10 * value + i)))
    return root


# --- encode ------------------------------------------------------------------------------------------------------


@given(
    images=hnp.arrays(np.float32, (2, 3, 6, 5), elements=st.floats(0, 1, width=32, allow_subnormal=False)),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    channels=st.sampled_from(["RGB", "BGR"]),
    span=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)]),
    mean=st.sampled_from([(), (0.5,), (0.1, 0.2, 0.3)]),
    std=st.sampled_from([(), (0.25,), (0.5, 0.25, 2.0)]),
)
def test_encode_can_be_undone(images, layout, channels, span, mean, std):
    spec = tiny_spec(layout=layout, channels=channels, range=span, mean=mean, std=std)
    found = encode(images, spec).astype(np.float64)
    assert found.shape == ((2, 3, 6, 5) if layout == "NCHW" else (2, 6, 5, 3))
    ordered = found if layout == "NCHW" else found.transpose(0, 3, 1, 2)
    m = np.broadcast_to(np.array(mean or 0.0), 3).reshape(3, 1, 1)
    s = np.broadcast_to(np.array(std or 1.0), 3).reshape(3, 1, 1)
    unit = (ordered * s + m - span[0]) / (span[1] - span[0])
    np.testing.assert_allclose(unit[:, ::-1] if channels == "BGR" else unit, images, atol=2e-6)


def test_encode_gives_contiguous_float32_as_onnxruntime_wants_it():
    found = encode(np.zeros((1, 3, 6, 5), np.float32), tiny_spec(layout="NHWC", channels="BGR"))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


@pytest.mark.parametrize("shape", [(1, 1, 6, 5), (1, 3, 5, 6), (3, 6, 5)])
def test_encode_refuses_images_that_do_not_fit(shape):
    with pytest.raises(ImagesError, match="do not fit"):
        encode(np.zeros(shape, np.float32), tiny_spec())


# --- decode ------------------------------------------------------------------------------------------------------


def test_decode_gives_rgb_in_unit_range():
    np.testing.assert_array_equal(decode(coded(RGB), tiny_spec(), "a.png"), planes(RGB))


def test_decode_repeats_grey_for_an_rgb_model_and_weighs_colour_for_a_grey_one():
    np.testing.assert_array_equal(decode(coded(GREY), tiny_spec(), "a"), np.repeat(planes(GREY), 3, axis=0))
    found = decode(coded(RGB), tiny_spec(channels="L"), "a")
    np.testing.assert_allclose(found[0], planes(RGB).transpose(1, 2, 0) @ [0.299, 0.587, 0.114], atol=1e-6)


def test_decode_drops_alpha_and_scales_16_bits():
    alpha = np.dstack([RGB, np.full((6, 5, 1), 7, np.uint8)])
    np.testing.assert_array_equal(decode(coded(alpha), tiny_spec(), "a"), planes(RGB))
    deep = RGB.astype(np.uint16) * 257
    np.testing.assert_allclose(decode(coded(deep), tiny_spec(), "a"), planes(RGB), atol=1e-6)


def test_decode_honours_exif_orientation():
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    jpeg = coded(np.repeat(np.repeat(RGB, 8, 0), 8, 1), ".jpg")
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    plain = decode(jpeg, tiny_spec(), "a.jpg")
    np.testing.assert_array_equal(decode(turned, tiny_spec(), "a.jpg"), np.rot90(plain, -1, axes=(1, 2)))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".ppm"])
def test_size_is_read_from_the_header_of_every_format(suffix):
    assert image_size(coded(RGB, suffix), "a") == (6, 5)


def test_size_of_a_lossless_webp_is_read():
    ok, data = cv2.imencode(".webp", RGB, [cv2.IMWRITE_WEBP_QUALITY, 101])
    assert ok
    assert image_size(data.tobytes(), "a") == (6, 5)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    png = bytearray(coded(RGB))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(ImagesError, match=r"bomb\.png: 60000x60000 pixels exceed"):
        decode(bytes(png), tiny_spec(), "bomb.png")


@pytest.mark.parametrize(
    "data", [b"", b"text", b"GIF89a\1\0\1\0", b"\xff\xd8\xff", coded(RGB)[:40], coded(RGB, ".jpg")[:30]]
)
def test_an_unreadable_image_is_an_error_that_names_it(data):
    with pytest.raises(ImagesError, match=r"bad\.png"):
        decode(data, tiny_spec(), "bad.png")


@given(
    st.binary(max_size=64), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM", b"RIFF0000WEBP", b"P6 "])
)
def test_arbitrary_bytes_are_an_image_or_an_images_error(data, magic):
    try:
        decode(magic + data, tiny_spec(), "a")
    except ImagesError as error:
        assert str(error).startswith("a: ")


def test_resizing_keeps_a_flat_image_flat_and_averages_when_shrinking():
    flat = np.full((6, 5, 3), 0.25, np.float32)
    assert fitted(flat, 3, (12, 3)).shape == (3, 12, 3)
    np.testing.assert_allclose(fitted(flat, 3, (12, 3)), 0.25, atol=1e-6)
    image = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    np.testing.assert_allclose(fitted(image, 1, (2, 2))[0, 0, 0], image[:2, :2].mean(), atol=1e-6)


# --- folders -----------------------------------------------------------------------------------------------------


def test_class_folders_are_labelled_by_sorted_order(tmp_path):
    loaded = load_images(class_folders(tmp_path, ["cat", "dog"]), depth=3, size=(6, 5))
    assert loaded.labels.tolist() == [0, 0, 1, 1]
    assert loaded.files == ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    np.testing.assert_allclose(loaded.images[:, 0, 0, 0], np.array([0, 1, 10, 11]) / 255, atol=1e-7)
    assert (loaded.classes, loaded.numbered) == (("cat", "dog"), False)
    assert loaded.samples().images.shape == (4, 3, 6, 5)


def test_numbered_folders_are_labelled_by_their_number(tmp_path):
    loaded = load_images(class_folders(tmp_path, ["10", "007"]))
    assert sorted(set(loaded.labels.tolist())) == [7, 10]
    assert loaded.numbered


def test_named_folders_are_labelled_by_the_models_class_names(tmp_path):
    loaded = load_images(class_folders(tmp_path, ["cat", "dog"]), class_names=("dog", "bird", "cat"))
    assert loaded.labels.tolist() == [2, 2, 0, 0]
    assert loaded.numbered


def test_a_folder_of_which_only_some_are_class_names_is_an_error(tmp_path):
    with pytest.raises(ImagesError, match=r"cta: is none of the model's class names"):
        load_images(class_folders(tmp_path, ["cta", "dog"]), class_names=("cat", "dog"))


def test_a_folder_of_files_has_no_labels_and_hidden_and_other_files_are_ignored(tmp_path):
    (tmp_path / "b.PNG").write_bytes(coded(RGB))
    (tmp_path / "a.jpg").write_bytes(coded(RGB, ".jpg"))
    for name in (".hidden.png", "._b.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / ".git").mkdir()
    loaded = load_images(tmp_path)
    assert loaded.labels is None
    assert loaded.files == ("a.jpg", "b.PNG")


def test_grey_files_are_converted_for_an_rgb_model(tmp_path):
    loaded = load_images(class_folders(tmp_path, ["0", "1"], pixels=GREY), depth=3)
    assert loaded.images.shape == (4, 3, 6, 5)


def test_an_image_of_the_wrong_size_names_file_sizes_and_mend(tmp_path):
    class_folders(tmp_path, ["0", "1"])
    (tmp_path / "1" / "9.png").write_bytes(coded(RGB[:4]))
    with pytest.raises(ImagesError, match=r"1/9\.png: is 4x5 .*6x5 is wanted; pass --resize"):
        load_images(tmp_path, size=(6, 5))
    with pytest.raises(ImagesError, match=r"1/9\.png: is 4x5"):
        load_images(tmp_path)
    assert load_images(tmp_path, size=(6, 5), resize=True).images.shape == (5, 3, 6, 5)


@pytest.mark.parametrize("make", ["nothing", "class folders", "text only"])
def test_an_empty_folder_is_an_error_that_names_it(tmp_path, make):
    root = tmp_path / "images"
    root.mkdir()
    if make == "class folders":
        (root / "0").mkdir()
    if make == "text only":
        (root / "a.txt").write_text("x")
    with pytest.raises(ImagesError, match=r"images: holds no image file"):
        load_images(root)


def test_an_unreadable_file_is_an_error_that_names_it(tmp_path):
    class_folders(tmp_path, ["0", "1"])
    (tmp_path / "1" / "broken.png").write_bytes(coded(RGB)[:50])
    with pytest.raises(ImagesError, match=r"1/broken\.png"):
        load_images(tmp_path)


def test_another_image_format_is_an_error_and_not_skipped(tmp_path):
    class_folders(tmp_path, ["0", "1"])
    (tmp_path / "1" / "scan.tiff").write_bytes(coded(RGB, ".tiff"))
    with pytest.raises(ImagesError, match=r"scan\.tiff: no readable PNG"):
        load_images(tmp_path)


def test_links_that_lead_out_of_the_folder_are_refused(tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_bytes(coded(RGB))
    root = class_folders(tmp_path / "images", ["0", "1"])
    (root / "1" / "inside.png").symlink_to(root / "0" / "0.png")
    assert len(load_images(root).images) == 5
    (root / "1" / "link.png").symlink_to(outside)
    with pytest.raises(ImagesError, match=r"1/link\.png: a link that leads out"):
        load_images(root)


def test_a_linked_class_folder_that_leads_out_is_refused(tmp_path):
    outside = class_folders(tmp_path / "other", ["5"])
    root = class_folders(tmp_path / "images", ["0", "1"])
    (root / "5").symlink_to(outside / "5")
    with pytest.raises(ImagesError, match=r"images/5: a link that leads out"):
        load_images(root)


def test_images_beside_class_folders_and_nested_folders_are_errors(tmp_path):
    root = class_folders(tmp_path, ["0", "1"])
    (root / "stray.png").write_bytes(coded(RGB))
    with pytest.raises(ImagesError, match=r"stray\.png: lies beside class folders"):
        load_images(root)
    (root / "stray.png").unlink()
    (root / "1" / "deep").mkdir()
    with pytest.raises(ImagesError, match=r"1/deep: a folder inside a class folder"):
        load_images(root)


def test_too_many_values_are_refused(tmp_path):
    with pytest.raises(ImagesError, match="exceed the limit of 100 values"):
        load_images(class_folders(tmp_path, ["0", "1"]), limit=100)


@pytest.mark.parametrize("name", ["gone", "gone.npz", "images.zip"])
def test_a_path_that_holds_no_images_is_an_error_that_names_it(tmp_path, name):
    if name.endswith("zip"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ImagesError, match=name):
        load_images(tmp_path / name)


# --- npz ---------------------------------------------------------------------------------------------------------


def test_npz_gives_images_and_labels(tmp_path):
    x = np.stack([RGB, RGB[::-1]])
    np.savez_compressed(tmp_path / "a.npz", x=x, y=np.array([3, 1], np.int32), name=np.array(["a", "b"]))
    loaded = load_images(tmp_path / "a.npz", depth=3, size=(6, 5))
    np.testing.assert_array_equal(loaded.images[1], planes(RGB[::-1]))
    assert loaded.labels.tolist() == [3, 1]
    assert loaded.labels.dtype == np.int64


def test_npz_of_grey_images_without_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.stack([GREY, GREY]))
    loaded = load_images(tmp_path / "a.npz", depth=1)
    assert loaded.images.shape == (2, 1, 6, 5)
    assert loaded.labels is None


def test_npz_is_resized_only_when_asked(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.stack([RGB, RGB]))
    with pytest.raises(ImagesError, match=r"a\.npz: x: is 6x5 .*12x10 is wanted; pass --resize"):
        load_images(tmp_path / "a.npz", size=(12, 10))
    assert load_images(tmp_path / "a.npz", size=(12, 10), resize=True).images.shape == (2, 3, 12, 10)


TWO = np.stack([RGB, RGB])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": TWO}, "holds no array 'x'"),
        ({"x": TWO.astype(np.float32)}, "x is float32"),
        ({"x": RGB[..., :2][None]}, r"x is uint8 \(1, 6, 5, 2\)"),
        ({"x": TWO[:0]}, "x is empty"),
        ({"x": TWO[..., 0]}, r"x has 1 channels and the model wants 3; save x as \(N, H, W, 3\)"),
        ({"x": TWO, "y": np.array([1])}, "want one integer per image"),
        ({"x": TWO, "y": np.array([0.0, 1.0])}, "y is float64"),
        ({"x": np.array([{}, {}], object)}, "Python objects"),
    ],
)
def test_a_bad_npz_is_an_error_that_names_it(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ImagesError, match=rf"bad\.npz.*{message}"):
        load_images(tmp_path / "bad.npz", depth=3)


def test_an_rgb_npz_for_a_grey_model_is_an_error_with_the_mend(tmp_path):
    np.savez(tmp_path / "bad.npz", x=TWO)
    with pytest.raises(ImagesError, match=r"bad\.npz: x has 3 channels and the model wants 1; save x as \(N, H, W\)"):
        load_images(tmp_path / "bad.npz", depth=1)


def raw_npz(path, payload, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", payload)


def npy(shape, data, dtype="|u1"):
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def test_a_zip_bomb_is_refused_before_it_expands(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as out,
    ):
        for _ in range(10):
            out.write(bytes(1 << 20))
    with pytest.raises(ImagesError, match=r"bomb\.npz: expands to more than"):
        load_images(tmp_path / "bomb.npz", limit=4 << 20)


@pytest.mark.parametrize("payload", [npy((1 << 40, 6, 5), b"abc"), npy((2, 6, 5), b"abc"), b"\x93NUMPY\x01\0", b""])
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, payload):
    raw_npz(tmp_path / "bad.npz", payload)
    with pytest.raises(ImagesError, match=r"bad\.npz"):
        load_images(tmp_path / "bad.npz")


def test_a_truncated_or_corrupted_npz_is_an_error_that_names_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 5), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=noise)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[:100])
    with pytest.raises(ImagesError, match=r"bad\.npz"):
        load_images(tmp_path / "bad.npz")
    broken = bytearray(whole)
    broken[80:120] = bytes(40)
    (tmp_path / "bad.npz").write_bytes(broken)
    with pytest.raises(ImagesError, match=r"bad\.npz"):
        load_images(tmp_path / "bad.npz")


# --- labels, draws, splits ---------------------------------------------------------------------------------------


def test_labels_are_checked_against_the_model(tmp_path):
    root = class_folders(tmp_path, ["0", "4"])
    check_labels(load_images(root), 5, root)
    with pytest.raises(ImagesError, match=r"4/0\.png has label 4 and the model has 3 classes; labels go from 0 to 2"):
        check_labels(load_images(root), 3, root)


def test_one_class_only_is_an_error(tmp_path):
    root = class_folders(tmp_path, ["1"])
    with pytest.raises(ImagesError, match="images of one class only"):
        check_labels(load_images(root), 3, root)


def test_labels_guessed_from_fewer_folders_than_classes_are_an_error(tmp_path):
    root = class_folders(tmp_path, ["cat", "dog"])
    check_labels(load_images(root), 2, root)
    with pytest.raises(ImagesError, match="2 class folders for 10 classes"):
        check_labels(load_images(root), 10, root)


def test_labels_out_of_range_in_an_npz_name_the_row(tmp_path):
    np.savez(tmp_path / "a.npz", x=TWO, y=np.array([0, -1]))
    with pytest.raises(ImagesError, match=r"a\.npz: y\[1\] has label -1"):
        check_labels(load_images(tmp_path / "a.npz"), 10, tmp_path / "a.npz")


def numbered(labels, labelled=True):
    images = np.arange(len(labels), dtype=np.float32).reshape(-1, 1, 1, 1)
    return Samples(images=images, labels=np.array(labels) if labelled else None)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 9))
def test_a_draw_takes_n_of_each_class_and_depends_on_the_seed_alone(labels, n, seed):
    samples = numbered(labels)
    drawn = draw_per_class(samples, n, seed)
    counts = np.bincount(samples.labels)
    np.testing.assert_array_equal(np.bincount(drawn.labels, minlength=len(counts)), np.minimum(counts, n))
    np.testing.assert_array_equal(drawn.images, draw_per_class(samples, n, seed).images)
    assert len(np.unique(drawn.images)) == len(drawn)


def test_a_draw_without_labels_takes_n_for_every_class():
    assert len(draw_per_class(numbered(range(50), labelled=False), 2, 0, n_classes=10)) == 20
    assert len(draw_per_class(numbered(range(5), labelled=False), 2, 0, n_classes=10)) == 5


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 9), st.floats(0.1, 0.9), st.booleans())
def test_a_split_is_disjoint_whole_stratified_and_never_empty(labels, seed, fraction, labelled):
    samples = numbered(labels, labelled)
    fit, held = split(samples, seed, fraction)
    both = np.concatenate([fit.images.ravel(), held.images.ravel()])
    np.testing.assert_array_equal(np.sort(both), np.arange(len(labels)))
    assert len(fit)
    assert len(held)
    if labelled and len(set(labels)) < len(labels):
        for label in set(labels):
            count, kept = labels.count(label), int((fit.labels == label).sum())
            assert kept == 1 if count == 1 else 1 <= kept < count and abs(kept - count * fraction) <= 1


def test_with_one_image_per_class_half_of_the_classes_is_held_out():
    fit, held = split(numbered(range(9)), seed=0, fraction=0.5)
    assert (len(fit), len(held)) == (5, 4)
    assert not set(fit.labels) & set(held.labels)


def test_one_image_cannot_be_split():
    with pytest.raises(ImagesError, match="fewer than two images"):
        split(numbered([0]), seed=0)
