"""The proxy, and what is computed with it, on a device that is not the CPU: the same numbers, and nobody waits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

import architectures
import exports
from architectures_parts import pictures
from conformance import left_out, node_cases
from conformance_old import OLD, old_case
from debride.graph.parse import parse
from debride.graph.read import read_model
from debride.graph.weights import statistics
from debride.inversion.invert import invert
from debride.inversion.options import InversionOptions
from debride.proxy.convert import to_tensor
from debride.proxy.interpreter import Proxy
from debride.proxy.parity import check_parity
from debride.proxy.placing import _NUMBERS
from debride.proxy.runner import GraphRunner
from debride.proxy.screen import ProxyGame
from debride.retrain.loss import Loss
from debride.retrain.norms import estimate
from debride.retrain.relearn import relearn
from debride.retrain.teacher import Teacher
from debride.retrain.train import train
from debride.sessions import Runtime, Session, predictor
from debride.stakes import Stake
from debride.types import Compute, InputSpec
from elsewhere import DEVICE, Elsewhere
from retraining_parts import FULL, QUICK, SPEC, draws, images, look, made, samples, says, trigger
from test_conformance_quantised import MATRICES, ONES, SINGLE, single
from trainable_models import decomposed, groups_of, plain, read

THERE = Compute(device=DEVICE)
WAITING = {
    "NonZero": "how many there are is what it says",
    "Compress": "its condition is fed",
    "Range": "made of numbers, on the CPU, and taken along",
    "ConstantOfShape": "made of numbers, on the CPU, and taken along",
    "Shape": "an answer on the CPU, taken to where outputs lie",
    "Size": "an answer on the CPU, taken to where outputs lie",
}
"""Operators for which the CPU may wait, or take something to the device, in every run."""
MANY = 8
"""So many cases of an operator are run at most, evenly chosen."""
CASES = defaultdict(list)
for _case in (*(c for c in node_cases() if left_out(c) is None), *map(old_case, OLD)):
    _nodes = _case.model.graph.node
    CASES[_nodes[0].op_type if len(_nodes) == 1 else "several nodes"].append(_case)


def ways(case):
    """The graph and what is fed: numbers are constants, and integers, truth values and indices in turn, then fed."""
    graph = parse(case.model)
    numbers = {n.inputs[i] for n in graph.nodes for i in _NUMBERS.get(n.op, ()) if i < len(n.inputs)}
    arrays = {name: array for name, array in case.feeds.items() if isinstance(array, np.ndarray)}
    whole = {name for name, array in arrays.items() if array.dtype.kind in "iub"}
    every = [numbers] if whole <= numbers or whole == {*arrays} else [numbers, numbers | whole]
    for constant in every:
        held = {name: array for name, array in arrays.items() if name in constant}
        inputs = tuple(v for v in graph.inputs if v.name not in held)
        changed = replace(graph, constants={**graph.constants, **held}, inputs=inputs)
        yield changed, {name: to_tensor(array) for name, array in arrays.items() if name not in held}


def passed(runner, feeds, at):
    """Outputs and gradients of floats, forward and backward, on the device `at`."""
    floats = (torch.float32, torch.float64)
    placed = {k: v.to(at).requires_grad_() if v.dtype in floats else v.to(at) for k, v in feeds.items()}
    outputs = list(runner.run(placed, [v.name for v in runner.graph.outputs]).values())
    wanted = [v for v in placed.values() if v.requires_grad]
    losses = [v.double().square().sum() for v in outputs if v.requires_grad]
    found = torch.autograd.grad(sum(losses[1:], losses[0]), wanted, allow_unused=True) if losses else ()
    return [v.detach() for v in outputs], [v for v in found if v is not None]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for there, here in zip(found, wanted, strict=True):
        assert (there.device.type, there.dtype) == (DEVICE, here.dtype)
        torch.testing.assert_close(there.cpu().double(), here.double(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("op", CASES)
def test_operator_computes_there_what_it_does_on_the_cpu(op):
    for case in CASES[op][:: -(-len(CASES[op]) // MANY)]:
        for graph, feeds in ways(case):
            here = passed(GraphRunner(graph), feeds, "cpu")
            with Elsewhere() as device:
                runner = GraphRunner(graph, compute=THERE)
                there = passed(runner, feeds, DEVICE)
                fed = {k: v.to(DEVICE) for k, v in feeds.items()}
                device.waits.clear()
                if op not in WAITING and op != "several nodes":
                    runner.run(fed, [v.name for v in graph.outputs])
                assert not +device.waits, case.name
            for one, other in zip(there, here, strict=True):
                assert_same(one, other)


@pytest.mark.parametrize("name", [*SINGLE, *MATRICES])
def test_integer_operator_computes_there_what_it_does_on_the_cpu(name):
    graph = parse(single(name))
    feeds = {"x": torch.randint(0, 256, ONES[name], generator=torch.Generator().manual_seed(1)).float()}
    here = passed(GraphRunner(graph), feeds, "cpu")
    with Elsewhere():
        there = passed(GraphRunner(graph, compute=THERE), feeds, DEVICE)
    for one, other in zip(there, here, strict=True):
        assert_same(one, other)


def gradient(proxy, pixels, at):
    """Logits, and what they are most sensitive to, of images on the device `at`."""
    leaf = pixels.to(at).requires_grad_()
    logits = proxy(leaf)
    return [logits.detach()], list(torch.autograd.grad(logits.logsumexp(1).sum(), leaf))


NETWORKS = ("mobilenet_v3", "shufflenet_v2", "hourglass", "swin", "vit")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_passes_there_and_back_and_nobody_waits_for_it(name, tmp_path):
    shape, path = architectures.shape_of(name), tmp_path / "m.onnx"
    model = exports.export(architectures.network(name), shape, exporter="torchscript", opset=17)
    path.write_bytes(model.SerializeToString())
    graph, pixels = read_model(path).graph, pictures(2, shape)
    spec = InputSpec(name="x", layout="NCHW", channels="RGB", size=shape[1:])
    here = gradient(Proxy(graph, spec), pixels, "cpu")
    with Elsewhere() as device:
        proxy, placed = Proxy(graph, spec, compute=THERE), pixels.to(DEVICE)
        gradient(proxy, placed, DEVICE)
        device.waits.clear()
        there = gradient(proxy, placed, DEVICE)
        assert not +device.waits
    for one, other in zip(there, here, strict=True):
        assert_same(one, other)


def test_the_stand_in_refuses_what_a_gpu_refuses():
    with Elsewhere() as device:
        there, here = torch.arange(6.0).view(2, 3).to(DEVICE), torch.ones(3)
        for mixed in (
            lambda: there + here,
            lambda: there @ here,
            lambda: there[torch.tensor([0])],
            lambda: torch.where(here > 0, there, there),
            lambda: torch.cat([there, here[None]]),
            lambda: torch.nn.functional.linear(there, torch.ones(4, 3)),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        device.waits.clear()
        assert (there * torch.tensor(2.0)).device.type == DEVICE and not +device.waits
        assert [float(there.sum()), there[0].tolist(), there.cpu().sum()] == [15.0, [0.0, 1.0, 2.0], 15.0]
        assert sum(device.waits.values()) == 3


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A small model with its groups, and what onnxruntime says."""
    path = tmp_path_factory.mktemp("device") / "net.onnx"
    path.write_bytes(plain().SerializeToString())
    model = read_model(path)
    return model, groups_of(model), predictor(Session(path, Runtime(threads=1)), SPEC)


def test_parity_with_onnxruntime_is_checked_there(subject):
    model, _, predict = subject
    with Elsewhere():
        assert check_parity(Proxy(model.graph, SPEC, compute=THERE), predict, images(9)) < 1e-5


def test_payoffs_and_marginals_are_the_same_there(subject):
    model, groups, _ = subject
    rng = np.random.default_rng(0)
    stakes = [
        Stake(images=images(n, seed=n), wanted=rng.dirichlet(np.ones(3), n).astype(np.float32), span=span)
        for n, span in ((4, None), (5, (-3.0, 3.0)))
    ]
    coalitions = rng.random((7, len(groups))) < 0.7
    here = ProxyGame(Proxy(model.graph, SPEC), groups, stakes)
    wanted = [here(coalitions), here.marginals(coalitions), here.marginals(coalitions)]
    with Elsewhere():
        there = ProxyGame(Proxy(model.graph, SPEC, compute=THERE), groups, stakes)
        found = [there(coalitions), there.marginals(coalitions), there.marginals(coalitions)]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_triggers_are_the_same_there(subject):
    model, _, predict = subject
    options = InversionOptions(steps=12, restarts=2, trial=6, images=4)

    def found(compute):
        proxy = Proxy(model.graph, SPEC, compute=compute)
        triggers = invert(proxy, predict, samples(30), samples(24, seed=1), range(3), options=options, seed=0)
        return [trigger for c in range(3) for trigger in triggers[c]]

    here = found(None)
    with Elsewhere():
        there = found(THERE)
    assert len(here) == len(there) == 3
    for one, other in zip(there, here, strict=True):
        assert (one.target, one.success, one.steps) == (other.target, other.success, other.steps)
        np.testing.assert_allclose(one.mask, other.mask, atol=1e-4)


def test_a_network_learns_the_same_there(subject):
    model, _, _ = subject

    def learnt(compute):
        network, loss = made(gone=(1,), compute=compute), Loss(FULL, made(compute=compute))
        network.check(images(2))
        train(network, loss, draws(FULL), look(FULL), replace(QUICK, steps=6))
        norms = statistics(model, network.proxy.output)
        moments = estimate(network.proxy, norms, images(40))
        relearnt = relearn(network, samples(30), samples(24, seed=1), trigger(), says, seed=0, steps=(0, 3))
        teacher = Teacher(model, SPEC, QUICK, labelled=True, compute=compute)
        return {**network.arrays(), **moments, "answers": teacher.answers(images(3))}, relearnt

    here, rates = learnt(None)
    with Elsewhere():
        there, other = learnt(THERE)
    assert rates == other
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("written", [False, True])
def test_fused_chains_know_there_whether_their_constants_changed(written):
    graph = read(decomposed()).graph
    feeds = {graph.inputs[0].name: torch.from_numpy(images(2))}
    results = []
    for compute in (None, THERE):
        with Elsewhere():
            runner = GraphRunner(graph, compute=compute)
            if written:
                with torch.no_grad():
                    for tensor in runner.tensors.values():
                        tensor.mul_(1.1)
            results.append(passed(runner, feeds, runner.device))
    for one, other in zip(results[1], results[0], strict=True):
        assert_same(one, other)
