"""Files that would act when they are loaded, and files that are damaged: refused, and nothing of them has run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from debride.errors import ModelError, UsageError
from debride.types import ConvertOptions
from debride_adapters.tensorflow import adapter
from tf_zoo_files import answers, differ, images, run, zoo

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def tf() -> Any:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow

    return tensorflow


def refused(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        adapter.convert(path, ConvertOptions(**options))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def saved(tf: Any, folder: Path, act: Any, module: Any = None) -> Path:
    """A SavedModel whose signature calls `act(image)` and then answers."""

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3))])
    def serve(image):
        with tf.control_dependencies([act(image)]):
            return {"scores": tf.reduce_mean(image, (1, 2))}

    module = module or tf.Module()
    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures=serve)
    return folder


def frozen(tf: Any, file: Path, build: Any) -> Path:
    """A GraphDef of whatever `build(image)` adds to a graph."""
    with tf.Graph().as_default() as graph:
        build(tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 3), "image"))
    file.write_bytes(graph.as_graph_def().SerializeToString())
    return file


def edited(tf: Any, source: Path, target: Path, edit: Any) -> Path:
    """A copy of the SavedModel `source` whose MetaGraphDef went through `edit`."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    model = SavedModel.FromString((source / "saved_model.pb").read_bytes())
    edit(model.meta_graphs[0])
    (target / "variables").mkdir(parents=True)
    for file in (source / "variables").iterdir():
        (target / "variables" / file.name).write_bytes(file.read_bytes())
    (target / "saved_model.pb").write_bytes(model.SerializeToString())
    return target


def test_an_operator_that_writes_a_file_is_refused_in_the_signature_and_does_not_run(tf, tmp_path):
    target = tmp_path / "written"
    folder = saved(tf, tmp_path / "model", lambda image: tf.io.write_file(str(target), "x"))
    refused(folder, "holds the operator WriteFile")
    assert not target.exists()


@pytest.mark.parametrize(
    ("operator", "act"),
    [
        ("ReadFile", lambda tf: tf.io.read_file("/etc/hostname")),
        ("MatchingFiles", lambda tf: tf.io.matching_files("/etc/*")),
        ("EagerPyFunc", lambda tf: tf.py_function(lambda: 1.0, [], tf.float32)),
        ("PyFunc", lambda tf: tf.numpy_function(lambda: np.float32(1), [], tf.float32)),
        ("PrintV2", lambda tf: tf.print("x")),
        ("TextLineDataset", lambda tf: tf.raw_ops.TextLineDataset(filenames="f", compression_type="", buffer_size=1)),
        ("DebugIdentity", lambda tf: tf.raw_ops.DebugIdentity(input=1.0, debug_urls=["file:///tmp"])),
    ],
)
def test_files_python_and_networks_are_refused_by_name(tf, tmp_path, operator, act):
    refused(saved(tf, tmp_path / "model", lambda image: act(tf)), f"holds the operator {operator} ")


def test_the_savers_own_operators_are_refused_on_the_way_to_the_scores(tf, tmp_path):
    target = tmp_path / "written"
    save = tf.raw_ops.SaveV2
    folder = saved(
        tf,
        tmp_path / "model",
        lambda image: save(prefix=str(target), tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)]),
    )
    refused(folder, "depend on the operator SaveV2")
    assert not list(tmp_path.glob("written*"))


def test_state_and_chance_are_refused_on_the_way_to_the_scores(tf, tmp_path):
    module = tf.Module()
    module.count = tf.Variable(0.0)
    counting = saved(tf, tmp_path / "counts", lambda image: module.count.assign_add(1.0).op, module)
    refused(counting, "depend on the operator AssignAddVariableOp")
    refused(
        saved(tf, tmp_path / "draws", lambda image: tf.random.uniform(()).op), "depend on the operator RandomUniform"
    )


def test_a_resource_that_writes_when_it_is_initialised_is_refused_though_tensorflow_would_run_it(tf, tmp_path):
    from tensorflow.python.trackable.resource import CapturableResource

    target = tmp_path / "written"

    class Writes(CapturableResource):
        def _create_resource(self):
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.float32)

        def _initialize(self):
            tf.io.write_file(str(target), "x")

    module = tf.Module()
    module.resource = Writes()
    folder = saved(tf, tmp_path / "model", lambda image: tf.no_op(), module)
    target.unlink(missing_ok=True)
    load = "import sys, tensorflow as tf; tf.saved_model.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", load, str(folder)], check=True, capture_output=True)
    assert target.exists()  # the danger is real
    target.unlink()
    refused(folder, "holds the operator WriteFile")
    assert not target.exists()


def test_what_only_loading_would_run_is_never_run(tf, tmp_path):
    """An initialiser made of the saver's operators, which every SavedModel holds, does nothing here."""
    v1 = tf.compat.v1
    target = tmp_path / "written"
    with v1.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, (None, 8, 8, 3))
        weight = v1.get_variable("weight", (3, 4), use_resource=True)
        scores = tf.reduce_mean(image, (1, 2)) @ weight
        act = v1.raw_ops.SaveV2(prefix=str(target), tensor_names=["a"], shape_and_slices=[""], tensors=[1.0])
        session.run(v1.global_variables_initializer())
        expected = session.run(scores, {image: images(5, 8, 8, 3)})
        builder = v1.saved_model.builder.SavedModelBuilder(str(tmp_path / "model"))
        signature = v1.saved_model.predict_signature_def({"image": image}, {"scores": scores})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, main_op=act)
        builder.save()
    converted = adapter.convert(tmp_path / "model", ConvertOptions())
    assert differ(run(converted.onnx, images(5, 8, 8, 3)), expected) < 1e-5
    assert not list(tmp_path.glob("written*"))


def test_an_operator_hidden_in_the_savers_own_function_is_refused(tf, tmp_path):
    def hide(meta):
        savers = [f for f in meta.graph_def.library.function if any(node.op == "SaveV2" for node in f.node_def)]
        assert savers
        savers[0].node_def.add(name="hidden", op="WriteFile")

    refused(edited(tf, zoo() / "plain", tmp_path / "model", hide), "holds the operator WriteFile .*'hidden'")


def test_an_operator_that_tensorflow_does_not_know_is_refused(tf, tmp_path):
    def rename(meta):
        for function in meta.graph_def.library.function:
            for node in function.node_def:
                node.op = "VendorsRelu" if node.op == "Relu" else node.op

    refused(edited(tf, zoo() / "plain", tmp_path / "model", rename), "depend on the operator VendorsRelu")


def test_the_devices_and_compilers_that_a_file_asks_for_are_not_asked_for(tf, tmp_path):
    def demand(meta):
        for function in meta.graph_def.library.function:
            function.attr["_XlaMustCompile"].b = True
            for node in function.node_def:
                node.device = "/job:worker/task:3/device:TPU:7"
                node.attr["_XlaMustCompile"].b = True

    converted = adapter.convert(edited(tf, zoo() / "plain", tmp_path / "model", demand), ConvertOptions())
    assert differ(converted.reference(images(5, 8, 8, 3))[0], answers("plain")[5]) < 1e-5


def test_a_function_that_calls_what_is_not_there_and_nodes_of_one_name_are_refused(tf, tmp_path):
    def empty(meta):
        del meta.graph_def.library.function[:]

    def twice(meta):
        meta.graph_def.node.append(meta.graph_def.node[0])

    refused(edited(tf, zoo() / "plain", tmp_path / "empty", empty), "calls the function .* which it does not hold")
    refused(edited(tf, zoo() / "plain", tmp_path / "twice", twice), "share a name")


def test_a_constant_larger_than_the_file_could_be_is_refused(tf, tmp_path):
    def build(image):
        tf.add(tf.reduce_mean(image, (1, 2)), tf.constant(1.0, name="one"), name="scores")

    file = frozen(tf, tmp_path / "bomb.pb", build)
    graph = tf.compat.v1.GraphDef.FromString(file.read_bytes())
    shape = next(node for node in graph.node if node.name == "one").attr["value"].tensor.tensor_shape
    for _ in range(2):
        shape.dim.add(size=1 << 20)
    file.write_bytes(graph.SerializeToString())
    refused(file, "constants would take over 2 GiB")


def test_without_a_usable_signature_those_that_exist_are_listed(tf, tmp_path):
    def none(meta):
        meta.signature_def.clear()

    def rank(meta):
        meta.signature_def["serving_default"].inputs["pixels"].tensor_shape.dim.add(size=2)

    refused(edited(tf, zoo() / "plain", tmp_path / "none", none), "found: none")
    refused(edited(tf, zoo() / "plain", tmp_path / "rank", rank), r"found: serving_default\(pixels: .*\)")


def test_an_input_without_a_shape_needs_the_option(tf, tmp_path):
    def forget(meta):
        shape = meta.signature_def["serving_default"].inputs["pixels"].tensor_shape
        shape.Clear()
        shape.unknown_rank = True

    folder = edited(tf, zoo() / "plain", tmp_path / "model", forget)
    with pytest.raises(UsageError, match="give one image's input shape"):
        adapter.convert(folder, ConvertOptions())
    converted = adapter.convert(folder, ConvertOptions(input_shape=(8, 8, 3)))
    assert differ(run(converted.onnx, images(5, 8, 8, 3)), answers("plain")[5]) < 1e-5


def test_a_folder_with_a_link_or_without_its_variables_is_refused(tf, tmp_path):
    folder = edited(tf, zoo() / "plain", tmp_path / "linked", lambda meta: None)
    (folder / "assets").symlink_to("/etc")
    refused(folder, "'assets' is a link")
    folder = edited(tf, zoo() / "plain", tmp_path / "emptied", lambda meta: None)
    for file in (folder / "variables").iterdir():
        file.unlink()
    refused(folder, r"holds no variables/variables\.index")
    refused(tmp_path, "holds no saved_model.pb|is a link")


def test_a_checkpoint_of_another_model_is_refused(tf, tmp_path):
    def larger(meta):
        for node in meta.graph_def.node:
            if node.op == "VarHandleOp":
                node.attr["shape"].shape.dim[0].size += 1

    refused(edited(tf, zoo() / "plain", tmp_path / "model", larger), "does not fit its checkpoint")


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_files_that_are_cut_short_are_refused(tf, tmp_path, share):
    data = (zoo() / "resnet.pb").read_bytes()
    (tmp_path / "cut.pb").write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / "cut.pb", "no TensorFlow graph, or cut short")
    folder = edited(tf, zoo() / "plain", tmp_path / "model", lambda meta: None)
    data = (folder / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(data[: int(len(data) * share)])
    refused(folder, "damaged or cut short")


def test_text_an_empty_file_and_a_saved_model_on_its_own_are_no_frozen_graphs(tmp_path):
    for name, data in (("text.pb", b"I am a model, believe me."), ("empty.pb", b"")):
        (tmp_path / name).write_bytes(data)
    refused(tmp_path / "text.pb", "no TensorFlow graph")
    refused(tmp_path / "empty.pb", "is empty")
    (tmp_path / "other.pb").write_bytes((zoo() / "plain" / "saved_model.pb").read_bytes())
    refused(tmp_path / "other.pb", "TensorFlow graph")


def test_a_frozen_graph_that_calls_python_is_refused(tf, tmp_path):
    def build(image):
        tf.reduce_mean(tf.numpy_function(lambda x: x, [image], tf.float32), (1, 2), name="scores")

    refused(frozen(tf, tmp_path / "calls.pb", build), "holds the operator PyFunc ")


def test_a_graph_that_is_not_frozen_is_refused(tf, tmp_path):
    def build(image):
        weight = tf.compat.v1.get_variable("weight", (3, 4), use_resource=True)
        tf.matmul(tf.reduce_mean(image, (1, 2)), weight.value(), name="scores")

    refused(frozen(tf, tmp_path / "variables.pb", build), "float outputs|variables without their values")


def test_a_frozen_graph_with_two_outputs_or_inputs_names_them(tf, tmp_path):
    def two_outputs(image):
        tf.reduce_mean(image, (1, 2), name="first")
        tf.reduce_max(image, (1, 2), name="second")

    def two_inputs(image):
        other = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 3), "other")
        tf.add(image, other, name="scores")

    refused(frozen(tf, tmp_path / "outputs.pb", two_outputs), r"2 float outputs \(first, second\)")
    refused(frozen(tf, tmp_path / "inputs.pb", two_inputs), r"2 inputs \(image, other\)")


def test_a_folder_in_the_checkpoints_place_does_not_lead_to_another_checkpoint(tf, tmp_path):
    secret, model = (Path(shutil.copytree(zoo() / "plain", tmp_path / name)) for name in ("secret", "model"))
    shutil.rmtree(model / "variables")
    (model / "variables" / "variables").mkdir(parents=True)
    target = secret / "variables" / "variables"
    (model / "variables" / "variables" / "checkpoint").write_text(f'model_checkpoint_path: "{target}"')
    assert tf.train.load_checkpoint(str(model / "variables" / "variables")).get_variable_to_shape_map()
    refused(model, r"holds no variables/variables\.index")
    (model / "variables" / "variables.index").write_bytes(target.with_name("variables.index").read_bytes())
    refused(model, r"holds no variables/variables\.index")
