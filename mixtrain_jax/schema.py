"""Tables of settings: frozen dataclasses whose fields carry their types and ranges, some of them chosen by name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import os
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import docstring_parser

from mixtrain_jax.errors import ConfigError, first_line


class Range(NamedTuple):
    """Lowest and highest value of a number, both allowed."""

    low: float
    high: float = sys.float_info.max


class Choice(NamedTuple):
    """A table that is chosen by name.

    Attributes:
      members: the tables by name, with their defaults.
      wrap: what becomes of a class that is named by its import path, `package.module:Class`, once it is called.
    """

    members: Mapping[str, Any]
    wrap: Callable[[Any], Any] = lambda made: made

    def named(self, where: str, name: Any) -> Any:
        """The member of a name, or of an import path, whose module is imported: this runs its code.

        Raises:
          ConfigError: where there is none.
        """
        if isinstance(name, str) and ":" in name:
            return self.wrap(_imported(where, name))
        if not isinstance(name, str) or name not in self.members:
            raise ConfigError(
                f"{where}.name must be one of {', '.join(self.members)}, or package.module:Class; "
                f"got {name!r}{nearest(str(name), list(self.members)) or '.'}"
            )
        return self.members[name]

    def name_of(self, table: Any) -> str:
        """The name of the member from whose defaults the table differs least; an import path where it is of none."""
        if isinstance(table, Foreign):
            return table.name
        alike = {name: member for name, member in self.members.items() if _kinds(member) == _kinds(table)}
        if alike:
            return min(alike, key=lambda name: len(differences(table, alike[name])))
        kind = _kinds(table)[-1]
        return f"{kind.__module__}:{kind.__qualname__}"


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A table of an import path that is not imported, as a file is read that somebody else may have written.

    Attributes:
      name: the import path.
      values: its values by name, unchecked.
    """

    name: str
    values: Mapping[str, Any]


def flatten(table: Any) -> dict[str, Any]:
    """The values of a table by name; those of a table inside it stand beside its own."""
    if isinstance(table, Foreign):
        return dict(table.values)
    found = {}
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        found |= flatten(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found


def hints(table: Any) -> dict[str, Any]:
    """The annotations of the values of a table, as `flatten` names them."""
    own, found = _hints(type(table)), {}
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        found |= hints(value) if dataclasses.is_dataclass(value) else {field.name: own[field.name]}
    return found


def documentation(table: Any) -> dict[str, str]:
    """What the class of a table, and those of tables inside it, say of its fields under "Attributes"."""
    texts = [text for kind in type(table).__mro__[::-1] for text in docstring_parser.parse(kind.__doc__ or "").params]
    found = {text.arg_name: " ".join((text.description or "").split()) for text in texts}
    for field in dataclasses.fields(table):
        if dataclasses.is_dataclass(value := getattr(table, field.name)):
            found = documentation(value) | found
    return found


def differences(table: Any, other: Any) -> dict[str, Any]:
    """The values of a table that another one of its kind does not have."""
    known = flatten(other)
    return {name: value for name, value in flatten(table).items() if value != known[name]}


def changed(table: Any, values: Mapping[str, Any], where: str) -> Any:
    """A table with other values.

    Raises:
      ConfigError: where it has no such field; `where` names the table.
    """
    known = flatten(table)
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown field '{where}.{name}'{nearest(name, [*known, 'name']) or '.'}")
    return _changed(table, {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()})


def _changed(table: Any, values: Mapping[str, Any]) -> Any:
    mine = {}
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if dataclasses.is_dataclass(value):
            mine[field.name] = _changed(value, values)
        elif field.name in values:
            mine[field.name] = values[field.name]
    return dataclasses.replace(table, **mine)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def checked(table: Any, where: str) -> Any:
    """A table whose values have the types and are in the ranges of its fields; whole numbers become floats there.

    Raises:
      ConfigError: where one is not; `where` names the table.
    """
    if isinstance(table, Foreign):
        return table
    own, values = _hints(type(table)), {}
    for field in dataclasses.fields(table):
        value, hint = getattr(table, field.name), own[field.name]
        if dataclasses.is_dataclass(value):
            values[field.name] = checked(value, where)
        else:
            check(f"{where}.{field.name}", hint, value)
            kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
            values[field.name] = float(value) if kind is float else value  # the digest tells 10 from 10.0
    return dataclasses.replace(table, **values)


def nearest(name: str, known: list[str]) -> str:
    """A question about what was meant, for the end of a message; empty where nothing is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _kinds(table: Any) -> list[type]:
    """The classes of a table and of those inside it."""
    inner = [getattr(table, field.name) for field in dataclasses.fields(table)]
    return [type(table), *(kind for value in inner if dataclasses.is_dataclass(value) for kind in _kinds(value))]


def _imported(where: str, path: str) -> Any:
    """The default instance of a frozen dataclass, imported from where Python looks or from the current folder."""
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module's own code raises
        raise ConfigError(f"{where}.name: {path} cannot be imported: {first_line(error)}.") from error
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"{where}.name: {path} must be a frozen dataclass, whose fields become the table's.")
    try:
        return kind()
    except TypeError as error:
        raise ConfigError(f"{where}.name: every field of {path} needs a default ({first_line(error)}).") from error


def check(name: str, hint: Any, value: Any) -> None:
    """Hold a value to its annotated type and range.

    Raises:
      ConfigError: where it has another type or is outside.
    """
    if get_origin(hint) is Annotated:
        kind, bounds = get_args(hint)
        check(name, kind, value)
        if not bounds.low <= value <= bounds.high:
            unlimited = bounds.high == sys.float_info.max
            limits = f"at least {bounds.low} and finite" if unlimited else f"{bounds.low} to {bounds.high}"
            raise ConfigError(f"{name} must be a number, {limits}; got {reprlib.repr(value)}.")
    elif get_origin(hint) is Literal:
        if value not in get_args(hint):
            known = [str(x) for x in get_args(hint)]
            raise ConfigError(
                f"{name} must be one of {', '.join(known)}, got '{value}'{nearest(str(value), known) or '.'}"
            )
    elif get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{name} must be a list, got {value!r}.")
        for item in value:
            check(name, get_args(hint)[0], item)
    elif hint in _ACCEPTED and (  # a table of somebody else's may have other types
        not isinstance(value, _ACCEPTED[hint]) or (isinstance(value, bool) and hint is not bool)
    ):
        raise ConfigError(f"{name} must be of type {hint.__name__}, got {value!r}.")


_ACCEPTED: dict[Any, tuple[type, ...]] = {float: (float, int), int: (int,), bool: (bool,), str: (str,)}
