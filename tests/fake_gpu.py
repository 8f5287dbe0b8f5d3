"""onnxruntime with a GPU, for machines that have none: it computes on the CPU, and notes what goes up and down."""

from __future__ import annotations

from types import SimpleNamespace

import onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class FakeGpu:
    """Stands in for the module: `up` and `down` are the bytes of each copy to and from the GPU `number`."""

    def __init__(self, number=0):
        self.number, self.up, self.down, self.runs = number, [], [], 0
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self._uploaded)

    def __getattr__(self, name):
        return getattr(onnxruntime, name)

    def get_available_providers(self):
        return [CUDA, CPU]

    def InferenceSession(self, model, sess_options, providers, enable_fallback):  # noqa: N802
        options = dict(providers)
        session = onnxruntime.InferenceSession(model, sess_options, providers=[CPU])
        return _Session(self, session) if CUDA in options else session

    def _uploaded(self, array, device, number):
        assert (device, number) == ("cuda", self.number)
        self.up.append(array.nbytes)
        return _Value(self, onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), "cpu", 0))


class _Session:
    def __init__(self, gpu, session):
        self._gpu, self._session = gpu, session

    def __getattr__(self, name):
        return getattr(self._session, name)

    def get_providers(self):
        return [CUDA, CPU]

    def io_binding(self):
        return _Binding(self._gpu, self._session.io_binding())

    def run_with_iobinding(self, binding):
        self._gpu.runs += 1
        self._session.run_with_iobinding(binding.real)


class _Binding:
    """Takes inputs from the CPU or from the GPU's memory, and leaves outputs in that."""

    def __init__(self, gpu, real):
        self._gpu, self.real = gpu, real

    def bind_input(self, name, device, number, dtype, shape, address):
        assert (device, number) == ("cuda", self._gpu.number)
        self.real.bind_input(name, "cpu", 0, dtype, shape, address)

    def bind_cpu_input(self, name, array):
        self._gpu.up.append(array.nbytes)
        self.real.bind_cpu_input(name, array)

    def bind_output(self, name, device, number):
        assert (device, number) == ("cuda", self._gpu.number)
        self.real.bind_output(name, "cpu", 0)

    def get_outputs(self):
        return [_Value(self._gpu, value) for value in self.real.get_outputs()]


class _Value:
    def __init__(self, gpu, value):
        self._gpu, self._value = gpu, value

    def __getattr__(self, name):
        return getattr(self._value, name)

    def numpy(self):
        array = self._value.numpy().copy()
        self._gpu.down.append(array.nbytes)
        return array
