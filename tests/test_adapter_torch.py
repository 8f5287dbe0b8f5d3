"""PyTorch's files as ONNX: both exporters, every kind of file, parity with the source on batches of one and five."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from debride.conversion.request import Request
from debride.conversion.write import convert, save
from debride.errors import ModelError, UsageError
from debride.plugins import Adapter
from debride.types import Converted, ConvertOptions
from debride_adapters.torch import adapter, from_module
from debride_adapters.torch.files import kind_of
from torch_zoo import CLASSES, SHAPE, ZOO, network

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4
SHAPED = ConvertOptions(input_shape=SHAPE)


def session(converted: Converted) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(converted.onnx, options)


def difference(converted: Converted, module: nn.Module | None = None) -> float:
    """Largest relative difference from the reference (and from `module`), over the outputs and batches of 1 and 5."""
    assert converted.reference is not None
    run, worst = session(converted), 0.0
    for n in (1, 5):
        batch = np.random.default_rng(n).random((n, *SHAPE), np.float32)
        ours, theirs = run.run(None, {"image": batch}), list(converted.reference(batch))
        if module is not None:
            theirs += [module(torch.from_numpy(batch)).detach().numpy()]
            ours += [ours[0]]
        pairs = list(zip(ours, theirs, strict=True))
        assert all(a.shape == b.shape and len(a) == n for a, b in pairs)
        worst = max(worst, *(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs))
    return worst


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module), path)
    return path


def traced(module: nn.Module, path: Path) -> Path:
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(module, torch.rand(2, *SHAPE)), path)
    return path


def exported(module: nn.Module, path: Path, *, free: bool = True, batch: int = 2) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if free else None
    torch.export.save(torch.export.export(module, (torch.rand(batch, *SHAPE),), dynamic_shapes=shapes), path)
    return path


def opset(converted: Converted) -> int:
    return onnx.load_model_from_string(converted.onnx).opset_import[0].version


@pytest.mark.parametrize("name", ZOO)
def test_a_module_keeps_its_scores_whatever_the_batch(name):
    converted = from_module(network(name), SHAPE)
    assert difference(converted, network(name)) <= TOLERANCE
    assert (converted.notes, opset(converted)) == ((), 18)
    assert converted.packages["torch"] == torch.__version__


@pytest.mark.parametrize("name", [name for name in ZOO if name != "vit"])
def test_a_scripted_file_keeps_its_scores_whatever_the_batch(name, tmp_path):
    converted = adapter.convert(scripted(network(name), tmp_path / "model.pt"), SHAPED)
    assert difference(converted, network(name)) <= TOLERANCE
    assert "never Python" in converted.notes[0]
    assert opset(converted) == 18


@pytest.mark.parametrize("name", ["mobilenet", "vit"])
def test_a_traced_file_keeps_its_scores_even_where_attention_was_fused(name, tmp_path):
    path = traced(network(name), tmp_path / "model.pt")
    with zipfile.ZipFile(path) as archive:
        code = b"".join(archive.read(entry) for entry in archive.namelist() if entry.endswith(".py"))
    assert (b"_native_multi_head_attention" in code) == (name == "vit")
    assert difference(adapter.convert(path, SHAPED), network(name)) <= TOLERANCE


def test_scripted_attention_whose_heads_are_computed_is_refused_with_the_way_out(tmp_path):
    path = scripted(network("vit"), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt: .*_native_multi_head_attention.*torch\.export"):
        adapter.convert(path, SHAPED)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_program_needs_no_input_shape_and_keeps_its_scores(name, tmp_path):
    converted = adapter.convert(exported(network(name), tmp_path / "model.pt2"), ConvertOptions())
    assert difference(converted, network(name)) <= TOLERANCE
    assert converted.notes == ()


def test_a_program_for_one_batch_size_says_so_and_its_reference_takes_any(tmp_path):
    converted = adapter.convert(exported(network("resnet"), tmp_path / "model.pt2", free=False), ConvertOptions())
    assert "batches of 2" in converted.notes[0]
    batch = np.random.default_rng(0).random((5, *SHAPE), np.float32)
    (scores,) = converted.reference(batch)
    assert scores.shape == (5, CLASSES)
    assert np.allclose(session(converted).run(None, {"image": batch[2:4]})[0], scores[2:4], rtol=TOLERANCE, atol=1e-6)


def test_a_program_exported_in_training_mode_is_refused(tmp_path):
    path = exported(network("mobilenet").train(), tmp_path / "model.pt2")
    with pytest.raises(ModelError, match=r"training mode; call model\.eval\(\)"):
        adapter.convert(path, ConvertOptions())


def test_the_kind_of_file_is_told_by_content_and_not_by_suffix(tmp_path):
    script = scripted(network("resnet"), tmp_path / "script.pth")
    program = exported(network("resnet"), tmp_path / "program.pt2").rename(tmp_path / "program.bin")
    torch.save(network("resnet").state_dict(), tmp_path / "weights.pt2")
    assert (kind_of(script), kind_of(program), kind_of(tmp_path / "weights.pt2")) == ("script", "program", "checkpoint")
    assert difference(adapter.convert(script, SHAPED), network("resnet")) <= TOLERANCE


class Unusual(nn.Module):
    """Sizes that depend on the batch, infinities, text arguments and a block without gradients."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix = (
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
            nn.Parameter(torch.rand(8, CLASSES)),
        )

    def forward(self, x):
        with torch.no_grad():
            x = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
        y = self.conv(x)
        y = y.reshape(2 * x.shape[0], 4, *y.shape[2:])
        y = y.masked_fill(y < 0, float("-inf")).amax((2, 3)).reshape(x.shape[0], 8)
        return torch.einsum("bc,ck->bk", y, self.mix)


def test_a_program_with_computed_sizes_infinities_and_nested_blocks_passes_the_audit(tmp_path):
    module = Unusual().eval()
    converted = adapter.convert(exported(module, tmp_path / "model.pt2"), ConvertOptions())
    assert difference(converted, module) <= TOLERANCE


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, x):
        pooled = self.conv(x).mean((2, 3))
        return self.head(pooled), pooled


@pytest.mark.parametrize("script", [False, True])
def test_several_outputs_are_named_in_order_and_each_has_its_reference(script, tmp_path):
    module = TwoHeads().eval()
    if script:
        converted = adapter.convert(scripted(module, tmp_path / "model.pt"), SHAPED)
    else:
        converted = from_module(module, SHAPE)
    assert [output.name for output in session(converted).get_outputs()] == ["scores", "scores_1"]
    assert difference(converted) <= TOLERANCE


class Undecided(nn.Module):
    def forward(self, x):
        scores = x.mean((2, 3))
        return scores if scores.sum() > -1 else -scores


def test_what_the_newer_exporter_cannot_write_the_older_one_does_and_the_note_says_why():
    converted = from_module(Undecided(), SHAPE)
    assert difference(converted) <= TOLERANCE
    assert len(converted.notes) == 1
    assert converted.notes[0].startswith("written by PyTorch's older exporter, since the newer one failed: ")


def test_another_opset_than_the_one_asked_for_is_noted():
    converted = from_module(network("resnet"), SHAPE, options=ConvertOptions(opset=13))
    wrote = opset(converted)
    assert (wrote == 13) == (converted.notes == ())
    assert wrote == 13 or converted.notes == (f"opset 13 was asked for, PyTorch's exporter wrote {wrote}",)
    assert difference(converted) <= TOLERANCE


def test_the_module_itself_stays_in_training_mode_with_its_statistics():
    module = network("resnet").train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    converted = from_module(module, SHAPE)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert difference(converted, module.eval()) <= TOLERANCE


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_looked_through(wrap):
    assert difference(from_module(wrap(network("resnet")), SHAPE), network("resnet")) <= TOLERANCE


def test_a_program_exported_on_a_gpu_loads_without_one(tmp_path):
    path = exported(network("resnet"), tmp_path / "model.pt2")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            moved = data.replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')
            assert (moved != data) == name.endswith("model.json") or name.endswith("config.json")
            archive.writestr(name, moved)
    assert difference(adapter.convert(path, ConvertOptions()), network("resnet")) <= TOLERANCE


def test_half_precision_weights_are_widened_and_noted():
    converted = from_module(network("resnet").half(), SHAPE)
    assert converted.notes == ("its weights were turned into float32",)
    assert difference(converted) <= TOLERANCE


def test_nothing_is_printed_by_either_exporter(capfd, tmp_path):
    from_module(network("resnet"), SHAPE)
    adapter.convert(scripted(network("resnet"), tmp_path / "model.pt"), SHAPED)
    with pytest.raises(ModelError):
        adapter.convert(scripted(network("vit"), tmp_path / "vit.pt"), SHAPED)
    assert capfd.readouterr() == ("", "")


def test_torchscript_without_an_input_shape_is_a_usage_error_that_names_the_flag(tmp_path):
    with pytest.raises(UsageError, match="--input-shape C,H,W"):
        adapter.convert(scripted(network("resnet"), tmp_path / "model.pt"), ConvertOptions())


def test_images_of_a_shape_that_the_network_does_not_take_are_a_model_error(tmp_path):
    path = scripted(network("resnet"), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"does not run on images of shape \(1, 32, 32\).*--input-shape"):
        adapter.convert(path, ConvertOptions(input_shape=(1, 32, 32)))


def test_the_adapter_imports_no_framework_before_it_is_asked_to_convert():
    code = (
        "import debride_adapters.torch as t; print([m for m in ('torch', 'onnx', 'numpy.random') if m in sys.modules])"
    )
    script = f"import sys; sys.path[:0] = {[str(ROOT / 'toolkit'), str(ROOT / 'adapters')]}; {code}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "torch" not in run.stdout
    assert isinstance(adapter, Adapter)


def test_nothing_of_this_machine_is_in_what_is_written(tmp_path):
    traces = {str(tmp_path), str(Path(__file__).parent), str(Path.home()) + "/", "site-packages", ".py", "stack_trace"}
    module = network("vit")
    raw = from_module(module, SHAPE)
    assert any(trace.encode() in raw.onnx for trace in traces)
    save(raw, tmp_path / "object.onnx", framework="PyTorch")
    torch.export.save(torch.export.export(module, (torch.rand(2, *SHAPE),)), tmp_path / "m.pt2")
    convert(Request(model=tmp_path / "m.pt2"), tmp_path / "program.onnx")
    traced(module, tmp_path / "m.pt")
    convert(Request(model=tmp_path / "m.pt", options=SHAPED), tmp_path / "script.onnx")
    for name in ("object", "program", "script"):
        data = (tmp_path / f"{name}.onnx").read_bytes()
        assert [trace for trace in traces if trace.encode() in data] == []


def test_attention_that_was_traced_with_gradients_keeps_its_scores(tmp_path):
    module = network("vit")
    torch.jit.save(torch.jit.trace(module, torch.rand(2, *SHAPE), check_trace=False), tmp_path / "m.pt")
    assert "aten::unflatten" in str(torch.jit.load(tmp_path / "m.pt").inlined_graph)
    written = convert(Request(model=tmp_path / "m.pt", options=SHAPED), tmp_path / "m.onnx")
    assert max(found.difference for found in written.conversion.parity) < TOLERANCE
