"""What a network shows when it runs: the order of its layers, which of them read the same, what fused rows are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, watch
from lamella.adapters.tokens import class_places
from lamella.backbones.roles import LayerPlace, share_of

__all__ = ["call_order", "first_readers", "is_fused_as_thought", "reads_class_token_alone"]


@torch.no_grad()
def call_order(model: nn.Module, places: Sequence[LayerPlace], run: Callable[[], object]) -> list[str]:
    """Return the names of the places' layers in the order in which a run first calls them.

    Args:
        model: the network.
        places: layers of the network.
        run: a function that runs it on some samples.
    """
    modules, seen = dict(model.named_modules()), dict[str, None]()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.setdefault(name)

    with _hooks(modules[place.name].register_forward_hook(note(place.name)) for place in places):
        run()
    return list(seen)


@torch.no_grad()
def first_readers(sites: Sequence[Site], run: Callable[[], object]) -> dict[str, str]:
    """Return for the layer of each site the first layer among them whose inputs are the very same tensors.

    Query, key and value of an attention read one tensor, so what is learned of the inputs of one holds for all.

    Args:
        sites: their layers are compared, in this order.
        run: a function that runs the network on some samples.
    """
    names = {site.layer: site.name for site in sites}
    inputs: dict[str, list[Tensor]] = {name: [] for name in names.values()}  # held, so that no two have one identity
    with watch(sites, lambda layer: inputs[names[layer]].append, padding_too=True):
        run()
    first: dict[tuple[object, ...], str] = {}
    return {name: first.setdefault(tuple(map(id, read)) or (name,), name) for name, read in inputs.items()}


@torch.no_grad()
def is_fused_as_thought(model: nn.Module, places: Sequence[LayerPlace], run: Callable[[], object]) -> dict[str, bool]:
    """Return whether the rows of each fused layer lie one role after the other, as `share_of` says.

    Some networks lay them out for each attention head. The test: without the values, attention has nothing to pass on,
    whatever the queries and keys are. So its output must be the same with the value rows at zero and with all rows at
    zero.

    Args:
        model: the network.
        places: fused layers with the role "value".
        run: a function that runs it on the same samples each time, which are not blank.
    """
    without = [_outputs(model, places, run, roles) for roles in (("value",), ("query", "key", "value"))]
    return {
        place.name: torch.allclose(*(found[place.name] for found in without), rtol=1e-4, atol=1e-6)
        for place in places
        if all(place.name in found for found in without)  # else the network never calls the layer
    }


@torch.no_grad()
def reads_class_token_alone(model: nn.Module, places: Sequence[LayerPlace], run: Callable[[], Tensor]) -> bool:
    """Return whether features depend on the class token and on no other token of what the last block gives.

    The test: when all other tokens that leave the last layer with a role are set to zero, the features stay the same;
    when the class token is, they do not.

    Args:
        model: the network.
        places: its layers with a role.
        run: a function that runs it on some samples, which are not blank, and returns their features.
    """
    called = call_order(model, places, run)
    if not called:
        return False
    kept: list[bool] = []

    def zero(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        if output.ndim != 3:
            raise _NoTokens
        rows = torch.ones(output.shape[:2].numel(), 1, device=output.device, dtype=output.dtype)
        rows[class_places(output)] = 0
        rows = rows if kept else 1 - rows
        return output * rows.view(*output.shape[:2], 1)

    expected = run()
    try:
        for _ in range(2):
            with _hooks(iter([model.get_submodule(called[-1]).register_forward_hook(zero)])):
                kept.append(torch.allclose(run(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())))
    except _NoTokens:
        return False
    return kept == [True, False]


class _NoTokens(Exception):
    """The outputs of a layer are no tokens of samples."""


def _outputs(
    model: nn.Module, places: Sequence[LayerPlace], run: Callable[[], object], roles: Sequence[str]
) -> dict[str, Tensor]:
    """Return what the attention of each place gives when the rows of these roles are zero in every place."""
    modules, found = dict(model.named_modules()), dict[str, Tensor]()

    def zero(place: LayerPlace) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            for role in place.roles:
                if role in roles:
                    changed[..., share_of(place, role)] = 0
            return changed

        return hook

    def keep(place: LayerPlace) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            found.setdefault(place.name, first.clone())

        return hook

    layers = (modules[place.name].register_forward_hook(zero(place)) for place in places)
    attentions = (modules[place.name.rpartition(".")[0]].register_forward_hook(keep(place)) for place in places)
    with _hooks(layers), _hooks(attentions):
        run()
    return found


@contextmanager
def _hooks(handles: Iterator[Any]) -> Iterator[None]:
    made = list(handles)
    try:
        yield
    finally:
        for handle in made:
            handle.remove()
