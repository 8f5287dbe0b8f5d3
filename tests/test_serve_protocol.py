"""The codec of the Open Inference Protocol v2 against tritonclient's own builder of requests and reader of answers."""

import json
import struct

import numpy as np
import orjson
import pytest
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http._utils import _get_inference_request

from debride.serve.http.errors import NoAnswer
from debride.serve.http.protocol import InferRequest, Wanted, parse_infer, render_infer, tensor_metadata
from infer_requests import DTYPES, info

NAMES = list(DTYPES)


def extremes(name, shape=(2, 3)):
    """Values at the ends of what `name` can hold, in `shape`."""
    dtype = DTYPES[name]
    if dtype == np.bool_:
        ends = [True, False, True, True, False, False]
    else:
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        ends = [limits.min, limits.max, 0, 1, 7, limits.max]
    return np.resize(np.array(ends, dtype), shape)


def sent(tensors, *, outputs=None, request_id="", parameters=None):
    """A request as tritonclient builds it; `tensors`: name -> (array, binary)."""
    inputs = []
    for name, (array, binary) in tensors.items():
        datatype = next(n for n, dtype in DTYPES.items() if dtype == array.dtype)
        entry = InferInput(name, list(array.shape), datatype)
        inputs.append(entry.set_data_from_numpy(array, binary_data=binary))
    body, length = _get_inference_request(inputs, request_id, outputs, 0, False, False, 0, None, parameters)
    return body, None if length is None else str(length)


def parsed(body, length=None, *, inputs=None, outputs=None, max_values=1000):
    inputs = inputs or [info("x", np.float32, None, 3)]
    outputs = outputs or [info("y", np.float32, None, 4)]
    return parse_infer(body, length, inputs=inputs, outputs=outputs, max_values=max_values)


def answered(request, tensors, labels=()):
    body, length = render_infer("net", "3", request, tensors, labels)
    return InferResult.from_response_body(body, header_length=length)


def asked(*wanted, request_id=None):
    return InferRequest(id=request_id, inputs={}, outputs=wanted)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_datatype_comes_in_as_tritonclient_sent_it(name, binary):
    if name == "FP16" and not binary:
        pytest.skip("FP16 has no JSON form: see test_fp16_is_refused_in_json")
    values = extremes(name)
    request = parsed(*sent({"x": (values, binary)}), inputs=[info("x", values.dtype, None, 3)])
    assert request.inputs["x"].dtype == values.dtype
    np.testing.assert_array_equal(request.inputs["x"], values)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_datatype_goes_out_as_tritonclient_reads_it(name, binary):
    values = extremes(name)
    result = answered(asked(Wanted(name="y", binary=binary, classification=0)), {"y": values})
    assert result.get_output("y")["datatype"] == name
    found = result.as_numpy("y")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "FP16"])
def test_nested_lists_give_the_same_tensor_as_flat_ones(name):
    values = extremes(name, (2, 3, 2))
    ends = [info("x", values.dtype, None, 3, 2)]
    document = {"inputs": [{"name": "x", "shape": [2, 3, 2], "datatype": name, "data": values.tolist()}]}
    np.testing.assert_array_equal(parsed(orjson.dumps(document), inputs=ends).inputs["x"], values)


def test_json_and_binary_inputs_mix_and_unaligned_data_is_aligned():
    tensors = {
        "bytes": (np.arange(3, dtype=np.uint8), True),
        "listed": (np.array([[1.5, -2.5]], np.float32), False),
        "doubles": (np.array([0.1, 0.2]), True),
    }
    ends = [info("doubles", np.float64, 2), info("bytes", np.uint8, 3), info("listed", np.float32, 1, None)]
    body, length = sent(tensors)
    for shift in range(8):  # the bytes in memory wherever they happen to lie
        shifted = memoryview(b"\0" * shift + body)[shift:]
        found = parsed(shifted, length, inputs=ends).inputs
        for name, (values, _) in tensors.items():
            np.testing.assert_array_equal(found[name], values)
            assert found[name].flags.aligned


def test_aligned_binary_data_is_not_copied():
    head = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}]}'
    head += b" " * (-len(head) % 16)
    body = head + np.arange(3, dtype="<f4").tobytes()
    values = parsed(body, str(len(head))).inputs["x"]
    assert np.shares_memory(values, np.frombuffer(body, np.uint8))
    assert not values.flags.writeable


def test_binary_data_is_little_endian_in_both_directions():
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT16","parameters":{"binary_data_size":2}}]}'
    request = parsed(body + b"\x01\x02", str(len(body)), inputs=[info("x", np.uint16, None)])
    assert request.inputs["x"].tolist() == [0x0201]
    wanted = Wanted(name="y", binary=True, classification=0)
    assert render_infer("m", "1", asked(wanted), {"y": np.array([0x0201], np.uint16)})[0].endswith(b"}\x01\x02")


def test_the_id_comes_back_and_is_left_out_where_there_was_none():
    values = np.zeros((1, 3), np.float32)
    for request_id in ("", "seventeen é"):
        request = parsed(*sent({"x": (values, True)}, request_id=request_id))
        response = answered(request, {"y": np.zeros((1, 4), np.float32)}).get_response()
        assert response.get("id", "") == request_id
        assert ("id" in response) == bool(request_id)
        assert (response["model_name"], response["model_version"]) == ("net", "3")


def test_without_outputs_all_are_wanted_in_the_form_that_the_request_asks_for():
    outputs = [info("y", np.float32, None, 4), info("words", object, None), info("z", np.int64)]
    values = np.zeros((1, 3), np.float32)
    assert parsed(*sent({"x": (values, True)}), outputs=outputs).outputs == (
        Wanted(name="y", binary=True, classification=0),
        Wanted(name="z", binary=True, classification=0),
    )
    document = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}], "outputs": []}
    assert [w.binary for w in parsed(json.dumps(document).encode(), outputs=outputs).outputs] == [False, False]


def test_an_outputs_parameter_overrides_that_of_the_request():
    document = {
        "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}],
        "outputs": [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}],
        "parameters": {"binary_data_output": True, "priority": 3, "timeout": 9, "own": "ignored"},
    }
    ends = [info("y", np.float32, None, 4), info("z", np.int64, None)]
    request = parsed(json.dumps(document).encode(), outputs=ends)
    assert request.outputs == (
        Wanted(name="z", binary=False, classification=0),
        Wanted(name="y", binary=True, classification=0),
    )
    y, z = np.array([[1, 2, 3, 4]], np.float32), np.array([2**62 + 1], np.int64)
    result = answered(request, {"y": y, "z": z})
    np.testing.assert_array_equal(result.as_numpy("y"), y)
    np.testing.assert_array_equal(result.as_numpy("z"), z)


def test_null_stands_for_what_was_left_out():
    entry = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": None, "data": [1, 2, 3]}
    body = json.dumps({"id": None, "parameters": None, "outputs": None, "inputs": [entry]}).encode()
    request = parsed(body)
    assert request.id is None
    assert request.inputs["x"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("binary", [True, False])
def test_classification_gives_the_best_classes_of_each_row_as_text(binary):
    wanted = [InferRequestedOutput("y", binary_data=binary, class_count=3)]
    request = parsed(*sent({"x": (np.zeros((2, 3), np.float32), True)}, outputs=wanted))
    scores = np.array([[0.1, 0.7, 0.1, 0.05], [1e-9, -3.5, 2, 2]], np.float32)
    found = answered(request, {"y": scores}, ["a", "b:c", "d", "é"]).as_numpy("y")
    texts = [[e.decode() if isinstance(e, bytes) else e for e in row] for row in found]
    assert texts == [["0.7:1:b:c", "0.1:0:a", "0.1:2:d"], ["2.0:2:d", "2.0:3:é", "1e-09:0:a"]]


def test_classification_of_a_vector_and_of_more_classes_than_there_are():
    wanted = Wanted(name="y", binary=False, classification=9)
    result = answered(asked(wanted), {"y": np.array([3, 250], np.uint8)}, ["one label only"])
    assert result.get_output("y") == {"name": "y", "datatype": "BYTES", "shape": [2], "data": ["250:1", "3:0"]}


def test_classes_of_half_precision_scores_can_be_had_in_json():
    wanted = [InferRequestedOutput("y", binary_data=False, class_count=1)]
    body, length = sent({"x": (np.zeros((1, 3), np.float32), True)}, outputs=wanted)
    request = parsed(body, length, outputs=[info("y", np.float16, None, 2)])
    assert answered(request, {"y": np.array([[0.5, 0.1]], np.float16)}).as_numpy("y").tolist() == [["0.5:0"]]


def test_a_label_that_is_no_text_does_not_break_the_answer():
    wanted = Wanted(name="y", binary=False, classification=1)
    assert answered(asked(wanted), {"y": np.zeros((1, 1))}, ["\ud800"]).as_numpy("y").tolist() == [["0.0:0:?"]]


def test_outputs_that_are_not_contiguous_scalar_or_empty_go_out_whole():
    strided, turned = np.arange(6)[::2], np.arange(6).reshape(2, 3).T
    tensors = {"v": strided, "t": turned, "s": np.full((), 2.5), "e": np.zeros((0, 4), np.int8)}
    for binary in (True, False):
        wanted = [Wanted(name=name, binary=binary, classification=0) for name in tensors]
        result = answered(asked(*wanted), tensors)
        for name, values in tensors.items():
            np.testing.assert_array_equal(result.as_numpy(name), values, strict=True)


def test_the_binary_header_covers_the_json_and_nothing_else():
    wanted = [Wanted(name="y", binary=True, classification=0), Wanted(name="c", binary=True, classification=1)]
    tensors = {"y": np.array([[1.5]], np.float32), "c": np.array([[7]], np.int32)}
    body, length = render_infer("m", "1", asked(*wanted), tensors)
    sizes = [o["parameters"]["binary_data_size"] for o in json.loads(body[:length])["outputs"]]
    assert sizes == [4, 7]
    assert body[length:] == struct.pack("<f", 1.5) + struct.pack("<I", 3) + b"7:0"
    assert render_infer("m", "1", asked(Wanted(name="y", binary=False, classification=0)), tensors)[1] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("classification", [0, 1])
def test_scores_that_are_not_finite_are_no_answer(bad, classification):
    wanted = Wanted(name="y", binary=True, classification=classification)
    with pytest.raises(NoAnswer, match=r"outputs\[0\].*'y'") as caught:
        render_infer("m", "1", asked(wanted), {"y": np.array([[0, bad]], np.float32)})
    assert caught.value.status == 422


def test_metadata_says_datatype_and_shape():
    assert tensor_metadata(info("x", np.float16, None, 3, 8, 8)) == {
        "name": "x",
        "datatype": "FP16",
        "shape": [-1, 3, 8, 8],
    }
    assert tensor_metadata(info("s", object, None))["datatype"] == "BYTES"
    assert [tensor_metadata(info("x", DTYPES[name]))["datatype"] for name in NAMES] == NAMES
