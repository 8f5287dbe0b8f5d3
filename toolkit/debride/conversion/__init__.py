"""Other frameworks' model files -> ONNX: in a child process, measured against the framework, without a trace of the machine."""
