"""How long one request of (1, 3, 32, 32) float32 takes to parse and its answer to render, against the standard library.

OMP_NUM_THREADS=1 python benchmarks/bench_protocol.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from timeit import repeat

import numpy as np

from debride.serve.http.protocol import parse_infer, render_infer
from debride.sessions import TensorInfo

IMAGE = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
SCORES = np.random.default_rng(1).random((1, 10), np.float32)
INPUTS = (TensorInfo("x", (None, 3, 32, 32), np.dtype(np.float32)),)
OUTPUTS = (TensorInfo("y", (None, 10), np.dtype(np.float32)),)


def request(binary: bool, nested: bool = False) -> tuple[bytes, str | None]:
    """A body and its header length, written as Python clients write it: every digit of the float64."""
    entry: dict[str, object] = {"name": "x", "shape": list(IMAGE.shape), "datatype": "FP32"}
    if binary:
        entry["parameters"] = {"binary_data_size": IMAGE.nbytes}
    else:
        entry["data"] = (IMAGE if nested else IMAGE.ravel()).tolist()
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": binary}}).encode()
    return (head + IMAGE.tobytes(), str(len(head))) if binary else (head, None)


def ours(body: bytes, length: str | None) -> bytes:
    """Parsed with every check, and answered."""
    found = parse_infer(body, length, inputs=INPUTS, outputs=OUTPUTS, max_values=1 << 24)
    return render_infer("m", "1", found, {"y": SCORES})[0]


def plain(body: bytes) -> bytes:
    """The same in the least code: the standard library and numpy, nothing checked."""
    entry = json.loads(body)["inputs"][0]
    np.array(entry["data"], np.float32).reshape(entry["shape"])
    output = {"name": "y", "shape": [1, 10], "datatype": "FP32", "data": SCORES.ravel().tolist()}
    return json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]}).encode()


def microseconds(call: Callable[[], object]) -> float:
    """The least of 20 rounds of 300 calls, per call."""
    return min(repeat(call, number=300, repeat=20)) / 300 * 1e6


def main() -> None:
    """Print one line per form."""
    binary, flat, nested = request(True), request(False), request(False, nested=True)
    print(f"binary       {microseconds(lambda: ours(*binary)):7.1f} us")
    print(f"JSON, flat   {microseconds(lambda: ours(*flat)):7.1f} us")
    print(f"JSON, nested {microseconds(lambda: ours(*nested)):7.1f} us")
    print(f"JSON, flat, standard library, unchecked {microseconds(lambda: plain(flat[0])):7.1f} us")


if __name__ == "__main__":
    main()
