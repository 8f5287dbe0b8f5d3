"""The HTTP server: the Open Inference Protocol v2 over starlette and uvicorn; neither torch nor onnx."""
