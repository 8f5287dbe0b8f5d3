"""The rival of bench_serving.py: the app that anyone would write around a model, with FastAPI and onnxruntime.

One session with onnxruntime's default options (or `--threads`), one process, uvicorn with uvloop and httptools. Neither
batching nor limits nor checks: what a tutorial shows, and nothing that slows it down.

    python benchmarks/plain_fastapi.py samples/fashion-backdoored.onnx --style async --port 8001
"""

from __future__ import annotations

import argparse
import socket
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, UploadFile
from pydantic import BaseModel


class Tensor(BaseModel):
    """A batch of images as FastAPI users send them: nested lists (N, C, H, W), in the model's own range."""

    data: list[list[list[list[float]]]]


class Plain:
    """The model, and the steps between a request's content and the five best classes."""

    def __init__(self, path: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads  # 0: onnxruntime's default
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        entry = self.session.get_inputs()[0]
        self.name, self.shape = entry.name, entry.shape[1:]

    def read(self, data: bytes) -> np.ndarray:
        """An image file as the model's input (1, C, H, W) float32 in 0..1."""
        depth, height, width = self.shape
        flag = cv2.IMREAD_GRAYSCALE if depth == 1 else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height))
        image = image[:, :, None] if depth == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return image.astype(np.float32).transpose(2, 0, 1)[None] / 255

    def scores(self, batch: np.ndarray) -> np.ndarray:
        """The model's scores (N, K)."""
        return self.session.run(None, {self.name: batch})[0]

    def classify(self, data: bytes) -> dict[str, Any]:
        """The five most probable classes of an image file."""
        scores = self.scores(self.read(data))[0]
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        best = np.argsort(-shares)[:5]
        return {"predictions": [{"index": int(i), "probability": float(shares[i])} for i in best]}

    def infer(self, tensor: Tensor) -> dict[str, Any]:
        """The scores of a tensor that came as JSON."""
        return {"scores": self.scores(np.array(tensor.data, np.float32)).tolist()}

    def infer_raw(self, data: bytes) -> dict[str, Any]:
        """The scores of a tensor that came as float32 bytes."""
        return {"scores": self.scores(np.frombuffer(data, np.float32).reshape(-1, *self.shape)).tolist()}


def app_async(model: Plain) -> FastAPI:
    """`async def` endpoints: everything on the event loop, one request at a time."""
    app = FastAPI()

    @app.post("/classify")
    async def classify(file: UploadFile) -> dict[str, Any]:
        return model.classify(await file.read())

    @app.post("/infer")
    async def infer(tensor: Tensor) -> dict[str, Any]:
        return model.infer(tensor)

    @app.post("/infer_raw")
    async def infer_raw(request: Request) -> dict[str, Any]:
        return model.infer_raw(await request.body())

    return app


def app_def(model: Plain) -> FastAPI:
    """`def` endpoints: starlette runs them on its forty threads."""
    from starlette.concurrency import run_in_threadpool

    app = FastAPI()

    @app.post("/classify")
    def classify(file: UploadFile) -> dict[str, Any]:
        return model.classify(file.file.read())

    @app.post("/infer")
    def infer(tensor: Tensor) -> dict[str, Any]:
        return model.infer(tensor)

    # A body can only be awaited, so what follows is what a `def` endpoint would do.
    @app.post("/infer_raw")
    async def infer_raw(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(model.infer_raw, await request.body())

    return app


def main() -> None:
    """Serves one model until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--style", choices=["async", "def"], default="async")
    parser.add_argument("--threads", type=int, default=0, help="intra_op_num_threads; 0: onnxruntime's default")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; the first line tells")
    options = parser.parse_args()
    model = Plain(options.model, options.threads)
    listener = socket.create_server(("127.0.0.1", options.port), backlog=2048)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    app = (app_async if options.style == "async" else app_def)(model)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
