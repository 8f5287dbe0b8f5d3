"""The user's own network: "module:factory" or "file.py:factory", trusted code that the user names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from debride.errors import UsageError
from debride_adapters.common import one_line

if TYPE_CHECKING:
    from torch import nn


def build(architecture: str) -> nn.Module:
    """The network that `factory()` returns, for `architecture` "module:factory" or "file.py:factory".

    Raises:
        UsageError: the text has another form, the module, file or factory is not there, or gives no nn.Module.
    """
    where, colon, attribute = architecture.rpartition(":")
    if not colon or not where or not attribute:
        raise UsageError(f"--architecture {architecture}: write module:factory or file.py:factory")
    file = Path(where) if where.endswith(".py") else None
    # Its folder is trusted as the code is, and no other: a file that lies where the user stands may be a stranger's.
    with _importing_from(Path.cwd() if file is None else file.parent.resolve()):
        return _made(architecture, _module(architecture, where, file), where, attribute)


def _made(architecture: str, module: ModuleType, where: str, attribute: str) -> nn.Module:
    from torch import nn

    factory = getattr(module, attribute, None)
    if factory is None:
        raise UsageError(f"--architecture {architecture}: {where} has no {attribute}; name a function of it")
    if not callable(factory):
        raise UsageError(f"--architecture {architecture}: {attribute} cannot be called; name a function or class")
    try:
        network = factory()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--architecture {architecture}: {attribute}() raised {type(error).__name__} ({one_line(error)}); "
            "it must work without arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"--architecture {architecture}: {attribute}() gives a {type(network).__name__}; let it return an nn.Module"
        )
    return network


def _module(architecture: str, where: str, file: Path | None) -> ModuleType:
    try:
        return importlib.import_module(where) if file is None else _from_file(architecture, file)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--architecture {architecture}: {where} cannot be imported "
            f"({type(error).__name__}: {one_line(error)}); mend or install it"
        ) from error


def _from_file(architecture: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise UsageError(f"--architecture {architecture}: there is no file {file}; give its path")
    name = f"debride_architecture_{file.stem}"  # a file may be called as a package is, resnet.py or torch.py
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--architecture {architecture}: {file} is no Python file; give one")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """The user's folder comes last: a file in it that is called as an installed package is does not replace that."""
    if str(folder) in sys.path:
        yield
        return
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
