"""JAX functions as ONNX: a small residual network in plain JAX and one in Flax, what is stated, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from debride.conversion.write import save
from debride.errors import ModelError
from debride.graph.read import read_model
from debride_adapters.jax import from_function

pytestmark = pytest.mark.frameworks


def residual():
    """A residual network in jax.numpy and jax.lax alone."""
    import jax

    keys = jax.random.split(jax.random.PRNGKey(3), 4)
    first, second, third = (
        0.3 * jax.random.normal(key, shape)
        for key, shape in zip(keys, ((3, 3, 3, 8), (3, 3, 8, 8), (8, 6)), strict=False)
    )

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def network(x):
        x = jax.nn.relu(convolved(x, first))
        x = x + jax.nn.relu(convolved(x, second))
        return x.mean(axis=(1, 2)) @ third

    return network


def flax():
    """Convolutions and batch normalisation in Flax NNX."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs, use_running_average=True)
            self.down = nnx.Conv(8, 8, (3, 3), strides=2, rngs=rngs)
            self.head = nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.down(nnx.relu(self.norm(self.conv(x))))).mean((1, 2)))

    net = Net(nnx.Rngs(0))
    net.eval()
    return net


@pytest.mark.parametrize("network", [residual, flax])
def test_a_jax_function_becomes_onnx_with_the_same_outputs(network, tmp_path):
    converted = from_function(network(), (16, 16, 3))
    assert converted.spec["layout"] == "NHWC"
    assert converted.spec["size"] == [16, 16]
    assert set(converted.packages) == {"jax", "jax2onnx"}
    conversion = save(converted, tmp_path / "out.onnx", framework="JAX")
    assert conversion.opset == 18
    assert max(found.difference for found in conversion.parity) <= 1e-4
    assert read_model(tmp_path / "out.onnx").graph.inputs[0].shape == (None, 16, 16, 3)


def test_the_onnx_file_names_neither_the_place_nor_the_lines_of_the_code(tmp_path):
    save(from_function(residual(), (16, 16, 3)), tmp_path / "out.onnx", framework="JAX")
    data = (tmp_path / "out.onnx").read_bytes()
    assert b"test_adapter_jax" not in data
    assert str(Path(__file__).parent).encode() not in data
    assert not any(node.doc_string or node.metadata_props for node in onnx.load_from_string(data).graph.node)


def test_a_function_that_fails_is_a_model_error_that_names_it():
    def broken(x):
        raise ValueError("no such shape")

    with pytest.raises(ModelError, match=r"broken: jax2onnx cannot write it.*no such shape"):
        from_function(broken, (16, 16, 3))


def test_several_outputs_are_compared_one_by_one(tmp_path):
    network = residual()
    converted = from_function(lambda x: (network(x), x.mean(axis=(1, 2))), (8, 8, 3))
    assert converted.reference is not None
    assert [out.shape for out in converted.reference(np.zeros((2, 8, 8, 3), np.float32))] == [(2, 6), (2, 3)]
