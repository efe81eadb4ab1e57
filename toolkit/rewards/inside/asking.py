"""The tests' side: a stand-in for every object of the program, which is in another process.

The program never sees what a test expects. What it returns is plain data when a test compares it,
or an object of its own, which is equal to no plain value: an `__eq__` that says yes to everything
convinces nobody.
"""

import builtins
import importlib
import operator
import sys
from collections.abc import Callable
from typing import Any

from values import Pipe, Unsupported, decode, encode

FORWARDED = (
    "__len__", "__iter__", "__next__", "__getitem__", "__setitem__", "__delitem__", "__enter__",
    "__exit__", "__str__", "__repr__", "__float__", "__int__", "__index__", "__round__", "__hash__",
)  # fmt: skip
COMPARED = ("lt", "le", "gt", "ge")
COMBINED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")


class Gone(BaseException):
    """The program has ended; no test can catch it by mistake."""


class Asking:
    """Asks a program that is elsewhere.

    Args:
        reading: a file descriptor that answers come from.
        writing: one that requests go to.

    Attributes:
        is_gone: whether the program has ended, or says what makes no sense.
    """

    def __init__(self, reading: int, writing: int):
        self.pipe = Pipe(reading, writing)
        self.functions: list[Callable[..., Any]] = []
        self.exceptions: dict[int, type[BaseException]] = {}
        self.is_gone = False

    def names(self) -> dict[str, Any] | None:
        """What the program defines, by name; None if it could not be run.

        Names of Python's own functions are left out: a program's `abs` is not what a test means.
        """
        message = self._received()
        if message[0] != "names":
            return None
        return {
            name: self.decoded(data)
            for name, data in message[1].items()
            if not name.startswith("__") and not hasattr(builtins, name)
        }

    def ask(self, kind: str, *values: Any) -> Any:
        """What the program answers; raises what the program raised."""
        changeable = [value for value in values if type(value) in (list, dict, set, bytearray)]
        message = self._exchanged([kind, *(self.encoded(value) for value in values)])
        try:
            _, result, after = message
            for value, data in zip(changeable, after or (), strict=after is not None):
                self._change(value, self.decoded(data))
            if not (isinstance(result, list) and result[0] == "raised"):
                return self.decoded(result)
            error: Any = self.decoded(result[1])
            words = str(result[2])
        except (EOFError, ValueError, TypeError, IndexError) as nonsense:
            self.is_gone = True
            raise Gone from nonsense
        try:
            raised = error(words)
        except TypeError:  # UnicodeDecodeError wants more than words
            raised = error.__new__(error)
        raise raised

    def _exchanged(self, request: Any) -> Any:
        """The answer to a request, after the functions that the program calls back for it."""
        self._send(request)
        while True:
            message = self._received()
            if not isinstance(message, list) or message[:1] == ["answer"]:
                return message
            if message[:1] != ["call back"] or len(message) != 3:
                self.is_gone = True
                raise Gone
            try:
                function = self.functions[message[1]]
                result = function(*[self.decoded(each) for each in message[2]])
                self._send(["returned", None, self.encoded(result)])
            except Exception as error:
                name = type(error).__name__
                self._send(["returned", name if hasattr(builtins, name) else "Exception", None])

    def _change(self, value: Any, after: Any) -> None:
        """Give a value that the program has changed in place its new content."""
        if type(after) is not type(value):
            raise ValueError
        value.clear()
        (value.extend if isinstance(value, list | bytearray) else value.update)(after)

    def _send(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except OSError as error:
            self.is_gone = True
            raise Gone from error

    def _received(self) -> Any:
        try:
            return self.pipe.receive()
        except (EOFError, OSError) as error:
            self.is_gone = True
            raise Gone from error

    def encoded(self, value: Any) -> Any:
        """A value as JSON."""
        return encode(value, self._reference)

    def _reference(self, value: Any) -> Any:
        if isinstance(value, StandIn):
            return ["object", object.__getattribute__(value, "_number")]
        if isinstance(value, type) and value in self.exceptions.values():
            return ["object", next(n for n, kind in self.exceptions.items() if kind is value)]
        if callable(value):
            self.functions.append(value)
            return ["function", len(self.functions) - 1]
        raise Unsupported

    def decoded(self, data: Any) -> Any:
        """The value of JSON."""
        return decode(data, self._referred)

    def _referred(self, data: Any) -> Any:
        if data[0] == "object":
            return StandIn(self, data[1])
        if data[0] == "module" and data[1] in sys.stdlib_module_names:
            return importlib.import_module(data[1])
        if data[0] == "exception":
            base = getattr(builtins, data[3])
            if not issubclass(base, BaseException):
                raise ValueError(data)
            return self.exceptions.setdefault(data[1], type(str(data[2]), (base,), {}))
        raise ValueError(data)


class StandIn:
    """Stands for an object of the program: a function, a class, an instance, an iterator."""

    _asking: Asking
    _number: int

    def __init__(self, asking: Asking, number: int):
        object.__setattr__(self, "_asking", asking)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the program's object answers to a call."""
        return self._asking.ask("call", self, named, *arguments)

    def __getattr__(self, name: str) -> Any:
        return self._asking.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._asking.ask("set", self, name, value)

    def __bool__(self) -> bool:
        return bool(self._asking.ask("truth", self))

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, StandIn) and bool(self._asking.ask("is", instance, self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StandIn):
            return self._asking.ask("method", self, "__eq__", other) is True
        held = _held(self)
        return not isinstance(held, StandIn) and held == other

    def __ne__(self, other: object) -> bool:
        return not self == other


def _held(value: Any) -> Any:
    """The plain data that an object holds; the object, if it holds none."""
    return value._asking.ask("plain", value) if isinstance(value, StandIn) else value


def _forward(name: str) -> Callable[..., Any]:
    def method(self: StandIn, *arguments: Any) -> Any:
        return self._asking.ask("method", self, name, *arguments)

    return method


def _compare(name: str) -> Callable[..., Any]:
    def method(self: StandIn, other: Any) -> Any:
        if isinstance(other, StandIn):
            return self._asking.ask("method", self, f"__{name}__", other)
        held = _held(self)
        return NotImplemented if isinstance(held, StandIn) else getattr(operator, name)(held, other)

    return method


def _combine(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An operator: of two objects, the program's own; with a plain value, of what the object holds.

    A program's own `-` might answer 0 to whatever a test subtracts from it.
    """
    function = getattr(operator, f"__{name}__")

    def method(self: StandIn, other: Any) -> Any:
        if isinstance(other, StandIn):
            return self._asking.ask("method", self, f"__{name}__", other)
        held = _held(self)
        return NotImplemented if isinstance(held, StandIn) else function(held, other)

    def reflected(self: StandIn, other: Any) -> Any:
        held = _held(self)
        return NotImplemented if isinstance(held, StandIn) else function(other, held)

    return method, reflected


for each in FORWARDED:
    setattr(StandIn, each, _forward(each))
for each in COMPARED:
    setattr(StandIn, f"__{each}__", _compare(each))
for each in COMBINED:
    direct, turned = _combine(each)
    setattr(StandIn, f"__{each}__", direct)
    setattr(StandIn, f"__r{each}__", turned)
