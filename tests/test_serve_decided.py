"""What a classifier decides when its model is loaded, how it ranks, and how it reads ahead."""

import itertools
import threading

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from debride.errors import ImagesError, ModelError
from debride.serve import Classifier
from debride.serve.ahead import prepared
from debride.serve.ranking import ranked, softmax
from debride.sessions import Runtime, Session
from tiny import PALETTE, tiny_classifier, tiny_samples, tiny_spec

ONE = Runtime(threads=1)
NOISE = np.random.default_rng(5).integers(0, 256, (5, 6, 5, 3), dtype=np.uint8)


def flat(*colour):
    return np.broadcast_to(np.array(colour, np.uint8), (6, 5, 3)).copy()


def constant(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.array(values, dtype), name)


def followed_by(*nodes, constants=(), **options):
    """The tiny classifier with `nodes` after it, which read its scores as `plain`, and give `scores`."""
    model = onnx.load_from_string(tiny_classifier(tiny_spec(), **options))
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    return model.SerializeToString()


def served(model, **options):
    return Classifier(model, spec=tiny_spec(), runtime=ONE, **options)


def one_by_one(classifier, images):
    return [classifier.classify([image])[0] for image in images]


def assert_same(found, expected, tolerance=1e-12):
    """The same classes in the same order; probabilities equal but for the last bits of an exponential."""
    assert [[p.index for p in row] for row in found] == [[p.index for p in row] for row in expected]
    np.testing.assert_allclose(
        [[p.probability for p in row] for row in found],
        [[p.probability for p in row] for row in expected],
        atol=tolerance,
        rtol=0,
    )


# --- softmax -----------------------------------------------------------------------------------------------------


def test_softmax_is_decided_for_good_and_not_by_the_images_of_a_batch():
    # Scores (r, g, b, 0): those of pure red look like a distribution, and are none.
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["colour"]),
            helper.make_node("MatMul", ["colour", "wide"], ["scores"]),
        ],
        "means",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 6, 5])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [constant("wide", np.eye(3, 4))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    classifier = served(model.SerializeToString())
    red = flat(255, 0, 0)
    assert classifier.softmax
    for found in (classifier.classify([red]), classifier.classify([red, flat(9, 9, 9)])):
        assert found[0][0].probability == pytest.approx(np.e / (np.e + 3), abs=1e-6)


@pytest.mark.parametrize("softmax", [True, False])
def test_what_the_graph_softmaxed_is_left_alone(softmax):
    classifier = served(tiny_classifier(tiny_spec(), softmax=softmax))
    assert (classifier.softmax, classifier.n_classes) == (not softmax, 4)
    scores = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    expected = np.exp(scores) / np.exp(scores).sum() if not softmax else scores
    np.testing.assert_allclose(classifier.probabilities(scores), expected, atol=1e-7)


# --- a model that does not run, or only for some images ------------------------------------------------------------


def test_a_model_that_cannot_run_is_an_error_when_it_is_loaded():
    broken = followed_by(
        helper.make_node("Reshape", ["plain", "to"], ["scores"]), constants=[constant("to", [7, 4], np.int64)]
    )
    with pytest.raises(ModelError, match="could not run the model"):
        served(broken)


def test_a_model_that_is_never_finite_is_an_error_when_it_is_loaded():
    broken = followed_by(helper.make_node("Mul", ["plain", "nan"], ["scores"]), constants=[constant("nan", np.nan)])
    with pytest.raises(ModelError, match="not finite"):
        served(broken)


def normalising():
    """0 / 0 where all pixels of an image are one colour."""
    return followed_by(
        helper.make_node("ReduceMax", ["image"], ["high"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMin", ["image"], ["low"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["high", "low"], ["contrast"]),
        helper.make_node("Div", ["contrast", "contrast"], ["one"]),
        helper.make_node("Unsqueeze", ["one", "axis"], ["ones"]),
        helper.make_node("Mul", ["plain", "ones"], ["scores"]),
        constants=[constant("axis", [1], np.int64)],
    )


@pytest.mark.parametrize("count", [1, 3])
def test_scores_that_are_not_finite_for_an_image_are_an_error_then(count):
    classifier = served(normalising())
    assert classifier.splits
    assert len(classifier.classify([NOISE[0]] * count)) == count
    with pytest.raises(ModelError, match="not finite"):
        classifier.classify([*[NOISE[0]] * (count - 1), flat(7, 7, 7)])


def test_a_session_is_taken_as_it_is_and_an_input_that_is_not_there_is_named():
    session = Session(tiny_classifier(tiny_spec()), ONE, "m.onnx")
    assert Classifier(session, spec=tiny_spec()).session is session
    with pytest.raises(ModelError, match=r"m\.onnx: no input is named 'other'"):
        Classifier(session, spec=tiny_spec(name="other"))


# --- batches ------------------------------------------------------------------------------------------------------


def mixing():
    """Graphs in which the images of a batch are not apart, by how."""
    return {
        "mean": followed_by(
            helper.make_node("ReduceMean", ["plain"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["plain", "mean"], ["scores"]),
        ),
        "one scale": followed_by(
            helper.make_node("DynamicQuantizeLinear", ["plain"], ["q", "step", "zero"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["scores"]),
        ),
        "those before": followed_by(
            helper.make_node("CumSum", ["plain", "axis"], ["scores"]), constants=[constant("axis", 0, np.int64)]
        ),
        "their number": followed_by(
            helper.make_node("Shape", ["plain"], ["shape"]),
            helper.make_node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
            helper.make_node("Slice", ["sizes", "from", "to"], ["n"]),
            helper.make_node("Mul", ["plain", "n"], ["scores"]),
            constants=[constant("from", [0], np.int64), constant("to", [1], np.int64)],
        ),
        "one only": followed_by(
            helper.make_node("Reshape", ["plain", "to"], ["scores"]), constants=[constant("to", [1, 4], np.int64)]
        ),
    }


@pytest.mark.parametrize("how", sorted(mixing()))
def test_a_graph_that_mixes_the_images_of_a_batch_is_given_them_one_by_one(how):
    classifier = served(mixing()[how])
    assert not classifier.splits
    assert_same(classifier.classify(NOISE), one_by_one(classifier, NOISE))
    rows = np.stack([classifier.prepare(image, "a") for image in NOISE])
    np.testing.assert_array_equal(classifier.scores(rows)[3:4], classifier.scores(rows[3:4]))


@pytest.mark.parametrize("batch", ["batch", 1, 2, 4])
@pytest.mark.parametrize("softmax", [True, False])
def test_a_graph_that_keeps_images_apart_is_given_them_together(batch, softmax):
    classifier = served(tiny_classifier(tiny_spec(), batch=batch, softmax=softmax, sharpness=1.0))
    assert classifier.splits
    assert_same(classifier.classify(NOISE), one_by_one(classifier, NOISE), tolerance=1e-6)


def test_a_fixed_batch_that_mixes_is_filled_with_one_image():
    model = onnx.load_from_string(mixing()["one scale"])
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    classifier = served(model.SerializeToString())
    assert not classifier.splits
    assert_same(classifier.classify(NOISE), one_by_one(classifier, NOISE))


# --- ranking ------------------------------------------------------------------------------------------------------


@given(
    classes=st.sampled_from([2, 10, 64, 65, 300]),
    rows=st.integers(1, 3),
    top=st.integers(0, 400),
    levels=st.sampled_from([2, 1000]),
    by_softmax=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ranking_is_a_stable_sort(classes, rows, top, levels, by_softmax, seed):
    scores = np.random.default_rng(seed).integers(0, levels, (rows, classes)).astype(np.float32) / levels
    labels = [f"c{i}" for i in range(classes)]
    found = ranked(scores, top, labels, by_softmax=by_softmax, name="m")
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    assert [[p.index for p in row] for row in found] == order.tolist()
    assert [[p.label for p in row] for row in found] == [[labels[i] for i in row] for row in order]
    exact = np.exp(scores.astype(np.float64))
    expected = exact / exact.sum(axis=1, keepdims=True) if by_softmax else scores
    np.testing.assert_allclose(
        [[p.probability for p in row] for row in found], np.take_along_axis(expected, order, axis=1), atol=1e-7
    )


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (1, 100)])
@pytest.mark.parametrize("by_softmax", [True, False])
def test_a_score_that_is_not_finite_is_never_ranked(broken, shape, by_softmax):
    scores = np.zeros(shape, np.float32)
    scores[-1, 2] = broken
    with pytest.raises(ModelError, match=r"^m: the class scores are not finite"):
        ranked(scores, 5, ["a"] * shape[1], by_softmax=by_softmax, name="m")


def test_large_scores_are_finite_and_softmax_does_not_overflow():
    scores = np.full((2, 4), 3e38, np.float32)
    assert ranked(scores, 1, "abcd", by_softmax=True, name="m")[1][0] == ("a", 0, 0.25)
    np.testing.assert_array_equal(softmax(scores), np.full((2, 4), 0.25))


@pytest.mark.parametrize("shape", [(4,), (2, 4, 1), (2, 1), (2, 5), ()])
def test_scores_of_another_shape_are_an_error(shape):
    with pytest.raises(ModelError):
        served(tiny_classifier(tiny_spec())).ranked(np.zeros(shape, np.float32), 5)


# --- reading ahead -------------------------------------------------------------------------------------------------


def coded(colour):
    return cv2.imencode(".png", flat(*(255 * PALETTE[colour]).astype(int))[:, :, ::-1])[1].tobytes()


def test_many_files_are_decoded_by_threads_and_keep_their_order(tmp_path):
    classifier, seen = served(tiny_classifier(tiny_spec()), batch=7), set()
    prepare = classifier.prepare
    rows = prepared(
        lambda image, name: seen.add(threading.current_thread().name) or prepare(image, name), [coded(0)] * 9, 3
    )
    assert len(list(rows)) == 9
    assert seen and all(name.startswith("debride-decode") for name in seen)

    order = [i % 4 for i in range(50)]
    for at, colour in enumerate(order):
        (tmp_path / f"{at}.png").write_bytes(coded(colour))
    found = classifier.classify(tmp_path / f"{at}.png" for at in range(50))
    assert [row[0].index for row in found] == order
    mixed = [coded(0), flat(*(255 * PALETTE[2]).astype(int)), tmp_path / "1.png", str(tmp_path / "3.png")]
    assert [row[0].index for row in classifier.classify(mixed)] == [0, 2, 1, 3]
    assert not [t for t in threading.enumerate() if t.name.startswith("debride-decode")]


@pytest.mark.parametrize("image", [NOISE[0], coded(1)])
def test_a_generator_is_asked_for_no_more_than_there_is_room_for(image):
    taken = itertools.count()
    rows = prepared(
        served(tiny_classifier(tiny_spec())).prepare, ((next(taken), image)[1] for _ in itertools.count()), 4
    )
    for given_out in range(1, 20):
        next(rows)
        assert next(taken) <= 2 * given_out + 5  # every look at the counter counts too
    rows.close()


def test_an_image_that_is_no_image_is_an_error_in_its_turn():
    rows = prepared(served(tiny_classifier(tiny_spec())).prepare, [coded(0), coded(1), b"junk", coded(2)], 32)
    assert next(rows).shape == next(rows).shape == (3, 6, 5)
    with pytest.raises(ImagesError, match=r"^image 2: "):
        next(rows)


def test_one_classifier_serves_many_threads():
    samples = tiny_samples(8)
    images = [np.round(image.transpose(1, 2, 0) * 255).astype(np.uint8) for image in samples.images]
    classifier = served(tiny_classifier(tiny_spec()), batch=3)
    alone = classifier.classify(images)
    found = [[] for _ in range(6)]
    threads = [threading.Thread(target=lambda into=into: into.extend(classifier.classify(images))) for into in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answer == alone for answer in found)
