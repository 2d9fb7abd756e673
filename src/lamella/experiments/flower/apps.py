"""A ServerApp and a ClientApp of Flower, around `federated.remote`.

Flower starts a process for every message, and ends one whose first sign of life comes late. So this file imports
Flower alone, torch and the rest come in when a message is there, and there is one message for each exchange. Flower
sends every array by a request of its own; so all tensors of a message are packed into one.

The run configuration of Flower says what is learned:

    config      a shipped configuration, or the path of one that all nodes can read
    overrides   changes of it, separated by spaces; federated.clients is the number of nodes
    out         the run directory, on the server
    timeout     for how many seconds the server waits for answers

Which client a node is, its node configuration says: "partition-id".
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]
from flwr.serverapp import Grid, ServerApp  # pyright: ignore[reportMissingImports]

if TYPE_CHECKING:
    from torch import Tensor

    from lamella.federated.remote import Party, Question

__all__ = ["client", "build_party", "server"]

client = ClientApp()
server = ServerApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Learn the stream of a configuration with the nodes of a grid, and write an ordinary run directory."""
    from functools import partial
    from pathlib import Path

    from lamella.experiments.run import run
    from lamella.federated.remote import AskingFit
    from lamella.learner.config.document import load_config

    said = context.run_config
    config = load_config(str(said["config"]), [*str(said["overrides"]).split()])
    nodes = _nodes(grid, int(config["federated"]["clients"]), float(said["timeout"]))
    words = ConfigRecord({"config": str(said["config"]), "overrides": str(said["overrides"])})

    def send(question: "Question", clients: Sequence[int]) -> "Mapping[int, Mapping[str, Tensor]]":
        content = {"words": words, "asked": _asked(question), "results": _packed(_named(question))}
        known = dict.fromkeys([*nodes, *grid.get_node_ids()])  # one that was started again has another id
        messages = [Message(RecordDict(dict(content)), dst_node_id=node, message_type="train") for node in known]
        found: dict[int, Mapping[str, Tensor]] = {}
        for reply in grid.send_and_receive(messages, timeout=float(said["timeout"])):
            try:
                if reply.has_error():
                    raise ValueError(reply.error.reason)
                found[int(reply.content["client"]["client"])] = _unpacked(reply.content["answer"])
            except Exception as error:  # whatever a node sends, the round goes on without it
                print(f"lamella: node {reply.metadata.src_node_id} failed: {error}", flush=True)
        return found

    run(config, Path(str(said["out"])), quiet=True, loop=partial(AskingFit, send=send, results=[]))


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer one question from the samples of this node."""
    import torch

    from lamella.federated.remote import Question

    torch.set_num_threads(1)
    words, asked = message.content["words"], message.content["asked"]
    own = build_party(str(words["config"]), str(words["overrides"]), int(context.node_config["partition-id"]))
    results = _by_exchange(_unpacked(message.content["results"]), [int(n) for n in asked["exchanges"]])
    answer = own.answer(Question(int(asked["task"]), bool(asked["rows"]), results))
    told = {"client": ConfigRecord({"client": own.client}), "answer": _packed(answer)}
    return Message(RecordDict(told), reply_to=message)


@lru_cache(1)  # nodes of one process, as those of a simulation, are asked in turn and build this anew
def build_party(config: str, overrides: str, number: int) -> "Party":
    """Return the client of a number with its samples, which has learned nothing yet."""
    from lamella.federated.remote import AnsweringFit, Party
    from lamella.learner.config.document import build_augmentation, build_federation, build_scenario, load_config
    from lamella.learner.learner import Learner

    full = load_config(config, overrides.split())
    scenario, learner = build_scenario(full), Learner(full)
    federation = build_federation(full)
    assert federation is not None  # the server has asked

    def loop(method: Any, **own: Any) -> AnsweringFit:
        fit = {key: full["fit"][key] for key in ("device", "precision") if key in full["fit"]}
        own |= {"seed": learner.seed, "augmentation": build_augmentation(full), "federation": federation}
        return AnsweringFit(method, method.backbone.transform, **own, **fit)

    return Party(learner.method.eval(), [scenario[i] for i in range(len(scenario))], loop, number)


def _nodes(grid: Grid, wanted: int, timeout: float) -> list[int]:
    """The nodes, as soon as there are as many as clients, or those there are when time is out."""
    import time

    since = time.monotonic()
    while len(nodes := list(grid.get_node_ids())) < wanted and time.monotonic() - since < timeout:
        time.sleep(1)
    return nodes


def _asked(question: "Question") -> ConfigRecord:
    lengths = [len(task) for task in question.results]
    return ConfigRecord({"task": question.task, "rows": question.rows, "exchanges": lengths})


def _named(question: "Question") -> "dict[str, Tensor]":
    """All results by names "task|exchange|name"."""
    return {
        f"{task}|{number}|{name}": tensor
        for task, exchanges in enumerate(question.results)
        for number, result in enumerate(exchanges)
        for name, tensor in result.items()
    }


def _by_exchange(tensors: "Mapping[str, Tensor]", lengths: Sequence[int]) -> "list[list[dict[str, Tensor]]]":
    results: list[list[dict[str, Tensor]]] = [[{} for _ in range(length)] for length in lengths]
    for key, tensor in tensors.items():
        task, number, name = key.split("|", 2)
        results[int(task)][int(number)][name] = tensor
    return results


def _packed(tensors: "Mapping[str, Tensor]") -> ArrayRecord:
    """One array of bytes, the content of a safetensors file."""
    import torch
    from safetensors.torch import save

    whole = torch.contiguous_format
    content = save({name: tensor.detach().cpu().clone(memory_format=whole) for name, tensor in tensors.items()})
    return ArrayRecord({"tensors": torch.frombuffer(bytearray(content), dtype=torch.uint8)})


def _unpacked(record: ArrayRecord) -> "dict[str, Tensor]":
    from safetensors.torch import load

    return load(record["tensors"].numpy().tobytes())
