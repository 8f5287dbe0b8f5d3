"""Whatever is sent, the codec answers with a request or a refusal, soon."""

import json

import numpy as np
import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from debride.serve.http.datatypes import DATATYPES
from debride.serve.http.errors import RequestError
from debride.serve.http.protocol import InferRequest
from infer_requests import DTYPES, binary, parse, request

MANY = settings(max_examples=600, deadline=1000, suppress_health_check=list(HealthCheck))


def tried(body, length, **options):
    """The request, or the refusal: whatever else is raised fails the test; messages can be sent as UTF-8."""
    try:
        found = parse(body, length, **options)
    except RequestError as error:
        assert error.status in (400, 413)
        str(error).encode()
        return
    assert isinstance(found, InferRequest)
    assert found.inputs["x"].flags.aligned
    assert np.isfinite(found.inputs["x"]).all()


LENGTHS = st.none() | st.text(max_size=6) | st.integers(-5, 300).map(str)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)  # onnxruntime may have told this thread to take them for zero
    | st.text(max_size=8)
    | st.sampled_from(["x", "y", "half", "FP32", "INT64", "BOOL", "BYTES", 12, 3, 2**62, 2**63, [1, 3], [1, 2, 3]])
)
FIELDS = ("id", "inputs", "outputs", "name", "shape", "datatype", "data", "parameters")
PARAMETERS = ("binary_data_size", "binary_data", "binary_data_output", "classification", "sequence_id")
KEYS = st.sampled_from([*FIELDS, *PARAMETERS, "shared_memory_region"])
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner),
    max_leaves=20,
)


@MANY
@given(body=st.binary(max_size=300), length=LENGTHS)
@example(body=b'{"id":"\\ud800","inputs":NaN}', length=None)
@example(body=b'{"inputs":[{"name":"\\udfff"}],"a":NaN}', length=None)
@example(body=b'{"a":NaN,"inputs":' + b"[" * 3000, length=None)
@example(
    body=b'{"a":NaN,"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1' + b"0" * 400 + b",2,3]}]}",
    length=None,
)
@example(body=b'{"a":NaN,"b":1' + b"0" * 5000 + b"}", length=None)
def test_any_bytes_give_a_request_or_a_refusal(body, length):
    tried(body, length)


@MANY
@given(document=JSON, tail=st.binary(max_size=16), fit=st.booleans())
def test_any_json_gives_a_request_or_a_refusal(document, tail, fit):
    body = json.dumps(document).encode()
    tried(body + tail, str(len(body)) if fit else None)


@MANY
@given(
    changes=st.dictionaries(KEYS, JSON, max_size=2),
    entry=st.dictionaries(KEYS, JSON, max_size=2),
    tail=st.binary(max_size=16),
    dtype=st.sampled_from(list(DTYPES.values())),
    fit=st.booleans(),
)
def test_any_change_of_a_good_request_gives_a_request_or_a_refusal(changes, entry, tail, dtype, fit):
    kind = DATATYPES[dtype].name
    body = json.dumps(request({"datatype": kind, **entry}, **changes)).encode()
    tried(body + tail, str(len(body)) if fit else None, dtype=dtype)
    sized = binary(3 * dtype.itemsize, **{"datatype": kind, **entry})
    body = json.dumps(sized).encode()
    tried(body + (tail * 24)[: 3 * dtype.itemsize], str(len(body)) if fit else None, dtype=dtype)


@MANY
@given(dtype=st.sampled_from(list(DTYPES.values())), form=st.sampled_from(["binary", "flat", "nested"]), data=st.data())
def test_any_tensor_comes_in_as_it_was_sent(dtype, form, data):
    shape = data.draw(array_shapes(min_dims=0, max_dims=5, max_side=4))
    finite = {"allow_nan": False, "allow_infinity": False, "allow_subnormal": False}
    elements = finite if dtype.kind == "f" else {}
    values = data.draw(arrays(dtype, shape, elements=elements))
    entry = {"name": "x", "shape": list(shape), "datatype": DATATYPES[dtype].name}
    tail = b""
    if form == "binary" or dtype == np.float16:
        entry["parameters"], tail = {"binary_data_size": values.nbytes}, values.tobytes()
    else:
        entry["data"] = (values.ravel() if form == "flat" or not shape else values).tolist()
    body = orjson.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}})
    length = str(len(body)) if tail else None
    found = parse(body + tail, length, dtype=dtype, shape=(None,) * len(shape), max_values=1024).inputs["x"]
    np.testing.assert_array_equal(found, values, strict=True)
    assert found.tobytes() == values.tobytes()
