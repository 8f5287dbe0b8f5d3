"""A Keras configuration is judged before Keras sees it: only what the tables in `names` let in is built.

Keras's own safe mode has been got round by modules named in the configuration (CVE-2025-1550), by Keras functions in a
Lambda (CVE-2025-8747), by calls that switch it off (CVE-2025-9906) and in `.h5` files (CVE-2025-9905), and lookup
layers read files (CVE-2025-12058). So nothing here relies on it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from debride.errors import ModelError
from debride_adapters.keras.names import ACTIVATIONS, MODULES, MOVED, OPERATIONS, UNNAMED, VALUES

MAX_CONFIG = 64 << 20
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*")
_FUNCTIONS = frozenset(("serialize", "deserialize", "keras_export"))
"""Functions beside the layers, which Keras's loader of `.h5` files puts in the place of a string of the same name."""
_MEND = "build it from Keras's own layers and save it as .keras, or export it as ONNX where its code is"


def audit_config(text: bytes | str, path: Path) -> dict[str, Any]:
    """The model's configuration in the JSON `text`, fit to be built: compile settings dropped, Keras 2 names mended.

    Raises:
        ModelError: no JSON of a model, or it names anything but Keras's own parts for networks of tensors; the
            message names the layer.
    """
    if len(text) > MAX_CONFIG:
        raise ModelError(f"{path}: its configuration has {len(text):,} bytes, more than any model; save it again")
    try:
        config = json.loads(text)
        if not isinstance(config, dict) or "class_name" not in config:
            raise ModelError(f"{path}: its configuration describes no model; save it with model.save(...)")
        audited: dict[str, Any] = _audited(config, path, "the model")
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its configuration is damaged ({error}); copy or save the model again") from error
    return audited


def _audited(value: Any, path: Path, owner: str, plain: bool = False) -> Any:
    """`value` without what must not be built; `plain` where only values may stand, such as a layer's call arguments."""
    if isinstance(value, list):
        return [_audited(item, path, owner, plain) for item in value]
    if not isinstance(value, dict):
        return value
    owner = _name_of(value, owner)
    if "class_name" in value:
        value = _mended(value)
        _check_object(value, path, owner, plain)
    _check_strings(value, path, owner)
    return {
        key: _audited(item, path, owner, plain or key in ("inbound_nodes", "build_config"))
        for key, item in value.items()
        if key not in ("compile_config", "__passive_serialization__")
    }


def _name_of(value: dict[str, Any], owner: str) -> str:
    """How messages call what `value` describes: by the layer's name where it has one."""
    config = value.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    kind = "layer" if isinstance(name, str) and "class_name" in value else ""
    return f"{kind} '{str(name)[:60]}'" if kind else owner


def _mended(value: dict[str, Any]) -> dict[str, Any]:
    """`value` as Keras 3 takes it, where Keras 2 wrote something else of the same meaning."""
    value = dict(value)
    module = value.get("module")
    if isinstance(module, str):
        value["module"] = MOVED.get(module, module)
    config = value.get("config")
    # Keras 2 wrote `groups` for depthwise layers too; Keras 3 takes it for a mistake.
    if value["class_name"] == "DepthwiseConv2D" and isinstance(config, dict) and config.get("groups") == 1:
        value["config"] = {key: item for key, item in config.items() if key != "groups"}
    return value


def _check_object(value: dict[str, Any], path: Path, owner: str, plain: bool) -> None:
    name, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    if not isinstance(name, str) or not isinstance(module, str | None) or not isinstance(registered, str | None):
        raise ModelError(f"{path}: {owner} names a class by no text; {_MEND}")
    if name in VALUES and module is None and registered is None:
        return
    if name in ("Lambda", "__lambda__"):
        raise ModelError(f"{path}: {owner} is a Lambda and carries Python code, which debride never runs; {_MEND}")
    if name == "function":
        known = module in ("builtins", "keras.activations") and registered in (None, "function", value.get("config"))
        if plain or not known or not _is_activation(value.get("config")):
            raise ModelError(f"{path}: {owner} names the function {module}.{value.get('config')!s:.60}; {_MEND}")
        return
    if plain or not _is_known(module, name) or registered not in (None, name):
        what = name if module is None else f"{module}.{name}"
        custom = f", registered as '{registered[:60]}'," if registered not in (None, name) and registered else ""
        raise ModelError(f"{path}: {owner} is a {what[:100]}{custom} which debride does not build; {_MEND}")


def _is_activation(name: object) -> bool:
    return isinstance(name, str) and name in ACTIVATIONS


def _is_known(module: str | None, name: str) -> bool:
    if module is None:
        return name in UNNAMED
    if module in OPERATIONS:
        return _CLASS.fullmatch(name) is not None and name != "Operation"
    return name in MODULES.get(module, ())


def _check_strings(value: dict[str, Any], path: Path, owner: str) -> None:
    for key, item in value.items():
        if not isinstance(item, str) or key == "name":
            continue
        if (key.endswith("activation") and item not in ACTIVATIONS) or item in _FUNCTIONS:
            raise ModelError(f"{path}: {owner} names '{item[:60]}' as its {key[:60]}, which Keras has not; {_MEND}")
