"""What the codec refuses, and that each error names its field."""

import json
import tracemalloc

import numpy as np
import pytest

from debride.serve.http.errors import BadRequest, TooLarge
from debride.serve.http.protocol import parse_infer
from infer_requests import DTYPES, binary, info, parse, request

LENGTH = "Inference-Header-Content-Length"
BINARY_SIZE = r"inputs\[0\]\.parameters\.binary_data_size: "


def refused(match, document, length=None, *, tail=b"", kind=BadRequest, **options):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    if tail or length == "right":
        length = str(len(body))
    with pytest.raises(kind, match=match) as caught:
        parse(body + tail, length, **options)
    assert caught.value.status == (413 if kind is TooLarge else 400)
    assert len(str(caught.value)) < 600


def test_the_request_that_the_others_break_is_good():
    assert parse(json.dumps(request()).encode()).inputs["x"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("field", "document"),
    [
        ("body: .*JSON", b""),
        ("body: .*JSON", b"\xff\xfe"),
        ("body: .*JSON", b'{"inputs": ['),
        ("body: .*JSON", b"[" * 50_000),
        ("body: .*JSON", b'{"a":' * 5000 + b"1" + b"}" * 5000),
        ("body: .*no JSON object", []),
        ("body: .*no JSON object", b"null"),
        ("id: 7", request(id=7)),
        ("parameters: ", request(parameters=[])),
        (r"parameters\.sequence_id", request(parameters={"sequence_id": 5})),
        (r"parameters\.sequence_start", request(parameters={"sequence_start": True})),
        (r"parameters\.shared_memory_region", request(parameters={"shared_memory_region": "r"})),
        (r"parameters\.binary_data_output: 1 ", request(parameters={"binary_data_output": 1})),
        ("inputs: None", request(inputs=...)),
        ("inputs: {}", request(inputs={})),
        ("inputs: 'x' is missing", request(inputs=[])),
        (r"inputs\[0\]: 3", request(inputs=[3])),
        (r"inputs\[0\]\.name: .*'w'.*\['x'\]", request({"name": "w"})),
        (r"inputs\[0\]\.name: ", request({"name": ["x"]})),
        (r"inputs\[0\]\.name: ", request({"name": ...})),
        (r"inputs\[1\]\.name: 'x' is given twice", request(inputs=2 * request()["inputs"])),
        (r"inputs\[0\]\.datatype: 'FP64'; the model's input is FP32", request({"datatype": "FP64"})),
        (r"inputs\[0\]\.datatype: 'BYTES', which is not supported", request({"datatype": "BYTES"})),
        (r"inputs\[0\]\.datatype: 'BF16', which is not supported", request({"datatype": "BF16"})),
        (r"inputs\[0\]\.datatype: None", request({"datatype": ...})),
        (r"inputs\[0\]\.datatype: \['FP32'\]", request({"datatype": ["FP32"]})),
        (r"inputs\[0\]\.shape: None does not fit the model's \[-1, 3\]", request({"shape": ...})),
        (r"inputs\[0\]\.shape: '13'", request({"shape": "13"})),
        (r"inputs\[0\]\.shape: \[3\]", request({"shape": [3]})),
        (r"inputs\[0\]\.shape: \[1, 4\]", request({"shape": [1, 4]})),
        (r"inputs\[0\]\.shape: \[0, 3\]", request({"shape": [0, 3], "data": []})),
        (r"inputs\[0\]\.shape: \[-1, 3\]", request({"shape": [-1, 3]})),
        (r"inputs\[0\]\.shape: \[1\.0, 3\]", request({"shape": [1.0, 3]})),
        (r"inputs\[0\]\.shape: \[True, 3\]", request({"shape": [True, 3]})),
        (r"inputs\[0\]\.shape: \['1', 3\]", request({"shape": ["1", 3]})),
        (r"inputs\[0\]\.parameters: 'a'", request({"parameters": "a"})),
        (r"inputs\[0\]\.parameters\.shared_memory_region", request({"parameters": {"shared_memory_region": "r"}})),
        (BINARY_SIZE + "needs the request header " + LENGTH, request({"parameters": {"binary_data_size": 12}})),
        (r"inputs\[0\]\.data: None", request({"data": ...})),
        (r"inputs\[0\]\.data: '123'", request({"data": "123"})),
        (r"inputs\[0\]\.data: 2 values, .* takes 3", request({"data": [1, 2]})),
        (r"inputs\[0\]\.data: 4 values, .* takes 3", request({"data": [1, 2, 3, 4]})),
        (r"inputs\[0\]\.data: 0 values", request({"data": []})),
        (r"inputs\[0\]\.data: a list of 2 at depth 0", request({"data": [[1, 2], [3]]})),
        (r"inputs\[0\]\.data: a list of 2 at depth 1", request({"shape": [2, 3], "data": [[1, 2, 3], [4, 5]]})),
        (r"inputs\[0\]\.data: 9 at depth 1", request({"shape": [2, 3], "data": [[1, 2, 3], 9]})),
        (r"inputs\[0\]\.data: value 1 .*\[2\], is no FP32", request({"data": [1, [2], 3]})),
        (r"inputs\[0\]\.data: value 0 .*\[1\], is no FP32", request({"data": [[[1], [2], [3]]]})),
        (r"inputs\[0\]\.data: value 2 .*'3', is no FP32", request({"data": [1, 2, "3"]})),
        (r"inputs\[0\]\.data: value 1 .*None, is no FP32", request({"data": [1, None, 3]})),
        (r"inputs\[0\]\.data: value 1 .*True, is no FP32", request({"data": [0.5, True, 3]})),
        (r"inputs\[0\]\.data: value 2 .*False, is no FP32", request({"data": [1, 0, False]})),
        (r"inputs\[0\]\.data: value 0 .*1e\+39, is no FP32", request({"data": [1e39, 2, 3]})),
        (r"inputs\[0\]\.data: value 1 .*NaN", request({"data": [1, float("nan"), 3]})),
        (r"inputs\[0\]\.data: value 2 .*infinite", request({"data": [1, 2, float("-inf")]})),
        ("id: nan", request(id=float("nan"))),
        ("body: no valid JSON", request(parameters={"own": float("inf")})),
        ("outputs: 'y'", request(outputs="y")),
        (r"outputs\[0\]: 'y'", request(outputs=["y"])),
        (r"outputs\[0\]\.name: .*'z'.*\['y', 'half'\]", request(outputs=[{"name": "z"}])),
        (r"outputs\[1\]\.name: 'y' is given twice", request(outputs=[{"name": "y"}, {"name": "y"}])),
        (r"outputs\[0\]: FP16 has no JSON form", request(outputs=[{"name": "half"}])),
        (r"outputs \('half'\): FP16 has no JSON form", request(outputs=...)),
        (r"outputs\[0\]\.parameters: 1", request(outputs=[{"name": "y", "parameters": 1}])),
        *(
            (rf"outputs\[0\]\.parameters\.{key}: ", request(outputs=[{"name": "y", "parameters": {key: value}}]))
            for key, value in [
                ("binary_data", 0),
                ("binary_data", "true"),
                ("classification", -1),
                ("classification", True),
                ("classification", 1.0),
                ("classification", 2**64),
                ("shared_memory_region", "r"),
            ]
        ),
    ],
)
def test_what_is_wrong_is_named(field, document):
    refused("^" + field, document)


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("BOOL", 1, True),
        ("BOOL", "true", False),
        ("UINT8", 256, 255),
        ("UINT8", -1, 0),
        ("INT8", -129, -128),
        ("INT16", 32768, 32767),
        ("UINT16", 65536, 65535),
        ("INT32", 2**31, -(2**31)),
        ("UINT32", 2**32, 2**32 - 1),
        ("INT64", 2**63, 2**63 - 1),
        ("UINT64", 2**64, 2**64 - 1),
        ("INT64", 1.0, 1),
        ("INT64", True, 1),
        ("INT64", None, 0),
        ("UINT8", False, 0),
        ("FP64", True, 1e308),
        ("FP32", 3.5e38, 3.4e38),
    ],
)
def test_values_that_are_none_of_the_datatype_are_refused(name, bad, good):
    document = request({"datatype": name, "data": [good, good, bad]})
    refused(rf"^inputs\[0\]\.data: value 2 in row-major order, .*, is no {name}$", document, dtype=DTYPES[name])
    document["inputs"][0]["data"][2] = good
    found = parse(json.dumps(document).encode(), dtype=DTYPES[name]).inputs["x"]
    assert found.tolist() == np.array([[good] * 3], DTYPES[name]).tolist()


def test_fp16_is_refused_in_json():
    refused(r"^inputs\[0\]\.datatype: FP16 has no JSON form", request({"datatype": "FP16"}), dtype=np.float16)


def test_ends_that_are_no_numbers_are_refused_by_name():
    refused(r"^inputs\[0\]\.name: .*cannot be sent", request(), dtype=object)
    refused(r"^outputs\[0\]\.name: .*cannot be sent", request(), outputs=[info("y", object, None)])


@pytest.mark.parametrize("length", ["", "-1", "+5", " 5", "5 ", "1e2", "0x10", "٣", "²", "9" * 21, "9" * 5000])
def test_a_header_length_that_is_no_number_is_refused(length):
    refused(f"^{LENGTH}: .* is no number", request(), length)


def test_a_header_length_beyond_the_body_or_inside_the_json_is_refused():
    size = len(json.dumps(request()))
    refused(f"^{LENGTH}: {size + 1}, but the body has only {size}", request(), str(size + 1))
    refused(f"^{LENGTH}: {2**64 - 1}", request(), str(2**64 - 1))
    refused("^body: no valid JSON", request(), str(size - 1))
    refused("^body: no valid JSON", request(), "0")


@pytest.mark.parametrize("size", [11, 13, 0, -12, 2**63, 2**64, 12.0, "12", True, [12]])
def test_a_binary_size_that_is_not_that_of_the_shape_is_refused(size):
    refused("^" + BINARY_SIZE + ".* takes 12 bytes", binary(size), tail=b"\0" * 12)


def test_binary_data_must_be_there_and_no_more_of_it():
    refused("^" + BINARY_SIZE + "12, but only 11 bytes", binary(12), tail=b"\0" * 11)
    refused("^" + BINARY_SIZE + "12, but only 0 bytes", binary(12), "right")
    refused("^body: 1 bytes are left over", binary(12), tail=b"\0" * 13)
    refused("^body: 4 bytes are left over", request(), tail=b"\0" * 4)
    both = request({"parameters": {"binary_data_size": 12}})
    refused(r"^inputs\[0\]\.data: is there together with binary_data_size", both, tail=b"\0" * 12)
    refused(r"^inputs\[0\]\.data: None", request({"data": ...}), tail=b"\0" * 12)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize("name", ["FP16", "FP32", "FP64"])
def test_binary_numbers_that_are_not_finite_are_refused(name, value, word):
    values = np.array([0, value, 0], DTYPES[name])
    document = binary(values.nbytes, datatype=name)
    refused(rf"^inputs\[0\]: the binary data: value 1 .*{word}", document, tail=values.tobytes(), dtype=values.dtype)


def test_a_binary_bool_is_0_or_1():
    document = binary(3, datatype="BOOL")
    refused(r"^inputs\[0\]: the binary data: byte 2 is 2", document, tail=b"\0\1\2", dtype=np.bool_)


@pytest.mark.parametrize("shape", [[2**62, 2**62], [2**63, 3], [334, 3], [2**64 - 1, 2**64 - 1]])
@pytest.mark.parametrize("size", [0, 12, 2**63])
def test_shapes_that_lie_are_too_large(shape, size):
    open_shape = {"shape": (None, None)}
    refused(
        r"^inputs\[0\]\.shape: .*limit of 1000 values",
        binary(size, shape=shape),
        tail=b"\0",
        kind=TooLarge,
        **open_shape,
    )
    refused(r"^inputs\[0\]\.shape: .*limit of 1000 values", request({"shape": shape}), kind=TooLarge, **open_shape)


def test_the_limit_holds_for_all_inputs_together():
    ends = [info("a", np.uint8, None), info("b", np.uint8, None)]
    inputs = [{"name": n, "shape": [3], "datatype": "UINT8", "data": [1, 2, 3]} for n in "ab"]
    body = json.dumps({"inputs": inputs}).encode()
    assert len(parse_infer(body, None, inputs=ends, outputs=[], max_values=6).inputs) == 2
    with pytest.raises(TooLarge, match=r"^inputs\[1\]\.shape"):
        parse_infer(body, None, inputs=ends, outputs=[], max_values=5)
    with pytest.raises(BadRequest, match=r"^inputs: 'b' is missing"):
        parse_infer(json.dumps({"inputs": inputs[:1]}).encode(), None, inputs=ends, outputs=[], max_values=6)


@pytest.mark.parametrize(
    ("flood", "match"),
    [
        (b"[],", "^body: JSON of more than .* lists"),
        (b"{},", "^body: JSON of more than .* lists"),
        (b'"",', "^body: JSON of more than .* lists"),
        (b"[[[[[[[[0]]]]]]]],", "^body: JSON of more than .* lists"),
        (b'{"a":0},', "^body: JSON of more than .* lists"),
        (b"0,", "^body: holds more than the 1000 values"),
    ],
)
def test_json_that_would_swell_in_memory_is_refused_before_it_is_read(flood, match):
    body = b'{"own":[' + flood * (8_000_000 // len(flood)) + b"0]}"
    tracemalloc.start()
    try:
        refused(match, body, kind=TooLarge)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


def test_nan_in_json_too_long_to_read_twice_is_refused_all_the_same():
    refused("^body: no valid JSON", request({"data": [1, float("nan"), 3]}, own="a" * 5_000_000))


def test_images_as_nested_lists_pass():
    data = np.full((4, 224, 224, 3), 0.5).tolist()
    body = json.dumps(request({"shape": [4, 224, 224, 3], "data": data})).encode()
    found = parse(body, shape=(None, 224, 224, 3), max_values=4 * 224 * 224 * 3)
    assert found.inputs["x"].shape == (4, 224, 224, 3)
