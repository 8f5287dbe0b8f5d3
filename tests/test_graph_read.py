"""Reading models: what is refused, with which words, and what comes out of a good one."""

import hashlib
import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from debride.errors import ModelError, UnsupportedOpError
from debride.graph.batch import free_batch
from debride.graph.parse import node_names
from debride.graph.read import parse, read_model
from graph_models import VENDOR, Builder, assert_close, classifiers, images, run, with_function


def plain(opset=13, ir=8, **kwargs):
    b = Builder(opset, ir)
    x = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv("x", 3, 4))))
    b.op("Gemm", x, b.weight(4, 3), b.weight(3))
    return b.model(["batch", 3, 8, 8], "scores", ["batch", 3], **kwargs)


def save(proto, path):
    path.write_bytes(proto.SerializeToString())
    return path


def refused(path, *words, kind=ModelError, **kwargs):
    with pytest.raises(kind) as caught:
        read_model(path, **kwargs)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_good_model_is_read_with_its_own_bytes_hash_and_size(tmp_path):
    path = save(plain(), tmp_path / "m.onnx")
    model = read_model(path)
    assert model.data == path.read_bytes() and model.size == len(model.data)
    assert model.sha256 == hashlib.sha256(model.data).hexdigest()
    assert model.proto == plain()
    assert model.graph.inputs[0].shape == (None, 3, 8, 8) and model.graph.inputs[0].dtype == np.float32
    assert [n.op for n in model.graph.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, "no such file")


def test_a_file_over_the_limit_is_refused(tmp_path):
    refused(save(plain(), tmp_path / "m.onnx"), "larger than 100 bytes", max_bytes=100)


@pytest.mark.parametrize("data", [b"", b"not a model at all", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\x08\x03"])
def test_a_file_that_is_no_onnx_model_is_refused(tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_model_is_refused(tmp_path, part):
    path = tmp_path / "m.onnx"
    data = plain().SerializeToString()
    path.write_bytes(data[: int(len(data) * part)])
    refused(path, "cut short")


def test_bytes_damaged_at_random_are_refused_or_harmless(tmp_path):
    rng, good = np.random.default_rng(0), np.frombuffer(plain().SerializeToString(), np.uint8)
    path, seen = tmp_path / "m.onnx", set()
    for _ in range(300):
        bad = good.copy()
        bad[rng.integers(len(bad), size=2)] = rng.integers(256, size=2)
        path.write_bytes(bad.tobytes())
        try:
            read_model(path)
        except ModelError as error:
            assert str(path) in str(error)
            seen.add(type(error))
    assert ModelError in seen


def test_names_that_are_no_text_are_refused(tmp_path):
    data = plain().SerializeToString().replace(b"n_t3", b"n_t\xff")
    (tmp_path / "m.onnx").write_bytes(data)
    refused(tmp_path / "m.onnx", "damaged")


def test_opsets_outside_7_to_23_and_old_ir_versions_are_refused(tmp_path):
    for opset in (6, 24):
        proto = plain()
        proto.opset_import[0].version = opset
        refused(save(proto, tmp_path / "m.onnx"), f"opset {opset}", "7..23")
    proto = plain()
    proto.ir_version = 2
    refused(save(proto, tmp_path / "m.onnx"), "IR version 2")


def test_an_unknown_operator_is_named_with_node_and_opset(tmp_path):
    proto = plain()
    proto.graph.node[1].op_type = "Frobnicate"
    refused(save(proto, tmp_path / "m.onnx"), "n_t", "Frobnicate", "opset 13", kind=UnsupportedOpError)


def test_what_the_checker_refuses_is_refused(tmp_path):
    proto = plain()
    proto.graph.node[1].input[0] = "nowhere"
    refused(save(proto, tmp_path / "m.onnx"), "checker", "nowhere")


def test_a_graph_without_inputs_or_outputs_is_refused(tmp_path):
    proto = plain()
    del proto.graph.output[:]
    refused(save(proto, tmp_path / "m.onnx"), "no output")


def test_nan_and_infinity_in_weights_are_refused_by_name(tmp_path):
    for bad in (np.nan, np.inf, -np.inf):
        proto = plain()
        weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
        weight[1, 0, 0, 0] = bad
        name = proto.graph.initializer[0].name
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, name))
        refused(save(proto, tmp_path / "m.onnx"), f"'{name}'", "NaN or infinity")


def test_an_infinite_limit_is_no_damaged_weight(tmp_path):
    b = Builder(13)
    limits = [b.const(np.float32(v)) for v in (0.0, np.inf)]
    b.op("Gemm", b.op("Flatten", b.op("Clip", "x", *limits)), b.weight(192, 3))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    assert read_model(save(proto, tmp_path / "m.onnx")).graph.opset == 13


def test_a_tensor_with_raw_and_typed_data_is_refused(tmp_path):
    proto = plain()
    proto.graph.initializer[1].float_data.extend([1.0] * 4)
    refused(save(proto, tmp_path / "m.onnx"), f"'{proto.graph.initializer[1].name}'", "raw_data and float_data")


def test_a_tensor_that_does_not_fill_its_shape_is_refused(tmp_path):
    for dims in ([10**12], [-1], [5]):
        proto = plain()
        proto.graph.initializer[1].dims[:] = dims
        refused(save(proto, tmp_path / "m.onnx"), f"'{proto.graph.initializer[1].name}'")


def external(tmp_path, location, offset="0", length="16"):
    proto = plain()
    tensor = proto.graph.initializer[1]
    raw = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "in").mkdir(exist_ok=True)
    return save(proto, tmp_path / "in" / "m.onnx"), raw


def test_external_data_beside_the_model_is_loaded(tmp_path):
    path, raw = external(tmp_path, "weights/w.bin", offset="8")
    (path.parent / "weights").mkdir()
    (path.parent / "weights" / "w.bin").write_bytes(b"12345678" + raw)
    model = read_model(path)
    assert model.proto == plain()
    assert model.external == (path.parent.resolve() / "weights" / "w.bin",)


@pytest.mark.parametrize("location", ["../w.bin", "a/../../w.bin", "..\\w.bin", "C:\\w.bin", "", "/etc/passwd"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "w.bin").write_bytes(bytes(64))
    path, _ = external(tmp_path, location)
    refused(path, "inside the model's folder", "tensor 'c")


def test_external_data_through_a_symbolic_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "w.bin").write_bytes(bytes(64))
    path, _ = external(tmp_path, "w.bin")
    (path.parent / "w.bin").symlink_to(tmp_path / "out" / "w.bin")
    refused(path, "leads out of")
    path, _ = external(tmp_path, "sub/w.bin")
    (path.parent / "sub").symlink_to(tmp_path / "out")
    refused(path, "leads out of")


def test_external_data_missing_too_short_or_no_file_is_refused(tmp_path):
    path, _ = external(tmp_path, "w.bin")
    refused(path, "cannot be found")
    (path.parent / "w.bin").write_bytes(bytes(15))
    refused(path, "too short")
    (path.parent / "w.bin").write_bytes(bytes(16))
    refused(path, "too large", max_bytes=path.stat().st_size + 15)
    (path.parent / "w.bin").unlink()
    os.mkfifo(path.parent / "w.bin")
    refused(path, "is not a file")
    for place in ({"offset": "-1"}, {"length": "many"}):
        path, _ = external(tmp_path, "m.onnx", **place)
        refused(path)


def test_external_data_that_does_not_fill_the_tensor_is_refused(tmp_path):
    path, _ = external(tmp_path, "w.bin", length="12")
    (path.parent / "w.bin").write_bytes(bytes(12))
    refused(path, "does not fill its shape")


def test_initializers_listed_as_inputs_are_no_inputs_of_the_graph(tmp_path):
    model = read_model(save(plain(ir=3, opset=8, listed=True), tmp_path / "m.onnx"))
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert len(model.graph.constants) == 4


def test_constant_nodes_become_constants_and_attributes_python_values():
    nodes = [
        helper.make_node("Constant", [], ["k"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["f"], value_float=0.5),
        helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[1, 1], group=1),
        helper.make_node("Identity", ["y"], ["z"]),
        helper.make_node("Identity", ["z"], ["scores"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [0, -1, 4, None]) for n in ("x", "scores")]
    weight = numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "w")
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    parsed = parse(helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx", 16)]))
    assert parsed.constants["k"].tolist() == [1, 2] and parsed.constants["f"] == np.float32(0.5)
    assert dict(parsed.nodes[0].attributes) == {"auto_pad": "SAME_UPPER", "strides": [1, 1], "group": 1}
    assert parsed.inputs[0].shape == (None, None, 4, None)
    assert [n.name for n in parsed.nodes] == ["Conv:y", "Identity:z", "Identity:scores"]
    assert parsed.nodes[0].since_version == 11 and parsed.nodes[1].since_version == 16
    assert not parsed.constants["w"].flags.writeable


def test_unknown_operators_parse_with_the_opset_as_their_version():
    nodes = [helper.make_node("Magic", ["x"], ["scores"], domain="acme")]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "scores")]
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("acme", 5)]
    parsed = parse(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=opsets))
    assert (parsed.nodes[0].domain, parsed.nodes[0].since_version) == ("acme", 5)


def test_nodes_out_of_order_and_tensors_made_twice_are_refused():
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    late = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]
    twice = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Tanh", ["x"], ["y"])]
    for nodes, word in ((late, "before it is made"), (twice, "a second time"), ([late[1]], "nothing makes")):
        with pytest.raises(ModelError, match=word):
            parse(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:])))


def test_repeated_and_missing_node_names_become_unique():
    nodes = [helper.make_node("Relu", ["x"], [o], name=n) for o, n in (("a", "r"), ("b", "r"), ("c", ""), ("d", "r:b"))]
    names = node_names(nodes)
    assert names[:3] == ["r", "r:b", "Relu:c"] and len(set(names)) == 4


def test_a_loop_is_read_and_left_to_the_proxy(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["keep"], ["on"]), helper.make_node("Relu", ["s"], ["s2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s2", TensorProto.FLOAT, None),
        ],
    )
    b = Builder(13)
    trips = b.const(np.array(100_000_000), "initializer")
    y = b.op("Loop", trips, "", "x", body=body)
    b.op("Gemm", b.op("Flatten", y), b.weight(192, 3))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    assert "Loop" in [n.op for n in read_model(save(proto, tmp_path / "m.onnx")).graph.nodes]


def test_local_functions_are_inlined_in_the_working_copy_alone(tmp_path):
    proto = with_function()
    onnx.checker.check_model(proto)
    model = read_model(save(proto, tmp_path / "m.onnx"))
    assert len(model.proto.functions) == 1 and not model.working.functions
    assert [n.op for n in model.graph.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    np.testing.assert_array_equal(run(model.working, images(model))[0], run(model.proto, images(model))[0])


@pytest.mark.parametrize("depth", [25, 60])
def test_functions_that_would_unfold_without_end_are_refused_before_they_do(tmp_path, depth):
    proto = plain()
    del proto.graph.node[:]
    output = proto.graph.output[0].name
    proto.graph.node.append(helper.make_node("f0", [proto.graph.input[0].name], [output], domain="local"))
    imports = [proto.opset_import[0], helper.make_opsetid("local", 1)]
    for i in range(depth):
        calls = [helper.make_node(f"f{i + 1}", ["x"], [name], domain="local") for name in ("a", "b")]
        nodes = calls if i < depth - 1 else [helper.make_node("Relu", ["x"], [name]) for name in ("a", "b")]
        total = helper.make_node("Add", ["a", "b"], ["y"])
        proto.functions.append(helper.make_function("local", f"f{i}", ["x"], ["y"], [*nodes, total], imports))
    proto.opset_import.append(imports[1])
    with pytest.raises(ModelError, match=r"m\.onnx: its functions unfold to .* nodes \(limit 1000000\)"):
        read_model(save(proto, tmp_path / "m.onnx"))


def test_a_symbolic_batch_is_left_as_it_is():
    assert free_batch(plain()) == (plain(), "")


def test_a_fixed_batch_stays_on_request(tmp_path):
    b = Builder()
    b.op("Gemm", b.op("Flatten", "x"), b.weight(192, 3))
    path = save(b.model([1, 3, 8, 8], "scores", [1, 3]), tmp_path / "m.onnx")
    assert read_model(path, free=False).graph.inputs[0].shape == (1, 3, 8, 8)
    assert read_model(path).graph.inputs[0].shape == (None, 3, 8, 8)


@pytest.mark.parametrize("target", [[1, -1], [1, 192], [-1, 192], [0, 192], [1, 3, 64], [3, 64], [1, 3, -1, 8]])
def test_reshapes_that_bake_the_batch_in_are_freed(tmp_path, target):
    b = Builder()
    y = b.op("Reshape", "x", b.const(np.array(target, np.int64)))
    b.op("Reshape", y, b.const(np.array([1, 192], np.int64)))
    model = read_model(save(b.model([1, 3, 8, 8], "scores", [1, 192]), tmp_path / "m.onnx"))
    x = images(model, 5)
    np.testing.assert_array_equal(run(model.working, x)[0], x["x"].reshape(5, 192))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=classifiers(fixed_batch=True))
def test_freed_models_give_for_many_images_what_they_gave_one_by_one(tmp_path, proto):
    model = read_model(save(proto, tmp_path / "m.onnx"))
    x = images(model, 3)["x"]
    together = run(model.working, {"x": x})[0]
    single = np.concatenate([run(model.proto, {"x": x[i : i + 1]})[0] for i in range(3)])
    assert_close(together, single)


@pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside this checkout")
def test_vendor_models_are_read_and_freed():
    for path in sorted(VENDOR.glob("*.onnx")):
        model = read_model(path)
        x = images(model, 3)
        name, values = next(iter(x.items()))
        single = np.concatenate([run(model.proto, {name: values[i : i + 1]})[0] for i in range(3)])
        assert_close(run(model.working, x)[0], single)
