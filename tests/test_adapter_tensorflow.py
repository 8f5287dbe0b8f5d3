"""SavedModels and frozen graphs become ONNX that answers as TensorFlow does, whichever version wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from debride.errors import UsageError
from debride.testing import check_adapter
from debride.types import ConvertOptions
from debride_adapters.tensorflow import adapter
from tf_zoo_files import answers, differ, images, run, zoo

pytestmark = pytest.mark.frameworks

KERAS = ["resnet", "mobilenet", "densenet", "vit", "convnext", "points"]
SMALL = ["plain", "v1-resource", "v1-reference"]
CLOSE = 1e-4


def convert(name: str, **options):
    return adapter.convert(zoo() / name, ConvertOptions(**options))


@pytest.mark.parametrize("name", [*KERAS, "resnet-saved", *(f"{name}.pb" for name in KERAS)])
def test_a_keras_model_answers_as_keras_did(name):
    converted = convert(name)
    for n, expected in answers(name.removesuffix(".pb").removesuffix("-saved")).items():
        batch = images(n, 32, 32, 3)
        assert differ(run(converted.onnx, batch), expected) < CLOSE
        (reference,) = converted.reference(batch)
        assert differ(reference, expected) < CLOSE


@pytest.mark.parametrize("name", SMALL)
def test_variables_are_found_by_name_in_version_1_and_by_object_in_version_2_where_names_repeat(name):
    converted = convert(name)
    for n, expected in answers(name).items():
        batch = images(n, 8, 8, 3)
        assert differ(run(converted.onnx, batch), expected) < CLOSE
        assert differ(converted.reference(batch)[0], expected) < CLOSE


def test_what_the_file_states_is_stated_and_no_more():
    converted = convert("resnet")
    assert dict(converted.spec) == {"name": "image:0", "layout": "NHWC", "size": (32, 32), "output": "Identity:0"}
    assert set(converted.packages) == {"tensorflow", "tf2onnx"}
    assert converted.notes == ("converted from the signature 'serving_default'",)
    assert converted.tolerance is None


def test_the_onnx_has_a_free_batch_the_opset_asked_for_and_only_float_outputs():
    import onnx

    for opset, written in ((18, 18), (15, 15), (21, 18)):
        model = onnx.load_from_string(convert("plain", opset=opset).onnx)
        assert model.opset_import[0].version == written
        (image,), (scores,) = model.graph.input, model.graph.output
        assert image.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert scores.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_the_onnx_holds_no_path():
    assert str(zoo()).encode() not in convert("resnet").onnx


def test_the_marker_file_stands_for_its_folder():
    assert convert("plain/saved_model.pb").spec == convert("plain").spec


def test_a_fixed_batch_becomes_free():
    converted = convert("batch1")
    expected, batch = answers("plain")[5], images(5, 8, 8, 3)
    assert differ(run(converted.onnx, batch), expected) < CLOSE
    assert differ(converted.reference(batch)[0], expected) < CLOSE
    assert "the batch was fixed at one image and is free now" in converted.notes


def test_an_input_of_bytes_becomes_floats_up_to_255():
    converted = convert("bytes")
    assert converted.spec["range"] == (0.0, 255.0)
    assert any("uint8" in note for note in converted.notes)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.float32)
    assert differ(run(converted.onnx, pixels), run(convert("plain").onnx, pixels)) < CLOSE
    assert differ(converted.reference(pixels)[0], run(converted.onnx, pixels)) < CLOSE


def test_open_sides_stay_open_unless_the_shape_is_given():
    assert "size" not in convert("open").spec
    assert convert("open", input_shape=(8, 8, 3)).spec["size"] == (8, 8)


def test_a_shape_that_contradicts_the_file_is_wrong_usage():
    with pytest.raises(UsageError, match=r"takes \(8, 8, 3\) per image, not \(9, 8, 3\)"):
        convert("plain", input_shape=(9, 8, 3))


@pytest.mark.parametrize("name", ["plain", "v1-resource", "resnet.pb"])
def test_the_contract_of_adapters_is_kept(name):
    found = check_adapter(adapter, zoo() / name)
    assert max(agreement.difference for agreement in found.parity) < CLOSE


def test_debride_reads_the_result_and_finds_its_channels(tmp_path: Path):
    from debride.graph.channels import find_groups
    from debride.graph.read import read_model

    for name, channels in (("resnet", 72), ("v1-reference", 4)):
        file = tmp_path / "model.onnx"
        file.write_bytes(convert(name).onnx)
        graph = read_model(file).graph
        assert len(find_groups(graph, graph.outputs[0].name)[0]) == channels
