"""What merging has added to a weight is stored as factors, and made again from them to the last bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import build_shallow, configured, draw, learn, shallow_backbone, stream
from torch import Tensor, nn

from lamella.adapters.adapter import Site, adapt, grow, merge
from lamella.adapters.few_bits import store_in
from lamella.adapters.merged import MergedUpdates, with_stored_updates
from lamella.backbones import Backbone
from lamella.learner.store.state import learned_state, restore_state, state_digest, stored_bytes
from lamella.methods.seq_lora import SeqLoRA

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def linear(dtype: torch.dtype = torch.float32) -> Any:
    model: Any = nn.Sequential(nn.Linear(24, 36).to(dtype))
    return model.requires_grad_(False)


def site(model: nn.Module, rows: slice = slice(None)) -> tuple[Site, ...]:
    return adapt(model, "0", rows)


def merge_drawn(sites: tuple[Site, ...], number: int, rank: int = 1, **options: Any) -> int:
    """Merge an adapter of drawn numbers on one site, and return the size of its factors in bytes."""
    (branch,) = grow(sites, f"a{number}", rank, generator=torch.Generator().manual_seed(number), **options)
    branch.B.copy_(draw(*branch.B.shape, name=f"B{number}"))
    merge(sites, f"a{number}")
    return branch.A.nbytes + branch.B.nbytes


def again(weight: Tensor, updates: MergedUpdates) -> Tensor:
    """The weight of before with the stored updates."""
    parts = {name: tensor.clone() for name, tensor in updates.tensors().items()}
    changed, read = with_stored_updates(parts, weight)
    assert (read.first, read.last) == (updates.first, updates.last)
    return changed


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(DTYPES)),
    merges=st.lists(st.tuples(st.integers(1, 2), st.sampled_from([1.0, 0.5, 2.0]), st.integers(0, 2)), max_size=4),
)
def test_a_weight_is_made_again_to_the_last_bit(kind: str, merges: list[tuple[int, float, int]]) -> None:
    model = linear(DTYPES[kind])
    before, parts, size = model[0].weight.clone(), [slice(0, 12), slice(12, 24), slice(0, 36)], 0
    for number, (rank, scale, part) in enumerate(merges):
        size += merge_drawn(site(model, parts[part]), number, rank, scale=scale)
        held = model[0].merged
        assert (held.updates is None) == (size > before.nbytes / 2)
        assert held.updates is None or torch.equal(again(before, held), model[0].weight)


@pytest.mark.parametrize("factorisation", ["conv", "kernel"])
def test_so_is_that_of_a_convolution(factorisation: str) -> None:
    model: Any = nn.Sequential(nn.Conv2d(16, 24, 3)).requires_grad_(False)
    before = model[0].weight.clone()
    for number in range(2):
        merge_drawn(site(model), number, factorisation=factorisation)
    assert len(model[0].merged.updates) == 2
    assert torch.equal(again(before, model[0].merged), model[0].weight)
    assert not torch.equal(before, model[0].weight)


def test_vera_is_a_product_too_and_dora_is_none() -> None:
    model = linear()
    before = model[0].weight.clone()
    (branch,) = grow(site(model), "vera", 2, form="vera", generator=torch.Generator().manual_seed(0))
    branch.factors[1].copy_(draw(36))  # the vector that is zero at first
    merge(site(model), "vera")
    assert torch.equal(again(before, model[0].merged), model[0].weight)
    assert not torch.equal(before, model[0].weight)

    merge_drawn(site(model), 1, form="dora")
    assert model[0].merged.updates is None


def keys_of_weights(method: nn.Module) -> set[str]:
    """Which form the changed weights of a backbone are stored in."""
    return {key.rpartition("weight")[2] for key in learned_state(method) if "backbone.model" in key}


FACTORS = {".merged.A", ".merged.B", ".merged.scales", ".merged.shapes"}


def test_a_model_stores_factors_and_goes_on_from_them_to_the_same_bits() -> None:
    tasks = stream()
    method, loaded = build_shallow("inflora"), build_shallow("inflora")
    for number in range(2):
        learn(method, number, tasks[number])
    assert keys_of_weights(method) == FACTORS
    restore_state(loaded, {key: value.clone() for key, value in learned_state(method).items()})
    assert state_digest(loaded) == state_digest(method)
    assert all(map(torch.equal, loaded.state_dict().values(), method.state_dict().values()))
    for one in (method, loaded):
        learn(one, 2, tasks[2])
    assert keys_of_weights(method) == FACTORS
    assert state_digest(loaded) == state_digest(method)


def sequential(rank: int, **options: Any) -> Any:
    return configured(SeqLoRA, shallow_backbone(), rank=rank, epochs=1, batch_size=16, fresh=True, **options)


def test_factors_that_are_large_give_way_to_the_weight() -> None:
    few, many = sequential(2), sequential(40)
    for method in (few, many):
        learn(method, 0, stream()[0])
    assert keys_of_weights(few) == FACTORS
    assert keys_of_weights(many) == {""}
    assert stored_bytes(few) < stored_bytes(many) / 2


def test_what_else_changes_a_weight_is_stored_with_it() -> None:
    method = sequential(2)
    learn(method, 0, stream()[0])
    changed, merged = (s.layer.weight for s in (method.sites[0], method.sites[-1]))
    changed.data[0, 0] += 1  # of which torch keeps no count
    assert keys_of_weights(method) == {"", *FACTORS}
    for _ in range(2):  # a change of before stays part of what comes after, also once stored and loaded
        learn(method, 1, stream()[1])
        other = sequential(2)
        restore_state(other, {key: value.clone() for key, value in learned_state(method).items()})
        weights = [s.layer.weight for s in (other.sites[0], other.sites[-1])]
        assert all(map(torch.equal, weights, (changed, merged)))
        method, (changed, merged) = other, weights


def test_a_whole_weight_as_it_used_to_be_stored_is_loaded() -> None:
    method, loaded = sequential(2), sequential(2)
    learn(method, 0, stream()[0])
    state = learned_state(method)
    old = {key: value for key, value in state.items() if ".merged." not in key}
    old |= {key: value for key, value in method.state_dict().items() if f"{key}.merged.A" in state}
    restore_state(loaded, old)
    assert all(map(torch.equal, loaded.state_dict().values(), method.state_dict().values()))
    assert keys_of_weights(loaded) == {""}


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "A": lambda A: A[:-1],
    "B": lambda B: torch.cat([B, B[:1]]),
    "scales": lambda scales: scales[:0],
    "shapes": lambda shapes: shapes + 1_000_000,
}


@pytest.mark.parametrize("part", SPOILT)
def test_factors_that_do_not_fit_are_refused(part: str) -> None:
    method = sequential(2)
    learn(method, 0, stream()[0])
    state = learned_state(method)
    key = next(key for key in state if key.endswith(f".merged.{part}"))
    whole = key.partition(".merged.")[0]
    wrong = [SPOILT[part](state[key]), state[key].bool(), *([state[key].double()] if part == "shapes" else [])]
    both = state | {whole: method.state_dict()[whole]}
    for spoilt in (*(state | {key: tensor} for tensor in wrong), {k: v for k, v in state.items() if k != key}, both):
        with pytest.raises(ValueError, match=r"^the stored state does not fit '.*' \(.*: blocks.0.attn.qkv.weight\)$"):
            restore_state(sequential(2), spoilt)


def test_factors_of_what_is_no_weight_are_refused() -> None:
    method = sequential(2)
    learn(method, 0, stream()[0])
    state = learned_state(method)
    backbone = shallow_backbone()
    store_in("int8", backbone.model)  # where there are codes in place of weights
    backbone = Backbone(backbone.model, name="few bits", width=backbone.width, transform=backbone.transform)
    method = configured(SeqLoRA, backbone, rank=2, epochs=1, batch_size=16)
    with pytest.raises(ValueError, match=r"^the stored state does not fit this method \(Unexpected key"):
        restore_state(method, state)
    codes = {k.replace("qkv.weight", "qkv.codes"): v for k, v in state.items()}
    with pytest.raises(ValueError, match=r"^the stored state does not fit 'few bits' \(.* no weight: .*codes\)$"):
        restore_state(method, codes)


class Late(nn.Module):
    """Adapts its layers only when it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = shallow_backbone()

    def learn(self, number: int) -> None:
        sites = self.backbone.sites("query")
        for branch in grow(sites, "late", 1, generator=torch.Generator().manual_seed(number)):
            branch.B.copy_(draw(*branch.B.shape))
        merge(sites, "late")


@torch.no_grad()
def test_factors_are_loaded_where_a_layer_is_not_adapted_yet() -> None:
    method, loaded = Late(), Late()
    method.learn(0)
    assert keys_of_weights(method) == FACTORS
    restore_state(loaded, {key: value.clone() for key, value in learned_state(method).items()})
    for number in (1, 2):
        assert all(map(torch.equal, loaded.state_dict().values(), method.state_dict().values()))
        for one in (method, loaded):
            one.learn(number)
    assert keys_of_weights(loaded) == {""}


def test_factors_are_no_change_of_a_weight_that_is_changed_already() -> None:
    method = sequential(2)
    learn(method, 0, stream()[0])
    with pytest.raises(
        ValueError, match=r"^'blocks.0.attn.qkv.weight' of '.*' is not as it was loaded; restore into a"
    ):
        restore_state(method, learned_state(method))
