"""Clients that are elsewhere: the method runs on both sides, of which one asks and the other answers.

A client knows nothing between two questions but its samples. With a question come the results of all exchanges so far;
the client runs the method's `learn`, whose calls get these results, and computes only what is asked for. As all draws
have names, it is then in the state of every other party, and may be killed, come back, or come late.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lamella.data.loading import Examples
from lamella.data.samples import Transform
from lamella.federated.federation import Federation
from lamella.federated.fit import FederatedFit
from lamella.federated.messages import Message

__all__ = ["AnsweringFit", "AskingFit", "Party", "Question"]


class Question(NamedTuple):
    """What a client is asked.

    Attributes:
        task: the number of the task, from 0.
        rows: whether sums over features are asked for, which have to be computed then.
        results: [task][exchange], what every party got of each exchange so far.
    """

    task: int
    rows: bool
    results: Sequence[Sequence[Mapping[str, Tensor]]]


class AskingFit(FederatedFit):
    """The loop of the server, which computes nothing on samples.

    Args:
        module: the method.
        transform: turns raw samples into inputs.
        federation: who takes part.
        send: asks the clients, and returns what those answer that do, by client.
        results: what was sent of each exchange, [task][exchange]; it is kept from task to task, and written here.
        settings: the other arguments of `Fit`.
    """

    def __init__(
        self,
        module: nn.Module,
        transform: Transform,
        *,
        federation: Federation,
        send: Callable[[Question, Sequence[int]], Mapping[int, Message]],
        results: list[list[dict[str, Tensor]]],
        **settings: Any,
    ) -> None:
        self.send, self.results = send, results
        super().__init__(module, transform, federation=federation, **settings)

    def begin(self, task: str) -> None:
        super().begin(task)
        self.rows = False

    def divide(self, data: Examples) -> None:
        if len(self.results) < int(self.task):
            raise ValueError(
                "what clients need of the first tasks is gone with the process that learned them; begin the run anew, "
                "with another --out"
            )
        del self.results[int(self.task) :]
        self.results.append([])
        super().divide(data)

    def exchange(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        result = super().exchange(*args, **kwargs)
        self.results[-1].append({name: tensor.detach().cpu().clone() for name, tensor in result.items()})
        return result

    def ask(self, name: str, answer: Callable[[int], Message]) -> dict[int, Message]:
        replies = self.send(Question(int(self.task), self.rows, self.results), self.present)
        wanted = set(self.present)
        return {client: self._here(reply) for client, reply in replies.items() if client in wanted}

    def _here(self, reply: Message) -> Message:
        return {name: tensor.to(self.device) for name, tensor in reply.items()}

    def pooled(self, name: str, summed: Callable[..., dict[str, Tensor]], *rows: Tensor) -> dict[str, Tensor]:
        self.rows = True
        try:
            return super().pooled(name, summed, *rows)
        finally:
            self.rows = False

    def features(
        self, data: Examples, extract: Callable[[Any], Tensor], *, keep: bool = False, name: str = "features"
    ) -> Tensor:
        return _no_features(self, data, extract)


class AnsweringFit(FederatedFit):
    """The loop of a client, up to the exchange that it is asked for.

    Args:
        module: the method.
        transform: turns raw samples into inputs.
        federation: who takes part.
        client: the number of this client.
        results: those of the exchanges so far, of this task.
        rows: whether features are computed.
        settings: the other arguments of `Fit`.
    """

    def __init__(
        self,
        module: nn.Module,
        transform: Transform,
        *,
        federation: Federation,
        client: int,
        results: Sequence[Mapping[str, Tensor]],
        rows: bool,
        **settings: Any,
    ) -> None:
        super().__init__(module, transform, federation=federation, **settings)
        self.client, self.rows, self._results = client, rows, iter(results)

    def exchange(self, name: str, answer: Callable[[int], Message], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        result = next(self._results, None)
        if result is None:
            raise Answered({key: tensor.detach().cpu() for key, tensor in answer(self.client).items()})
        return {key: tensor.to(self.device) for key, tensor in result.items()}

    def features(
        self, data: Examples, extract: Callable[[Any], Tensor], *, keep: bool = False, name: str = "features"
    ) -> Tensor:
        if not self.rows:
            return _no_features(self, data, extract)
        own = self.parts[self.client]
        found = super().features(data.subset(own), extract, keep=keep, name=name)
        return found.new_zeros(len(data), found.shape[1]).index_copy(0, own.to(found.device), found)


class Answered(Exception):
    """A client has computed its message, and stops."""

    def __init__(self, message: Message) -> None:
        super().__init__("answered")
        self.message = message


class Learns(Protocol):
    """A method."""

    def learn(self, task: Any, fit: Any) -> None: ...


class Party:
    """A client with its samples.

    Args:
        method: a method that has learned nothing.
        tasks: the tasks; of their samples only those of the client are read.
        loop: (method, client=, results=, rows=) -> the loop.
        client: the number of the client.
    """

    def __init__(self, method: Learns, tasks: Sequence[Any], loop: Callable[..., AnsweringFit], client: int) -> None:
        self.tasks, self.loop, self.client = tasks, loop, client
        self._new = method
        self._known: tuple[int, Learns] = 0, copy.deepcopy(method)

    def answer(self, question: Question) -> Message:
        """Return this client's message.

        Raises:
            ValueError: the question lacks a result of an earlier exchange, or asks for one that is answered already.
        """
        done, method = self._known
        if done > question.task:  # another run, or one that began anew
            done, method = 0, copy.deepcopy(self._new)
        for task in range(done, question.task):
            self._learn(method, task, question.results[task], rows=False)
        self._known = question.task, method
        try:
            self._learn(copy.deepcopy(method), question.task, question.results[question.task], rows=question.rows)
        except Answered as found:
            return found.message
        raise ValueError(f"all exchanges of task {question.task + 1} are answered already; ask for the next task")

    def _learn(self, method: Learns, task: int, results: Sequence[Mapping[str, Tensor]], *, rows: bool) -> None:
        fit = self.loop(method, client=self.client, results=results, rows=rows)
        fit.begin(str(task))
        fit.divide(self.tasks[task].train)
        method.learn(self.tasks[task], fit)


def _no_features(fit: FederatedFit, data: Examples, extract: Callable[[Any], Tensor]) -> Tensor:
    """Zeros in the place of features that are not used: what follows from them is a result of an exchange."""
    with torch.no_grad():
        width = extract(fit.transform.example(1).to(fit.device)).shape[1]
    return torch.zeros(len(data), width, device=fit.device)
