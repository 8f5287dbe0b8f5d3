"""The one maker of onnxruntime sessions, and the one place that names execution providers."""

from __future__ import annotations

import io
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import ModelError, RuntimeMissingError, UsageError
from .pixels import encode
from .resident import Held, Resident
from .types_input import FloatArray, InputSpec, Predict

try:
    import onnxruntime as ort
except ImportError:  # neither extra is installed; said when the first session is made
    ort = None

_PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
# TF32 rounds products to 10 bits: far outside the parity that the differentiable proxy is held to. And convolutions are
# chosen by rule: the default times them, anew for each size of batch, and may then choose otherwise in every run.
_OPTIONS: dict[str, dict[str, str]] = {
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
_PROBE = (  # the model of y = abs(x)
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Abs\x12\x01pZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_EXTERNAL = "session.model_external_initializers_file_folder_path"
_SUM_TOLERANCE = 1e-3
_IMAGES, _IMAGE_VALUES, _ON_GPU = 256, 1 << 20, 4 << 20
"""The most images that are scored in one run, and values of them (in all, and on a GPU): what a graph makes of them
takes many times that. Of 224x224 pixels six took a ResNet-18 no longer each than 27."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Runtime:
    """How sessions run: `threads` inside one operator (0: all cores) and `providers` to ask for, in order.

    Empty `providers` asks for CUDA, then the CPU, as far as the installed onnxruntime offers them. Without `optimised`,
    nodes run as they are written: onnxruntime rounds elsewhere where it has fused those of a quantised model. `thrifty`
    sessions forget tensors early where a graph has many outputs. Threads `spin` while they wait for more work, which is
    quicker and takes their cores from whoever else would use them. With an `arena`, a session keeps the memory of its
    largest run on the CPU for those to come. `device` is the number of the GPU that is used.
    """

    threads: int = 0
    providers: tuple[str, ...] = ()
    optimised: bool = True
    thrifty: bool = False
    spin: bool = True
    arena: bool = True
    device: int = 0


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One end of a model: `shape` has None where a dimension is symbolic; `dtype` is object for non-tensors."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class Session:
    """A loaded model. `model` is the serialized bytes or the path; `name` is used in errors.

    External data are looked for beside the path, for bytes in `folder`, and nowhere where that is None: not in the
    working directory, as onnxruntime would. Raises `RuntimeMissingError` without a usable onnxruntime, `ModelError`
    where the model cannot be loaded.
    """

    def __init__(
        self, model: bytes | Path, runtime: Runtime | None = None, name: str = "", *, folder: Path | None = None
    ) -> None:
        self.name = name or (model.name if isinstance(model, Path) else "model")
        runtime = runtime or Runtime()
        self.asked, self._device = asked_providers(runtime), runtime.device
        self._session = _create(model, folder, runtime, self.asked, self.name)

    @cached_property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs that must be fed (initializers listed as inputs are left out)."""
        return self._told(lambda: tuple(_info(value) for value in self._session.get_inputs()))

    @cached_property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs, in graph order."""
        return self._told(lambda: tuple(_info(value) for value in self._session.get_outputs()))

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The model's `metadata_props`."""
        return self._told(lambda: dict(self._session.get_modelmeta().custom_metadata_map))

    def input_named(self, name: str) -> TensorInfo:
        """The input of that name. Raises `ModelError` where there is none."""
        entry = next((i for i in self.inputs if i.name == name), None)
        if entry is None:
            raise ModelError(f"{self.name}: no input is named {name!r}; it has {[i.name for i in self.inputs]}")
        return entry

    @property
    def provider(self) -> str:
        """The execution provider that really runs first; may differ from `asked[0]`."""
        return str(self._session.get_providers()[0])

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> list[npt.NDArray[Any]]:
        """The tensors named by `outputs` (default all). Raises `ModelError` where onnxruntime fails."""
        try:
            return list(self._session.run(None if outputs is None else list(outputs), dict(feeds)))
        except Exception as error:
            raise self._failed(error) from error

    @cached_property
    def place(self) -> tuple[str, int]:
        """Where it computes, as onnxruntime names devices: ("cuda", N), or ("cpu", 0)."""
        return ("cuda", self._device) if self.provider == "CUDAExecutionProvider" else ("cpu", 0)

    @cached_property
    def _binds(self) -> bool:
        # On the CPU, nothing is gained by it, and a network of small layers took a tenth longer.
        return self.place[0] != "cpu"

    def held(self, value: Held) -> Held:
        """`value` where the session computes; an array is taken there. Raises `ModelError` where that fails."""
        if isinstance(value, Resident) or not self._binds:
            return value
        try:
            return _resident(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), *self.place))
        except Exception as error:
            raise self._failed(error) from error

    def bound(self, feeds: Mapping[str, Held], outputs: Sequence[str]) -> dict[str, Held]:
        """The tensors `outputs` by name, left where the session computes; arrays among `feeds` are taken there.

        Raises `ModelError` where onnxruntime fails.
        """
        # What is an input too would come back as the memory that was fed, whoever owns that.
        made = [name for name in outputs if name not in feeds]
        tensors = {name: self.held(feeds[name]) for name in outputs if name in feeds}
        if made:
            tensors.update(zip(made, self._run_bound(feeds, made), strict=True))
        return tensors

    def _run_bound(self, feeds: Mapping[str, Held], outputs: Sequence[str]) -> Sequence[Held]:
        if not self._binds:
            return self.run({name: np.asarray(value) for name, value in feeds.items()}, outputs)
        try:
            binding = self._session.io_binding()
            for name, value in feeds.items():
                if isinstance(value, Resident):
                    binding.bind_input(name, *self.place, value.dtype, value.shape, value.address)
                else:
                    binding.bind_cpu_input(name, np.ascontiguousarray(value))
            for name in outputs:
                binding.bind_output(name, *self.place)
            self._session.run_with_iobinding(binding)
            return [_resident(value) for value in binding.get_outputs()]
        except Exception as error:
            raise self._failed(error) from error

    def runner(self, entry: str, output: str) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
        """A function from the tensor `entry` to the tensor `output`, as fast as onnxruntime; raises as `run` does."""
        run, outputs = self._session.run, [output]

        def one(fed: npt.NDArray[Any]) -> npt.NDArray[Any]:
            try:
                found: npt.NDArray[Any] = run(outputs, {entry: fed})[0]
            except Exception as error:
                raise self._failed(error) from error
            return found

        return one

    def _told(self, ask: Callable[[], _T]) -> _T:
        try:
            return ask()
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.name}: a name or its metadata is not UTF-8, as ONNX wants it: {error}") from error

    def _failed(self, error: Exception) -> ModelError:
        return ModelError(f"{self.name}: onnxruntime could not run the model: {_line(error)}")


def _resident(value: Any) -> Resident:
    return Resident(value, tuple(value.shape()), np.dtype(_DTYPES[value.data_type()]), value.data_ptr())


def write_ort(model: Path, output: Path, runtime: Runtime | None = None, *, native: bool = False) -> None:
    """Writes the ONNX file `model` to `output` in ORT format, optimised for CPUs; metadata stay. Paths only.

    With `native`, weights are laid out in blocks as wide as this processor's vectors: faster, and for its kind alone.
    onnxruntime's own converter leaves these blocks out too, unless told to.
    Raises `ModelError` where onnxruntime cannot load or write it.
    """
    _require_onnxruntime()
    ort.set_default_logger_severity(4)
    options = _session_options(runtime or Runtime())
    options.optimized_model_filepath = str(output)
    options.add_session_config_entry("session.save_model_format", "ORT")
    filtered = None if native else ["NchwcTransformer"]
    try:
        ort.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"], enable_fallback=0, disabled_optimizers=filtered
        )
    except Exception as error:
        raise ModelError(f"{model.name}: onnxruntime could not write it in ORT format: {_line(error)}") from error


def asked_providers(runtime: Runtime) -> tuple[str, ...]:
    """The execution providers to ask for, in order; those that onnxruntime lacks are an error when named."""
    _require_onnxruntime()
    available = ort.get_available_providers()
    if not runtime.providers:
        return tuple(p for p in _PREFERRED if p in available) or tuple(available)
    missing = [p for p in runtime.providers if p not in available]
    if missing:
        raise RuntimeMissingError(
            f"onnxruntime has no {missing[0]} (it has {', '.join(available)}): "
            "name one of these or take --device cpu, or install debride[gpu] in place of debride[cpu]"
        )
    return runtime.providers


def check_runtime(runtime: Runtime) -> None:
    """Raise `RuntimeMissingError` where a provider is named that is not there or does not run, before any work."""
    if runtime.providers and runtime.providers[0] != "CPUExecutionProvider":
        Session(_PROBE, runtime)


def device_number(device: str) -> int | None:
    """The number of the GPU that `device` names ("cuda" or "cuda:N"); None for "cpu" and "auto".

    Raises `UsageError` where it is none of these.
    """
    named = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", device)
    if named is None:
        raise UsageError(f"--device {device!r} is no device; give auto, cpu, cuda or cuda:N")
    return int(named[1] or 0) if device.startswith("cuda") else None


def runtime_on(device: str, *, threads: int = 0, providers: tuple[str, ...] = ()) -> Runtime:
    """How sessions run on `device` ("auto", "cpu", "cuda" or "cuda:N"), unless `providers` are named.

    Raises `UsageError` where `device` is no such name.
    """
    number = device_number(device)
    if not providers and device != "auto":
        providers = ("CPUExecutionProvider",) if number is None else _PREFERRED
    return Runtime(threads, providers, device=number or 0)


def environment() -> dict[str, str]:
    """onnxruntime's version and the providers that it lists, for the report."""
    _require_onnxruntime()
    return {"onnxruntime": str(ort.__version__), "providers": ", ".join(ort.get_available_providers())}


def _require_onnxruntime() -> None:
    # Uninstalling one of the two wheels guts the other: the import then works and the module is empty.
    if ort is None or not hasattr(ort, "InferenceSession"):
        state = "is not installed" if ort is None else "is broken (one of its two wheels was uninstalled)"
        raise RuntimeMissingError(f"onnxruntime {state}: install debride[cpu] or debride[gpu] afresh, never both")


def _create(model: bytes | Path, folder: Path | None, runtime: Runtime, asked: tuple[str, ...], name: str) -> Any:
    source = str(model) if isinstance(model, Path) else model
    options = _session_options(runtime)
    if isinstance(model, bytes):
        # Nothing can lie below what is no folder.
        options.add_session_config_entry(_EXTERNAL, str(folder.resolve()) if folder else os.devnull)
    # The GPU wheel writes to stderr, from the default logger, that a machine has no GPU: we report that ourselves.
    ort.set_default_logger_severity(4)
    if "CUDAExecutionProvider" in asked:
        _preload()
    attempts, failure = [asked], None
    if asked[0] != "CPUExecutionProvider" and "CPUExecutionProvider" in ort.get_available_providers():
        attempts.append(("CPUExecutionProvider",))
    for providers in attempts:
        try:
            session = ort.InferenceSession(
                source,
                sess_options=options,
                providers=[(p, _options_of(p, runtime)) for p in providers],
                enable_fallback=0,  # its own fallback prints to stdout
            )
        except Exception as error:
            failure = error
            continue
        # onnxruntime may leave a provider out without a word. On the CPU, it is the provider that is at fault.
        if runtime.providers and session.get_providers()[0] != asked[0]:
            raise RuntimeMissingError(_idle(asked[0], failure)) from failure
        return session
    raise ModelError(f"{name}: onnxruntime could not load the model: {_line(failure)}") from failure


def _idle(provider: str, failure: Exception | None) -> str:
    return (
        f"onnxruntime lists the {provider} and does not run on it here{f' ({_line(failure)})' if failure else ''}: "
        "install what it needs (for CUDA a driver and onnxruntime-gpu[cuda,cudnn]), or take --device cpu"
    )


@cache
def _preload() -> None:
    """Load CUDA's libraries from where pip puts them, which the system's loader does not know."""
    load = getattr(ort, "preload_dlls", None)
    if load is not None:
        # What is missing shows in what runs later; here it would be printed.
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore")
            load()


def _options_of(provider: str, runtime: Runtime) -> dict[str, str]:
    options = _OPTIONS.get(provider, {})
    return {**options, "device_id": str(runtime.device)} if provider == "CUDAExecutionProvider" else options


def _session_options(runtime: Runtime) -> Any:
    options, levels = ort.SessionOptions(), ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if runtime.optimised else levels.ORT_DISABLE_ALL
    if runtime.thrifty:  # the usual order comes to outputs that little depends on last, and keeps all until then
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # Counted here: onnxruntime's own count pins threads to cores, which containers refuse with noise.
    options.intra_op_num_threads = runtime.threads or usable_cores()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = runtime.arena
    # Denormal activations are slow, and the proxy flushes them too.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if runtime.spin else "0")
    options.log_severity_level = 3
    return options


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _info(value: Any) -> TensorInfo:
    shape = tuple(d if isinstance(d, int) and d >= 0 else None for d in value.shape or ())
    return TensorInfo(value.name, shape, np.dtype(_DTYPES.get(value.type, object)))


def _line(error: Exception | None) -> str:
    """The message without its stack, on one line of bounded length: parts of it come from the model file."""
    return " ".join(str(error).split())[:500]


def predictor(session: Session, spec: InputSpec, *, batch: int | None = None) -> Predict:
    """Images (N, C, H, W) float32 in 0..1 -> class scores float32 (N, K), as the graph gives them.

    Runs in batches of the model's own size where that is fixed (the last one padded with repeats), else of `batch`, or
    of 256 small images and fewer large ones.
    Raises `ImagesError` where images do not fit `spec`, `ModelError` where the output is no score (N, K >= 2).
    """
    entry = session.input_named(spec.name)
    output = spec.output or session.outputs[0].name
    fixed = entry.shape[0] if entry.shape else None
    values = _IMAGE_VALUES if session.place[0] == "cpu" else _ON_GPU
    step = fixed or batch or min(_IMAGES, max(1, values // (spec.depth * math.prod(spec.size))))

    def predict(images: FloatArray) -> FloatArray:
        parts = []
        for start in range(0, len(images), step):
            chunk = encode(images[start : start + step], spec).astype(entry.dtype, copy=False)
            n = len(chunk)
            if fixed and n < fixed:
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], fixed - n, axis=0)])
            parts.append(_checked(session, output, session.run({spec.name: chunk}, [output])[0], len(chunk))[:n])
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    return predict


def _checked(session: Session, output: str, scores: npt.NDArray[Any], n: int) -> FloatArray:
    if scores.ndim != 2 or len(scores) != n or scores.shape[1] < 2:
        raise ModelError(
            f"{session.name}: output {output!r} has shape {scores.shape} for {n} images and is no class score (N, K): "
            "name the right one with --output-name, or export the model with a batch dimension"
        )
    if not np.isfinite(scores).all():
        raise ModelError(f"{session.name}: output {output!r} is not finite: the weights or the input range are broken")
    checked: FloatArray = scores.astype(np.float32)
    return checked


def probabilities(scores: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Class probabilities float32 (N, K) of scores (N, K).

    Decided once for the whole array: where every row is non-negative and sums to 1 within 1e-3, the graph holds a
    softmax and the scores are left alone; otherwise softmax is applied (to log-probabilities too, rightly).
    """
    if scores.size and scores.min() >= -1e-6 and np.abs(scores.sum(axis=1) - 1).max() <= _SUM_TOLERANCE:
        kept: FloatArray = np.clip(scores, 0, None).astype(np.float32)
        return kept
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)
