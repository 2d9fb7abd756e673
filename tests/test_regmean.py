"""RegMean in the part `merge`: two sums over tasks give what all updates and all second moments would give."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from encoders import tiny_text_backbone
from streams import build, build_shallow, fit_for, learn_all, plain, shallow_backbone, stream
from torch import Tensor

from lamella.adapters.adapter import adapt, using
from lamella.adapters.merging import Merging, regmean
from lamella.adapters.pairs import Pair, low_rank
from lamella.data.transform import plain_view
from lamella.learner.costs import parameter_counts
from lamella.memory.old_moments import OldMoment
from lamella.memory.regmean import UpdatesOnInputs
from lamella.methods.parts import Aligned, Merged
from lamella.methods.parts.kept_updates import SumsOnInputs
from lamella.methods.parts.other_weights import TrainedWeights
from lamella.testing import tiny_bert
from lamella.testing.checks import an_interrupted_learning_ends_with_the_same_bits
from lamella.testing.tiny import tiny_tasks
from lamella.testing.trial import Trial

REGMEAN = Merging("regmean")
BASES: dict[str, Callable[[], Any]] = {
    "query and value": partial(build_shallow, "seq-lora", fresh=True, sites=("query", "value")),
    "mlp": partial(build_shallow, "seq-lora", sites=("key+value", "mlp")),
    **{name: partial(build_shallow, name) for name in ("olora", "sdlora", "color")},
}
"""Methods that fold, that keep branches with numbers of their own, and that have experts."""
SELDOM = (("mlp", "newest"), ("olora", "newest"), ("query and value", "newest"), ("sdlora", "pretrained"))
"""What the others stand for."""


def tokens(layer: Any, seen: list[Tensor]) -> Any:
    """A hook of torch's own on a layer, which keeps all of its inputs as rows."""
    return layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2).double()))


def own_models(part: Merged, tasks: list[Any]) -> tuple[dict[str, list[Pair]], dict[str, list[Tensor]]]:
    """Let the part learn, and look at each task's own model: by layer the updates, and the means of x x^T.

    Samples pass one by one, so that none is padded.
    """
    pairs: dict[str, list[Pair]] = {name: [] for name in part.trained.layers}
    moments: dict[str, list[Tensor]] = {name: [] for name in part.trained.layers}
    first = {name: part.trained.held(name).double().clone() for name in part.trained.layers}
    learn, fit = part.base.learn, plain(part)

    def spied(task: Any, own: Any) -> None:
        learn(task, own)
        part.eval()
        with torch.no_grad():
            look(task)

    def look(task: Any) -> None:
        number = len(part.base.heads) - 1
        expert = {name: part._expert(number, name) for name in first} if part.experts else None
        acting = {name: first[name] + expert[name] for name in first} if expert else part.acting_weights()
        seen: dict[str, list[Tensor]] = {name: [] for name in first}
        hooks = [tokens(layer, seen[name]) for name, layer in part.trained.layers.items()]

        def own(x: Any, _: Tensor) -> None:
            if part.experts:
                with using(part.sites, f"task{number}"):
                    part.backbone.run(x)
            else:
                part.base.features(x)

        fit.scan(task.train, own, batch_size=1, name="look")
        for hook in hooks:
            hook.remove()
        for name in first:
            pairs[name].append(low_rank(acting[name] - first[name], first[name]))
            rows = torch.cat(seen[name])
            moments[name].append(rows.T @ rows / len(rows))

    part.base.learn = spied
    for task in tasks:
        fit.begin(str(task.id))
        part.learn(task, fit)
    return pairs, moments


def close(found: Tensor, wanted: Tensor, part: float) -> None:
    assert float((found - wanted).norm()) < part * float(wanted.norm())


@pytest.mark.parametrize(
    ("name", "start"),
    [
        *((name, "newest") for name in ("sdlora", "color")),
        ("olora", "pretrained"),
        *(pytest.param(name, start, marks=pytest.mark.slow) for name, start in SELDOM),
    ],
)
def test_it_is_the_rule_on_each_tasks_own_model_and_inputs(name: str, start: str) -> None:
    part = Merged(BASES[name](), merging=REGMEAN, start=start)
    first = {layer: part.trained.held(layer).double().clone() for layer in part.trained.layers}
    scenario = stream()
    pairs, moments = own_models(part, [scenario[i] for i in range(3)])
    with using(part.sites, ()) if part.experts else using(part.sites, [*part.sites[0].layer.branches]):
        found = {n: part.trained.held(n).double() for n in first} if part.experts else part.acting_weights()
    for layer, update in ((layer, found[layer] - first[layer]) for layer in found):
        close(update, regmean(pairs[layer], moments[layer]).delta(), 1e-3)
        mean = torch.stack([pair.delta() for pair in pairs[layer]]).mean(0)
        assert float((update - mean).norm()) > 0.02 * float(mean.norm()), "or else the moments say nothing"


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_on_texts_padding_is_no_input_and_layers_with_one_input_share_its_moment(name: str) -> None:
    part = Merged(build("seq-lora", backbone=tiny_text_backbone(name), sites=("key", "value")), merging=REGMEAN)
    first = {layer: part.trained.held(layer).double().clone() for layer in part.trained.layers}
    pairs, moments = own_models(part, tiny_tasks([2, 2], noun="text"))
    found = part.acting_weights()
    for layer in found:
        close(found[layer] - first[layer], regmean(pairs[layer], moments[layer]).delta(), 1e-3)
    updates = part.updates
    assert isinstance(updates, SumsOnInputs)
    assert len(updates.products) == len(first)
    assert len(updates.moments) == len(first) // 2 if name == "bert" else len(first)


def test_what_it_keeps_does_not_grow_with_the_tasks() -> None:
    part, scenario = Merged(build_shallow("color"), merging=REGMEAN), stream()
    sizes: list[int] = []
    fit = fit_for(part)
    for task in (scenario[i] for i in range(3)):
        fit.begin(str(task.id))
        part.learn(task, fit)
        sizes.append(sum(t.numel() * t.element_size() for t in part.updates.buffers()))
    shapes = [part.trained.held(name).shape for name in part.trained.layers]
    assert sizes == 3 * [sum(8 * d_in * (rows + d_in) for rows, d_in in shapes)]


def test_sums_over_tasks_are_the_rule_where_directions_are_missing() -> None:
    draws = torch.Generator().manual_seed(0)
    pairs, moments, old = [], [], OldMoment(9)
    kept = UpdatesOnInputs(5, 9)
    for rank in (1, 2, 3):
        pair = Pair(torch.randn(rank, 9, generator=draws).double(), torch.randn(5, rank, generator=draws).double())
        X = torch.randn(2, 9, generator=draws).double()  # together six of nine directions
        pairs.append(pair), moments.append(X.T @ X)
        kept.add(pair.delta(), X.T @ X), old.add(X.T @ X)
    close(kept.merged(old), regmean(pairs, moments).delta(), 1e-10)
    unseen = torch.linalg.svd(old.moment)[0][:, 6:]
    assert float((kept.merged(old) @ unseen).norm()) < 1e-9 * float(kept.merged(old).norm())


@pytest.mark.parametrize(("name", "backbone"), [("olora", tiny_bert), ("color", shallow_backbone)])
def test_it_is_resumed_to_the_same_bits(name: str, backbone: Any) -> None:
    def make(seed: int) -> Merged:
        return Merged(build(name, seed, backbone(), epochs=1), seed=seed, merging=REGMEAN)

    an_interrupted_learning_ends_with_the_same_bits(Trial(make))


def test_its_pass_counts_as_its_own() -> None:
    part, scenario = Merged(build_shallow("seq-lora"), merging=REGMEAN), stream()
    fit = fit_for(part)
    fit.begin("0")
    part.learn(scenario[0], fit)
    assert {call for call in fit.seconds if call.startswith(part.own_calls)} == {"merge-moments"}
    assert parameter_counts(part) == parameter_counts(part.base), "predictions need none of it"


def test_convolutions_are_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match="rule 'regmean' is for linear layers, and '0' is a convolution"):
        SumsOnInputs(build_shallow("olora").backbone, TrainedWeights(adapt(network, "0")))


def test_alignment_on_top_sees_its_features() -> None:
    part = learn_all(Aligned(Merged(build_shallow("seq-lora"), merging=REGMEAN)), stream()).eval()
    x = stream()[0].train.batch(torch.arange(4), plain_view(part.backbone.transform))
    with torch.no_grad():
        assert torch.equal(part.features(x), part.base.features(x))
        assert not torch.allclose(part.readouts(x)[""], part.readouts(x)["base"])
