"""What SD-LoRA promises: fixed directions, moving magnitudes, and an update that is their sum."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import configured, fit_for, images, tiny_backbone
from torch import Tensor

from lamella.common.randomness import generator
from lamella.data.scenario import Task
from lamella.learner.store.state import learned_state, restore_state
from lamella.methods.sdlora import SDLoRA
from lamella.methods.shared.moments import second_moments
from lamella.training.checkpoints import Checkpoints

QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.02, "rank": 4, "blocks": 2}


def task(i: int, classes: tuple[int, ...]) -> Task:
    every = images(12, 4, "train")
    index = torch.isin(every.labels, torch.tensor(classes)).nonzero()[:, 0]
    return Task(i, f"task {i}", classes, tuple(map(str, classes)), every.subset(index))


def taught(tasks: int = 3, **options: Any) -> SDLoRA:
    method = configured(SDLoRA, tiny_backbone(), **(QUICK | options))
    for i in range(tasks):
        learn(method, i)
    return method


def learn(method: SDLoRA, i: int) -> Any:
    fit = fit_for(method)
    fit.begin(str(i))
    method.learn(task(i, (2 * i, 2 * i + 1)), fit)
    return fit


def pairs(method: SDLoRA, site: int) -> list[tuple[Tensor, Tensor]]:
    """(A, B) of every task on a site, by the order of tasks."""
    layer = method.sites[site].layer
    return [(b.A, b.B) for t in range(len(method.heads)) for b in layer.of(f"task{t}-{site}")]


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=generator(0, "x"))


def by_hand(method: SDLoRA) -> Tensor:
    """Features of a plain backbone whose weights got the paper's formula added, row slice by row slice."""
    backbone = tiny_backbone()
    layers = dict(backbone.model.named_modules())
    for k, site in enumerate(method.sites):
        rows = layers[site.name].weight.data[site.rows]  # type: ignore[union-attr,index]
        for alpha, (A, B) in zip(method.alphas, pairs(method, k), strict=True):
            rows += alpha.expand(len(method.sites))[k] * (B @ A) / (B.norm() * A.norm())  # type: ignore[operator]
    return backbone(inputs())


@pytest.mark.parametrize("magnitudes", ["carried", "restarted"])
@pytest.mark.parametrize("sites", [("key+value",), ("query", "value")])
def test_the_update_is_the_sum_of_magnitudes_times_normalised_directions(magnitudes: str, sites: Any) -> None:
    method = taught(magnitudes=magnitudes, sites=sites)
    x = inputs()
    got, plain = method.features(x), tiny_backbone()(x)
    assert float((got - plain).abs().max()) > 1e-2  # it did learn
    assert torch.allclose(got, by_hand(method), atol=1e-4)
    assert len(pairs(method, 0)) == 3


def test_one_task_is_a_normalised_lora() -> None:
    method = taught(1)
    for k, site in enumerate(method.sites):
        [(A, B)] = pairs(method, k)
        dW = site.layer.of(f"task0-{k}")[0].delta(site.layer.weight.shape)
        assert torch.allclose(A.norm() * B.norm(), torch.tensor(1.0), atol=1e-5)
        assert torch.allclose(dW, B @ A, atol=1e-7)
        assert 0 < float(dW.norm()) <= 1 + 1e-5  # |B A| <= |B| |A|
    assert torch.allclose(method.features(inputs()), by_hand(method), atol=1e-4)


@pytest.mark.parametrize("magnitudes", ["carried", "restarted"])
def test_old_directions_stay_bit_identical_while_all_magnitudes_train(magnitudes: str) -> None:
    method = taught(2, magnitudes=magnitudes)
    before = [[(A.clone(), B.clone()) for A, B in pairs(method, k)] for k in range(len(method.sites))]
    alphas = [a.clone() for a in method.alphas]
    fit = learn(method, 2)
    for k, old in enumerate(before):
        now = pairs(method, k)
        assert len(now) == len(old) + 1
        assert all(torch.equal(x, y) for o, n in zip(old, now, strict=False) for x, y in zip(o, n, strict=True))
    starts = alphas if magnitudes == "carried" else [torch.tensor([0.8])] * 2
    for start, after in zip(starts, method.alphas, strict=False):
        assert start.shape == after.shape
        assert bool((start != after).all())
    rank, width = 4, method.backbone.width
    magnitudes_trained = 3 * len(method.sites) if magnitudes == "carried" else 3
    new = sum(rank * (width + site.rows.stop - site.rows.start) for site in method.sites)
    assert fit.trained == {"train": new + magnitudes_trained + 2 * (width + 1)}


def test_the_end_of_a_task_and_the_start_of_the_next_change_no_output() -> None:
    """Normalising a pair moves its norm into the magnitude; a new pair starts at zero."""
    seen: list[Tensor] = []
    method = taught(1)
    normalise, start = method._normalise, method._grow

    def ends(new: Any) -> None:
        seen.append(method.features(inputs()))
        normalise(new)
        seen.append(method.features(inputs()))

    def begins(number: int, moments: Any) -> Any:
        grown = start(number, moments)
        seen.append(method.features(inputs()))
        return grown

    seen.append(method.features(inputs()))
    method._grow, method._normalise = begins, ends  # type: ignore[method-assign,assignment]
    learn(method, 1)
    assert torch.equal(seen[0], seen[1])
    assert float((seen[2] - seen[1]).abs().max()) > 1e-2
    assert torch.allclose(seen[3], seen[2], atol=1e-4)


def test_the_first_gradient_of_each_magnitude_is_the_inner_product_with_its_direction() -> None:
    """d loss / d alpha = <d loss / d W, direction>, with the gradient of W taken on a plain backbone."""
    method = taught(2)
    plain = tiny_backbone()
    layers = dict(plain.model.named_modules())
    weights = []
    for k, site in enumerate(method.sites):
        weight = layers[site.name].weight  # type: ignore[union-attr]
        for alpha, (A, B) in zip(method.alphas, pairs(method, k), strict=True):
            weight.data[site.rows] += alpha[k] * B @ A  # type: ignore[index,operator]
        weights.append(weight.requires_grad_(True))  # type: ignore[operator]
    x, y = inputs(6), torch.tensor([0, 1, 0, 1, 1, 0])
    head = method.heads[1]
    of_weights = torch.autograd.grad(F.cross_entropy(head(plain(x)), y), weights)
    for alpha in method.alphas:
        alpha.requires_grad_(True)
    of_alphas = torch.autograd.grad(F.cross_entropy(head(method.features(x)), y), list(method.alphas))
    for t, gradient in enumerate(of_alphas):
        hand = [(of_weights[k][s.rows] * (pairs(method, k)[t][1] @ pairs(method, k)[t][0])).sum()
                for k, s in enumerate(method.sites)]  # fmt: skip
        assert float(gradient.abs().max()) > 1e-5
        assert torch.allclose(gradient, torch.stack(hand), atol=1e-5, rtol=1e-3)


def test_restarted_magnitudes_begin_at_the_start_and_are_shared() -> None:
    method = taught(2, magnitudes="restarted")
    seen: list[list[Tensor]] = []

    def fit(*args: Any, **options: Any) -> None:
        seen.append([a.clone() for a in method.alphas])

    fit.task, fit.once = "2", False  # type: ignore[attr-defined]
    method.learn(task(2, (4, 5)), fit)  # type: ignore[arg-type]
    assert [a.tolist() for a in seen[0]] == [[pytest.approx(0.8)]] * 3


@pytest.mark.parametrize("magnitudes", ["carried", "restarted"])
def test_state_round_trip_with_twelve_tasks(magnitudes: str) -> None:
    """More than ten, so that the order of names is not that of numbers."""
    method = configured(SDLoRA, tiny_backbone(), **(QUICK | {"epochs": 1, "magnitudes": magnitudes}))
    for i in range(12):
        fit = fit_for(method)
        fit.begin(str(i))
        method.learn(task(i, (i,)), fit)
    again = configured(SDLoRA, tiny_backbone(), **(QUICK | {"epochs": 1, "magnitudes": magnitudes}))
    state = learned_state(method)
    restore_state(again, {key: state[key].clone() for key in sorted(state, reverse=True)})
    assert torch.equal(again.predict(inputs()), method.predict(inputs()))
    assert [torch.equal(a, b) for a, b in zip(again.alphas, method.alphas, strict=True)] == [True] * 12
    assert not any(a.requires_grad for a in again.alphas)


@pytest.mark.parametrize("magnitudes", ["carried", "restarted"])
@pytest.mark.parametrize("step", [2, 6])
def test_an_interrupted_task_goes_on_to_the_same_bits(magnitudes: str, step: int, tmp_path: Path) -> None:
    """Two batches an epoch, three epochs: stopped in the first epoch, and at the last step of all."""
    before = {k: v.clone() for k, v in learned_state(taught(2, magnitudes=magnitudes)).items()}

    def third_task(stop: int | None, checkpoints: Checkpoints | None) -> SDLoRA:
        method = configured(SDLoRA, tiny_backbone(), **(QUICK | {"magnitudes": magnitudes, "batch_size": 4}))
        restore_state(method, before)
        fit = fit_for(method, checkpoints=checkpoints)
        fit.begin("2")
        plain, calls = method.features, count(1)

        def features(x: Tensor) -> Tensor:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return plain(x)

        method.features = features  # type: ignore[method-assign]
        method.learn(task(2, (4, 5)), fit)
        return method

    with pytest.raises(KeyboardInterrupt):
        third_task(step, Checkpoints(tmp_path, 0.0))
    resumed, undisturbed = third_task(None, Checkpoints(tmp_path, 0.0)), third_task(None, None)
    assert torch.equal(resumed.predict(inputs()), undisturbed.predict(inputs()))


def test_a_pair_that_learned_nothing_is_no_nan() -> None:
    """One class alone has no loss, so B stays zero."""
    method = configured(SDLoRA, tiny_backbone(), **QUICK)
    fit = fit_for(method)
    fit.begin("0")
    method.learn(task(0, (3,)), fit)
    assert float(pairs(method, 0)[0][1].abs().max()) == 0
    assert torch.equal(method.features(inputs()), tiny_backbone()(inputs()))
    learn(method, 1)
    assert torch.isfinite(method.predict(inputs())).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number"),
        ({"magnitudes": "none"}, r"magnitudes 'none' is unknown; use one of carried, restarted"),
        ({"magnitude_start": 0.0}, r"magnitude_start is 0, so the new pair would get no gradient"),
    ],
)
def test_mistakes_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        configured(SDLoRA, tiny_backbone(), **options)
    assert "\n" not in str(caught.value)


def test_a_start_by_the_inputs_sees_the_network_that_predicts() -> None:
    """Each older direction with its magnitude, and not with 1."""
    method = taught(2, sites=("key+value",))
    data, reads_as = task(0, (0, 1)).train, method.backbone.first_readers(method.sites)
    for alpha in method.alphas:
        alpha.mul_(20)
    found: list[dict[str, Tensor]] = []
    for model in (method, method.features, method.backbone):
        fit = fit_for(method)
        fit.begin("9")
        moments = second_moments(fit, data, model, method.sites, reads_as, name="seen")
        found.append({name: moment.mean for name, moment in moments.items()})
    last = method.sites[-1].name
    torch.testing.assert_close(found[0], found[1])
    assert float((found[0][last] - found[2][last]).norm()) > 1e-2 * float(found[2][last].norm())
