"""The program's side: answers what its tests ask of it, and knows nothing of what they expect."""

import builtins
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from values import Pipe, decode, encode

CHANGEABLE = (list, dict, set, bytearray)
SIZED = (*CHANGEABLE, tuple, frozenset, bytes)


class Answering:
    """Serves calls, attributes and operators of a program's objects.

    Args:
        reading: a file descriptor that requests come from.
        writing: one that answers go to.
    """

    def __init__(self, reading: int, writing: int):
        self.pipe = Pipe(reading, writing)
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}  # by id

    def give_up(self) -> None:
        """Say that there is no program."""
        self.pipe.send(["no program"])

    def serve(self, names: Mapping[str, Any]) -> None:
        """Say what there is, and answer until nobody asks any more."""
        self.pipe.send(["names", {name: self.named(value) for name, value in names.items()}])
        try:
            while True:
                self.pipe.send(self.answered(self.pipe.receive()))
        except (EOFError, OSError):
            return

    def answered(self, request: Any) -> Any:
        """The answer to one request: a value, or what was raised."""
        kind, *data = request
        values = [self.decoded(each) for each in data]
        before = [self.encoded(value) for value in values if type(value) in CHANGEABLE]
        try:
            result = self.encoded(getattr(self, f"do_{kind}")(*values))
        except BaseException as error:
            result = ["raised", self.encoded(type(error)), str(error)[:1000]]
        # what a program changes in place, it has changed in its copy
        after = [self.encoded(value) for value in values if type(value) in CHANGEABLE]
        return ["answer", result, after if after != before else None]

    def do_call(self, function: Any, named: dict[str, Any], *arguments: Any) -> Any:
        """function(*arguments, **named)."""
        return function(*arguments, **named)

    def do_method(self, target: Any, name: str, *arguments: Any) -> Any:
        """What an operator or a built-in function does with an object."""
        if not hasattr(type(target), name):
            raise TypeError(f"{type(target).__name__} has no {name}")
        return getattr(target, name)(*arguments)

    def do_get(self, target: Any, name: str) -> Any:
        """target.name."""
        return getattr(target, name)

    def do_set(self, target: Any, name: str, value: Any) -> None:
        """target.name = value."""
        setattr(target, name, value)

    def do_truth(self, target: Any) -> bool:
        """bool(target)."""
        return bool(target)

    def do_is(self, target: Any, kind: Any) -> bool:
        """isinstance(target, kind)."""
        return isinstance(target, kind)

    def do_plain(self, target: Any) -> Any:
        """What an object of a subclass of plain data holds; the object itself, if it is none."""
        kinds: tuple[Any, ...] = (int, float, str, list, tuple, dict, set, frozenset, bytes)
        for kind in kinds:
            if isinstance(target, kind):
                return kind(target)
        return target

    def named(self, value: Any) -> Any:
        """What a name stands for: a table of a million entries is not sent before it is asked for."""
        return self.reference(value) if isinstance(value, SIZED) else self.encoded(value)

    def encoded(self, value: Any) -> Any:
        """A value as JSON."""
        return encode(value, self.reference)

    def reference(self, value: Any) -> Any:
        """An object as a number; a module and an exception also by what they are."""
        if isinstance(value, ModuleType) and value.__name__ in sys.stdlib_module_names:
            return ["module", value.__name__]
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)  # and keeps it alive, so that its id stays its own
        if isinstance(value, type) and issubclass(value, BaseException):
            base = next(each for each in value.__mro__ if each.__module__ == "builtins")
            return ["exception", number, value.__name__, base.__name__]
        return ["object", number]

    def decoded(self, data: Any) -> Any:
        """The value of JSON."""
        return decode(data, self.referred)

    def referred(self, data: Any) -> Any:
        """An object of the program, or a function of its tests."""
        word, number = data[0], data[1]
        if word == "object":
            return self.objects[number]
        assert word == "function"

        def function(*arguments: Any) -> Any:
            self.pipe.send(["call back", number, [self.encoded(each) for each in arguments]])
            while True:
                message = self.pipe.receive()
                if message[0] != "returned":
                    self.pipe.send(self.answered(message))
                    continue
                if message[1] is not None:
                    raise getattr(builtins, message[1])
                return self.decoded(message[2])

        return function
