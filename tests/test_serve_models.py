import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from debride.errors import ModelError, SpecError, UsageError
from debride.serve.http.errors import NotFound
from debride.serve.http.models import Models, assigned, check_pin, load, parse_all, parse_named
from debride.sessions import Runtime, Session
from debride.spec import to_json
from debride.specfile import METADATA_KEY, SpecFlags
from tiny import tiny_classifier, tiny_spec

ONE = Runtime(threads=1)


def write(path, **options):
    spec = tiny_spec(class_names=("red", "green", "blue", "white"))
    path.write_bytes(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}, **options))
    return path


def loaded(path, flags=None, **options):
    return load(parse_named(str(path)), flags=flags or SpecFlags(), runtime=ONE, max_batch=8, **options)


@pytest.mark.parametrize(
    ("text", "name", "version", "path"),
    [
        ("clean.onnx", "clean", "1", "clean.onnx"),
        ("folder/my model (2).onnx", "my-model--2-", "1", "folder/my model (2).onnx"),
        ("signs=clean.onnx", "signs", "1", "clean.onnx"),
        ("signs:12=a/clean.onnx", "signs", "12", "a/clean.onnx"),
        (":3=clean.onnx", "clean", "3", "clean.onnx"),
        ("signs=a=b.onnx", "signs", "1", "a=b.onnx"),
    ],
)
def test_models_are_named_by_the_command_line(text, name, version, path):
    found = parse_named(text)
    assert (found.name, found.version, found.path) == (name, version, Path(path))


def test_a_file_whose_name_holds_an_equals_sign_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a=b.onnx")
    assert parse_named("a=b.onnx").path == Path("a=b.onnx")
    assert parse_named("a=b.onnx").name == "a-b"


@pytest.mark.parametrize("text", ["a/b=x.onnx", "n:v1=x.onnx", "n:-1=x.onnx", "n:01=x.onnx", "é=x.onnx", "...=x.onnx"])
def test_a_name_that_cannot_be_part_of_an_address_is_refused(text):
    with pytest.raises(UsageError, match="NAME:VERSION=PATH"):
        parse_named(text)


def test_the_same_name_twice_is_refused_and_says_how_to_tell_them_apart():
    with pytest.raises(UsageError, match=r"a/m\.onnx and b/m\.onnx are both 'm' version 1.*m:2=b/m\.onnx"):
        parse_all(["a/m.onnx", "b/m.onnx"])
    assert [m.version for m in parse_all(["a/m.onnx", "m:2=b/m.onnx"])] == ["1", "2"]


def test_values_go_to_the_model_they_name():
    models = parse_all(["a=x", "b=x", "b:2=x"])
    assert assigned("--sha256", ["a=1", "b:2=2"], models) == {("a", "1"): "1", ("b", "2"): "2"}
    assert assigned("--sha256", ["9"], models[:1]) == {("a", "1"): "9"}
    for bad in (["9"], ["b=9"], ["c=9"], ["a=1", "a:1=2"]):
        with pytest.raises(UsageError, match="--sha256"):
            assigned("--sha256", bad, models)


@pytest.mark.parametrize("pin", ["", "12", "g" * 64, "0" * 63])
def test_a_pin_that_is_no_sha256_is_refused(pin):
    with pytest.raises(UsageError, match="64 hex digits"):
        check_pin("--sha256", pin)


def test_the_highest_version_answers_where_none_is_asked_for(tmp_path):
    path = write(tmp_path / "m.onnx")
    served = [
        load(named, flags=SpecFlags(), runtime=ONE, max_batch=8)
        for named in parse_all([f"m:{v}={path}" for v in (2, 10, 9)])
    ]
    models = Models(served)
    assert models.versions("m") == ("2", "9", "10")
    assert models.find("m").version == "10"
    assert models.find("m", "2").version == "2"
    assert [m.version for m in models] == ["2", "9", "10"]
    with pytest.raises(NotFound, match="no version '3'; it has 2, 9, 10"):
        models.find("m", "3")
    with pytest.raises(NotFound, match="no model 'x'; there are m"):
        models.find("x")


def test_a_pinned_file_loads_and_another_does_not(tmp_path):
    path = write(tmp_path / "m.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded(path, pin=digest).sha256 == digest
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(ModelError, match=rf"not {digest}: this is not the file that was audited"):
        loaded(path, pin=digest)


def test_a_pinned_model_does_not_listen_to_a_side_car(tmp_path):
    path = write(tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text('{"range": [0, 255]}')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded(path).classifier.spec.range == (0, 255)
    assert loaded(path, pin=digest).classifier.spec.range == (0, 1)


@pytest.fixture
def outside(tmp_path):
    """A model whose weights lie beside it, and a folder that holds other weights of the same name."""
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    for folder, sharpness in ((own, 1.0), (foreign, 5.0)):
        folder.mkdir()
        model = onnx.load(write(folder / "m.onnx", sharpness=sharpness))
        onnx.save_model(
            model,
            folder / "m.onnx",
            save_as_external_data=True,
            location="m.data",
            size_threshold=0,
            convert_attribute=False,
        )
    return own, foreign


@pytest.mark.parametrize("there", ["own", "foreign", "neither"])
def test_weights_beside_the_model_are_served_and_not_pinned(outside, tmp_path, monkeypatch, there):
    own, foreign = outside
    monkeypatch.chdir({"own": own, "foreign": foreign, "neither": tmp_path}[there])
    path = own / "m.onnx"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match="must be whole in one file"):
        loaded(path, pin=digest)
    served = loaded(path)
    assert served.sha256 == digest
    image = np.full((1, 3, 6, 5), 0.3, np.float32)
    expected = Session(tiny_classifier(tiny_spec(), sharpness=1.0), ONE).run({"image": image})[0]
    np.testing.assert_allclose(served.session.run({"image": image})[0], expected, rtol=1e-5)


def test_bytes_of_a_model_find_no_weights_in_the_working_directory(outside, monkeypatch):
    own, _ = outside
    monkeypatch.chdir(own)
    with pytest.raises(ModelError):
        Session((own / "m.onnx").read_bytes(), ONE)


def test_what_clients_are_told_names_no_path(tmp_path):
    served = loaded(write(tmp_path / "m.onnx"))
    with pytest.raises(ModelError) as failed:
        served.session.run({"image": np.zeros((1, 3, 9, 9), np.float32)})
    assert str(failed.value).startswith("m: ")
    assert str(tmp_path) not in str(failed.value)


def test_what_is_no_model_and_what_says_no_input_are_errors_that_name_the_file(tmp_path):
    with pytest.raises(ModelError, match=r"gone\.onnx: cannot be read"):
        loaded(tmp_path / "gone.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk\.onnx"):
        loaded(tmp_path / "junk.onnx")
    (tmp_path / "bare.onnx").write_bytes(tiny_classifier(tiny_spec()))
    with pytest.raises(SpecError, match=r"bare\.onnx.*--range"):
        loaded(tmp_path / "bare.onnx")
    assert loaded(tmp_path / "bare.onnx", SpecFlags(range=(0.0, 1.0))).classifier.spec.range == (0, 1)


def test_rows_are_stacked_where_each_answers_for_itself(tmp_path):
    plan = loaded(write(tmp_path / "m.onnx", outputs=("scores", "again"))).plan
    assert plan.stackable == {"scores", "again"}
    assert plan.fixed == 0
    assert loaded(write(tmp_path / "one.onnx", batch=1)).plan.fixed == 1
    assert loaded(write(tmp_path / "four.onnx", batch=4)).plan.fixed == 4


@pytest.mark.parametrize("mixes", ["both", "extra"])
def test_outputs_that_mix_the_images_of_a_batch_are_not_stacked(tmp_path, mixes):
    """`extra` is the mean over the batch; with `both`, the scores hang on it too."""
    spec = tiny_spec()
    model = onnx.load_from_string(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}))
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    graph.node.append(helper.make_node("ReduceMean", ["image"], ["extra"], axes=[0, 1, 2, 3], keepdims=0))
    graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, []))
    if mixes == "both":
        (gemm,) = [node for node in graph.node if node.op_type == "Gemm"]
        gemm.output[0] = "own"
        graph.node.append(helper.make_node("Mul", ["own", "extra"], ["scores"]))
    onnx.save_model(model, tmp_path / "m.onnx")
    assert loaded(tmp_path / "m.onnx").plan.stackable == (set() if mixes == "both" else {"scores"})


def test_a_model_of_another_framework_is_refused_with_the_mend(tmp_path):
    (tmp_path / "m.keras").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"m\.keras.*debride convert"):
        loaded(tmp_path / "m.keras")


def test_a_pipe_is_no_model(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no regular file"):
        loaded(tmp_path / "m.onnx")


def test_names_that_are_not_utf_8_are_an_error_that_names_the_file(tmp_path):
    data = write(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(data.replace(b"image", b"im\xffge"))
    with pytest.raises(ModelError, match=r"m\.onnx"):
        loaded(tmp_path / "m.onnx")


def test_a_graph_that_mixes_only_larger_batches_is_not_batched(tmp_path):
    """scores + max(0, rows - 3) * mean over the batch: three rows do not show it."""
    spec = tiny_spec()
    model = onnx.load_from_string(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}))
    graph = model.graph
    (gemm,) = [node for node in graph.node if node.op_type == "Gemm"]
    gemm.output[0] = "own"
    constants = {"zero": np.array(0, np.int64), "three": np.array(3, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Shape", ["image"], ["shape"]),
            helper.make_node("Gather", ["shape", "zero"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["count"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["count", "three"], ["above"]),
            helper.make_node("Relu", ["above"], ["share"]),
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
            helper.make_node("Mul", ["share", "mean"], ["shared"]),
            helper.make_node("Exp", ["shared"], ["factor"]),
            helper.make_node("Mul", ["own", "factor"], ["scores"]),
        ]
    )
    onnx.save_model(model, tmp_path / "m.onnx")
    assert loaded(tmp_path / "m.onnx").plan.stackable == set()
