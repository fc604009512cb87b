"""What a written value means for a key of a given type."""

from __future__ import annotations

import math
from typing import Any

from d3still.config.reader import COMMAND_LINE, Setting, parse_list
from d3still.errors import UserError

TRUE_TEXTS = ("true", "on", "yes", "1")
FALSE_TEXTS = ("false", "off", "no", "0")
QUOTES = "'\""
AUTO = "auto"
SWITCHES_WITH_AUTO = ("EXPERIMENT.CHECKPOINT_ACTIVATIONS",)  # switches that may also be left to the program

# Lists whose default is empty, and so cannot show the type of their elements.
ELEMENT_EXAMPLES: dict[str, Any] = {
    "EXPERIMENT.IMPORTS": "my_loss.py",
    "INPUT.SIZE_TRAIN": 256,
    "INPUT.SIZE_TEST": 256,
}


def coerce(key: str, setting: Setting, default: Any) -> Any:
    """``setting`` as a value of the type of ``default``.

    Understood besides the type itself: a whole number for a float, a float without fraction for a whole
    number, ``on/off/yes/no/true/false`` in any case and 1/0 for a switch, numbers for a text, a tuple, one
    element or either as text for a list, and quotes within quotes.

    Raises:
        UserError: for anything else, with the right spelling.
    """
    if setting.value is None:
        raise UserError(f"{setting.where}: {key} has no value; write {_example(key, setting, default)}")
    try:
        return _convert(key, setting.value, default)
    except ValueError:
        raise UserError(
            f"{setting.where}: {key} cannot be {setting.value!r}: it takes {_kind(key, default)}; "
            f"write for example {_example(key, setting, default)}"
        ) from None


def unquote(text: str) -> str:
    """``'0'``, ``"0"`` and ``('0')`` without the quotes that were meant for another reader."""
    inner = text[1:-1].strip() if text[:1] == "(" and text[-1:] == ")" else text
    if len(inner) >= 2 and inner[0] == inner[-1] and inner[0] in QUOTES:
        return inner[1:-1]
    return text


def _convert(key: str, value: Any, default: Any) -> Any:
    if key in SWITCHES_WITH_AUTO:
        return AUTO if unquote(str(value)).strip().lower() == AUTO else _to_bool(value)
    if isinstance(default, bool):
        return _to_bool(value)
    if isinstance(default, int):
        return _to_int(value)
    if isinstance(default, float):
        return _to_float(value)
    if isinstance(default, str):
        return _to_text(value)
    return _to_list(key, value, default)


def _to_bool(value: Any) -> bool:
    text = unquote(str(value)).strip().lower()
    if isinstance(value, bool | int | str) and text in TRUE_TEXTS + FALSE_TEXTS:
        return text in TRUE_TEXTS
    raise ValueError


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    number = float(unquote(value).strip()) if isinstance(value, str) else float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _to_int(value: Any) -> int:
    if isinstance(value, str):
        text = unquote(value).strip()
        if text.lstrip("+-").isdigit():
            return int(text)
    number = _to_float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return unquote(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return str(value)


def _to_list(key: str, value: Any, default: list[Any] | tuple[Any, ...]) -> list[Any]:
    if isinstance(value, str):
        value = parse_list(unquote(value))
    elif isinstance(value, int | float):
        value = [value]
    if not isinstance(value, list | tuple) or any(element is None for element in value):
        raise ValueError
    kinds = {type(element) for element in default}
    if len(kinds) > 1:  # each place has its own type
        if len(value) != len(default):
            raise ValueError
        return [_convert(key, element, like) for element, like in zip(value, default, strict=True)]
    like = default[0] if default else ELEMENT_EXAMPLES.get(key)
    return [_guess(element) if like is None else _convert(key, element, like) for element in value]


def _guess(element: Any) -> Any:
    """An element of a list whose default, being empty, does not say what its elements are."""
    for convert in (_to_int, _to_float):
        try:
            return convert(element)
        except ValueError:
            continue
    return element


def _kind(key: str, default: Any) -> str:
    if key in SWITCHES_WITH_AUTO:
        return "auto, True or False"
    if isinstance(default, bool):
        return "True or False"
    names = {int: "a whole number", float: "a number", str: "a text"}
    return names.get(type(default), "a list")


def _example(key: str, setting: Setting, default: Any) -> str:
    if isinstance(default, list | tuple) and not default:
        default = [ELEMENT_EXAMPLES.get(key, 1)]
    if setting.where == COMMAND_LINE:
        return f'{key} "{default}"' if isinstance(default, list | tuple) else f"{key} {default!r}"
    return f"{key.rsplit('.', 1)[-1]}: {default!r}"
