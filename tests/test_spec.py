import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from debride.errors import ImagesError, ModelError, SpecError
from debride.images import load_images
from debride.sessions import Runtime, Session, predictor
from debride.spec import SpecFlags, declare, from_json, resolve_spec, sidecar_of, to_json
from debride.specfile import METADATA_KEY
from debride.types import InputSpec, Samples
from tiny import tiny_classifier, tiny_samples, tiny_spec

SHARED = next((p / "shared" for p in Path(__file__).resolve().parents if (p / "shared" / "vendor").is_dir()), None)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def session_of(spec, name="m.onnx", **options):
    return Session(tiny_classifier(spec, **options), Runtime(threads=1), name=name)


def session_with(shape, outputs, name="m.onnx", extra=()):
    """A model of any declared ends: `outputs` maps names to (dtype, shape)."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1]),
    ]
    constants = []
    for out, (dtype, dims) in outputs.items():
        constants.append(numpy_helper.from_array(np.ones((1, int(np.prod(dims[1:]))), np.float32), f"{out}_w"))
        constants.append(numpy_helper.from_array(np.array([-1, *dims[1:]]), f"{out}_dims"))
        nodes += [
            helper.make_node("MatMul", ["mean", f"{out}_w"], [f"{out}_flat"]),
            helper.make_node("Reshape", [f"{out}_flat", f"{out}_dims"], [f"{out}_float"]),
            helper.make_node("Cast", [f"{out}_float"], [out], to=dtype),
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("image", shape), *extra)],
        [helper.make_tensor_value_info(out, dtype, dims) for out, (dtype, dims) in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return Session(model.SerializeToString(), Runtime(threads=1), name=name)


# --- JSON --------------------------------------------------------------------------------------------------------

numbers = st.floats(0.0, 1.0, allow_subnormal=False)


@given(
    st.builds(
        InputSpec,
        name=st.text(min_size=1, max_size=20),
        layout=st.sampled_from(["NCHW", "NHWC"]),
        channels=st.sampled_from(["RGB", "BGR"]),
        size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
        range=st.just((0.0, 1.0)),
        mean=st.one_of(st.just(()), st.tuples(numbers), st.tuples(numbers, numbers, numbers)),
        std=st.one_of(st.just(()), st.tuples(st.floats(0.01, 10.0))),
        output=st.text(max_size=20),
        class_names=st.lists(st.text(min_size=1), max_size=4, unique=True).map(tuple),
        source=st.just("side-car"),
        short_side=st.one_of(st.none(), st.integers(4096, 1 << 14)),
    )
)
def test_a_spec_is_read_back_from_its_json(spec):
    assert from_json(to_json(spec)) == spec


GOOD = json.loads(to_json(tiny_spec()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "RGB"}, "unknown key 'colour'"),
        ({"name": ...}, "'name' is missing"),
        ({"name": ""}, "'name' must be a text"),
        ({"layout": "CHW"}, "'layout' must be one of NCHW, NHWC"),
        ({"layout": ["NCHW"]}, "'layout' must be one of"),
        ({"channels": "RGBA"}, "'channels' must be one of"),
        ({"size": [6]}, "'size' must be"),
        ({"size": [0, 5]}, "'size' must be"),
        ({"size": [6, 1 << 20]}, "'size' must be"),
        ({"size": [True, 5]}, "'size' must be"),
        ({"range": [0]}, "'range' must be a list of 2"),
        ({"range": [1, 0]}, r"range 1\.0\.\.0\.0 is empty"),
        ({"range": [0, 1e300]}, "'range' must not exceed"),
        ({"mean": [0.5, 0.5]}, "'mean' must be a list of 0 or 1 or 3"),
        ({"mean": "0.5"}, "'mean' must be a list"),
        ({"mean": [123.7, 116.8, 103.9]}, "lies outside the range"),
        ({"std": [0.0]}, "is not positive"),
        ({"channels": "L", "mean": [0.1, 0.2, 0.3]}, "mean has 3 values for 1 channels"),
        ({"class_names": ["a", "a"]}, "'class_names' must not name a class twice"),
        ({"class_names": ["a", 2]}, "'class_names' must be a text"),
        ({"class_names": ["\ud800"]}, "'class_names' must be a text of whole characters"),
        ({"short_side": 0}, "'short_side' must be a whole number in 1..16384"),
        ({"short_side": True}, "'short_side' must be a whole number"),
        ({"short_side": 8.0}, "'short_side' must be a whole number"),
        ({"short_side": 5}, "short_side 5 is less than the 6x5 pixels to cut"),
    ],
)
def test_a_bad_spec_names_the_file_and_the_key(changes, message):
    fields = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    with pytest.raises(SpecError, match=rf"^m\.json: .*{message}"):
        from_json(json.dumps(fields), "m.json")


def test_a_spec_from_before_short_side_is_read_and_one_without_it_is_written_as_before():
    assert "short_side" not in GOOD
    assert from_json(json.dumps(GOOD)).short_side is None
    assert from_json(json.dumps({**GOOD, "short_side": None})).short_side is None
    assert json.loads(to_json(tiny_spec(short_side=8)))["short_side"] == 8


def test_the_short_side_comes_from_flags_then_sidecar_then_metadata(tmp_path):
    truth = tiny_spec(short_side=9)
    session = session_of(truth, metadata={METADATA_KEY: to_json(truth)})
    assert resolve_spec(session).spec.short_side == 9
    (tmp_path / "m.json").write_text('{"short_side": 8}')
    assert declare(session, sidecar=tmp_path / "m.json").fields.short_side == 8
    assert resolve_spec(session, flags=SpecFlags(short_side=7), sidecar=tmp_path / "m.json").spec.short_side == 7
    with pytest.raises(SpecError, match=r"^m\.onnx: short_side 5 is less than the 6x5 pixels"):
        declare(session, flags=SpecFlags(short_side=5))


def test_a_short_side_below_the_size_of_the_samples_is_an_error():
    session = session_of(tiny_spec(), dynamic=True)
    with pytest.raises(SpecError, match=r"short_side 5 is less than the 6x5 pixels"):
        resolve_spec(session, flags=SpecFlags(short_side=5, range=(0.0, 1.0)), samples=tiny_samples(2))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"range": [0, NaN]}', '{"range": [0, Infinity]}', '{"size": [1,2], "size": [1,2]}', "[" * 10**5],
)
def test_text_that_is_no_json_object_names_the_file(text):
    with pytest.raises(SpecError, match=r"^m\.json: "):
        from_json(text, "m.json")


def test_the_sidecar_lies_beside_the_model(tmp_path):
    model = tmp_path / "net.onnx"
    assert sidecar_of(model) is None
    (tmp_path / "net.json").write_text("{}")
    assert sidecar_of(model) == tmp_path / "net.json"


def test_a_sidecar_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SpecError, match=r"gone\.json: cannot be read"):
        resolve_spec(session_of(tiny_spec()), sidecar=tmp_path / "gone.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=r"bad\.json: cannot be read"):
        resolve_spec(session_of(tiny_spec()), sidecar=tmp_path / "bad.json")


# --- who states it -----------------------------------------------------------------------------------------------


def test_flags_come_before_sidecar_before_metadata(tmp_path):
    sidecar = tmp_path / "m.json"
    sidecar.write_text(json.dumps({"range": [-1, 1], "class_names": ["a", "b", "c", "d"]}))
    session = session_of(tiny_spec(), metadata={METADATA_KEY: to_json(tiny_spec(range=(0.0, 255.0), channels="BGR"))})

    by_metadata = resolve_spec(session).spec
    assert (by_metadata.source, by_metadata.range, by_metadata.channels) == ("metadata", (0.0, 255.0), "BGR")
    by_sidecar = resolve_spec(session, sidecar=sidecar).spec
    assert (by_sidecar.source, by_sidecar.range, by_sidecar.channels) == ("side-car", (-1.0, 1.0), "BGR")
    by_flags = resolve_spec(session, sidecar=sidecar, flags=SpecFlags(mean=(0.5,), channels="RGB")).spec
    # Range, mean and std go together: the side-car's range is not mixed with the flags' mean.
    assert (by_flags.source, by_flags.range, by_flags.mean) == ("flags", (0.0, 1.0), (0.5,))
    assert (by_flags.channels, by_flags.class_names) == ("RGB", ("a", "b", "c", "d"))


def test_without_images_or_statement_the_error_says_how_to_state_it():
    with pytest.raises(SpecError, match=r"m\.onnx: nothing says .* --range .* MODEL\.json"):
        resolve_spec(session_of(tiny_spec()))


def test_metadata_that_is_broken_names_the_model_and_the_key():
    with pytest.raises(SpecError, match=rf"m\.onnx: metadata {METADATA_KEY}: is no valid JSON"):
        declare(session_of(tiny_spec(), metadata={METADATA_KEY: "{"}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (SpecFlags(layout="NHWC"), r"is no NHWC batch"),
        (SpecFlags(channels="L"), r"channels L are stated .* has 3"),
        (SpecFlags(size=(7, 5)), r"size 7,5 is stated"),
        (SpecFlags(class_names=("a", "b")), r"2 class_names are given for 4 classes"),
    ],
)
def test_flags_that_contradict_the_graph_are_errors(flags, message):
    with pytest.raises(SpecError, match=rf"m\.onnx: .*{message}"):
        declare(session_of(tiny_spec()), flags=flags)


# --- the graph's ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "L"])
def test_layout_depth_and_size_are_read_from_the_shape(layout, channels):
    found = declare(session_of(tiny_spec(layout=layout, channels=channels), batch=1))
    assert (found.layout, found.depth, found.size) == (layout, 3 if channels == "RGB" else 1, (6, 5))
    assert (found.name, found.output, found.n_classes, found.source) == ("image", "scores", 4, "measured")


def test_a_dynamic_size_is_that_of_the_images_or_of_the_flags():
    session, samples = session_of(tiny_spec(), dynamic=True), tiny_samples(3)
    assert declare(session).size is None
    assert resolve_spec(session, samples=samples).spec.size == (6, 5)
    stated = SpecFlags(range=(0.0, 1.0), size=(9, 8))
    assert resolve_spec(session, flags=stated).spec.size == (9, 8)
    with pytest.raises(SpecError, match="size is dynamic"):
        resolve_spec(session, flags=SpecFlags(range=(0.0, 1.0)))


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"boxes": (FLOAT, ["n", 10, 4])}, r"there is no class score.*boxes float32 \(\?, 10, 4\)"),
        ({"label": (INT, ["n", 10])}, r"no class score.*label int64"),
        ({"one": (FLOAT, ["n", 1])}, r"no class score"),
        ({"a": (FLOAT, ["n", 4]), "b": (FLOAT, ["n", 4])}, r"several outputs"),
    ],
)
def test_a_model_without_one_class_score_names_its_outputs(outputs, message):
    with pytest.raises(ModelError, match=rf"m\.onnx: .*{message}"):
        declare(session_with(["n", 3, 6, 5], outputs))


def test_the_flag_chooses_among_several_outputs():
    session = session_of(tiny_spec(), outputs=("scores", "twin"))
    assert declare(session, flags=SpecFlags(output="twin")).output == "twin"
    with pytest.raises(ModelError, match="output 'other' is no class score"):
        declare(session, flags=SpecFlags(output="other"))


@pytest.mark.parametrize(
    ("shape", "extra"),
    [(["n", 30], ()), (["n", 3, 6, 5, 2], ()), (["n", 3, 6, 5], (("mask", ["n", 4]),))],
)
def test_a_model_without_one_image_input_names_its_inputs(shape, extra):
    with pytest.raises(ModelError, match=r"m\.onnx: want one input.*found image float32"):
        declare(session_with(shape, {"scores": (FLOAT, ["n", 4])}, extra=extra))


@pytest.mark.parametrize("shape", [["n", 7, 6, 5], ["n", "c", "h", "w"], ["n", 3, 6, 3]])
def test_a_layout_that_cannot_be_told_is_an_error(shape):
    session = session_with(shape, {"scores": (FLOAT, ["n", 4])})
    with pytest.raises(SpecError, match=r"m\.onnx: input float32 .*(--layout|1 or 3 channels)"):
        declare(session)


# --- measuring ---------------------------------------------------------------------------------------------------

CONVENTIONS = [
    {},
    {"range": (-1.0, 1.0)},
    {"range": (0.0, 255.0)},
    {"channels": "BGR"},
    {"channels": "BGR", "range": (0.0, 255.0), "mean": (103.939, 116.779, 123.68)},
    IMAGENET,
]


def accuracy(session, spec, samples):
    return (predictor(session, spec)(samples.images).argmax(1) == samples.labels).mean()


@pytest.mark.parametrize("per_class", [10, 1])
@pytest.mark.parametrize("wanted", CONVENTIONS, ids=str)
def test_the_convention_is_measured_with_labels(wanted, per_class):
    truth = tiny_spec(**wanted)
    session, samples = session_of(truth, softmax=True), tiny_samples(per_class)
    found = resolve_spec(session, samples=samples)
    assert found.spec.source == "measured"
    assert found.warnings == ()
    # Which of two conventions that decide alike is not asked.
    assert found.spec.channels == truth.channels
    assert accuracy(session, found.spec, tiny_samples(50, seed=1)) >= 0.99


@pytest.mark.parametrize("wanted", [w for w in CONVENTIONS if "channels" not in w], ids=str)
def test_the_range_is_measured_without_labels(wanted):
    # Channel order is left out: which of four colours is which class, nobody can tell without labels.
    session = session_of(tiny_spec(**wanted))
    spec = resolve_spec(session, samples=Samples(images=tiny_samples(25).images)).spec
    assert accuracy(session, replace(spec, channels="RGB"), tiny_samples(50, seed=1)) >= 0.95


def test_where_all_conventions_are_as_good_the_simplest_is_taken():
    spec = resolve_spec(session_of(tiny_spec(), sharpness=0.0), samples=tiny_samples(5)).spec
    assert (spec.channels, spec.range, spec.mean, spec.std) == ("RGB", (0.0, 1.0), (), ())


@pytest.mark.parametrize("span", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_a_grey_model_is_measured_too(span):
    session = session_of(tiny_spec(channels="L", range=span), sharpness=200.0)
    spec = resolve_spec(session, samples=tiny_samples(10, depth=1)).spec
    assert (spec.channels, spec.range) == ("L", span)


def test_a_stated_channel_order_is_not_measured():
    session = session_of(tiny_spec())
    assert resolve_spec(session, flags=SpecFlags(channels="BGR"), samples=tiny_samples(10)).spec.channels == "BGR"


def test_a_stated_range_that_the_labels_contradict_is_a_warning():
    session = session_of(tiny_spec(range=(0.0, 255.0)))
    found = resolve_spec(session, flags=SpecFlags(range=(0.0, 1.0)), samples=tiny_samples(10))
    assert found.spec.range == (0.0, 1.0)
    assert len(found.warnings) == 1
    assert "m.onnx: 10 of 40 labelled images are classified rightly, no better than chance" in found.warnings[0]
    assert resolve_spec(session, flags=SpecFlags(range=(0.0, 255.0)), samples=tiny_samples(10)).warnings == ()


def test_measuring_is_the_same_again_by_its_seed():
    session, samples = session_of(tiny_spec(**IMAGENET)), tiny_samples(60)
    assert resolve_spec(session, samples=samples, seed=3) == resolve_spec(session, samples=samples, seed=3)


def test_a_label_beyond_the_classes_is_an_error_that_names_the_model():
    samples = Samples(images=tiny_samples(1).images, labels=np.array([0, 1, 2, 9]))
    with pytest.raises(ImagesError, match=r"labels go up to 9 and m\.onnx has 4 classes"):
        resolve_spec(session_of(tiny_spec()), samples=samples)


def test_a_model_that_gives_no_finite_score_is_an_error():
    with pytest.raises(ModelError, match=r"m\.onnx: .*not finite"):
        resolve_spec(session_of(tiny_spec(), sharpness=float("nan")), samples=tiny_samples(2))


@pytest.mark.vendor
@pytest.mark.skipif(SHARED is None, reason="the vendor models are not beside the checkout")
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["cifar-nhwc-small", "cifar-resnet-2b", "mnist-enc-clean", "cifar-badnet-white1"])
def test_vendor_models_measure_to_the_accuracy_of_their_manifest(name, labelled):
    entry = json.loads((SHARED / "vendor" / "manifest.json").read_text())[name]
    session = Session(SHARED / "vendor" / entry["file"], Runtime(threads=1))
    declared = declare(session)
    data = load_images(
        SHARED / "data" / f"{entry['data']}_pool.npz", depth=declared.depth, size=declared.size
    ).samples()
    rows = np.random.default_rng(0).permutation(len(data))
    drawn, rest = data.take(rows[:100]), data.take(rows[100:])
    spec = resolve_spec(session, samples=drawn if labelled else Samples(images=drawn.images)).spec
    truth = SpecFlags(
        range=(0.0, 1.0),
        mean=tuple(entry["mean"]) if entry["mean"] else None,
        std=(entry["std"],) * 3 if entry["std"] else None,
    )
    assert accuracy(session, spec, rest) >= accuracy(session, resolve_spec(session, flags=truth).spec, rest) - 0.01
