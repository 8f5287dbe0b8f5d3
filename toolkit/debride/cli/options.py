"""The options that several commands share, in groups, and the strict reading of their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from typer import Argument, Option

from debride.errors import UsageError

if TYPE_CHECKING:
    from debride.sessions import Runtime
    from debride.specfile import SpecFlags
    from debride.types import ConvertOptions

CONVENTION = "Input convention (default: side-car, metadata, else measured)"
SOURCE = "Models of other frameworks"
RESOURCES = "Resources"
OUTPUT = "Output"
_LARGEST = 1e6
_LONGEST = 1 << 14

Model = Annotated[
    Path,
    Argument(
        metavar="MODEL",
        help="The model: an .onnx file, or what `debride convert --list` names.",
        show_default=False,
    ),
]
Images = Annotated[
    Path,
    Option(metavar="PATH", help="Clean images: a folder of class folders, a folder, or an .npz with x (and y)."),
]
Resize = Annotated[bool, Option("--resize", help="Scale images that are not of the model's size.")]
Align = Annotated[
    int,
    Option(
        min=1,
        max=64,
        metavar="N",
        help="Slimming leaves convolutions a multiple of N channels: 4 suits CPUs.",
        rich_help_panel="Output",
    ),
]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of a failure.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]


def _said(metavar: str | None, text: str) -> Any:
    return Option(metavar=metavar, help=text, rich_help_panel=CONVENTION, case_sensitive=False)


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What the command line says of how pixels become the model's input."""

    layout: Annotated[Literal["NCHW", "NHWC"] | None, _said("NCHW|NHWC", "Order of the axes.")] = None
    channels: Annotated[Literal["RGB", "BGR", "L"] | None, _said("RGB|BGR|L", "Order of the colours.")] = None
    range: Annotated[str | None, _said("LOW,HIGH", "What black and white become, as 0,1 or 0,255.")] = None
    mean: Annotated[str | None, _said("A,B,C", "Subtracted then, in units of the range; 1 or 3.")] = None
    std: Annotated[str | None, _said("A,B,C", "Divided by at last, in the same units; 1 or 3.")] = None
    short_side: Annotated[
        int | None,
        Option(
            min=1,
            max=_LONGEST,
            metavar="N",
            help="Scale images so that the short side is N, then cut the centre out.",
            rich_help_panel=CONVENTION,
        ),
    ] = None
    input_name: Annotated[str | None, _said("NAME", "The input that takes the images.")] = None
    output_name: Annotated[str | None, _said("NAME", "The output that gives the class scores.")] = None

    def flags(self) -> SpecFlags:
        """The same as `SpecFlags`. Raises `UsageError` naming the flag that is malformed."""
        from debride.specfile import SpecFlags

        return SpecFlags(
            name=self.input_name,
            layout=self.layout,
            channels=self.channels,
            range=None if self.range is None else _bounds(self.range),
            mean=None if self.mean is None else _numbers("--mean", self.mean, (1, 3)),
            std=None if self.std is None else _divisors(self.std),
            output=self.output_name,
            short_side=self.short_side,
        )


@dataclass(frozen=True, kw_only=True)
class Building:
    """What a file of weights does not say of the network they belong to."""

    architecture: Annotated[
        str | None,
        Option(
            metavar="FILE.py:FACTORY",
            help="Your code that builds the network of a weights file; or module:factory.",
            rich_help_panel=SOURCE,
        ),
    ] = None
    input_shape: Annotated[
        str | None,
        Option(
            metavar="A,B,C",
            help="Shape of one image as the network takes it, where neither file nor --images tells.",
            rich_help_panel=SOURCE,
        ),
    ] = None

    def options(self, opset: int = 18) -> ConvertOptions:
        """The same as `ConvertOptions`, aiming for `opset`. Raises `UsageError` naming the flag that is malformed."""
        from debride.types import ConvertOptions

        shape = None if self.input_shape is None else _sides(self.input_shape)
        return ConvertOptions(architecture=self.architecture, input_shape=shape, opset=opset)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a run may use."""

    threads: Annotated[
        int, Option(min=0, metavar="T", help="CPU threads; 0: all cores.", rich_help_panel=RESOURCES)
    ] = 0
    device: Annotated[
        str,
        Option(
            metavar="auto|cpu|cuda[:N]",
            help="Where torch and onnxruntime compute; auto: on a GPU where there is one.",
            rich_help_panel=RESOURCES,
        ),
    ] = "auto"
    provider: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="onnxruntime provider in place of the device's; repeat to name several.",
            rich_help_panel=RESOURCES,
        ),
    ] = None

    def runtime(self) -> Runtime:
        """The same as onnxruntime's `Runtime`. Raises `RuntimeMissingError` where the device named does not run."""
        from debride.sessions import check_runtime, runtime_on

        runtime = runtime_on(self.device, threads=self.threads, providers=tuple(self.provider or ()))
        check_runtime(runtime)
        return runtime


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How torch computes."""

    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(
            help="What torch's products are computed in; auto: the fastest, by measuring.", rich_help_panel=RESOURCES
        ),
    ] = "auto"


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with every parameter that is a dataclass of options spread into one option per field."""
    flat: list[Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in signature(command, eval_str=True).parameters.items():
        if is_dataclass(parameter.annotation):
            hints = get_type_hints(parameter.annotation, include_extras=True)
            groups[name] = parameter.annotation
            flat += [
                Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
                for f in fields(parameter.annotation)
            ]
        else:
            flat.append(parameter)

    @wraps(command)
    def spread(**values: Any) -> None:
        made = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**values, **made)

    outward: Any = spread
    outward.__signature__ = signature(command).replace(parameters=flat)
    outward.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return spread


def _numbers(flag: str, text: str, lengths: tuple[int, ...]) -> tuple[float, ...]:
    """Finite numbers separated by commas, as many as one of `lengths` says. Raises `UsageError`."""
    example = "0,255" if lengths == (2,) else "0.5 or " + flag + " 0.49,0.48,0.45"
    mend = f"give {' or '.join(map(str, lengths))} numbers separated by commas, as in {flag} {example}"
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {text!r} holds what is no number; {mend}") from None
    if len(found) not in lengths:
        raise UsageError(f"{flag} {text!r} has {len(found)} number{'s' * (len(found) != 1)}; {mend}")
    if not all(isfinite(value) and abs(value) <= _LARGEST for value in found):
        raise UsageError(f"{flag} {text!r} is not finite or above a million; {mend}")
    return found


def _sides(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and 0 < int(part) <= _LONGEST for part in parts):
        raise UsageError(f"--input-shape {text!r} is no shape; give three whole numbers, as in --input-shape 3,32,32")
    return tuple(int(part) for part in parts)


def _bounds(text: str) -> tuple[float, float]:
    low, high = _numbers("--range", text, (2,))
    if not low < high:
        raise UsageError(f"--range {text!r} is empty; write the lower end first, as in --range 0,255")
    return (low, high)


def _divisors(text: str) -> tuple[float, ...]:
    found = _numbers("--std", text, (1, 3))
    if min(found) <= 0:
        raise UsageError(f"--std {text!r} is not above 0; values are divided by it, as in --std 0.5")
    return found
