"""Files that try to run something: a payload that would touch a file is not run, and the error names what was tried."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from debride.errors import ModelError
from debride.types import ConvertOptions
from debride_adapters.torch import adapter
from debride_adapters.torch.code import defined, read_code, reasons
from debride_adapters.torch.objects import declared
from debride_adapters.torch.operators import _ATEN, foreign
from debride_adapters.torch.script import load_script
from test_adapter_torch import SHAPED, difference, exported, scripted
from torch_zoo import CLASSES, SHAPE, ZOO, network


class Payload:
    """Unpickled, it runs a command that creates `path`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch '{self.path}'",))


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    return tmp_path / "planted"


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """The archive `path` with every entry passed through `change` and `more` entries beside them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).partition("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name.partition("/")[2], data))
        for name, data in more.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def program(folder: Path) -> Path:
    return exported(network("resnet"), folder / "model.pt2")


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as error:
        adapter.convert(path, SHAPED)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_in_a_checkpoint_is_not_run_and_is_named(legacy, tmp_path, planted):
    path = tmp_path / "model.pth"
    value = {"state_dict": network("resnet").state_dict(), "config": Payload(planted)}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    refused(path, r"needs (posix|nt)\.system, which is code and is not run; save model\.state_dict\(\)")
    assert not planted.exists()
    torch.load(path, weights_only=False)
    assert planted.exists(), "the payload does nothing, so the test above proves nothing"


def test_a_whole_pickled_module_is_refused_with_the_mend(tmp_path):
    torch.save(network("resnet"), tmp_path / "model.pth")
    refused(tmp_path / "model.pth", r"torch\.nn\.modules\.container\.Sequential.*save model\.state_dict\(\)")


def test_a_payload_in_a_programs_sample_inputs_is_not_run(tmp_path, planted):
    bad = saved(((Payload(planted),), {}))
    path = changed(program(tmp_path), lambda name, data: bad if name == "data/sample_inputs/model.pt" else data)
    refused(path, r"sample_inputs/model\.pt needs (posix|nt)\.system")
    assert not planted.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert planted.exists(), "the payload does nothing, so the test above proves nothing"


def test_a_weight_of_a_program_that_is_marked_as_a_pickle_is_not_unpickled(tmp_path, planted):
    def change(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return saved(Payload(planted)) if name == "data/weights/weight_0" else data

    refused(changed(program(tmp_path), change), "is a pickled object and no plain tensor")
    assert not planted.exists()


def in_json(change: Callable[[str], str]) -> Callable[[str, bytes], bytes]:
    return lambda name, data: change(data.decode()).encode() if name == "models/model.json" else data


def test_a_size_that_is_python_code_is_not_evaluated(tmp_path, planted):
    command = f"__import__('os').system('touch {planted}')"
    size = re.compile(r"Symbol\('s\d+', positive=True, integer=True\)")
    path = changed(program(tmp_path), in_json(lambda text: size.sub(command, text)))
    refused(path, "has the size '__import__")
    assert not planted.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert planted.exists(), "the code does nothing, so the test above proves nothing"


def test_guards_which_become_python_code_are_left_out(tmp_path, planted):
    def change(text: str) -> str:
        return json.dumps(json.loads(text) | {"guards_code": [f"__import__('os').system('touch {planted}') == 0"]})

    path = changed(program(tmp_path), in_json(change))
    assert difference(adapter.convert(path, ConvertOptions()), network("resnet")) < 1e-4
    assert not planted.exists()
    torch.export.load(path).module()(torch.rand(2, *SHAPE))
    assert planted.exists(), "the code does nothing, so the test above proves nothing"


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.mylib.custom.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "_operator.methodcaller",
        "#ext.op",
    ],
)
def test_operators_that_no_classifier_needs_are_refused_by_name(target, tmp_path):
    def change(text: str) -> str:
        return text.replace('"torch.ops.aten.relu.default"', json.dumps(target), 1)

    refused(changed(program(tmp_path), in_json(change)), f"its program calls {re.escape(target)}")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"relu"', json.dumps("x=print()"), r"has the (text|name) 'x=print\(\)'"),
        ("builtins.tuple", "collections.defaultdict", "no plain tuples"),
        ('"guards_code"', '"guards(code)"', r"has the name 'guards\(code\)'"),
        ('{"graph_module"', '["graph_module"', "damaged"),
    ],
)
def test_texts_of_a_program_that_could_become_code_are_refused(old, new, reason, tmp_path):
    refused(changed(program(tmp_path), in_json(lambda text: text.replace(old, new))), reason)


@pytest.mark.parametrize(
    "entry",
    [
        "data/aotinductor/model/model.so",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "models/other.json",
        "data/weights/../evil",
    ],
)
def test_entries_that_hold_machine_code_or_objects_are_refused_by_name(entry, tmp_path):
    path = changed(program(tmp_path), lambda _, data: data, **{entry: b"\x7fELF"})
    refused(path, re.escape(entry))


class SavesInForward(nn.Module):
    def __init__(self, path: Path):
        super().__init__()
        self.path = str(path)

    def forward(self, x):
        torch.save(x, self.path)
        return x.mean((2, 3))


class SavesWhenLoaded(nn.Module):
    def __init__(self, path: Path):
        super().__init__()
        self.path = str(path)

    def forward(self, x):
        return x.mean((2, 3))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.ops.aten.save(torch.ones(1), state[0])


@pytest.mark.parametrize(("module", "used"), [(SavesInForward, "torch.save"), (SavesWhenLoaded, "def __setstate__")])
def test_torchscript_that_writes_files_is_refused_before_it_is_loaded(module, used, tmp_path, planted):
    path = scripted(module(planted), tmp_path / "model.pt")
    refused(path, rf"uses '{re.escape(used)}'.*nothing was run")
    assert not planted.exists()
    torch.jit.load(path)(torch.rand(1, 3, 4, 4))
    assert planted.exists(), "the code does nothing, so the test above proves nothing"


FORWARD = ") -> Tensor:\n"


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.place = nn.Conv2d(3, CLASSES, 3), (1, 2)

    def forward(self, x):
        return self.conv(x).mean((2, 3)) + self.place[0]


def with_line(path: Path, line: str) -> Path:
    """A model, saved at `path`, that does `line` before anything else; "PATH" stands for a file beside it."""
    line = line.replace("PATH", str(path.parent / "planted"))

    def change(name: str, data: bytes) -> bytes:
        own = name == f"code/__torch__/{__name__}.py"
        return data.replace(FORWARD.encode(), f"{FORWARD}    {line}\n".encode(), 1) if own else data

    return changed(scripted(Plain().eval(), path), change)


ENDS = ("\r", "\f\r", "\r\t")  # to Python they end the comment, to TorchScript they do not
SAVES = ["torch.save(x, 'PATH')", "ops.aten.save(x, 'PATH')", "f = torch.save\n    _1 = f(x, 'PATH')"]
SAVES += ['getattr(torch, "sa\\166e")(x, "PATH")', 'f = getattr(torch, "sa\\166e")\n    _1 = f(x, "PATH")']
SAVES += ["int = torch.save\n    _1 = int(x, 'PATH')"]
SAVES += [f'# {end} """\n    torch.save(x, \'PATH\')\n    # {end} """' for end in ENDS]


@pytest.mark.parametrize("line", SAVES)
def test_an_operator_that_writes_files_is_refused_however_it_is_named(line, tmp_path, planted):
    path = with_line(tmp_path / "model.pt", line)
    refused(path, "nothing was run|cannot be audited")
    assert not planted.exists()
    torch.jit.load(path)(torch.rand(1, 3, 4, 4))
    assert planted.exists(), "the code does nothing, so the test above proves nothing"


def test_a_file_is_not_read_into_the_scores(tmp_path):
    (tmp_path / "planted").write_bytes(b"secret")
    line = """x = torch.add(x, torch.sum(torch.to(getattr(torch, "from\\137file")("PATH", False, 6, dtype=0), 6)))"""
    path = with_line(tmp_path / "model.pt", line)
    refused(path, "nothing was run")
    image = torch.zeros(1, 3, 4, 4)
    assert (torch.jit.load(path)(image) != Plain()(image)).all()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('torch.segment_reduce(x, "sum", lengths=torch.tensor([100000000]), unsafe=True)', "torch.segment_reduce"),
        ('torch._segment_reduce_backward(x, x, x, "sum", lengths=x)', "torch._segment_reduce_backward"),
        ("torch._weight_norm(x, torch.ones([1, 1]), 0)", "torch._weight_norm"),
        ("torch.set_(x, x)", "torch.set_"),
        ("x.as_strided([9], [9])", "as_strided"),
        ("torch.mul(x, x, out=x)", "out="),
        ("ops.prim.id(x)", "ops.prim.id"),
        ("ops.prim.IgnoredPythonOp(x)", "ops.prim.IgnoredPythonOp"),
        ("ops.mylib.custom(1)", "ops.mylib.custom"),
        ("ops.quantized.conv2d(x)", "ops.quantized.conv2d"),
        ("x = ops", "'ops'"),
        ("x = ops.prim", "'ops.prim'"),
        ("torch = x", "'torch as a name"),
        ("x.segment_reduce('sum')", "'segment_reduce'"),
        ("f = x.segment_reduce; _1 = f('sum')", "'f'"),
        ('f = getattr(x, "segment_reduce")', "getattr"),
        ("fork(x.save, 'f')", "'fork'"),
        ("print('f')", "'print'"),
        ("x = getattr", None),
        ('x = getattr(self, "sa" "ve" if True else "")', "getattr None"),
        ('x = getattr(x, "sa\\166e")', "getattr 'save'"),
        ('getattr(self, "0")(x)', "getattr"),
        ("(x.save if True else x.save)(x)", "x.save"),
        ("x = torch.classes.mylib.Custom()", "torch.classes"),
        ("x : __torch__.torch . classes.mylib.Custom = 1", "torch.classes"),
        ("t = __torch__.torch; _1 = t.classes.mylib.Custom()", "'__torch__.torch'"),
        ("_1 = __torch__.elsewhere.function(x)", "'__torch__.elsewhere.function'"),
        (f"_1 = unchecked_cast(__torch__.{__name__}.Plain, x)", "unchecked_cast"),
        ("_1 = unchecked_cast(Tuple[int, int], x)", "unchecked_cast"),
        ("_1 = '\\033[2J'", "the constant"),
        ("_1 = '\\u5104'", "the constant"),
        ("_1 = f'{x}'", "JoinedStr"),
        ("_1 = [y for y in x]", "ListComp"),
        ("import os", "Import"),
        ("'a text'", "a text that does nothing"),
        ("^Function(1)(2)", "cannot be audited"),
        ("def (", "cannot be audited"),
        ("x = 'caf\xe9'", "cannot be audited"),
        ("x = 1\r", "cannot be audited"),
        ("x = 1\f", "cannot be audited"),
        ("x = 1\x00", "cannot be audited"),
    ],
)
def test_torchscript_that_reaches_beyond_a_classifiers_operators_is_refused(line, reason, tmp_path):
    refused(with_line(tmp_path / "model.pt", line), re.escape(reason) if reason else "cannot load it")


OTHERS = ["bytecode.pkl", "mobile_debug_handles.pkl", "code/x.so", "code/__torch__.x.py", "code//__torch__.py"]


@pytest.mark.parametrize("kind", OTHERS)
def test_what_else_an_archive_could_hold_is_refused(kind, tmp_path):
    path = changed(scripted(Plain().eval(), tmp_path / "model.pt"), lambda _, data: data, **{kind: b""})
    refused(path, f"holds '{re.escape(kind)}'")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"K\x07tQ", b"J\x00\x00\x40\x00tQ", "longer than it is"),
        (b"(K\x07t(K\x01t", b"(J\x00\x00\x40\x00t(K\x01t", "larger than its weights"),
        (b"K\x01K\x02\x86", b"K\x01\x85", r"no Tuple\[int, int\] as place"),
        (b"K\x01K\x02\x86", b"K\x01N\x86", r"no Tuple\[int, int\] as place"),
        (
            # PyTorch numbers a class that it has compiled before in this process.
            re.compile(rb"torch\.nn\.modules\.conv(\.___torch_mangle_\d+)?\nConv2d"),
            f"{__name__}\nPlain".encode(),
            "holds an object|no Tensor|no __torch__|has no",
        ),
        (b"ctorch\nFloatStorage\n", b"K\x00", "a weight without a size"),  # a number is a kind of weights to PyTorch
        (b"_rebuild_tensor_v2", b"_rebuild_parameter", "needs torch._utils._rebuild_parameter"),
        (b"FloatStorage", b"QInt8Storage", "needs torch.QInt8Storage"),
        (b"torch.jit._pickle\nbuild_intlist", b"torch.distributed.rpc\nrref", "needs torch.distributed.rpc.rref"),
    ],
)
def test_a_pickle_that_says_other_than_the_archive_holds_is_refused(old, new, reason, tmp_path):
    """PyTorch believes it, and reads what lies behind the weight or the object."""
    path = scripted(Plain().eval(), tmp_path / "model.pt")
    pattern = old if isinstance(old, re.Pattern) else re.compile(re.escape(old))
    assert pattern.search(zipfile.ZipFile(path).read("model/data.pkl"))
    refused(changed(path, lambda name, data: pattern.sub(new, data, 1) if name == "data.pkl" else data), reason)


def test_graphs_are_looked_through_too_after_loading(tmp_path, planted):
    module = torch.jit.load(scripted(SavesInForward(planted), tmp_path / "model.pt"))
    assert set(foreign(module)) == {"aten::save"}


def test_what_an_archive_may_use_are_operators_of_pytorch():
    known = {schema.name for schema in torch._C._jit_get_all_schemas()}
    assert not [name for name in _ATEN if not {f"aten::{name}", f"aten::{name}_"} & known]
    assert not {"save", "from_file", "set", "segment_reduce", "_weight_norm", "as_strided", "rpc_async"} & _ATEN


class Talking(nn.Module):
    """Texts of every kind, a hook, blocks without gradients, a module whose name is no name."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"stage-1": nn.Conv2d(3, CLASSES, 3), "2": nn.Dropout2d()})

    def forward(self, x):
        if x.dim() != 4:
            raise ValueError("größe 'is' \"wrong\"\\ \n\t%s")
        with torch.no_grad():
            for part in self.parts.values():
                x = part(x)
        return F.softmax(x.mean((2, 3)), 1)


def halved(self, input: tuple[Tensor], output: Tensor) -> Tensor:
    return output / 2


def legitimate() -> dict[str, nn.Module]:
    hooked = Plain().eval()
    hooked.conv.register_forward_hook(halved)
    pools = nn.Sequential(nn.Conv2d(3, 9, 3), nn.LPPool2d(2, 2), nn.Mish(), nn.InstanceNorm2d(9), nn.PReLU())
    rows = nn.Sequential(nn.ReflectionPad2d(1), nn.PixelUnshuffle(2), nn.AdaptiveMaxPool2d(4), nn.Flatten(1), nn.GLU())
    return {"talking": Talking(), "hooked": hooked, "pools": pools, "rows": rows}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", [*legitimate(), *ZOO])
def test_what_networks_are_made_of_is_not_refused(name, frozen, tmp_path):
    module = torch.jit.script((network(name) if name in ZOO else legitimate()[name]).eval())
    if (name, frozen) == ("vit", False):
        torch.jit.save(module, tmp_path / "model.pt")
        refused(tmp_path / "model.pt", "_native_multi_head_attention")  # with heads that only running it would tell
        return
    torch.jit.save(torch.jit.freeze(module) if frozen else module, tmp_path / "model.pt")
    batch = torch.rand(2, *SHAPE)
    assert torch.allclose(load_script(tmp_path / "model.pt")(batch), module(batch), atol=1e-5)


class Named(nn.Module):
    """Its names look like what is refused and are harmless."""

    def __init__(self):
        super().__init__()
        self.classes, self.saved = 7, nn.Sequential(nn.Conv2d(3, 7, 3))

    def forward(self, x):
        return self.saved(x).mean((2, 3)).view(x.size(0), self.classes)


def test_harmless_names_that_look_alike_are_not_refused(tmp_path):
    assert difference(adapter.convert(scripted(Named().eval(), tmp_path / "model.pt"), SHAPED)) < 1e-4


def test_a_payload_in_the_pickle_of_a_torchscript_archive_is_not_run(tmp_path, planted):
    import pickle

    bad = pickle.dumps(Payload(planted), protocol=2)
    for entry in ("data.pkl", "constants.pkl"):
        path = scripted(network("resnet"), tmp_path / "model.pt")
        path = changed(path, lambda name, data, entry=entry: bad if name == entry else data)
        refused(path, rf"{re.escape(entry)} needs (posix|nt)\.system")
    assert not planted.exists()


def test_torchscript_of_the_oldest_format_whose_code_lies_elsewhere_is_refused(tmp_path):
    path = changed(scripted(network("resnet"), tmp_path / "model.pt"), lambda _, data: data, **{"model.json": b"{}"})
    refused(path, r"holds 'model\.json'")


def test_an_archive_with_two_roots_is_refused_since_readers_differ_on_which_counts(tmp_path):
    path = scripted(network("resnet"), tmp_path / "model.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"")
    refused(path, "more than one folder")


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["script", "program"])
def test_truncated_archives_are_model_errors(kind, part, tmp_path):
    path = program(tmp_path) if kind == "program" else scripted(network("resnet"), tmp_path / "model.pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    refused(path, "damaged (archive|checkpoint)")  # a program holds an archive that may be taken for the whole


def test_a_torch_with_a_known_hole_in_its_safe_loading_is_refused(tmp_path, monkeypatch):
    torch.save(network("resnet").state_dict(), tmp_path / "model.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    refused(tmp_path / "model.pth", r"torch 2\.9\.1\+cpu cannot load it safely; install torch>=2\.10")


def test_an_operator_that_leads_nowhere_is_not_run_with_the_program(tmp_path):
    from debride_adapters.torch.program import load_program

    program = torch.export.export(network("resnet"), (torch.rand(2, *SHAPE),))
    (end,) = (node for node in program.graph.nodes if node.op == "output")
    with program.graph.inserting_before(end):
        (image,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
        dead = program.graph.call_function(torch.ops.aten.neg.default, (image,))
        dead.meta["val"] = image.meta["val"]
    program.graph_module.recompile()
    torch.export.save(program, tmp_path / "m.pt2")
    assert "aten.neg.default" in {str(node.target) for node in torch.export.load(tmp_path / "m.pt2").graph.nodes}
    loaded = load_program(tmp_path / "m.pt2")
    assert "aten.neg.default" not in {str(node.target) for node in loaded.graph.nodes}
    assert "neg" not in loaded.module(check_guards=False).code


@pytest.mark.parametrize(
    ("call", "held"),
    [
        ("torch.upsample_nearest2d(x, [4, 4], 1e-30, 1e-30)", False),
        ("torch.upsample_nearest2d(x, [4, 4], s, s)", False),
        ("torch.upsample_bilinear2d(x, None, False, [1e30, 2.0])", False),
        ("torch.upsample_bilinear2d(x, [4, 4], False, None, None)", True),
        ("torch.upsample_bilinear2d(x, None, False, [2.0, 2.0])", True),
        ("torch._native_multi_head_attention(x, x, x, 16, 0, w, b, p, c)", False),
        ("torch._native_multi_head_attention(x, x, x, 16, 4, w, b, p, c)", True),
        ("torch.lstm(x, h, w, True, 1, 0., False, False, True)", False),
        ("torch.grid_sampler(x, g, 7, 0, False)", False),
    ],
)
def test_operators_that_trust_their_numbers_are_given_usual_ones(call, held):
    code = f"def forward(self, x: Tensor, s: float, g: Tensor, h: Tensor, w: Tensor) -> Tensor:\n  return {call}\n"
    assert (not list(reasons(read_code(code.encode()), set()))) is held


def test_what_is_defined_or_declared_twice_is_refused():
    field = "class A(Module):\n  q : int\n  q : Tensor\n"
    with pytest.raises(ValueError, match="declares a field of A twice"):
        declared("__torch__", read_code(field.encode()))
    assert defined("m", read_code(b"class A(Module):\n  q : int\nclass A(Module):\n  q : int\n")) == ["m.A", "m.A"]


def test_a_class_that_is_there_twice_is_refused(tmp_path):
    def twice(name, data):
        return data + b"class Plain(Module):\n  x : int\n" if b"class Plain(" in data and name.endswith(".py") else data

    path = changed(scripted(Plain().eval(), tmp_path / "model.pt"), twice)
    refused(path, "twice|a text|cannot be audited")


def test_programs_may_not_resize_by_what_makes_indices_out_of_bounds(tmp_path):
    class Resized(nn.Module):
        def forward(self, x):
            return F.interpolate(x, scale_factor=2.0).mean((2, 3))

    torch.export.save(torch.export.export(Resized(), (torch.rand(2, *SHAPE),)), tmp_path / "m.pt2")
    assert adapter.convert(tmp_path / "m.pt2", ConvertOptions()).onnx
    path = changed(tmp_path / "m.pt2", lambda _, data: data.replace(b"2.0", b"1e-30"))
    refused(path, "resizes by 1e-30")


def test_a_scale_that_is_computed_is_refused_and_one_that_was_traced_is_not(tmp_path):
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Flatten(), nn.LazyLinear(5)
    )
    module(torch.rand(1, *SHAPE))
    refused(scripted(module.eval(), tmp_path / "scripted.pt"), "upsample_")
    torch.jit.save(torch.jit.trace(module, torch.rand(2, *SHAPE)), tmp_path / "traced.pt")
    assert load_script(tmp_path / "traced.pt")(torch.rand(2, *SHAPE)).shape == (2, 5)
