"""Who takes part in federated learning, how often, and how updates become one."""

import math
import re
from dataclasses import dataclass

from lamella.common.checks import check_one_of
from lamella.federated.rules import RULES

__all__ = ["Federation"]

MOMENT = re.compile(r"(\d+)@(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class Federation:
    """How a task is learned by several clients, of which each sees its own samples alone.

    Args:
        clients: the number of clients; at least 1.
        dirichlet: the concentration of the Dirichlet distribution by which each class is split among the clients; above
            0, and the smaller, the less alike clients are. If left out, samples are dealt out evenly.
        rounds: how often in each call of training the clients' updates are joined; at least 1.
        epochs: how many times a client uses each of its samples in one round; at least 1. It replaces the method's own
            epochs.
        rule: how updates are joined: "fedavg" (the mean of every trained tensor), "ffa-lora" (A stays as it was drawn,
            and the mean is exact), "fedex-lora" (the mean of A and of B, and what it lacks goes into the weight),
            "flora" (the weight takes all updates, and branches begin anew) or "lorm" (A and B are trained in turn, and
            joined by what the clients' inputs make of them).
        lose: the clients that are lost, such as "4@3" (client 4, from task 3 on) or "4@3.2" (from round 2 of that task
            on). Clients count from 0, tasks and rounds from 1.
        join: the clients that come, late or back, in the same form. Of several moments of a client the latest counts,
            and who joins first is not there before.
        quorum: the smallest number of clients that must answer; at least 1.
        clip: the largest norm of a client's update in one round, above which it is scaled down; above 0. Each client
            then has the same weight. If left out, there is no limit, and clients count by their samples.
        noise: how many times `clip` the standard deviation of the noise on the sum of updates is; at least 0.
        delta: the probability with which the privacy that is told may fail; within (0, 1).

    Raises:
        ValueError: a number is out of its range, the rule is unknown, or values contradict each other.
    """

    clients: int = 5
    dirichlet: float | None = None
    rounds: int = 10
    epochs: int = 1
    rule: str = "fedavg"
    lose: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    quorum: int = 1
    clip: float | None = None
    noise: float = 0.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        check_one_of("federated.rule", self.rule, RULES)
        for name in ("clients", "rounds", "epochs", "quorum"):
            if getattr(self, name) < 1:
                raise ValueError(f"federated.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("dirichlet", "clip"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"federated.{name} is {value}; it must be above 0, or left out")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"federated.noise is {self.noise}; it must be 0 or more")
        if not 0 < self.delta < 1:
            raise ValueError(f"federated.delta is {self.delta}; it must be within (0, 1), and 1e-5 is usual")
        if self.quorum > self.clients:
            raise ValueError(f"federated.quorum is {self.quorum}, but there are {self.clients} clients; lower it")
        if self.noise and self.clip is None:
            raise ValueError("federated.noise is a multiple of federated.clip, which is left out; set it, such as 0.5")
        if self.clip is not None and not RULES[self.rule].plain_mean:
            raise ValueError(
                f"federated.clip bounds what a client adds to a mean, and rule '{self.rule}' has no plain mean; choose "
                "'fedavg' or 'ffa-lora', or leave clip out"
            )
        for text in (*self.lose, *self.join):
            self._moment(text)

    def _moment(self, text: str) -> tuple[int, tuple[int, int]]:
        """The client of a moment such as "4@3.2", and the task and the round, 0 where none is named."""
        found = MOMENT.fullmatch(text)
        if found is None or int(found[2]) < 1:
            raise ValueError(f"'{text}' should be CLIENT@TASK or CLIENT@TASK.ROUND, such as 4@3; tasks count from 1")
        if int(found[1]) >= self.clients:
            raise ValueError(f"'{text}' names client {found[1]}, but they are 0 to {self.clients - 1}")
        if found[3] and not 1 <= int(found[3]) <= self.rounds:
            raise ValueError(f"'{text}' names round {found[3]}, but they are 1 to {self.rounds}")
        return int(found[1]), (int(found[2]), int(found[3] or 0))

    def present(self, task: int, round: int) -> list[int]:
        """Return who takes part.

        >>> Federation(clients=3, lose=("2@3.2",), join=("0@2",)).present(1, 0)
        [1, 2]

        Args:
            task: the number of the task, from 1.
            round: the number of the round; 0 before the first.
        """
        turns = sorted(
            (*self._moment(text), comes) for comes, texts in enumerate((self.lose, self.join)) for text in texts
        )
        here = dict.fromkeys(range(self.clients), True)
        for client, _, comes in reversed(turns):
            here[client] = not comes  # in the end as before the first of its moments
        for client, moment, comes in turns:
            if moment <= (task, round):
                here[client] = bool(comes)
        return [client for client, there in here.items() if there]

    def check_tasks(self, tasks: int) -> None:
        """Refuse a moment after the last task, which would never come.

        Args:
            tasks: the number of tasks.

        Raises:
            ValueError: `lose` or `join` names a later task.
        """
        for text in (*self.lose, *self.join):
            if (task := self._moment(text)[1][0]) > tasks:
                raise ValueError(f"'{text}' names task {task}, but they are 1 to {tasks}")
