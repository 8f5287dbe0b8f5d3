"""Large models: how much memory they take, and that nothing of them is lost where their data are not copied."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from bench_memory import make, measure
from debride.errors import ModelError, SurgeryError
from debride.graph.channels import find_groups
from debride.graph.hollow import LARGE, check_model, filled, hollow, payloads
from debride.graph.infer import shape_of, value_infos
from debride.graph.read import read_model
from debride.graph.surgery import check_written, write_model, zero
from debride.graph.wire import data_of, pieces_of, size_of
from debride.memory import release
from graph_models import Builder, assert_close, classifiers, images, run

MEGABYTES = 120
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
SIDE = 128  # SIDE * SIDE elements are large


def large(opset=17, **kwargs):
    """Two large layers, one of them in a Constant node where `store` says so, and a small one."""
    b = Builder(opset, **kwargs)
    y = b.op("Relu", b.op("MatMul", b.op("Flatten", "x"), b.weight(192, SIDE)))
    y = b.op("Relu", b.op("MatMul", y, b.weight(SIDE, SIDE)))
    b.op("MatMul", y, b.weight(SIDE, 3))
    return b.model(["n", 3, 8, 8], "scores", ["n", 3])


def read(proto, folder, **kwargs):
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(folder / "m.onnx", **kwargs)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return make(tmp_path_factory.mktemp("big"), MEGABYTES, width=2048)


@linux
@pytest.mark.parametrize("limit", [2**31 - 1, 1000])
def test_pruning_takes_at_most_three_times_the_models_size(big, tmp_path, limit):
    found = measure(big, tmp_path / "cut.onnx", limit=limit)
    assert 1 < found["read"] < 1.6 and 2 < found["write"] < 3
    assert (tmp_path / "cut.onnx.data").exists() == (limit == 1000)
    model = read_model(big)
    gone = find_groups(model.graph, "y")[0][::20]
    assert read_model(tmp_path / "cut.onnx").proto == zero(model, gone)


@linux
def test_a_graph_that_has_to_be_rewritten_takes_no_more(tmp_path):
    path = make(tmp_path, MEGABYTES, width=2048, batch=1, named=False)
    assert measure(path, tmp_path / "cut.onnx")["write"] < 3


HOLES = """
from pathlib import Path
from debride.memory import release

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

pairs = [(bytearray(100_000), bytearray(600)) for _ in range(2000)]
full = resident()
pairs = [small for _, small in pairs]
freed = resident()
release()
print(full, freed, resident())
"""


@linux
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to give memory back")
def test_memory_in_holes_of_the_heap_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True, text=True)
    full, freed, released = (int(pages) for pages in done.stdout.split())
    assert freed > 0.9 * full and released < 0.5 * full


def test_without_a_c_library_that_gives_memory_back_nothing_is_done(monkeypatch):
    monkeypatch.setattr("debride.memory._trim", lambda: None)
    release()


@linux
@pytest.mark.slow
def test_a_model_over_2_gib_is_read_pruned_checked_and_written(tmp_path):
    path = make(tmp_path, 2300, width=8192)
    assert path.with_name("large.onnx.data").stat().st_size > 2**31
    out = tmp_path / "out"
    out.mkdir()
    assert measure(path, out / "cut.onnx", share=1e-4)["write"] < 3
    model, old = read_model(out / "cut.onnx"), read_model(path).graph.constants
    changed = [name for name, array in model.graph.constants.items() if not np.array_equal(array, old[name])]
    gone = find_groups(model.graph, "y")[0][::10_000]
    assert len(changed) == len({(piece.node, piece.position) for group in gone for piece in group.slices}) > 0
    for name in changed:
        array = model.graph.constants[name]
        assert not array[array != old[name]].any()
    assert len(model.external) == 1
    with pytest.raises(ModelError, match="raise the limit"):
        read_model(path, max_bytes=2**31)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(proto=classifiers())
def test_the_pieces_in_a_row_are_the_serialized_model(proto):
    assert b"".join(map(data_of, pieces_of(proto, proto.graph))) == proto.SerializeToString()


@pytest.mark.parametrize("store", ["initializer", "constant"])
def test_the_pieces_of_large_tensors_are_the_serialized_model_too(store):
    proto = large(store=store)
    typed = np.ones(LARGE)
    proto.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [LARGE], typed))
    proto.graph.initializer[-1].doc_string = "after the data"
    proto.metadata_props.add(key="k", value="v")
    pieces = pieces_of(proto, proto.graph)
    assert sum(isinstance(piece, onnx.TensorProto) for piece in pieces) == 2
    assert b"".join(map(data_of, pieces)) == proto.SerializeToString()
    assert size_of(pieces) == proto.ByteSize()


def unknown(message):
    message.MergeFromString(b"\xfa\x3f\x02hi")  # field 1023, of no ONNX yet
    return message


def test_fields_of_a_newer_onnx_are_kept_wherever_they_are(tmp_path):
    proto = large()
    for message in (proto, proto.graph, proto.graph.initializer[0], proto.graph.node[0]):
        unknown(message)
    model = read(proto, tmp_path)
    groups = find_groups(model.graph, "scores")[0][:3]
    after = zero(model, groups)
    check_written(model.proto, after, groups)
    assert after.SerializeToString().count(b"\xfa\x3f\x02hi") == 4
    write_model(after, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == after.SerializeToString()
    other = onnx.ModelProto()
    other.CopyFrom(after)
    unknown(other.graph)
    with pytest.raises(SurgeryError):
        check_written(model.proto, other, groups)


@pytest.mark.parametrize("store", ["initializer", "constant"])
def test_a_hollow_copy_misses_nothing_but_the_data(store):
    proto = large(store=store)
    copy = hollow(proto)
    assert len(copy.held) == 2 and copy.proto.ByteSize() < 4 * 192 * SIDE < proto.ByteSize()
    assert filled(copy.proto, payloads(proto)).SerializeToString() == proto.SerializeToString()
    shapes = {name: shape_of(value) for name, value in value_infos(proto).items()}
    assert shapes["scores"] == [0, 3] and [0, SIDE] in shapes.values()


@pytest.mark.parametrize("store", ["initializer", "constant"])
def test_one_changed_bit_of_a_large_weight_that_nobody_prunes_is_found(tmp_path, store):
    model = read(large(store=store), tmp_path)
    groups = [g for g in find_groups(model.graph, "scores")[0] if g.layer == model.graph.nodes[1].name]
    after = zero(model, groups[:2])
    check_written(model.proto, after, groups[:2])
    for name, tensor in payloads(after).items():
        good = tensor.raw_data
        for place in (0, 3000, len(good) - 1):
            tensor.raw_data = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
            with pytest.raises(SurgeryError, match=name):
                check_written(model.proto, after, groups[:2])
        tensor.raw_data = good
        tensor.float_data.append(1.0)
        with pytest.raises(SurgeryError):
            check_written(model.proto, after, groups[:2])
        tensor.ClearField("float_data")
    check_written(model.proto, after, groups[:2])


def test_the_checker_sees_large_tensors_without_data_or_with_too_many():
    for change in (lambda t: t.ClearField("raw_data"), lambda t: t.float_data.append(1.0)):
        proto = large()
        change(proto.graph.initializer[0])
        with pytest.raises(onnx.checker.ValidationError, match="one field of data"):
            check_model(proto)


@pytest.mark.parametrize("store", ["initializer", "constant"])
def test_the_working_copy_is_made_when_it_differs_and_has_all_weights(tmp_path, store):
    proto = large(store=store)
    if store == "initializer":  # the Constant nodes have no names
        assert (model := read(proto, tmp_path)).working is model.proto
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    model = read(proto, tmp_path)
    assert model.working is not model.proto and model.working is model.working
    feed = images(model, 4)
    single = [run(model.proto, {"x": feed["x"][i : i + 1]})[0] for i in range(4)]
    assert_close(run(model.working, feed)[0], np.concatenate(single))


def test_large_constants_are_decoded_as_often_as_they_are_asked_for(tmp_path):
    model = read(large(), tmp_path)
    name = model.graph.nodes[1].inputs[1]
    array = model.graph.constants[name]
    assert array is model.graph.constants[name] and not array.flags.writeable
    assert name in model.graph.constants and "none" not in model.graph.constants
    np.testing.assert_array_equal(array, numpy_helper.to_array(model.proto.graph.initializer[0]))


def test_typed_data_go_beside_a_model_above_the_limit(tmp_path):
    proto = large()
    first = proto.graph.initializer[0]
    values = numpy_helper.to_array(first)
    first.CopyFrom(helper.make_tensor(first.name, TensorProto.FLOAT, values.shape, values.ravel()))
    write_model(proto, tmp_path / "out.onnx", limit=5000, metadata={"k": "v"})
    assert (tmp_path / "out.onnx").stat().st_size < 5000
    model = read_model(tmp_path / "out.onnx")
    assert model.proto.metadata_props[0].value == "v"
    for name, array in read(proto, tmp_path).graph.constants.items():
        np.testing.assert_array_equal(model.graph.constants[name], array)
