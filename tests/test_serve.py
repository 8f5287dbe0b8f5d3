import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from debride.errors import ImagesError, ModelError, SpecError, UsageError
from debride.framing import fitted
from debride.pixels import encode
from debride.serve import Classifier, Prediction
from debride.sessions import Runtime
from debride.spec import to_json
from debride.specfile import METADATA_KEY
from tiny import PALETTE, tiny_classifier, tiny_samples, tiny_spec

ONE = Runtime(threads=1)
NAMES = ("red", "green", "blue", "white")


def classifier(spec=None, **options):
    spec = spec or tiny_spec(class_names=NAMES)
    return Classifier(tiny_classifier(spec, **options), spec=spec, runtime=ONE)


def pixels(colour, size=(6, 5)):
    return np.broadcast_to((PALETTE[colour] * 255).astype(np.uint8), (*size, 3)).copy()


def png(array):
    return cv2.imencode(".png", array[:, :, ::-1])[1].tobytes()


def winners(found):
    return [row[0].label for row in found]


def modules_of(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_serve_loads_onnxruntime_numpy_and_opencv_and_little_else():
    added = modules_of("import debride.serve") - modules_of("import numpy, onnxruntime, cv2")
    assert {name for name in added if not name.startswith("debride")} <= {
        *("zlib", "_json", "json", "json.decoder", "json.encoder", "json.scanner", "dataclasses"),
        *("numpy.typing", "numpy._typing._add_docstring", "__main__"),
    }
    # These are what makes debride's own import slow.
    assert added.isdisjoint({"debride.types", "debride.images", "debride.measure", "debride.npz"})
    assert "debride.types_input" in added


def test_paths_bytes_and_arrays_of_any_size_are_classified(tmp_path):
    (tmp_path / "blue.png").write_bytes(png(pixels(2, (30, 20))))
    images = [
        tmp_path / "blue.png",
        str(tmp_path / "blue.png"),
        png(pixels(1)),
        pixels(0, (3, 2)),
        pixels(3).astype(np.float32) / 255,
        np.full((6, 5), 200, np.uint8),
        np.full((6, 5, 1), 0.8),
    ]
    assert winners(classifier().classify(images)) == ["blue", "blue", "green", "red", "white", "white", "white"]


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_probabilities_are_softmaxed_once(softmax, layout):
    spec = tiny_spec(layout=layout)
    found = classifier(spec, softmax=softmax, sharpness=1.0).classify([pixels(0)], top=9)[0]
    colour = pixels(0)[0, 0] / 255
    logits = -((PALETTE - colour) ** 2).sum(axis=1)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([p.probability for p in found], np.sort(expected)[::-1], atol=1e-5)
    assert [p.index for p in found] == np.argsort(-expected).tolist()


def test_top_bounds_the_classes_and_classes_without_names_are_their_index():
    found = classifier(tiny_spec()).classify([pixels(2)], top=2)
    assert len(found[0]) == 2
    assert (found[0][0].label, found[0][0].index) == ("2", 2)
    assert isinstance(found[0][0], Prediction)


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_a_generator_of_more_images_than_a_batch_keeps_its_order(batch):
    samples = tiny_samples(20)
    spec = tiny_spec()
    served = Classifier(tiny_classifier(spec, batch=batch), spec=spec, runtime=ONE, batch=7)
    found = served.classify(image.transpose(1, 2, 0) for image in samples.images)
    assert [row[0].index for row in found] == samples.labels.tolist()
    assert served.classify([]) == []


def test_the_spec_is_read_from_metadata_or_from_the_sidecar(tmp_path):
    truth = tiny_spec(range=(0.0, 255.0), channels="BGR", class_names=NAMES)
    by_metadata = Classifier(tiny_classifier(truth, metadata={METADATA_KEY: to_json(truth)}), runtime=ONE)
    assert by_metadata.spec.source == "metadata"
    assert winners(by_metadata.classify([pixels(0)])) == ["red"]

    (tmp_path / "m.onnx").write_bytes(tiny_classifier(truth))
    (tmp_path / "m.json").write_text(json.dumps({"range": [0, 255], "channels": "BGR", "class_names": NAMES}))
    by_sidecar = Classifier(str(tmp_path / "m.onnx"), runtime=ONE)
    assert by_sidecar.spec.source == "side-car"
    assert winners(by_sidecar.classify([pixels(0)])) == ["red"]
    assert by_sidecar.provider == "CPUExecutionProvider"


def test_without_a_spec_the_error_says_how_to_give_one():
    with pytest.raises(SpecError, match=r"--range.*MODEL\.json"):
        Classifier(tiny_classifier(tiny_spec()), runtime=ONE)


def test_a_model_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ModelError, match=r"gone\.onnx: no such file"):
        Classifier(tmp_path / "gone.onnx")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((6, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(30, np.uint8),
        np.full((6, 5, 3), 1.5),
        np.full((6, 5, 3), np.nan),
        np.zeros((6, 5, 3), np.int64),
        b"junk",
        None,
        bytearray(png(pixels(0))),
    ],
)
def test_an_image_that_cannot_be_used_is_an_error_that_says_which(image):
    with pytest.raises(ImagesError, match=r"^image 1: "):
        classifier().classify([pixels(0), image])


@pytest.mark.parametrize(
    "one",
    ["photo.png", b"junk", Path("photo.png"), pixels(0), pixels(0)[:, :, :1], pixels(0)[:, :, 0], pixels(0) / 255],
    ids=["name", "bytes", "path", "colour", "one channel", "grey", "floats"],
)
def test_one_image_that_is_no_list_is_an_error_that_says_how_to_give_it(one):
    with pytest.raises(ImagesError, match=r"classify\(\[image\]\)"):
        classifier().classify(one)


def test_an_array_of_images_is_a_batch():
    assert winners(classifier().classify(np.stack([pixels(2), pixels(0)]))) == ["blue", "red"]
    assert len(classifier().classify(np.zeros((2, 6, 5), np.uint8))) == 2  # grey ones


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_no_images_is_refused(batch):
    with pytest.raises(UsageError, match=rf"batch is {batch}"):
        Classifier(tiny_classifier(tiny_spec()), spec=tiny_spec(), runtime=ONE, batch=batch)


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ImagesError, match=r"gone\.png"):
        classifier().classify([tmp_path / "gone.png"])
    (tmp_path / "bad.png").write_bytes(b"junk")
    with pytest.raises(ImagesError, match=r"bad\.png"):
        classifier().classify([tmp_path / "bad.png"])


# --- rows --------------------------------------------------------------------------------------------------------

SCALINGS = [
    {},
    {"range": (0.0, 255.0)},
    {"range": (-1.0, 1.0), "mean": (0.1,), "std": (0.3,)},
    {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
def test_looked_up_rows_are_bit_for_bit_what_encode_gives(channels, layout, scaling):
    if channels == "L" and len(scaling.get("mean", ())) == 3:
        scaling = {"mean": (0.13,), "std": (0.31,)}
    spec = tiny_spec(layout=layout, channels=channels, size=(17, 16), **scaling)
    served = classifier(spec)
    image = np.random.default_rng(0).permutation(np.arange(17 * 16 * spec.depth) % 256).astype(np.uint8)
    image = image.reshape(17, 16, spec.depth)
    expected = encode(fitted(image, spec.depth, spec.size)[None], spec)[0]
    fortran = np.asfortranarray(image)
    for same in (image, fortran, image[::-1][::-1], *([image[:, :, 0]] if spec.depth == 1 else [])):
        found = served.prepare(same, "a")
        assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_array_equal(found, expected)
    written = image[:, :, 0] if spec.depth == 1 else image[:, :, ::-1]
    np.testing.assert_array_equal(served.prepare(cv2.imencode(".png", written)[1].tobytes(), "a"), expected)


def test_prepare_names_the_image_and_heeds_the_limit_given():
    served = classifier()
    assert served.prepare(png(pixels(0, (30, 20))), "a", max_pixels=600).shape == (3, 6, 5)
    with pytest.raises(ImagesError, match=r"^photo: 20x30 pixels exceed the limit of 599"):
        served.prepare(png(pixels(0, (30, 20))), "photo", max_pixels=599)


def test_an_image_is_scaled_and_cut_as_the_spec_says():
    # Red at the edges, blue in the middle: only who cuts sees blue.
    image = pixels(0, (12, 40))
    image[:, 14:26] = pixels(2, (12, 12))
    assert winners(classifier(tiny_spec(class_names=NAMES, short_side=6)).classify([image])) == ["blue"]
    assert winners(classifier().classify([image])) != ["blue"]


def retyped(dtype, **options):
    """The tiny classifier with its input and output in `dtype`."""
    model = onnx.load_from_string(tiny_classifier(tiny_spec(), **options))
    graph = model.graph
    graph.node[0].input[0] = "single"
    graph.node[-1].output[0] = "single_scores"
    graph.node.insert(0, helper.make_node("Cast", ["image"], ["single"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Cast", ["single_scores"], ["scores"], to=dtype))
    graph.input[0].type.tensor_type.elem_type = dtype
    graph.output[0].type.tensor_type.elem_type = dtype
    return model.SerializeToString()


@pytest.mark.parametrize(("dtype", "numpy_type"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)])
@pytest.mark.parametrize("softmax", [False, True])
def test_half_and_double_precision_are_served(dtype, numpy_type, softmax):
    served = Classifier(retyped(dtype, softmax=softmax), spec=tiny_spec(class_names=NAMES), runtime=ONE)
    assert (served.prepare(pixels(0), "a").dtype, served.softmax, served.splits) == (numpy_type, not softmax, True)
    assert winners(served.classify([pixels(c) for c in (0, 1, 2, 3)])) == list(NAMES)


def test_predict_scales_and_cuts_as_it_is_told(tmp_path):
    spec = tiny_spec(class_names=NAMES)
    (tmp_path / "m.onnx").write_bytes(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}))
    image = pixels(0, (12, 40))
    image[:, 14:26] = pixels(2, (12, 12))
    (tmp_path / "a.png").write_bytes(png(image))

    def best(*flags):
        command = "from debride.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", command, "predict", tmp_path / "m.onnx", tmp_path / "a.png", "--json", *flags],
            env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout)[0]["predictions"][0]["label"] if done.returncode == 0 else done.stderr

    assert best("--short-side", "6") == "blue"
    assert best() != "blue"
    assert "short_side 5 is less than the 6x5 pixels" in best("--short-side", "5")
