"""Networks of one's own: ``FILE.py:FUNCTION``, and a program of torch.export: ``FILE.pt2``."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ghn_fast.capturing.input_types import ExampleInputs
from ghn_fast.models.model import NamedModel
from ghn_fast.models.nearest import nearest

EXPORTED = ".pt2"
_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
_SIZE = 224


def names_function(name: str) -> bool:
    """Whether a name has the form ``FILE.py:FUNCTION``, or nearly so."""
    return _FUNCTION.fullmatch(name) is not None or name.endswith(".py") or ".py:" in name


def resolve_function(name: str, num_classes: int | None, image_size: int | None) -> NamedModel:
    """The network that a function or class of a Python file gives.

    The file is run, as ``python FILE.py`` would, but not as ``__main__``. ``num_classes`` and
    ``image_size`` are handed to the function if it has parameters of these names. It returns the
    network, or a tuple of the network and example inputs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such function in it, or it needs other arguments.
        TypeError: If it gives no network.
    """
    function = load_function(name)
    if isinstance(function, nn.Module):
        raise ValueError(
            f"model: got {name!r}, which is a network; needs a function or class that makes one, "
            "for example by a line `def build(): return net`"
        )
    options = _options(name, function, num_classes, image_size)
    first = function(**options)
    network, inputs = first if isinstance(first, tuple) and len(first) == 2 else (first, None)
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"model: {name} gave {type(network).__name__}, needs a torch.nn.Module, or a tuple of "
            "one and example inputs"
        )
    return _named(name, network, inputs, function, options, image_size, num_classes)


def load_function(name: str) -> Callable[..., Any]:
    """The function or class ``FILE.py:FUNCTION``; the file is run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name has another form, or there is no such function in the file.
    """
    match = _FUNCTION.fullmatch(name)
    if match is None:
        raise ValueError(f"model: got {name!r}, needs FILE.py:FUNCTION, for example nets.py:small")
    path = Path(match["file"]).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"model: got {name!r}, but there is no such file: {path}")
    module = _run(path)
    function: Any = getattr(module, match["function"], None)
    if not callable(function):
        there = [word for word, value in vars(module).items() if callable(value)]
        close = ", ".join(nearest(match["function"], there)) or ", ".join(sorted(there)[:5])
        raise ValueError(
            f"model: got {name!r}, but {path} has no function {match['function']}"
            + (f"; it has {close}" if close else "")
        )
    return function


def _named(
    name: str,
    network: nn.Module,
    inputs: ExampleInputs | None,
    function: Callable[..., Any],
    options: dict[str, Any],
    image_size: int | None,
    num_classes: int | None,
) -> NamedModel:
    ready = [network]

    def make() -> nn.Module:
        """The first network is the one that is there already."""
        if ready:
            return ready.pop()
        made = function(**options)
        return made[0] if isinstance(made, tuple) else made

    shape = None
    if inputs is None:
        own = getattr(network, "input_shape", None)
        size = image_size or _SIZE
        shape = own if own is not None and image_size is None else (3, size, size)
    return NamedModel(
        name,
        make,
        input_shape=shape,
        example_inputs=inputs,
        image_size=image_size,
        num_classes=num_classes,
        built_for_size=True,
    )


def resolve_exported(name: str) -> NamedModel:
    """The network of a file that ``torch.export.save`` has written, with its own inputs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none that torch can read.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"model: got {name!r}, but there is no such file")
    try:
        program = torch.export.load(path)
    except Exception as error:  # whatever reading foreign bytes may raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"model: {name} is no program of torch.export that this torch can read: {reason}"
        ) from error
    return from_program(program, name)


def from_program(program: torch.export.ExportedProgram, name: str = "program") -> NamedModel:
    """The network of a program, with the inputs that it was exported with.

    Raises:
        ValueError: If the program does not have them.
    """
    if program.example_inputs is None:
        raise ValueError(f"model: {name} was saved without example inputs; export it again")
    positional, named = program.example_inputs
    if positional and named:
        raise ValueError(
            f"model: {name} was exported with positional inputs and inputs by name; needs either"
        )
    # Its guards compare sizes with those of the export, which the capture does not keep.
    return NamedModel(
        name,
        lambda: program.module(check_guards=False),
        example_inputs=named or tuple(positional),
        built_for_size=True,
    )


def _run(path: Path) -> ModuleType:
    """Run a file as a module of its own; its folder is searched for what it imports."""
    spec = importlib.util.spec_from_file_location(f"ghn_fast_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"model: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    # Classes of the file can be pickled, and dataclasses find their module.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    finally:
        sys.path.remove(folder)
    return module


def _options(
    name: str, function: Callable[..., Any], num_classes: int | None, image_size: int | None
) -> dict[str, Any]:
    """What the function is called with."""
    parameters = inspect.signature(function).parameters
    offered = {"num_classes": num_classes, "image_size": image_size}
    options = {
        word: value for word, value in offered.items() if word in parameters and (value is not None)
    }
    missing = [
        word
        for word, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and word not in options
    ]
    if missing:
        raise ValueError(
            f"model: {name} needs arguments {', '.join(missing)}; only num_classes and image_size "
            "can be handed over, so give the others defaults"
        )
    return options
