"""TFLite files become ONNX in float32 that answers as the interpreter does; what is not plain TFLite is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from debride.errors import ModelError, UsageError
from debride.testing import check_adapter
from debride.types import ConvertOptions
from debride_adapters.tflite import TOLERANCE, adapter
from tf_zoo_files import answers, differ, images, run, zoo

pytestmark = pytest.mark.frameworks

KERAS = ["resnet", "mobilenet", "densenet", "vit", "convnext", "points"]
CLOSE = 1e-4


def convert(name: str, **options):
    return adapter.convert(zoo() / f"{name}.tflite", ConvertOptions(**options))


def parsed(name: str):
    from tensorflow.lite.python import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs((zoo() / f"{name}.tflite").read_bytes(), 0))


def refused(file: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        adapter.convert(file, ConvertOptions())
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def refused_edit(folder: Path, edit, match: str) -> None:
    from debride_adapters.tflite.model import write_tflite

    model = parsed("resnet")
    edit(model)
    (folder / "edited.tflite").write_bytes(write_tflite(model))
    refused(folder / "edited.tflite", match)


@pytest.mark.parametrize("name", KERAS)
def test_a_float_model_answers_as_keras_and_the_interpreter_did(name):
    converted = convert(name)
    assert converted.tolerance is None
    for n, expected in answers(name).items():
        batch = images(n, 32, 32, 3)
        assert differ(run(converted.onnx, batch), expected) < CLOSE
        assert differ(converted.reference(batch)[0], expected) < CLOSE


QUANTISED = {f"{model}-{kind}": 0.02 for model in ("resnet", "mobilenet") for kind in ("int8", "uint8")}


@pytest.mark.parametrize(("name", "limit"), [("resnet-dynamic", 2e-3), *QUANTISED.items()])
def test_a_quantised_model_answers_in_floats_within_the_tolerance_that_it_states(name, limit):
    converted = convert(name)
    assert converted.tolerance == TOLERANCE > limit
    assert any("quantised to 8 bits" in note for note in converted.notes)
    expected = answers(name.split("-")[0])
    for n in (1, 5):
        batch = images(n, 32, 32, 3)
        scores, (reference,) = run(converted.onnx, batch), converted.reference(batch)
        assert 0 < differ(scores, reference) < limit
        assert differ(scores, expected[n]) < limit


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_an_8_bit_input_is_taken_as_floats_and_its_range_is_told(kind):
    import onnx

    converted = convert(f"resnet-{kind}")
    assert converted.spec["range"] == (0.0, 1.0)
    (image,) = onnx.load_from_string(converted.onnx).graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert "its 8-bit input holds values from 0 to 1" in " ".join(converted.notes)


def test_no_quantised_operator_is_left(tmp_path):
    import onnx

    from debride_adapters.tflite.model import write_tflite

    model = parsed("resnet-dynamic")
    asking = [op.builtinOptions for op in model.subgraphs[0].operators if hasattr(op.builtinOptions, "weightsFormat")]
    assert asking
    for options in asking:
        options.asymmetricQuantizeInputs = True  # which tf2onnx would translate to operators on 8 bits
    (tmp_path / "asking.tflite").write_bytes(write_tflite(model))
    for file in (zoo() / "resnet-int8.tflite", tmp_path / "asking.tflite"):
        graph = onnx.load_from_string(adapter.convert(file, ConvertOptions()).onnx).graph
        assert not {node.op_type for node in graph.node if "Quantize" in node.op_type or "Integer" in node.op_type}


def test_what_the_file_states_is_stated_and_no_more():
    converted = convert("resnet")
    assert dict(converted.spec) == {"name": "image", "layout": "NHWC", "size": (32, 32), "output": "scores"}
    with pytest.raises(UsageError, match=r"takes images of \(32, 32, 3\), not \(8, 8, 3\)"):
        convert("resnet", input_shape=(8, 8, 3))


def test_a_fixed_batch_becomes_free_and_a_class_number_is_left_out():
    import onnx

    converted = convert("batch1")
    assert len(onnx.load_from_string(converted.onnx).graph.output) == 1
    for n, expected in answers("plain").items():
        batch = images(n, 8, 8, 3)
        assert differ(run(converted.onnx, batch), expected) < CLOSE
        assert differ(converted.reference(batch)[0], expected) < CLOSE


@pytest.mark.parametrize(
    ("scale", "zero", "stated"),
    [(1.0, -128, (0.0, 255.0)), (2 / 255, -1, (-1.0, 1.0)), (0.0123, -50, None), (0.9, -128, None)],
)
def test_only_a_usual_range_of_pixels_is_stated(tmp_path, scale, zero, stated):
    from debride_adapters.tflite.model import write_tflite

    model = parsed("resnet-int8")
    quantization = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].quantization
    quantization.scale, quantization.zeroPoint = [scale], [zero]
    (tmp_path / "edited.tflite").write_bytes(write_tflite(model))
    assert adapter.convert(tmp_path / "edited.tflite", ConvertOptions()).spec.get("range") == stated


def test_scales_that_do_not_fit_their_tensor_and_sparse_tensors_are_refused(tmp_path):
    from tensorflow.lite.python import schema_py_generated as schema

    def scaled(model):
        graph = model.subgraphs[0]
        return next(t for t in graph.tensors if t.quantization.scale is not None and len(t.quantization.scale) > 1)

    def cut(model):
        tensor = scaled(model)
        tensor.quantization.scale = tensor.quantization.scale[:-1]

    def elsewhere(model):
        scaled(model).quantization.quantizedDimension = 9

    def sparse(model):
        model.subgraphs[0].tensors[0].sparsity = schema.SparsityParametersT()

    for number, edit in enumerate((cut, elsewhere, sparse)):
        model = parsed("resnet-int8")
        edit(model)
        from debride_adapters.tflite.model import write_tflite

        file = tmp_path / f"{number}.tflite"
        file.write_bytes(write_tflite(model))
        refused(file, "do not fit together")


@pytest.mark.parametrize("name", ["resnet", "resnet-int8", "batch1"])
def test_the_contract_of_adapters_is_kept(name):
    found = check_adapter(adapter, zoo() / f"{name}.tflite")
    assert found.tolerance == (TOLERANCE if "int8" in name else 1e-3)


def test_debride_reads_the_result_and_finds_its_channels(tmp_path: Path):
    from debride.graph.channels import find_groups
    from debride.graph.read import read_model

    for name in ("resnet", "resnet-int8"):
        file = tmp_path / "model.onnx"
        file.write_bytes(convert(name).onnx)
        graph = read_model(file).graph
        assert len(find_groups(graph, graph.outputs[0].name)[0]) == 72


@pytest.mark.parametrize("name", ["VendorsRelu", "FlexRelu", "FlexWriteFile"])
def test_custom_and_flex_operators_are_refused(name, tmp_path):
    def custom(model):
        code = model.operatorCodes[0]
        code.deprecatedBuiltinCode = code.builtinCode = 32
        code.customCode = name.encode()

    refused_edit(tmp_path, custom, f"holds the operator 'CUSTOM {name}'")


def test_a_custom_name_beside_a_built_in_code_is_refused(tmp_path):
    def disguised(model):
        model.operatorCodes[0].customCode = b"FlexWriteFile"

    refused_edit(tmp_path, disguised, "CUSTOM FlexWriteFile")


def test_two_codes_for_one_operator_and_a_code_that_nobody_knows_are_refused(tmp_path):
    def two(model):
        model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode + 1

    def unknown(model):
        model.operatorCodes[0].deprecatedBuiltinCode, model.operatorCodes[0].builtinCode = 127, 5000

    refused_edit(tmp_path, two, "an operator with two codes")
    refused_edit(tmp_path, unknown, "holds the operator 5000")


def test_numbers_that_lead_nowhere_are_refused(tmp_path):
    def tensor(model):
        model.subgraphs[0].operators[0].inputs = np.asarray([100_000, 1], np.int32)

    def buffer(model):
        model.subgraphs[0].tensors[0].buffer = 100_000

    def opcode(model):
        model.subgraphs[0].operators[0].opcodeIndex = 100_000

    for edit in (tensor, buffer, opcode):
        refused_edit(tmp_path, edit, "tables do not fit together")


def test_two_graphs_are_refused(tmp_path):
    refused_edit(tmp_path, lambda model: model.subgraphs.append(model.subgraphs[0]), "holds 2 graphs, not one")


def test_weights_that_are_too_short_for_their_shape_are_refused(tmp_path):
    def shorten(model):
        largest = max(model.buffers, key=lambda buffer: 0 if buffer.data is None else len(buffer.data))
        largest.data = largest.data[: len(largest.data) // 2]

    refused_edit(tmp_path, shorten, "interpreter refuses it")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_short_is_refused(share, tmp_path):
    data = (zoo() / "resnet.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / "cut.tflite", "damaged or cut short")


def test_text_and_an_empty_file_are_no_models(tmp_path):
    (tmp_path / "text.tflite").write_bytes(b"I am a model, believe me.")
    refused(tmp_path / "text.tflite", "no TFLite model")
    (tmp_path / "empty.tflite").write_bytes(b"")
    refused(tmp_path / "empty.tflite", "is empty")


def test_bytes_scribbled_over_a_file_never_reach_tensorflow_as_they_are(tmp_path):
    """Whatever survives the parse is written anew, so it fails with a message or converts; it does not crash."""
    data = (zoo() / "resnet.tflite").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(12):
        broken = bytearray(data)
        for place in rng.integers(8, len(data), 40):
            broken[place] = rng.integers(256)
        file = tmp_path / f"{number}.tflite"
        file.write_bytes(bytes(broken))
        try:
            adapter.convert(file, ConvertOptions())
            outcomes.add("converted")
        except ModelError:
            outcomes.add("refused")
    assert "refused" in outcomes
