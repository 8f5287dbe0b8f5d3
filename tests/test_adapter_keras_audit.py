"""A Keras configuration is refused for whatever it names beyond Keras's own parts, before Keras sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from debride.errors import ModelError
from debride_adapters.keras.audit import audit_config
from debride_adapters.keras.names import LAYERS, MODULES

PATH = Path("vendor.keras")
UNSAFE = [
    "TFSMLayer",
    "TorchModuleWrapper",
    "JaxLayer",
    "FlaxLayer",
    "StringLookup",
    "IntegerLookup",
    "TextVectorization",
    "Hashing",
    "Discretization",
    "Layer",
    "Wrapper",
    "TFOpLambda",
    "__typespec__",
    "TypeSpec",
    "CompositeTensor",
]


def layer(class_name: str = "Dense", module: str | None = "keras.layers", **more) -> dict:
    config = more.pop("config", {"name": "suspect"})
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None, **more}


def model(*layers: dict) -> dict:
    return layer(
        "Functional", "keras.src.models.functional", config={"name": "m", "layers": list(layers)}, compile_config={}
    )


def audited(*layers: dict) -> dict:
    return audit_config(json.dumps(model(*layers)), PATH)


def refused(*layers: dict) -> str:
    with pytest.raises(ModelError, match=r"^vendor\.keras: ") as caught:
        audited(*layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_plain_model_passes_and_loses_only_its_compile_settings():
    dense = layer(build_config={"input_shape": [None, 3]}, inbound_nodes=[])
    inner = {**model(dense), "compile_config": {"loss": {"module": "os", "class_name": "system", "config": {}}}}
    clean = audit_config(json.dumps(model(dense, inner)), PATH)
    assert "compile_config" not in json.dumps(clean)
    assert clean["config"]["layers"][0] == clean["config"]["layers"][1]["config"]["layers"][0] == dense


@pytest.mark.parametrize("module", ["keras.layers", None])
def test_a_lambda_is_refused_by_its_name(module):
    bare = layer("Lambda", module, config={"name": "evil", "function": ["4wEAAA==", None, None]})
    assert "'evil' is a Lambda" in refused(bare)


@pytest.mark.parametrize("key", ["function", "kernel_initializer", "anything"])
def test_marshalled_code_is_refused_wherever_it_stands(key):
    code = {"class_name": "__lambda__", "config": {"value": "4wEAAA=="}}
    assert "Lambda" in refused(layer(config={"name": "suspect", key: code}))
    assert "Lambda" in refused(layer(config={"name": "suspect", "deep": [{"er": [code]}]}))


@pytest.mark.parametrize(
    ("module", "class_name"),
    [
        ("os", "system"),
        ("builtins", "exec"),
        ("keras.utils", "get_file"),
        ("keras.src.utils.file_utils", "get_file"),
        ("keras.config", "enable_unsafe_deserialization"),
        ("keras.saving", "load_model"),
        ("keras.models", "load_model"),
        ("keras.layers", "deserialize"),
        ("keras.ops", "map"),
        ("keras.src.ops.core", "Map"),
        ("keras.src.ops.core", "VectorizedMap"),
        ("keras.src.ops.numpy", "Operation"),
        ("keras.src.ops.numpy", "vectorize"),
        ("keras.initializers", "get"),
        ("keras.layers.core", "Dense"),
        ("keras_hub.layers", "Anything"),
        ("my_package.layers", "Mine"),
        ("keras", "Variable"),
    ],
)
def test_modules_and_classes_that_are_no_parts_of_a_network_are_refused(module, class_name):
    message = refused(layer(class_name, module))
    assert f"'suspect' is a {module}.{class_name}" in message


@pytest.mark.parametrize(
    "class_name",
    UNSAFE,
)
@pytest.mark.parametrize("module", ["keras.layers", None])
def test_layers_that_run_code_or_read_files_are_refused(class_name, module):
    assert class_name in refused(layer(class_name, module))


@pytest.mark.parametrize(
    ("module", "name", "registered"),
    [
        ("keras.utils", "get_file", "get_file"),
        ("builtins", "exec", "function"),
        ("builtins", "mean_squared_error", "mean_squared_error"),
        ("keras.activations", "deserialize", "deserialize"),
        ("os", "relu", "relu"),
        ("builtins", "relu", "Custom>relu"),
        (None, "relu", None),
    ],
)
def test_functions_other_than_keras_activations_are_refused(module, name, registered):
    function = {"module": module, "class_name": "function", "config": name, "registered_name": registered}
    assert "names the function" in refused(layer(config={"name": "suspect", "activation": function}))


def test_an_activation_written_as_a_function_passes():
    function = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "relu"}
    assert audited(layer(config={"name": "fine", "activation": function}))


@pytest.mark.parametrize("text", ["os.system", "deserialize", "my_activation", "keras.utils.get_file"])
def test_activations_that_keras_has_not_are_refused(text):
    assert text in refused(layer(config={"name": "suspect", "activation": text}))


def test_a_string_that_the_legacy_loader_would_make_a_function_is_refused():
    assert "deserialize" in refused(layer(config={"name": "suspect", "kernel_initializer": "deserialize"}))


@pytest.mark.parametrize("registered", ["Custom>Dense", "my_package>Mine", "other"])
def test_custom_objects_are_refused_even_where_they_borrow_a_name_of_keras(registered):
    assert f"registered as '{registered}'" in refused(layer(registered_name=registered))


@pytest.mark.parametrize("inner", [layer(), layer("Zeros", "keras.initializers"), layer("get_file", "keras.utils")])
def test_objects_among_a_layers_call_arguments_are_refused(inner):
    assert "does not build" in refused(layer(inbound_nodes=[{"args": [], "kwargs": {"inputs": inner}}]))


def test_tensors_slices_and_numbers_among_a_layers_call_arguments_pass():
    tensor = {"class_name": "__keras_tensor__", "config": {"shape": [None], "keras_history": ["x", 0, 0]}}
    cut = {"class_name": "__slice__", "config": {"start": None, "stop": 2, "step": None}}
    nodes = [{"args": [tensor, 2.0, [cut]], "kwargs": {"mask": None}}]
    assert audited(layer(inbound_nodes=nodes))["config"]["layers"][0]["inbound_nodes"] == nodes


def test_a_class_named_by_no_text_is_refused():
    assert "by no text" in refused(layer(class_name=["Dense"]))
    assert "by no text" in refused(layer(module={"keras": 1}))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"', "[" * 100_000, b"\xff\xfe\xfa", '{"class_name": ' * 9999])
def test_damaged_configurations_are_model_errors(text):
    with pytest.raises(ModelError, match=r"^vendor\.keras: "):
        audit_config(text, PATH)


def test_modules_of_keras_2_are_found_where_keras_3_has_them():
    old = layer("Functional", "keras.src.engine.functional", config={"name": "m", "layers": []})
    assert audit_config(json.dumps(old), PATH)["module"] == "keras.src.models.functional"


@pytest.mark.frameworks
def test_all_names_let_in_are_of_the_kind_that_their_table_says():
    import keras_zoo

    keras = keras_zoo.keras
    assert all(issubclass(getattr(keras.layers, name), keras.Layer) for name in LAYERS if hasattr(keras.layers, name))
    assert len([name for name in LAYERS if hasattr(keras.layers, name)]) > 100
    for name in MODULES["keras.initializers"]:
        assert issubclass(getattr(keras.initializers, name), keras.initializers.Initializer)
