"""A process that runs the apps of Flower without starting Python anew for each of them.

    python -m lamella.experiments.flower.warm CONFIG OVERRIDES CLIENT@ADDRESS...

Flower's own executor (`flower-superexec`) starts a process for a server's app and one for every message to a client.
Importing torch and building the network there take far longer than an answer. Where a process needs more than 30
seconds to start, as on a busy machine, Flower gives it up and starts another. This one does both once, and then forks:
each app still has a process of its own, which ends with it, and of which there is one at a time at each address. An
ADDRESS is that of a SuperNode or a SuperLink that runs with `--isolation process`, CLIENT the node's "partition-id"
(any for a SuperLink), and the other words are those of the run configuration.

What is forked is a command of Flower, such as `flwr-clientapp`. The executor is given to Flower 1.42 by names of its
inner modules, since there are no public ones.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

__all__ = ["Forks", "main"]


class Forks:
    """An executor of Flower whose processes are forks of this one, one at a time.

    Args:
        commands: what a process does, by the name of its command; it reads its arguments from `sys.argv`.
        names: the command for each kind of task.
    """

    def __init__(self, commands: dict[str, Callable[[], Any]], names: dict[Any, str]) -> None:
        self.commands, self.names = commands, names
        self.child: int | None = None
        self.here = os.getpid()

    def reconcile(self) -> None:
        """Notice that a process has ended."""
        if self.child is not None and os.waitpid(self.child, os.WNOHANG)[0]:
            self.child = None

    def get_eligible_capacity(self, types: set[Any], **where: Any) -> tuple[set[Any], set[str]]:
        """Return which kinds of tasks can be started now: none while one runs."""
        return (
            {kind for kind in types if self.names.get(kind) in self.commands} if self.child is None else set()
        ), set()

    def launch(self, spec: Any) -> Any:
        """Start a process; `spec` says what kind of task it has, where it is fetched, and with which token."""
        from flwr.supercore.superexec.executor import LaunchResult  # pyright: ignore[reportMissingImports]

        self.child = os.fork()
        if self.child:
            return LaunchResult.accepted()
        try:
            name = self.names[spec.task_type]
            words = ["--runtime-api-address", spec.runtime_api_address, "--token", spec.token, "--insecure"]
            sys.argv = [name, *words, "--parent-pid", str(spec.parent_pid)]
            with suppress(SystemExit):  # how it ends when all is well, too
                self.commands[name]()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # nothing of the parent's is closed or run here

    def close(self) -> None:
        """Wait for the process that runs."""
        if self.child and os.getpid() == self.here:
            os.waitpid(self.child, 0)
            self.child = None


def main() -> None:
    """Build a client, and run apps for each address until this process, or one of its children, ends."""
    import torch

    from lamella.experiments.flower.apps import build_party

    config, overrides, *places = sys.argv[1:]
    torch.set_num_threads(1)  # so that there are no threads, which a fork would lack
    build_party(config, overrides, 0)
    names = dict(import_module("flwr.supercore.constant").TASK_TYPE_TO_COMMAND)
    scripts = entry_points(group="console_scripts")
    commands = {name: scripts[name].load() for name in ("flwr-clientapp", "flwr-serverapp", "flwr-simulation")}
    superexec: Any = import_module("flwr.supercore.superexec.run_superexec")
    superexec.get_executor = lambda *args, **kwargs: Forks(commands, names)
    here, children = os.getpid(), set[int]()
    for place in places:
        client, _, address = place.partition("@")
        if not (child := os.fork()):
            build_party(config, overrides, int(client))
            superexec.run_superexec(address, insecure=True, parent_pid=here)
        children.add(child)
    os.wait()  # where one ends, all do
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    sys.exit(1)


if __name__ == "__main__":
    main()
