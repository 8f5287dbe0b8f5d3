"""What a Keras model states of its images is handed on; what it does not state is not guessed."""

from __future__ import annotations

import pytest

from debride_adapters.keras import from_model

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def keras():
    import keras_zoo

    return keras_zoo.keras


def spec(keras, *first, shape=(16, 16, 3), nested: bool = False):
    image = keras.Input(shape)
    x = image
    if nested:
        inner = keras.Input(shape)
        y = inner
        for layer in first:
            y = layer(y)
        x = keras.Model(inner, y)(image)
    else:
        for layer in first:
            x = layer(x)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    return dict(from_model(keras.Model(image, x)).spec)


@pytest.mark.parametrize(
    ("scale", "offset", "pixels"),
    [
        (1 / 255, 0.0, (0.0, 255.0)),
        (1 / 127.5, -1.0, (0.0, 255.0)),
        (1 / 128, -1.0, (0.0, 255.0)),
        (2.0, -1.0, (0.0, 1.0)),
        (1 / 127.5, 0.0, None),
        (3.0, 0.0, None),
        (1.0, 0.0, None),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_first_rescaling_states_the_range_and_no_mean(keras, scale, offset, pixels, nested):
    found = spec(keras, keras.layers.Rescaling(scale, offset), nested=nested)
    assert found.get("range") == pixels
    assert not {"mean", "std", "class_names"} & set(found)


@pytest.mark.parametrize(
    ("mean", "variance", "pixels"),
    [
        ((123.7, 116.3, 103.5), (3409.0, 3262.0, 3291.0), (0.0, 255.0)),
        ((0.48, 0.45, 0.4), (0.05, 0.05, 0.05), (0.0, 1.0)),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None),
        ((0.48, 116.0, 0.4), (0.05, 0.05, 0.05), None),
        ((0.48, 0.45, 0.4), (2.0, 0.05, 0.05), None),
    ],
)
def test_a_first_normalization_states_the_range_by_its_means(keras, mean, variance, pixels):
    layer = keras.layers.Normalization(mean=mean, variance=variance)
    assert spec(keras, layer).get("range") == pixels


def test_a_rescaling_that_comes_later_or_that_not_all_reads_states_nothing(keras):
    assert "range" not in spec(keras, keras.layers.Conv2D(3, 1), keras.layers.Rescaling(1 / 255))
    image = keras.Input((16, 16, 3))
    x = keras.layers.Add()([keras.layers.Rescaling(1 / 255)(image), image])
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    assert "range" not in from_model(model).spec


def test_layout_size_and_grey_come_from_the_shape(keras):
    assert spec(keras) == {"name": "image", "output": "scores", "layout": "NHWC", "size": (16, 16)}
    assert spec(keras, shape=(1, 12, 16)) == {
        "name": "image",
        "output": "scores",
        "layout": "NCHW",
        "channels": "L",
        "size": (12, 16),
    }


def test_a_shape_that_could_be_either_is_settled_by_the_layers_or_left_open(keras):
    shape = (3, 16, 3)
    first = keras.layers.Conv2D(4, 1, data_format="channels_first")
    image = keras.Input(shape)
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_first")(first(image))
    assert from_model(keras.Model(image, keras.layers.Dense(3)(x))).spec["layout"] == "NCHW"
    assert "layout" not in spec(keras, shape=(4, 16, 4))
