"""Other frameworks' model files -> ONNX: in a child process, measured against the framework, without its traces.

`write.convert` makes a file, `source.opened` lends one to a run, `write.save` takes objects in memory. Nothing is
imported here: the serving commands open ONNX files, and need neither onnx nor a framework for it.
"""
