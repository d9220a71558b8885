"""The part of Ray that batches use, in one process: actors, their results, and their deaths.

As in Ray, a call returns a reference at once, `wait` gives back what is finished first, and `get` raises what
became of a call. An actor whose class cannot be made, or that has died, fails all its calls. Work is done in
`wait`, so that the order in which actors finish can be chosen.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class OutOfMemoryError(RayError):
    """What a call of an actor raises that was ended because the machine's memory ran out."""


class Death(BaseException):
    """Raised in an actor: its process ends there."""


class Reference:
    """Stands for the result of a call."""

    def __init__(self, actor: "Actor", arguments: tuple[Any, ...]) -> None:
        self.actor, self.arguments = actor, arguments
        self.result: Any = None
        self.error: Exception | None = None

    def finish(self) -> None:
        actor = self.actor
        if actor.error is None:
            try:
                self.result = actor.instance.make(*self.arguments)
            except Death as death:
                actor.error = death.args[0]
        self.error = actor.error


class Actor:
    """A handle of an object in another process; only `make` is called of it."""

    def __init__(self, kind: type, arguments: tuple[Any, ...]) -> None:
        self.instance: Any = None
        self.error: Exception | None = None
        try:
            self.instance = kind(*arguments)
        except Exception as error:
            way = f"ray::{kind.__name__}.__init__()\n  File ...\n"
            self.error = RayActorError(
                f"The actor died in its creation task, {way}{type(error).__name__}: {error}"
            )
        self.make = SimpleNamespace(remote=lambda *given: Reference(self, given))


class FakeRay:
    """Stands for the module."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayActorError=RayActorError, OutOfMemoryError=OutOfMemoryError
    )

    def __init__(
        self, *, gpus: float = 0, choose: Callable[[Sequence[Reference]], Reference] = lambda refs: refs[0]
    ) -> None:
        """Begin without a cluster.

        Args:
            choose: Which of the calls under way finishes first.
        """
        self.gpus, self.choose = gpus, choose
        self.options: list[dict[str, Any]] = []
        self.actors: list[Actor] = []
        self.killed: list[Actor] = []
        self.begun = 0

    def is_initialized(self) -> bool:
        return self.begun > 0

    def init(self, **_: Any) -> None:
        self.begun += 1

    def cluster_resources(self) -> dict[str, float]:
        assert self.begun
        return {"CPU": 2.0} | ({"GPU": self.gpus} if self.gpus else {})

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.options.append(options)

        def wrap(kind: type) -> Any:
            def make(*arguments: Any) -> Actor:
                self.actors.append(Actor(kind, arguments))
                return self.actors[-1]

            return SimpleNamespace(remote=make)

        return wrap

    def wait(self, references: list[Reference]) -> tuple[list[Reference], list[Reference]]:
        assert len(set(references)) == len(references) > 0
        first = self.choose(references)
        first.finish()
        return [first], [reference for reference in references if reference is not first]

    def get(self, reference: Reference) -> Any:
        if reference.error is not None:
            raise reference.error
        return reference.result

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)
