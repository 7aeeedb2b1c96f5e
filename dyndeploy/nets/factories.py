"""Networks of a user's own: what a file or module outside the package makes, without an edit of the package."""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from dyndeploy.errors import DyndeployError, InputError, UsageError, unknown_name
from dyndeploy.nets.registry import create_model, model_info, model_names

_FILES: dict[Path, ModuleType] = {}
"""Files that were imported: a second time gives the same module, and so the same classes."""

_SCALARS = (bool, int, float)
_SEQUENCES = (tuple, list, collections.abc.Sequence, collections.abc.Iterable)


def build_network(
    name: str,
    options: Mapping[str, Any] | None = None,
    imported: str | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Build a registered network, or one that a file or module outside the package makes.

    Args:
        name: A registered model; with ``imported`` also a function or class in it that gives a network.
        options: Keywords of the model or of the function.
        imported: A ``.py`` file's path, or the name of a module that can be imported.
        folder: Where a relative path begins that does not exist in the working directory.

    Raises:
        InputError: The file or module is missing, or raises while it is imported.
        UsageError: No such name, an unknown keyword, or something that gives no ``torch.nn.Module``.
    """
    options = dict(options or {})
    if imported is None:
        return create_model(name, **options)
    factory = _factory(name, imported, folder)
    if factory is None:
        return create_model(name, **options)
    where = f"{name} of {imported}"
    _check_keywords(where, factory, options)
    try:
        network = factory(**options)
    except DyndeployError:
        raise
    except Exception as error:
        raise UsageError(f"{where} raised {_described(error)}.") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"{where} gives {type(network).__name__}: a network is a torch.nn.Module.")
    return network


def load_function(reference: str, *, folder: str | os.PathLike[str] | None = None) -> Callable[..., Any]:
    """Return the function that ``module:function`` or ``file.py:function`` names.

    Args:
        reference: The module or file, and the function.
        folder: See :func:`build_network`.

    Raises:
        UsageError: The text is not of this form, there is no such name, or it names no function.
        InputError: See :func:`build_network`.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise UsageError(f"'{reference}' names no function: give module:function or file.py:function.")
    module = import_module(source, folder)
    function = _member(module, name, source)
    if not callable(function):
        raise UsageError(f"{name} of {source} is {type(function).__name__}, and no function.")
    return function  # type: ignore[no-any-return]


def parse_options(
    name: str,
    texts: Sequence[str],
    imported: str | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Read ``key=value`` texts as keywords of a network.

    Values are read by the types that the family's options, or the parameters of a function, are declared with: whole
    and other numbers, ``true`` and ``false``, texts, ``none``, and sequences as ``4-4-2-1`` or ``4,4,2,1``. What is not
    declared is read as Python writes it, else as text.

    Args:
        name: See :func:`build_network`.
        texts: The options, each ``key=value``.
        imported: See :func:`build_network`.
        folder: See :func:`build_network`.

    Raises:
        UsageError: A text without ``=``, a key that the network does not know or that is given twice, or a value of
            another type.
        InputError: See :func:`build_network`.
    """
    factory = None if imported is None else _factory(name, imported, folder)
    declared = _registered_types(name) if factory is None else _declared_types(factory)
    variadic = factory is not None and any(p.kind is p.VAR_KEYWORD for p in _parameters(factory))
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"'-O {text}' is not valid: give key=value.")
        if key in options:
            raise UsageError(f"The option {key} is given twice: leave one out.")
        if key not in declared and not variadic:
            raise unknown_name(f"argument of {name}", key, declared)
        options[key] = _read(key, value.strip(), declared.get(key, Any))
    return options


def default_options(
    name: str, imported: str | None = None, *, folder: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Return the keywords of a network that have a default, with it; see :func:`build_network`."""
    factory = None if imported is None else _factory(name, imported, folder)
    if factory is None:
        return dict(model_info(name).defaults)
    return {p.name: p.default for p in _parameters(factory) if p.default is not p.empty}


def import_module(source: str, folder: str | os.PathLike[str] | None = None) -> ModuleType:
    """Import a ``.py`` file by its path, or a module by its name.

    Neither ``sys.path`` nor the file's folder is changed; within it the file may import its neighbours. A file that was
    imported before is not run again.

    Raises:
        InputError: It is missing, or raises while it is imported.
    """
    base = Path.cwd() if folder is None else Path(folder)
    path = file_of(source, folder)
    if path is None:
        with _import_path(base):
            found: ModuleType = _run(source, source, lambda: importlib.import_module(source))
        return found
    if not path.is_file():
        raise InputError(f"There is no file {source}. Give the path of a .py file, or the name of a module.")
    if path not in _FILES:
        name = f"dyndeploy_imported_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{_digest(path)}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module, execute = importlib.util.module_from_spec(spec), spec.loader.exec_module
        sys.modules[name] = module
        try:
            with _import_path(path.parent):
                _run(source, str(path), lambda: execute(module))
        except BaseException:
            del sys.modules[name]
            raise
        _FILES[path] = module
    return _FILES[path]


def file_of(source: str, folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the absolute path of the file that an import names, or None where it names a module."""
    if not source.endswith(".py") and "/" not in source and os.sep not in source:
        return None
    path = Path(source).expanduser()
    beside = path if folder is None else Path(folder, path)
    return (beside if beside.exists() else path).resolve()


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]


@contextlib.contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    path, bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode


def _run(source: str, file: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{source}.".startswith(f"{error.name}."):
            raise InputError(
                f"There is no module {source}. Give the path of a .py file, or the name of a module that Python finds."
            ) from error
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{source}{line} raised {_described(error)} while it was imported.") from error


def _described(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _factory(name: str, imported: str, folder: str | os.PathLike[str] | None) -> Callable[..., Any] | None:
    """Return the function or class of this name; None where it is a registered model."""
    module = import_module(imported, folder)
    own = vars(module).get(name)
    if name in model_names() and (own is None or own is model_info(name).entry_point):
        return None
    factory = _member(module, name, imported)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise UsageError(
            f"{name} of {imported} is {type(factory).__name__}: give the name of a function or class that makes the "
            "network."
        )
    return factory  # type: ignore[no-any-return]


def _member(module: ModuleType, name: str, source: str) -> Any:
    if name in vars(module):
        return vars(module)[name]
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    own += [model for model in model_names() if model_info(model).entry_point.__module__ == module.__name__]
    raise unknown_name(f"name in {source}", name, set(own))


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]


def _check_keywords(where: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = _parameters(factory)
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for option in options:
            if option not in known:
                raise unknown_name(f"argument of {where}", option, known)
    missing = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in options]
    if missing:
        raise UsageError(f"{where} needs {', '.join(missing)}: give them as options (-O {missing[0]}=...).")


def _registered_types(name: str) -> dict[str, Any]:
    info = model_info(name)
    hints = get_type_hints(info.config_type)
    return {key: hints[key] for key in info.defaults}


def _declared_types(factory: Callable[..., Any]) -> dict[str, Any]:
    function = factory.__init__ if inspect.isclass(factory) else factory
    try:
        hints = get_type_hints(function)
    except Exception:  # Of a user's file: whatever its annotations refer to may not exist.
        hints = {}
    types = {}
    for p in _parameters(factory):
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            assumed = Any if p.default in (p.empty, None) else type(p.default)
            types[p.name] = hints.get(p.name, assumed)
    return types


def _read(key: str, text: str, declared: Any) -> Any:
    try:
        return _value(text, declared)
    except ValueError as error:
        raise UsageError(f"-O {key}={text} is not valid: give {error}.") from None


def _value(text: str, declared: Any) -> Any:
    """Read a value of a declared type; raises ``ValueError`` with words for what is valid."""
    arms = list(get_args(declared)) if get_origin(declared) in (Union, UnionType) else [declared]
    if NoneType in arms and text.lower() in ("none", "null"):
        return None
    arms = [arm for arm in arms if arm is not NoneType]
    sequences = [arm for arm in arms if (get_origin(arm) or arm) in _SEQUENCES]
    # A text that can be one value or several is several where it is divided.
    rest = [arm for arm in arms if arm not in (*_SCALARS, str) and arm not in sequences]
    order = [*(arm for arm in _SCALARS if arm in arms), *sequences, *rest, *(arm for arm in arms if arm is str)]
    wanted = []
    for arm in order:
        if arm in sequences and str in arms and not re.search(r"[,\-]", text):
            continue
        try:
            return _sequence(text, arm) if arm in sequences else _single(text, arm)
        except ValueError as error:
            wanted.append(str(error))
    raise ValueError(" or ".join(dict.fromkeys(wanted)))


def _single(text: str, arm: Any) -> Any:
    if arm is str:
        return text
    if arm is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("true or false")
        return text.lower() == "true"
    if arm in (int, float):
        try:
            return arm(text)
        except ValueError:
            raise ValueError("a whole number" if arm is int else "a number") from None
    if get_origin(arm) is Literal:
        for choice in get_args(arm):
            if str(choice) == text:
                return choice
        raise ValueError(f"one of {', '.join(map(str, get_args(arm)))}")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _sequence(text: str, arm: Any) -> tuple[Any, ...]:
    elements = [item for item in get_args(arm) if item is not Ellipsis] or [Any]
    text = text.strip("()[] ")
    # A dash may belong to a number: it divides only where there is no comma, and never a power of ten.
    divided = text.split(",") if "," in text or elements[0] is float else re.split(r"(?<=[^\-,])-", text)
    parts = [part.strip() for part in divided if part.strip()]
    fixed = get_origin(arm) is tuple and Ellipsis not in get_args(arm) and bool(get_args(arm))
    if fixed and len(parts) != len(elements):
        raise ValueError(f"{len(elements)} values joined by '-' or ','")
    try:
        return tuple(_value(part, elements[i] if fixed else elements[0]) for i, part in enumerate(parts))
    except ValueError as error:
        plural = {"a whole number": "whole numbers", "a number": "numbers"}.get(str(error), f"values, each {error},")
        raise ValueError(f"{plural} joined by '-' or ',', e.g. 4-4-2-1") from None
