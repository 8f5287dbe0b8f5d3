"""Keras models come out as ONNX graphs that say what Keras says, on either backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from debride.errors import ModelError, UsageError
from debride.plugins import Adapter
from debride.types import Converted, ConvertOptions
from debride_adapters.keras import adapter, from_model
from graph_models import VENDOR

pytestmark = pytest.mark.frameworks
ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4
FAMILIES = ("resnet", "mobilenet", "densenet", "vit", "convnext", "resnext")
SMALL = (*FAMILIES, "sequential", "nested", "channels_first", "bytes_in")


@pytest.fixture(scope="module")
def zoo():
    import keras_zoo

    return keras_zoo


def parity(converted: Converted) -> float:
    """The largest difference between onnxruntime and Keras, relative to the scores, on batches of 1 and 5."""
    import onnxruntime

    onnx.checker.check_model(converted.onnx, full_check=True)
    session = onnxruntime.InferenceSession(converted.onnx, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert image.name == converted.spec["name"]
    assert session.get_outputs()[0].name == converted.spec["output"]
    worst = 0.0
    for batch in (1, 5):
        x = np.random.default_rng(batch).random((batch, *image.shape[1:]), np.float32)
        x *= converted.spec.get("range", (0, 1))[1]
        expected, actual = converted.reference(x), session.run(None, {image.name: x})
        assert [e.shape for e in expected] == [a.shape for a in actual]
        assert np.ptp(expected[0]) > 0
        pairs = zip(expected, actual, strict=True)
        worst = max(worst, *(float(np.abs(e - a).max() / np.abs(e).max()) for e, a in pairs))
    return worst


def opset(converted: Converted) -> int:
    model = onnx.ModelProto.FromString(converted.onnx)
    return next(entry.version for entry in model.opset_import if entry.domain == "")


@pytest.mark.parametrize("name", SMALL)
def test_a_model_in_memory_says_in_onnx_what_it_says_in_keras(zoo, name):
    converted = from_model(zoo.build(name))
    assert parity(converted) <= TOLERANCE
    assert opset(converted) == 18


@pytest.mark.parametrize(
    ("name", "suffix"), [(name, suffix) for suffix in (".keras", ".h5") for name in ("resnet", "mobilenet", "vit")]
)
def test_a_saved_model_gives_the_graph_of_the_model_in_memory(zoo, tmp_path, name, suffix):
    model = zoo.build(name)
    path = tmp_path / f"model{suffix}"
    model.compile("adam", "sparse_categorical_crossentropy")
    model.save(path)
    converted = adapter.convert(path, ConvertOptions())
    assert parity(converted) <= TOLERANCE
    x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(converted.reference(x)[0], model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    assert any("saved with Keras 3" in note for note in converted.notes)
    assert converted.packages["keras"]


def test_operations_and_models_within_models_survive_a_keras_file(zoo, tmp_path):
    path = tmp_path / "nested.keras"
    zoo.build("nested").save(path)
    assert parity(adapter.convert(path, ConvertOptions())) <= TOLERANCE


def test_efficientnet_scales_its_own_pixels_and_leaves_no_input_dangling(zoo, tmp_path):
    path = tmp_path / "efficientnet.keras"
    zoo.build("efficientnet").save(path)
    converted = adapter.convert(path, ConvertOptions())
    assert converted.spec["range"] == (0.0, 255.0)
    assert parity(converted) <= TOLERANCE
    assert len(onnx.ModelProto.FromString(converted.onnx).graph.input) == 1


def test_the_kind_is_told_by_the_content_whatever_the_suffix_says(zoo, tmp_path):
    zoo.build("sequential").save(tmp_path / "model.h5")
    (tmp_path / "model.h5").rename(tmp_path / "model.keras")
    assert parity(adapter.convert(tmp_path / "model.keras", ConvertOptions())) <= TOLERANCE


@pytest.mark.vendor
@pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "size", "classes"), [("gtsrb-badnet-yellow1.h5", (32, 32), 43), ("face-sunglasses.keras", (55, 47), 1283)]
)
def test_vendor_models_convert(name, size, classes):
    converted = adapter.convert(VENDOR / name, ConvertOptions())
    assert parity(converted) <= TOLERANCE
    assert converted.spec["layout"] == "NHWC"
    assert converted.spec["size"] == size
    assert converted.reference(np.zeros((1, *size, 3), np.float32))[0].shape == (1, classes)


def test_keras_2_depthwise_layers_that_name_groups_are_mended(zoo, tmp_path):
    import h5py

    path = tmp_path / "model.h5"
    zoo.build("mobilenet").save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layer = next(part for part in config["config"]["layers"] if part["class_name"] == "DepthwiseConv2D")
        layer["config"]["groups"] = 1
        file.attrs["model_config"] = json.dumps(config)
    assert parity(adapter.convert(path, ConvertOptions())) <= TOLERANCE


@pytest.mark.parametrize("side", [1, 2])
def test_normalisation_over_the_channels_of_the_smallest_maps_is_right(zoo, side):
    import keras

    image = keras.Input((side, side, 3))
    x = keras.layers.LayerNormalization()(keras.layers.Conv2D(6, 1)(image))
    assert parity(from_model(zoo.lived_in(keras.Model(image, x)))) <= TOLERANCE


def test_an_operation_that_the_exporter_lacks_is_named_with_the_other_backend(zoo):
    import keras

    image = keras.Input((8, 8, 3))
    x = keras.layers.Activation("celu")(keras.layers.Conv2D(4, 3)(image))
    with pytest.raises(ModelError, match=r"no ONNX operator for Expm1\); set KERAS_BACKEND=torch"):
        from_model(keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x))))


def test_the_opset_asked_for_is_the_opset_written_as_far_as_the_exporter_goes(zoo):
    model = zoo.build("sequential")
    assert opset(from_model(model, options=ConvertOptions(opset=15))) == 15
    assert 18 <= opset(from_model(model, options=ConvertOptions(opset=21))) <= 21


def test_open_sides_stay_open_or_are_fixed_by_the_options_and_contradictions_are_usage_errors(zoo):
    import keras

    image = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    model = keras.Model(image, keras.layers.Dense(3)(x))
    assert "size" not in from_model(model).spec
    fixed = from_model(model, options=ConvertOptions(input_shape=(24, 16, 3)))
    assert fixed.spec["size"] == (24, 16)
    assert parity(fixed) <= TOLERANCE
    with pytest.raises(UsageError, match="takes images of shape"):
        from_model(model, options=ConvertOptions(input_shape=(24, 16, 4)))


def test_models_of_two_inputs_or_of_no_image_are_refused(zoo):
    import keras

    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    with pytest.raises(ModelError, match="2 inputs"):
        from_model(keras.Model([a, b], keras.layers.Add()([a, b])))
    flat = keras.Input((8,))
    with pytest.raises(ModelError, match="classifiers of images"):
        from_model(keras.Model(flat, keras.layers.Dense(3)(flat)))


def test_of_several_outputs_none_is_said_to_be_the_scores(zoo):
    import keras

    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    converted = from_model(keras.Model(image, [x, keras.layers.Dense(3)(x)]))
    assert "output" not in converted.spec


def test_a_model_of_the_users_own_class_needs_the_shape_of_its_images(zoo):
    import keras

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = keras.layers.Conv2D(4, 3), keras.layers.GlobalMaxPooling2D()

        def call(self, x):
            return self.pool(self.conv(x))

    with pytest.raises(UsageError, match="--input-shape"):
        from_model(Own())
    assert parity(from_model(Own(), options=ConvertOptions(input_shape=(8, 8, 3)))) <= TOLERANCE


def test_the_adapter_is_one_and_imports_no_framework():
    assert isinstance(adapter, Adapter)
    code = (
        "import sys, debride_adapters.keras;"
        "print([m for m in ('keras', 'tensorflow', 'torch', 'h5py', 'onnx') if m in sys.modules])"
    )
    assert _run(code).strip() == "[]"


TORCH = """
import json, tempfile
from pathlib import Path
import keras_zoo
from test_adapter_keras import SMALL, adapter, from_model, opset, parity, ConvertOptions
found = {}
for name in SMALL:
    converted = from_model(keras_zoo.build(name))
    found[name] = (parity(converted), opset(converted), dict(converted.packages))
with tempfile.TemporaryDirectory() as folder:
    for suffix in (".keras", ".h5"):
        path = Path(folder, "model" + suffix)
        keras_zoo.build("resnet").save(path)
        converted = adapter.convert(path, ConvertOptions())
        found[suffix] = (parity(converted), opset(converted), dict(converted.packages))
print(json.dumps(found))
"""


def test_on_the_torch_backend_models_say_the_same():
    found = json.loads(_run(TORCH, KERAS_BACKEND="torch").splitlines()[-1])
    assert set(found) == {*SMALL, ".keras", ".h5"}
    for name, (difference, version, packages) in found.items():
        assert difference <= TOLERANCE, name
        assert version == 18
        assert "torch" in packages


def test_a_backend_that_is_not_for_export_is_named():
    code = (
        "import sys, types; keras = types.ModuleType('keras'); sys.modules['keras'] = keras;"
        "keras.backend = types.SimpleNamespace(backend=lambda: 'jax');"
        "from debride_adapters.keras import from_model;"
        "from debride.errors import ModelError\n"
        "try: from_model(types.SimpleNamespace(name='m'))\n"
        "except ModelError as error: print(error)"
    )
    assert "runs on jax; set KERAS_BACKEND=tensorflow or torch" in _run(code)


def _run(code: str, **environment: str) -> str:
    paths = [str(ROOT / part) for part in ("toolkit", "adapters", "tests")]
    script = f"import sys; sys.path[:0] = {paths}\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
