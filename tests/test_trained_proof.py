"""Foul play that the proof of retraining must find, and by how much weights changed."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from debride.errors import SurgeryError
from debride.graph.hollow import LARGE
from debride.graph.surgery import zero
from debride.graph.trained import changes, check_trained, written
from debride.graph.weights import silent, trainable
from graph_models import Builder
from trainable_models import groups_of, net, plain, read


def kernel(proto):
    return proto.graph.initializer[0]


def set_array(tensor, change):
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def flip(tensor):
    data = bytearray(tensor.raw_data)
    data[0] ^= 1
    tensor.raw_data = bytes(data)


def entry(value):
    return lambda array: array.__setitem__((2, 0, 0, 0), value)


# Of the model `plain`: its kernel is trained, channel 2 is pruned; initializer 4 is the running mean.
FOUL = {
    "a bit of another constant": (lambda p: flip(p.graph.initializer[2]), "'initializer' of the graph was changed"),
    "a bit of a large constant": (lambda p: flip(p.graph.initializer[-1]), "'large' was changed beyond"),
    "an attribute": (lambda p: p.graph.node[0].attribute[0].ints.append(1), "'node' of the graph was changed"),
    "a node's name": (lambda p: setattr(p.graph.node[0], "name", "other"), "'node' of the graph was changed"),
    "a node": (lambda p: p.graph.node.pop(), "'node' of the graph was changed"),
    "metadata": (lambda p: p.metadata_props.add(key="a", value="b"), "'metadata_props' of the model was changed"),
    "the opset": (lambda p: setattr(p.opset_import[0], "version", 12), "'opset_import' of the model was changed"),
    "the graph's name": (lambda p: setattr(p.graph, "name", "h"), "'name' of the graph was changed"),
    "an initializer more": (
        lambda p: p.graph.initializer.append(numpy_helper.from_array(np.zeros(1), "more")),
        "'initializer' of the graph was changed",
    ),
    "a doc string of the trained tensor": (lambda p: setattr(kernel(p), "doc_string", "x"), "'initializer' of the"),
    "a pruned entry": (lambda p: set_array(kernel(p), entry(1e-30)), "other numbers than 0 in a pruned channel"),
    "not finite": (lambda p: set_array(kernel(p), lambda a: a.__setitem__((0, 0, 0, 0), np.inf)), "is not finite"),
    "another type": (
        lambda p: kernel(p).CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(kernel(p)).astype(np.float64), kernel(p).name)
        ),
        "another type or shape",
    ),
    "another shape": (lambda p: kernel(p).dims.__setitem__(slice(None), [4, 27]), "another type or shape"),
    "too few data": (lambda p: setattr(kernel(p), "raw_data", kernel(p).raw_data[:-4]), "do not fill its shape"),
    "data in two fields": (lambda p: kernel(p).float_data.append(1.0), "fails the ONNX checker"),
    "another name": (lambda p: setattr(kernel(p), "name", "w"), "is no constant of both models"),
}


@pytest.fixture(scope="module")
def honest():
    """A pruned model before and after its kernel was trained, with the names and masks."""
    proto = plain()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(LARGE, np.float32), "large"))
    cut = read(zero(read(proto), [groups_of(read(proto))[2]]))
    still = silent(cut.graph, groups_of(cut))
    name = cut.graph.nodes[0].inputs[1]
    array = cut.graph.constants[name] * np.float32(1.5)
    return cut.proto, written(cut, {name: array}), [name], still


@pytest.mark.parametrize("what", FOUL)
def test_foul_play_is_found(honest, what):
    before, after, names, still = honest
    check_trained(before, after, names, still)
    how, message = FOUL[what]
    changed = onnx.ModelProto.FromString(after.SerializeToString())
    how(changed)
    with pytest.raises(SurgeryError, match=message):
        check_trained(before, changed, names, still)


def test_a_change_that_was_not_announced_is_found(honest):
    before, after, _, still = honest
    with pytest.raises(SurgeryError, match="'initializer' of the graph was changed beyond the trained weights"):
        check_trained(before, after, [], still)


def test_a_constant_that_moves_from_its_node_to_an_initializer_is_found():
    model = read(plain(store="constant"))
    name = trainable(model)[0][0].name
    after = written(model, {name: model.graph.constants[name] * 2})
    check_trained(model.proto, after, [name], {})
    index = next(i for i, n in enumerate(after.graph.node) if n.op_type == "Constant" and n.output[0] == name)
    tensor = after.graph.node[index].attribute[0].t
    moved = numpy_helper.from_array(numpy_helper.to_array(tensor), name)
    after.graph.initializer.append(moved)
    del after.graph.node[index]
    with pytest.raises(SurgeryError, match="was changed beyond"):
        check_trained(model.proto, after, [name], {})


def test_masks_of_another_shape_are_refused(honest):
    before, after, names, _ = honest
    with pytest.raises(SurgeryError, match="pruned channel"):
        check_trained(before, after, names, {names[0]: np.zeros(4, np.bool_)})


def test_changes_are_counted_in_the_graphs_order():
    proto = plain()
    proto.graph.initializer.insert(0, proto.graph.initializer.pop())  # stored in another order than read
    model = read(proto)
    first, *_, last = [w.name for w in trainable(model)[0]]
    arrays = {name: np.array(model.graph.constants[name]) for name in (last, first)}
    arrays[first][:] = 2.0
    arrays[last][1] -= 0.5
    before = written(model, {first: np.ones_like(arrays[first])})
    base = read(before)
    found = changes(before, written(base, arrays), [w.name for w in trainable(model)[0]])
    assert [(c.name, c.shape, c.changed) for c in found] == [(first, (4, 3, 3, 3), 108), (last, (3,), 1)]
    assert (found[0].largest, found[0].relative) == (1.0, 1.0)
    old = model.graph.constants[last].astype(np.float64)
    assert found[1].largest == pytest.approx(0.5, rel=1e-6)
    assert found[1].relative == pytest.approx(0.5 / np.linalg.norm(old), rel=1e-6)


def test_a_change_from_zeros_is_infinite_and_a_sign_of_zero_is_none_of_size():
    model = read(plain())
    name = trainable(model)[0][1].name
    zeros = written(model, {name: np.zeros(4, np.float32)})
    some = written(model, {name: np.array([0, 0, 3, 4], np.float32)})
    signed = written(model, {name: np.array([0, -0.0, 0, 0], np.float32)})
    (change,) = changes(zeros, some, [name])
    assert (change.changed, change.largest, change.relative) == (2, 4.0, np.inf)
    (change,) = changes(zeros, signed, [name])
    assert (change.changed, change.largest, change.relative) == (1, 0.0, 0.0)
    assert changes(zeros, zeros, [name]) == ()


def test_changes_of_half_precision_are_those_of_its_numbers():
    b = Builder(13)
    b.initializers.append(numpy_helper.from_array(np.ones((192, 4), ml_dtypes.bfloat16), "w"))
    y = b.op("MatMul", b.op("Flatten", b.op("Cast", "x", to=16)), "w")
    b.op("MatMul", b.op("Cast", y, to=1), b.weight(4, 3))
    model = read(net(b))
    new = np.ones((192, 4), np.float32)
    new[0] += 0.5
    new[1] += 1e-4  # rounded away
    (change,) = changes(model.proto, written(model, {"w": new}), ["w"])
    assert (change.changed, change.largest) == (4, 0.5)
    assert change.relative == pytest.approx(1 / np.sqrt(768), rel=1e-12)


def test_changes_of_another_type_are_refused():
    before, after = plain(), plain()
    kernel(after).CopyFrom(numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float16), kernel(after).name))
    with pytest.raises(SurgeryError, match="has another type or shape"):
        changes(before, after, [kernel(before).name])


def test_changes_of_unknown_constants_are_refused():
    proto = plain()
    with pytest.raises(SurgeryError, match="'w' is no constant of both models"):
        changes(proto, proto, ["w"])
