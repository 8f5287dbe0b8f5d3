"""How the proxy computes is chosen by timing: a clock that is told what each way takes decides either way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from debride.errors import ModelError, ParityError, RuntimeMissingError, UsageError
from debride.graph.read import read_model
from debride.proxy import device, precision
from debride.proxy.device import resolve_device
from debride.proxy.interpreter import Proxy
from debride.proxy.memory import bytes_kept, images_per_pass
from debride.proxy.precision import choose_compute
from debride.sessions import Runtime, Session, predictor, runtime_on
from debride.types import Compute, InputSpec
from trainable_models import plain

SPEC = InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8))
IMAGES = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A graph with two convolutions, and what onnxruntime says."""
    path = tmp_path_factory.mktemp("precision") / "net.onnx"
    path.write_bytes(plain().SerializeToString())
    graph = read_model(path).graph
    return graph, predictor(Session(path, Runtime(threads=1)), SPEC)


class Clock:
    """Stands still, but for passes of the proxy: these take `seconds` by precision and memory format."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.passes = 0.0, 0
        run = Proxy.forward

        def forward(proxy, images, *rest, **named):
            self.passes += 1
            self.now += seconds[proxy.compute.precision, proxy.compute.channels_last] * len(images)
            return run(proxy, images, *rest, **named)

        monkeypatch.setattr(Proxy, "forward", forward)

    def __call__(self):
        return self.now


def chosen(subject, monkeypatch, seconds, **asked):
    graph, predict = subject
    clock = Clock(monkeypatch, seconds)
    return choose_compute(graph, SPEC, predict, IMAGES, clock=clock, **asked), clock


def seconds(float32, bfloat16, other=1.0):
    """Of the four ways; without channels last each takes `other` times as long."""
    return {
        (name, last): took * (1 if last else other)
        for name, took in (("float32", float32), ("bfloat16", bfloat16))
        for last in (True, False)
    }


@pytest.mark.parametrize(
    ("took", "precision_", "last"),
    [
        (seconds(1e-4, 5e-5), "bfloat16", True),
        (seconds(1e-4, 2e-3), "float32", True),
        (seconds(1e-4, 6e-3), "float32", True),
        (seconds(1e-4, 9e-5), "float32", True),
        (seconds(1e-4, 5e-5, other=0.5), "bfloat16", False),
        (seconds(1e-4, 9e-5, other=0.7), "float32", False),
    ],
    ids=["twice as fast", "20 times slower", "60 times slower", "hardly faster", "both", "the order in memory alone"],
)
def test_the_fastest_way_is_taken_where_it_is_clearly_faster(subject, monkeypatch, took, precision_, last):
    compute, _ = chosen(subject, monkeypatch, took)
    assert (compute.precision, compute.channels_last, compute.reason) == (precision_, last, "measured")
    assert compute.timings[0].seconds == pytest.approx(min(took.values()))
    assert [t.seconds for t in compute.timings] == sorted(t.seconds for t in compute.timings)


def test_a_slow_way_costs_no_more_than_a_few_images(subject, monkeypatch):
    _, clock = chosen(subject, monkeypatch, seconds(1e-4, 6e-3))
    assert clock.now < 1.0
    assert {t.precision for t in choose_timings(subject, monkeypatch)} == {"float32"}


def choose_timings(subject, monkeypatch):
    return chosen(subject, monkeypatch, seconds(1e-4, 6e-3))[0].timings


def test_a_fast_way_that_is_too_far_from_onnxruntime_is_refused(subject, monkeypatch):
    monkeypatch.setitem(precision._TOLERANCES, "bfloat16", 1e-9)
    compute, _ = chosen(subject, monkeypatch, seconds(1e-4, 5e-5))
    assert (compute.precision, compute.reason) == ("float32", "inexact")
    measured = next(t for t in compute.timings if t.precision == "bfloat16" and t.channels_last)
    assert 1e-9 < measured.difference < 0.1


def test_a_way_in_which_the_graph_does_not_run_is_left_out(subject, monkeypatch):
    run = Proxy.forward

    def forward(proxy, *rest, **named):
        if proxy.compute.precision == "bfloat16":
            raise ModelError("types that do not mix")
        return run(proxy, *rest, **named)

    monkeypatch.setattr(Proxy, "forward", forward)
    graph, predict = subject
    compute = choose_compute(graph, SPEC, predict, IMAGES)
    assert (compute.precision, compute.reason) == ("float32", "measured")
    assert {t.precision for t in compute.timings} == {"float32"}


def test_a_graph_through_which_no_gradient_goes_is_an_error_that_says_so(subject, monkeypatch):
    run = Proxy.forward
    monkeypatch.setattr(Proxy, "forward", lambda *rest, **named: run(*rest, **named).detach())
    with pytest.raises(ModelError, match="no gradient reaches the image"):
        choose_compute(subject[0], SPEC, subject[1], IMAGES)


def test_what_is_asked_for_is_taken_without_any_timing(subject, monkeypatch):
    compute, clock = chosen(subject, monkeypatch, seconds(1e-4, 6e-3), asked="bfloat16")
    assert (compute.precision, compute.reason, compute.timings) == ("bfloat16", "asked", ())
    assert clock.passes <= 3  # memory, parity, and that the scores are no probabilities


def test_a_precision_that_was_asked_for_and_is_too_coarse_is_an_error(subject, monkeypatch):
    monkeypatch.setitem(precision._TOLERANCES, "float16", 1e-9)
    graph, predict = subject
    with pytest.raises(ParityError, match=r"float16.*--precision float32"):
        choose_compute(graph, SPEC, predict, IMAGES, asked="float16")


def test_the_real_clock_decides_too(subject):
    graph, predict = subject
    compute = choose_compute(graph, SPEC, predict, IMAGES)
    assert compute.reason in ("measured", "inexact") and compute.batch == 64
    assert np.isfinite([t.seconds for t in compute.timings]).all()


def test_a_pass_holds_as_many_images_as_memory_allows(subject, monkeypatch):
    proxy = Proxy(subject[0], SPEC)
    kept = bytes_kept(proxy)
    assert kept > 8 * 8 * 3 * 4
    for share, wanted in ((3.5, 3), (0.5, 1), (1e6, 64)):
        monkeypatch.setattr("debride.proxy.memory._CPU_BYTES", int(share * kept))
        assert images_per_pass(proxy) == wanted


@pytest.mark.parametrize(
    ("asked", "seen", "wanted"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1")],
)
def test_the_device_is_one_that_torch_sees(monkeypatch, asked, seen, wanted):
    gpus(monkeypatch, seen)
    assert resolve_device(asked) == wanted


@pytest.mark.parametrize(("asked", "seen"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_there_is_an_error_with_the_mend(monkeypatch, asked, seen):
    gpus(monkeypatch, seen)
    with pytest.raises(RuntimeMissingError, match=rf"--device {asked}.*--device cpu") as failure:
        resolve_device(asked)
    assert failure.value.exit_code == 3


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "CUDA", "cpu:0", "cuda:-1", ""])
def test_other_words_are_no_device(word):
    for ask in (resolve_device, runtime_on):
        with pytest.raises(UsageError, match="auto, cpu, cuda or cuda:N"):
            ask(word)


def gpus(monkeypatch, count):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: count)


def test_onnxruntime_is_asked_for_the_same_device():
    assert runtime_on("cpu").providers == ("CPUExecutionProvider",)
    assert runtime_on("auto").providers == ()
    assert runtime_on("cuda:3") == Runtime(providers=("CUDAExecutionProvider", "CPUExecutionProvider"), device=3)
    assert runtime_on("cuda", providers=("CPUExecutionProvider",)).providers == ("CPUExecutionProvider",)


def test_gradients_too_small_for_float16_do_not_round_to_zero(subject):
    proxy = Proxy(subject[0], SPEC, compute=Compute(precision="float16"))
    images = torch.from_numpy(IMAGES.copy()).requires_grad_()
    small = proxy(images).sum() * 1e-7
    (found,) = proxy.gradients(small, [images])
    exact = Proxy(subject[0], SPEC)
    (wanted,) = exact.gradients(exact(images).sum() * 1e-7, [images])
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_gradients_that_overflow_when_scaled_up_are_found_all_the_same(subject):
    proxy = Proxy(subject[0], SPEC, compute=Compute(precision="float16"))
    images = torch.from_numpy(IMAGES.copy()).requires_grad_()
    (found,) = proxy.gradients(proxy(images).sum() * 1e2, [images])
    assert torch.isfinite(found).all() and found.abs().max() > 0


@pytest.mark.parametrize(("batch", "wanted"), [(4096, 120), (64, 120), (48, 90), (16, 60), (1, 60)])
def test_of_large_images_fewer_are_taken_down_to_half(batch, wanted):
    assert Compute(batch=batch).images(120) == wanted and Compute(batch=batch).images(1) == 1
