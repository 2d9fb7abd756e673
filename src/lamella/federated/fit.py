"""The training loop over clients: each of them answers every call from its own samples, and the answers are joined.

A method calls this loop as it calls the ordinary one, so all its mathematics stays as it is:

    fit(data, loss, params)     in each round every client trains `params` on its samples, and a rule joins them
    fit.scan(data, keep=...)    every client sends the second moments of its samples, which are added
    fit.pooled(...)             every client sends sums over its features, which are added
    fit.features(data, ...)     features, which stay with their clients: a method may only hand them to `pooled`

All parties are in this process and share one model, whose trained tensors are set before each client's turn. What would
travel is counted in bytes: each party runs the same code and draws the same numbers by name, so the answers to these
calls are all that is sent, up from each client, and down to each as their sum.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, watch
from lamella.common.randomness import generator
from lamella.data.loading import Examples
from lamella.data.samples import Transform
from lamella.federated.federation import Federation
from lamella.federated.ledger import NO_ANSWER, Ledger
from lamella.federated.messages import Message, accepted, added, bytes_of
from lamella.federated.of_round import OfRound, Turn
from lamella.federated.partition import partition
from lamella.federated.privacy import clipped, noise_like
from lamella.federated.rules import RULES, Answer, Joining, Trained, trained_branches
from lamella.federated.scales import MOST_ENERGY, MOST_UPDATE, change, energy_of_features, energy_of_moments, norm
from lamella.memory.subspace import SecondMoment
from lamella.training.fit import Fit, Loss
from lamella.training.optimizers import parameter_groups
from lamella.training.recipe import Training

__all__ = ["FederatedFit"]


class FederatedFit(Fit):
    """The loop.

    Args:
        module: the method.
        transform: turns raw samples into inputs.
        federation: who takes part.
        settings: the other arguments of `Fit`.
    """

    divided = True

    def __init__(self, module: nn.Module, transform: Transform, *, federation: Federation, **settings: Any) -> None:
        super().__init__(module, transform, **settings)
        self.federation = federation

    def divide(self, data: Examples) -> None:
        """Share the samples of a task out among the clients; called once after each `begin`.

        Args:
            data: the training samples of the task.

        Raises:
            ValueError: no client that takes part from the start has a sample of one of the classes.
        """
        plan, labels = self.federation, data.labels
        self.labels, self.round = labels, 0
        self.parts = partition(labels, plan.clients, plan.dirichlet, self.seed, self.task)
        self.ledger = Ledger([len(part) for part in self.parts])
        here = torch.cat([self.parts[client] for client in self.present] or [labels.new_zeros(0)])
        if lost := sorted(set(labels.tolist()) - set(labels[here].tolist())):
            raise ValueError(
                f"no client that takes part in task {int(self.task) + 1} has a sample of class {lost[0]}; let fewer "
                "clients be missing, or raise federated.dirichlet"
            )

    @property
    def present(self) -> list[int]:
        """The clients that take part now and have samples."""
        taking_part = self.federation.present(int(self.task) + 1, self.round)
        return [client for client in taking_part if len(self.parts[client])]

    def __call__(
        self,
        data: Examples,
        loss: Loss | Sequence[Loss],
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        training: Training | None = None,
        *,
        before_step: Callable[[], None] | None = None,
        after_step: Callable[[], None] | None = None,
        name: str = "train",
        **settings: Any,
    ) -> list[float]:
        """Train in rounds. Arguments and errors are those of `Fit`, and the return value is the losses of rounds.

        The clients' own number of epochs takes the place of `epochs`, and `min_steps` has no effect.
        """
        if not callable(loss):
            raise ValueError(
                "a batch gives several steps of the optimiser here, which clients do not take; leave out the option of "
                "the method that asks for them"
            )
        if before_step is not None or after_step is not None:
            raise ValueError("this method changes weights after each step, which no rule joins; choose another method")
        self._check_whole(data)
        plan, rule = self.federation, RULES[self.federation.rule]
        keys = [field.name for field in fields(Training)]
        recipe = replace(training or Training(), **{key: settings.pop(key) for key in keys if key in settings})
        plain = {key: getattr(recipe, key) for key in keys} | {"epochs": plan.epochs, "min_steps": None}
        groups = parameter_groups(params, recipe.lr)
        names = {id(p): name for name, p in self.module.named_parameters()}
        everything = {names[id(t)]: t for group in groups for t in group["params"]}
        branches = trained_branches(self.module, everything)
        factors = {f"{b.name}.{f}": f for b in branches for f in "AB"}
        if rule.both and not factors.keys() <= everything.keys():
            raise ValueError(f"rule '{plan.rule}' joins A and B, and this method does not train both; use 'fedavg'")
        losses: list[float] = []
        for number in range(plan.rounds):
            self.round = number + 1
            wanted = rule.trains(number)
            trained = {n: t for n, t in everything.items() if factors.get(n, wanted) in wanted}
            ids = {id(t) for t in trained.values()}
            some = [{**g, "params": [t for t in g["params"] if id(t) in ids]} for g in groups]
            part = OfRound(**plain, before=number * plan.epochs, in_all=plan.rounds * plan.epochs)
            turn = Turn(data, loss, some, part, name, number, settings)
            losses.append(self._round(turn, trained, branches))
        self.round = plan.rounds + 1
        return losses

    def _round(self, turn: Turn, trained: Mapping[str, Tensor], branches: list[Trained]) -> float:
        """Let every client train from the same start, and join what they made of it."""
        rule = RULES[self.federation.rule]
        start = {name: tensor.detach().clone() for name, tensor in trained.items()}
        losses: list[float] = []

        def answer(client: int) -> Message:
            for name, tensor in trained.items():
                tensor.detach().copy_(start[name])
            samples = turn.data.subset(self.parts[client])
            losses.extend(self._train(turn, client, samples))
            made = {name: tensor.detach().clone() for name, tensor in trained.items()}
            inputs = self._inputs(turn, client, samples, branches) if rule.by_inputs else {}
            return {**made, **inputs, "count": torch.tensor(len(samples))}

        def join(kept: dict[int, Message]) -> dict[str, Tensor]:
            with torch.no_grad():
                self._join(turn, trained, branches, start, kept)
            size = bytes_of({name: tensor for name, tensor in kept[min(kept)].items() if name in trained})
            self.ledger.sent(turn.name, size * (len(kept) if rule.sends_all else 1) * len(self.present))
            names = {id(p): name for name, p in self.module.named_parameters()}
            folded = {names[id(b.layer.weight)]: b.layer.weight for b in branches if rule.sends_all}
            return {**trained, **folded}

        like = start | {"count": torch.tensor(0)}
        if rule.by_inputs:
            like |= {
                f"{b.site}|total": b.layer.weight.new_zeros([b.layer.weight.shape[1]] * 2).double() for b in branches
            }
        # What is clipped needs no bound by the others' sizes: by these, one client could decide whether another one
        # counts, and so change the sum by more than the clip.
        most = MOST_UPDATE if self.federation.clip is None else math.inf
        joined = self.exchange(turn.name, answer, like, lambda m: norm(change(m, start)), most, join)
        parameters = dict(self.module.named_parameters())
        for name, tensor in joined.items():
            parameters[name].detach().copy_(tensor.detach())
        return sum(losses) / max(len(losses), 1)

    def _train(self, turn: Turn, client: int, samples: Examples) -> list[float]:
        # The first client's first round has the name of an ordinary call: alone and in one round, it makes its draws.
        own = "-".join(
            [turn.name, *([f"round{turn.number}"] * (turn.number > 0)), *([f"client{client}"] * (client > 0))]
        )
        known = set(self.seconds)
        losses = super().__call__(samples, turn.loss, turn.groups, turn.recipe, name=own, **turn.settings)
        self._account(known, turn.name)
        return losses

    def _inputs(self, turn: Turn, client: int, samples: Examples, branches: list[Trained]) -> Message:
        """Return by layer the sum of x x^T over what it reads of a client's samples with the client's weights."""
        sites = [Site(b.site, b.layer, b.branch.rows) for b in branches]
        with watch(sites, lambda layer: SecondMoment(layer.weight.shape[1], torch.float64)) as seen:
            own, known = f"{turn.name}-inputs{turn.number}-client{client}", set(self.seconds)
            super().scan(samples, lambda x, y: turn.loss(x, y), augment=True, keep=seen, any_order=True, name=own)
            self._account(known, turn.name)
        return {f"{site}|total": moment.total for site, moment in seen.items()}

    def _join(
        self,
        turn: Turn,
        trained: Mapping[str, Tensor],
        branches: list[Trained],
        start: Mapping[str, Tensor],
        kept: Mapping[int, Message],
    ) -> None:
        plan, rule = self.federation, RULES[self.federation.rule]
        counts = {client: int(message["count"]) for client, message in kept.items()}
        shares = {client: n / sum(counts.values()) for client, n in counts.items()}
        messages = dict(kept)
        if plan.clip is not None:
            # Who is missing counts as no change: with a fixed number K of clients each changes the mean by clip / K.
            shares, larger = dict.fromkeys(kept, 1 / len(kept)), len(kept) / plan.clients
            for client, message in kept.items():
                short = clipped(change(message, start), plan.clip)
                messages[client] = {name: start[name] + larger * change for name, change in short.items()}
        answers = [
            Answer(
                shares[client],
                messages[client],
                {b.site: kept[client][f"{b.site}|total"] for b in branches} if rule.by_inputs else {},
            )
            for client in sorted(kept)
        ]
        named = (self.task, turn.name, turn.number)
        rule.join(Joining(trained, branches, answers, generator(self.seed, "join", *named)))
        if plan.noise and plan.clip is not None:
            self.ledger.releases += 1
            draws = generator(self.seed, "noise", *named)
            for tensor in trained.values():
                tensor.add_(noise_like(tensor, plan.noise * plan.clip / plan.clients, draws).to(tensor.dtype))

    def scan(
        self,
        data: Examples,
        observe: Callable[[Any, Tensor], Any],
        *,
        keep: Mapping[str, nn.Module] | None = None,
        name: str = "scan",
        **settings: Any,
    ) -> Tensor:
        """Add up the second moments of all clients. Arguments and return value are those of `Fit.scan`.

        Raises:
            ValueError: the pass keeps something else, which does not add up over clients.
        """
        moments = {key: module for key, module in (keep or {}).items() if isinstance(module, SecondMoment)}
        if not moments or len(moments) < len(keep or {}):
            raise ValueError(f"'{name}' reads samples one by one, which stay with their clients; choose another method")
        self._check_whole(data)
        buffers = {f"{key}|{own}": b for key, module in moments.items() for own, b in module.named_buffers()}

        def answer(client: int) -> Message:
            for module in moments.values():
                for buffer in module.buffers():
                    buffer.zero_()
            known = set(self.seconds)
            own = name if client == 0 else f"{name}-client{client}"
            samples = data.subset(self.parts[client])
            super(FederatedFit, self).scan(samples, observe, keep=moments, name=own, **settings)
            self._account(known, name)
            seen = [(f"{key}|{own}", b) for key, module in moments.items() for own, b in module.named_buffers()]
            return {key: buffer.clone() for key, buffer in seen}

        total = self.exchange(name, answer, buffers, energy_of_moments, MOST_ENERGY, partial(self._sum, name))
        for key, module in moments.items():
            for own, buffer in module.named_buffers():
                buffer.copy_(total[f"{key}|{own}"])
        return torch.arange(len(data))

    def pooled(self, name: str, summed: Callable[..., dict[str, Tensor]], *rows: Tensor) -> dict[str, Tensor]:
        for tensor in rows:
            if len(tensor) != len(self.labels):
                raise ValueError(f"'{name}' sums over {len(tensor)} samples, and the task has {len(self.labels)}")

        def answer(client: int) -> Message:
            return summed(*(r[self.parts[client].to(r.device)] for r in rows))

        like = summed(*(r[:0] for r in rows))
        return self.exchange(name, answer, like, energy_of_features, MOST_ENERGY, partial(self._sum, name))

    def _sum(self, name: str, kept: dict[int, Message]) -> dict[str, Tensor]:
        total = added(kept)
        self.ledger.sent(name, bytes_of(total) * len(self.present))
        return total

    def exchange(
        self,
        name: str,
        answer: Callable[[int], Message],
        like: Message,
        scale: Callable[[Message], float],
        most: float,
        join: Callable[[dict[int, Message]], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Ask every client once, and join what they answer.

        Args:
            name: the name of the call within the task.
            answer: computes the message of a client from its samples.
            like: a message of the right names, shapes and types.
            scale: what is compared between clients; see `messages.accepted`.
            most: how many times the median of all clients it may be.
            join: makes one result of the messages that count.

        Returns:
            What every party goes on with.
        """
        return join(self._accepted(name, self.ask(name, answer), like, scale, most))

    def ask(self, name: str, answer: Callable[[int], Message]) -> dict[int, Message]:
        """Return the messages of the clients, which are all in this process; another way to them overrides this.

        Args:
            name: the name of the call within the task.
            answer: computes the message of a client here.
        """
        return {client: answer(client) for client in self.present}

    def _accepted(
        self, call: str, replies: dict[int, Message], like: Message, scale: Callable[[Message], float], most: float
    ) -> dict[int, Message]:
        """Return the messages that count, and record the others.

        Raises:
            RuntimeError: there are fewer of them than the quorum.
        """
        plan = self.federation
        kept, missing = accepted(replies, like, scale, most)
        with_samples = [client for client, part in enumerate(self.parts) if len(part)]
        missing |= {client: NO_ANSWER for client in with_samples if client not in replies}
        self.ledger.note(call, replies, missing)
        if len(kept) < plan.quorum:
            missing |= {client: "no sample" for client, part in enumerate(self.parts) if not len(part)}
            told = ", ".join(f"client {client}: {why}" for client, why in sorted(missing.items()))
            raise RuntimeError(
                f"{len(kept)} answers to '{call}' of task {int(self.task) + 1} count, and federated.quorum is "
                f"{plan.quorum} ({told}); go on with --resume when they are back, or begin anew with a lower quorum"
            )
        return kept

    def _account(self, known: set[str], name: str) -> None:
        """Count the seconds and tensors of a client's call as those of the method's own call."""
        for call in [call for call in self.seconds if call not in known and call != name]:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.seconds.pop(call)
            if call in self.trained:
                self.trained[name] = max(self.trained.get(name, 0), self.trained.pop(call))

    def _check_whole(self, data: Examples) -> None:
        if not torch.equal(data.labels, self.labels):
            raise ValueError(
                "this method trains on other samples than those of the task, and only these have an owner; leave out "
                "settings such as method.statistics_images, or choose another method"
            )
