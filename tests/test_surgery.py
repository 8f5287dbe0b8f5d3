"""Surgery on the delivered file: the slices are zero, every other bit is as it was, and files are written whole."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from debride.errors import SurgeryError, UsageError
from debride.graph.channels import find_groups
from debride.graph.read import read_model
from debride.graph.surgery import check_written, editable, working_zero, write_bytes, write_model, zero
from debride.graph.write import write_copy
from graph_models import VENDOR, Builder, assert_close, classifiers, images, run, with_function

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def read(proto, tmp_path):
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(tmp_path / "m.onnx")


def conv_net(**kwargs):
    b = Builder(**kwargs)
    y = b.op("Relu", b.bn(b.conv("x", 3, 4), 4))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), b.weight(4, 3), b.weight(3))
    return b.model(["n", 3, 8, 8], "scores", ["n", 3])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def constant_arrays(proto):
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    arrays.update((n.output[0], numpy_helper.to_array(n.attribute[0].t)) for n in proto.graph.node if not n.input)
    return arrays


@QUICK
@given(proto=classifiers(), data=st.data())
def test_zeroing_touches_the_slices_and_nothing_else(tmp_path, proto, data):
    model = read(proto, tmp_path)
    delivered = model.proto.SerializeToString(deterministic=True)
    groups, _ = find_groups(model.graph, "scores")
    gone = [groups[p] for p in sorted(data.draw(st.sets(st.integers(0, len(groups) - 1), max_size=5)))]
    after = zero(model, gone)
    check_written(model.proto, after, gone)
    onnx.checker.check_model(after)
    assert model.proto.SerializeToString(deterministic=True) == delivered
    x = images(model, 1)
    assert_close(run(after, x)[0], run(working_zero(model, gone), x)[0])
    # Checked apart from check_written: at every input of every node, each entry is what it was, or zero in a slice.
    before_values, after_values = constant_arrays(proto), constant_arrays(after)
    pieces = [s for g in gone for s in g.slices]
    for old, new in zip(proto.graph.node, after.graph.node, strict=True):
        assert (old.op_type, old.name, old.output) == (new.op_type, new.name, new.output)
        for position, (was, now) in enumerate(zip(old.input, new.input, strict=True)):
            if was not in before_values:
                assert was == now
                continue
            expected = before_values[was].copy()
            for piece in pieces:
                if (piece.node, piece.position) == (new.name, position):
                    np.moveaxis(expected, piece.axis, 0)[list(piece.indices)] = 0
            assert after_values[now].tobytes() == expected.tobytes()


def test_zeroing_no_groups_gives_the_delivered_model_byte_for_byte(tmp_path):
    model = read(conv_net(), tmp_path)
    assert zero(model, []).SerializeToString() == model.proto.SerializeToString()


def test_a_shared_constant_is_copied_for_the_pruned_layer_alone(tmp_path):
    b = Builder()
    bias = b.const(np.ones(4, np.float32))
    y = b.op("Relu", b.conv("x", 3, 4, bias=bias))
    y = b.op("Relu", b.conv(y, 4, 4, bias=bias))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), b.weight(4, 3))
    model = read(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    after = zero(model, groups[5:7])
    check_written(model.proto, after, groups[5:7])
    values = constant_arrays(after)
    assert values[bias].tolist() == [1, 1, 1, 1]
    assert after.graph.node[0].input[2] == bias
    assert values[after.graph.node[2].input[2]].tolist() == [1, 0, 0, 1]
    assert len(after.graph.initializer) == len(model.proto.graph.initializer) + 1


def test_a_weight_that_is_also_an_output_of_the_graph_is_copied(tmp_path):
    b = Builder()
    y = b.conv("x", 3, 4, bias=False)
    weight = b.initializers[0].name
    b.op("Flatten", b.op("Conv", y, b.weight(3, 4, 8, 8)))
    end = helper.make_tensor_value_info(weight, 1, [4, 3, 3, 3])
    model = read(b.model(["n", 3, 8, 8], "scores", ["n", 3], outputs=[end]), tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    after = zero(model, groups[:1])
    np.testing.assert_array_equal(constant_arrays(after)[weight], constant_arrays(model.proto)[weight])
    check_written(model.proto, after, groups[:1])


def test_what_graphsurgeon_drops_is_carried_over(tmp_path):
    proto = conv_net(ir=10)
    proto.doc_string, proto.domain, proto.model_version = "doc", "acme", 7
    proto.producer_name, proto.producer_version = "maker", "1.2"
    proto.metadata_props.add(key="layout", value="NCHW")
    graph = proto.graph
    graph.doc_string = "graph doc"
    graph.initializer.append(numpy_helper.from_array(np.arange(3, dtype=np.float32), "unused"))
    graph.initializer.append(helper.make_tensor("packed", onnx.TensorProto.INT4, [3], [1, 2, 3]))
    graph.initializer[0].doc_string = "weight doc"
    graph.initializer[0].metadata_props.add(key="k", value="v")
    graph.node[0].doc_string = "node doc"
    graph.node[0].metadata_props.add(key="source", value="line 3")
    graph.value_info.append(helper.make_tensor_value_info(graph.node[0].output[0], 1, ["n", 4, 8, 8]))
    graph.quantization_annotation.add(tensor_name="x")
    model = read(proto, tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    after = zero(model, groups[:1])
    check_written(model.proto, after, groups[:1])
    restored = onnx.ModelProto()
    restored.CopyFrom(after)
    for tensor, old in zip(restored.graph.initializer, proto.graph.initializer, strict=True):
        tensor.CopyFrom(old)
    assert restored == proto
    assert after.graph.initializer[0].doc_string == "weight doc"


def test_weights_kept_as_typed_data_are_zeroed_too(tmp_path):
    proto = conv_net()
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).reshape(-1).tolist()
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values))
    model = read(proto, tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    after = zero(model, groups[1:2])
    check_written(model.proto, after, groups[1:2])
    assert_close(run(after, images(model))[0], run(working_zero(model, groups[1:2]), images(model))[0])


@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "BFLOAT16"])
def test_weights_of_other_float_types_are_zeroed_bit_exactly(tmp_path, kind):
    b = Builder(13)
    to = getattr(onnx.TensorProto, kind)
    values = b.rng.standard_normal((192, 4)).ravel().tolist()
    b.initializers.append(helper.make_tensor("w", to, [192, 4], values))
    y = b.op("MatMul", b.op("Flatten", b.op("Cast", "x", to=to)), "w")
    b.op("MatMul", b.op("Cast", y, to=1), b.weight(4, 3))
    model = read(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    after = zero(model, groups[1:3])
    check_written(model.proto, after, groups[1:3])
    assert (constant_arrays(after)["w"] == 0).all(axis=0).tolist() == [False, True, True, False]


def test_a_layer_inside_a_function_is_edited_in_the_inlined_copy(tmp_path):
    model = read(with_function(), tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    assert len(groups) == 4
    base = editable(model, groups[:1])
    assert not base.functions and model.proto.functions
    after = zero(model, groups[:1])
    check_written(base, after, groups[:1])
    assert_close(run(after, images(model))[0], run(working_zero(model, groups[:1]), images(model))[0])


def test_a_function_without_pruned_layers_stays(tmp_path):
    proto = with_function()
    y = proto.graph.node[0]
    conv = helper.make_node("Conv", ["x", "first"], ["y0"], name="first")
    y.input[0] = "y0"
    proto.graph.node.insert(0, conv)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "first"))
    model = read(proto, tmp_path)
    groups = [g for g in find_groups(model.graph, "scores")[0] if g.layer == "first"]
    assert editable(model, groups) is model.proto
    after = zero(model, groups[:2])
    check_written(model.proto, after, groups[:2])
    assert after.functions == model.proto.functions


def test_groups_of_another_model_are_refused(tmp_path):
    model = read(conv_net(), tmp_path)
    other = Builder()
    other.count = 40
    y = other.conv("x", 3, 9)
    other.op("Gemm", other.op("Flatten", y), other.weight(576, 3))
    (tmp_path / "o").mkdir()
    strange = read(other.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path / "o")
    with pytest.raises(SurgeryError, match="find the groups on this model"):
        zero(model, find_groups(strange.graph, "scores")[0])


def tampered(after, how):
    changed = onnx.ModelProto()
    changed.CopyFrom(after)
    how(changed)
    return changed


def touch_weight(proto):
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[3, 0, 0, 0] += 1
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, proto.graph.initializer[0].name))


TAMPERINGS = {
    "another channel": touch_weight,
    "another constant": lambda p: p.graph.initializer[-1].CopyFrom(
        numpy_helper.from_array(np.zeros(3, np.float32), p.graph.initializer[-1].name)
    ),
    "metadata": lambda p: p.metadata_props.add(key="a", value="b"),
    "an attribute": lambda p: p.graph.node[0].attribute[0].ints.append(1),
    "a node": lambda p: p.graph.node.pop(),
    "an initializer more": lambda p: p.graph.initializer.append(numpy_helper.from_array(np.zeros(1), "more")),
    "the opset": lambda p: setattr(p.opset_import[0], "version", 12),
    "another reader": lambda p: p.graph.node[0].input.__setitem__(1, p.graph.initializer[1].name),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_any_other_change_is_found(tmp_path, what):
    model = read(conv_net(), tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    after = zero(model, groups[:1])
    with pytest.raises(SurgeryError):
        check_written(model.proto, tampered(after, TAMPERINGS[what]), groups[:1])
    with pytest.raises(SurgeryError):
        check_written(model.proto, model.proto, groups[:1])


def test_a_model_is_written_whole_with_metadata_and_reads_back(tmp_path):
    proto = conv_net()
    proto.metadata_props.add(key="kept", value="1")
    proto.metadata_props.add(key="debride", value="old")
    out = tmp_path / "out.onnx"
    write_model(proto, out, metadata={"debride": "new"})
    back = onnx.load(out)
    assert {e.key: e.value for e in back.metadata_props} == {"kept": "1", "debride": "new"}
    assert back.graph == proto.graph
    assert [e.value for e in proto.metadata_props] == ["1", "old"]
    assert names(tmp_path) == ["out.onnx"]


def test_an_existing_output_needs_force_and_stays_otherwise(tmp_path):
    out = tmp_path / "out.onnx"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="--force"):
        write_model(conv_net(), out)
    assert out.read_bytes() == b"mine"
    write_model(conv_net(), out, force=True)
    assert onnx.load(out) == conv_net()
    for place in (tmp_path, tmp_path / "no" / "out.onnx"):
        with pytest.raises(UsageError, match="a folder that exists"):
            write_model(conv_net(), place, force=True)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch, failure):
    out = tmp_path / "out.onnx"
    out.write_bytes(b"mine")

    def stop(_):
        raise failure

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(failure):
        write_bytes(b"new", out, force=True)
    assert names(tmp_path) == ["out.onnx"] and out.read_bytes() == b"mine"


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SurgeryError, match=r"out.onnx: cannot be written \(No space left on device\)"):
        write_bytes(b"new", tmp_path / "out.onnx")
    assert not names(tmp_path)


def test_a_model_above_the_limit_is_written_with_its_weights_beside_it(tmp_path):
    b = Builder()
    b.op("Gemm", b.op("Flatten", "x"), b.weight(192, 3), b.weight(3))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    out = tmp_path / "out.onnx"
    write_model(proto, out, limit=1000)
    assert names(tmp_path) == ["out.onnx", "out.onnx.data"] and out.stat().st_size < 1000
    assert read_model(out).proto == proto
    with pytest.raises(UsageError, match=r"out\.onnx\.data"):
        out.unlink()
        write_model(proto, out, limit=1000)


@pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside this checkout")
def test_vendor_models_are_pruned_bit_exactly(tmp_path):
    for path in sorted(VENDOR.glob("*.onnx")):
        model = read_model(path)
        scores = model.graph.outputs[0].name
        groups, _ = find_groups(model.graph, scores)
        gone = [groups[p] for p in np.random.default_rng(2).permutation(len(groups))[:9]]
        after = zero(model, gone)
        check_written(model.proto, after, gone)
        write_model(after, tmp_path / path.name)
        x = images(model, 1)
        again = read_model(tmp_path / path.name)
        assert_close(run(again.proto, x, [scores])[0], run(working_zero(model, gone), x, [scores])[0])


@pytest.mark.parametrize("relative", [True, False])
def test_a_copy_with_external_data_is_laid_out_as_the_original(tmp_path, monkeypatch, relative):
    source, place = tmp_path / "from", tmp_path / "to"
    (source / "parts").mkdir(parents=True)
    place.mkdir()
    (source / "m.onnx").write_bytes(b"model")
    (source / "parts" / "w.bin").write_bytes(b"weights")
    monkeypatch.chdir(source)
    model = Path("m.onnx") if relative else source / "m.onnx"
    write_copy(b"model", model, (source / "parts" / "w.bin",), place / "c.onnx")
    assert (place / "c.onnx").read_bytes() == b"model" and (place / "parts" / "w.bin").read_bytes() == b"weights"
    # Beside the original its data serve both.
    write_copy(b"model", model, (source / "parts" / "w.bin",), source / "c.onnx")
    assert (source / "c.onnx").read_bytes() == b"model"


def test_a_copy_whose_data_has_no_place_writes_nothing(tmp_path):
    source, place = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    place.mkdir()
    (source / "a.bin").write_bytes(b"a")
    (source / "b.bin").write_bytes(b"b")
    (place / "b.bin").write_bytes(b"taken")
    with pytest.raises(UsageError, match=r"b\.bin"):
        write_copy(b"model", source / "m.onnx", (source / "a.bin", source / "b.bin"), place / "c.onnx")
    assert sorted(p.name for p in place.iterdir()) == ["b.bin"] and (place / "b.bin").read_bytes() == b"taken"
