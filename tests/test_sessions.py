from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from debride import sessions
from debride.errors import ImagesError, ModelError, RuntimeMissingError
from debride.sessions import Runtime, Session, check_runtime, predictor, probabilities, runtime_on
from fake_gpu import CPU, CUDA, FakeGpu
from tiny import PALETTE, tiny_classifier, tiny_samples, tiny_spec

ONE = Runtime(threads=1)


def expected_scores(samples):
    pooled = samples.images.mean(axis=(2, 3))
    return 20 * (2 * pooled @ PALETTE.T - (PALETTE**2).sum(axis=1))


def test_ends_and_metadata_are_read_with_none_for_symbolic_dimensions():
    session = Session(tiny_classifier(tiny_spec(), metadata={"a": "b"}), ONE)
    assert session.inputs == (sessions.TensorInfo("image", (None, 3, 6, 5), np.dtype(np.float32)),)
    assert session.outputs[0].shape == (None, 4)
    assert session.metadata == {"a": "b"}
    assert session.provider == "CPUExecutionProvider"


def test_a_model_is_loaded_from_a_path_too(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_classifier(tiny_spec()))
    assert Session(path, ONE).name == "m.onnx"


@pytest.mark.parametrize("data", [b"no protobuf", b"", tiny_classifier(tiny_spec())[:200]])
def test_a_broken_model_is_an_error_that_names_the_file(data):
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        Session(data, ONE, name="bad.onnx")


def test_a_failing_run_is_an_error_that_names_the_file():
    session = Session(tiny_classifier(tiny_spec()), ONE, name="m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime could not run"):
        session.run({"image": np.zeros((1, 3, 9, 9), np.float32)})


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_predictor_gives_every_image_its_scores_whatever_the_batch(layout, batch):
    spec, samples = tiny_spec(layout=layout), tiny_samples(4)
    predict = predictor(Session(tiny_classifier(spec, batch=batch), ONE), spec, batch=5)
    np.testing.assert_allclose(predict(samples.images), expected_scores(samples), atol=1e-4)


@pytest.mark.parametrize("batch", ["batch", 3])
def test_predictor_of_no_images_is_empty(batch):
    spec = tiny_spec()
    predict = predictor(Session(tiny_classifier(spec, batch=batch), ONE), spec)
    assert len(predict(np.zeros((0, 3, 6, 5), np.float32))) == 0


def test_predictor_refuses_images_of_another_shape():
    spec = tiny_spec()
    with pytest.raises(ImagesError, match="do not fit"):
        predictor(Session(tiny_classifier(spec), ONE), spec)(np.zeros((2, 1, 6, 5), np.float32))


def test_predictor_refuses_an_input_that_the_model_lacks():
    with pytest.raises(ModelError, match="no input is named 'pixels'"):
        predictor(Session(tiny_classifier(tiny_spec()), ONE), tiny_spec(name="pixels"))


def test_predictor_refuses_scores_that_are_not_finite():
    spec = tiny_spec()
    with pytest.raises(ModelError, match="not finite"):
        predictor(Session(tiny_classifier(spec, sharpness=float("nan")), ONE), spec)(tiny_samples(1).images)


def test_probabilities_leave_a_softmax_alone_and_make_one_of_logits():
    logits = np.array([[0.0, np.log(3.0)], [5.0, 5.0]])
    soft = probabilities(logits)
    np.testing.assert_allclose(soft, [[0.25, 0.75], [0.5, 0.5]], atol=1e-7)
    np.testing.assert_array_equal(probabilities(soft), soft)


def test_one_row_that_is_no_distribution_makes_all_rows_scores():
    scores = np.array([[0.25, 0.75], [0.5, 0.6]], np.float32)
    assert not np.array_equal(probabilities(scores)[0], scores[0])


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2),
        elements=st.floats(-50, 50, width=32, allow_subnormal=False),
    )
)
def test_probabilities_are_distributions_with_the_same_order(scores):
    found = probabilities(scores)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-3)
    assert (found >= 0).all()
    np.testing.assert_array_equal(np.take_along_axis(found, scores.argmax(1)[:, None], 1)[:, 0], found.max(axis=1))


class FakeOptions(SimpleNamespace):
    def add_session_config_entry(self, key, value):
        pass


class FakeRuntime:
    """onnxruntime as far as the choice of provider goes; those in `broken` raise, those in `absent` do not run."""

    def __init__(self, available, broken=(), absent=()):
        self.available, self.broken, self.absent, self.tried = available, broken, absent, []
        self.GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)
        self.SessionOptions = FakeOptions

    def get_available_providers(self):
        return list(self.available)

    def set_default_logger_severity(self, level):
        pass

    def InferenceSession(self, model, sess_options, providers, enable_fallback):  # noqa: N802
        names = [name for name, _ in providers]
        self.tried.append((names, dict(providers)))
        if set(names) & set(self.broken):
            raise RuntimeError("no device")
        return SimpleNamespace(get_providers=lambda: [n for n in names if n not in self.absent])


def test_cuda_is_asked_for_before_the_cpu_and_without_tf32(monkeypatch):
    fake = FakeRuntime([CPU, "AzureExecutionProvider", CUDA])
    monkeypatch.setattr(sessions, "ort", fake)
    session = Session(b"", Runtime())
    assert session.asked == (CUDA, CPU)
    assert session.provider == CUDA
    options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "device_id": "0"}
    assert fake.tried == [([CUDA, CPU], {CUDA: options, CPU: {}})]


def test_the_provider_named_is_the_one_that_runs_not_the_one_listed(monkeypatch):
    monkeypatch.setattr(sessions, "ort", FakeRuntime([CUDA, CPU], absent=[CUDA]))
    session = Session(b"", Runtime())
    assert (session.asked[0], session.provider) == (CUDA, CPU)


def test_a_provider_that_fails_falls_back_to_the_cpu_unless_it_was_named(monkeypatch):
    fake = FakeRuntime([CUDA, CPU], broken=[CUDA])
    monkeypatch.setattr(sessions, "ort", fake)
    assert Session(b"", Runtime()).provider == CPU
    assert [names for names, _ in fake.tried] == [[CUDA, CPU], [CPU]]
    with pytest.raises(RuntimeMissingError, match=rf"{CUDA}.*\(no device\).*--device cpu"):
        Session(b"", Runtime(providers=(CUDA,)))


def test_a_device_that_was_asked_for_is_never_silently_another(monkeypatch):
    monkeypatch.setattr(sessions, "ort", FakeRuntime([CUDA, CPU], absent=[CUDA]))
    for runtime in (runtime_on("cuda"), runtime_on("cuda:1"), Runtime(providers=(CUDA, CPU))):
        for ask in (lambda runtime=runtime: Session(b"", runtime), lambda runtime=runtime: check_runtime(runtime)):
            with pytest.raises(RuntimeMissingError, match=rf"{CUDA}.*does not run.*driver.*--device cpu") as failure:
                ask()
            assert failure.value.exit_code == 3 and "\n" not in str(failure.value)
    for runtime in (runtime_on("auto"), runtime_on("cpu")):
        check_runtime(runtime)
        assert Session(b"", runtime).provider == CPU


def test_a_model_that_no_provider_loads_is_the_models_fault(monkeypatch):
    monkeypatch.setattr(sessions, "ort", FakeRuntime([CUDA, CPU], broken=[CUDA, CPU]))
    with pytest.raises(ModelError, match="could not load the model: no device"):
        Session(b"", Runtime(providers=(CUDA,)))


def test_the_probe_is_a_model_that_runs():
    check_runtime(Runtime(providers=("CPUExecutionProvider",)))
    (found,) = Session(sessions._PROBE, ONE).run({"x": np.float32([-2])})
    assert found == [2]


def test_cudas_libraries_are_looked_for_where_pip_puts_them_and_nothing_is_printed(monkeypatch, capsys):
    fake, calls = FakeRuntime([CUDA, CPU]), []

    def preload_dlls():
        calls.append(print("Failed to load libcublasLt.so"))
        raise RuntimeError("no such folder")

    fake.preload_dlls = preload_dlls
    monkeypatch.setattr(sessions, "ort", fake)
    sessions._preload.cache_clear()
    for runtime in (runtime_on("cpu"), Runtime(), Runtime()):
        Session(b"", runtime)
    assert len(calls) == 1 and capsys.readouterr().out == ""
    sessions._preload.cache_clear()


def product(width=5):
    """The input x, x @ w as y, and y + z as s."""
    node, value = helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [node("MatMul", ["x", "w"], ["y"]), node("Add", ["y", "z"], ["s"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 4]), value("z", TensorProto.FLOAT, ["m", width])],
        [value("x", TensorProto.FLOAT, ["n", 4]), *(value(name, TensorProto.FLOAT, ["n", width]) for name in "ys")],
        [numpy_helper.from_array(np.random.default_rng(0).random((4, width), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.mark.parametrize("how", ["as arrays", "bound on the CPU", "on a GPU"])
def test_what_a_run_left_where_it_computes_goes_into_others_there(monkeypatch, how):
    if how == "bound on the CPU":
        monkeypatch.setattr(Session, "_binds", True)
    elif how == "on a GPU":
        monkeypatch.setattr(sessions, "ort", FakeGpu(number=1))
    session = Session(product(), replace(ONE, device=1))
    assert session.place == (("cuda", 1) if how == "on a GPU" else ("cpu", 0))
    rng = np.random.default_rng(1)
    x, z = rng.random((6, 4), np.float32), rng.random((1, 5), np.float32)
    plain = dict(zip("xys", Session(product(), ONE).run({"x": x, "z": z}), strict=True))
    kept = session.held(x)
    assert isinstance(kept, np.ndarray) == (how == "as arrays")
    for first, last in ((0, 6), (2, 5), (5, 6)):
        made = session.bound({"x": kept[first:last], "z": z}, ["y", "s"])
        assert made.keys() == {"y", "s"} and made["y"].shape == (last - first, 5)
        for name, tensor in made.items():
            np.testing.assert_array_equal(np.asarray(tensor), plain[name][first:last])
        np.testing.assert_array_equal(np.asarray(made["y"][1:]), plain["y"][first + 1 : last])
        again = session.bound({"x": kept, "z": made["s"][:1]}, ["s"])["s"]
        np.testing.assert_allclose(np.asarray(again), plain["y"] + plain["s"][first], rtol=1e-6)


@pytest.mark.parametrize("binds", [False, True])
def test_an_input_that_is_an_output_too_is_not_somebody_elses_memory(monkeypatch, binds):
    monkeypatch.setattr(Session, "_binds", binds)
    session, x = Session(product(), ONE), np.random.default_rng(2).random((6, 4), np.float32)
    found = session.bound({"x": x.copy(), "z": np.zeros((1, 5), np.float32)}, ["x", "y"])
    others = [np.random.default_rng(i).random((6, 4), np.float32) for i in range(50)]
    np.testing.assert_array_equal(np.asarray(found["x"]), x)
    assert len(others) == 50 and list(found) == ["x", "y"]


def test_a_bound_run_that_fails_is_an_error_that_names_the_file(monkeypatch):
    monkeypatch.setattr(Session, "_binds", True)
    with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime could not run"):
        Session(product(), ONE, "m.onnx").bound({"x": np.zeros((2, 3), np.float32)}, ["y"])


def test_an_array_that_cannot_be_taken_there_is_an_error_that_names_the_file(monkeypatch):
    monkeypatch.setattr(Session, "_binds", True)
    with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime could not run"):
        Session(product(), ONE, "m.onnx").held(np.array([object()]))


def test_a_provider_that_is_not_there_is_an_error_that_lists_those_that_are(monkeypatch):
    monkeypatch.setattr(sessions, "ort", FakeRuntime([CPU]))
    with pytest.raises(RuntimeMissingError, match=rf"no {CUDA}.*{CPU}.*debride\[gpu\]"):
        Session(b"", Runtime(providers=(CUDA,)))


@pytest.mark.parametrize("module", [None, SimpleNamespace()])
def test_a_missing_or_gutted_onnxruntime_names_both_extras(monkeypatch, module):
    monkeypatch.setattr(sessions, "ort", module)
    with pytest.raises(RuntimeMissingError, match=r"debride\[cpu\] or debride\[gpu\]"):
        Session(b"", ONE)
    with pytest.raises(RuntimeMissingError):
        sessions.environment()
