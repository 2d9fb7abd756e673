"""What LoRA-Sub's specification says: the subtracted network, its space, projected Adam, triplet loss, class means."""

from typing import Any

import numpy as np
import pytest
import torch
from streams import Spy, batch, configured, draw, fit_for, images, learn, task, tiny_backbone, tiny_residual_backbone
from torch import Tensor

from lamella.adapters.adapter import watch
from lamella.data.images import TensorSet
from lamella.data.transform import plain_view
from lamella.methods.linear_probe import LinearProbe
from lamella.methods.lora_sub import LoRASub, drift_resistant, p_times, times_p
from lamella.methods.shared.triplet import augmented_triplet
from lamella.training.projected_steps import ProjectedSteps
from lamella.training.recipe import Training

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.01, "rank": 4, "blocks": 2, "schedule": "constant"}


def build(**options: Any) -> LoRASub:
    return configured(LoRASub, tiny_backbone(), **{**QUICK, **options})


def inputs(method: Any, n: int = 12) -> Tensor:
    return images(6, 4, "test").batch(torch.arange(n), plain_view(method.backbone.transform))


def weights(method: LoRASub) -> list[Tensor]:
    return [site.layer.weight.clone() for site in method.sites]


# the subtracted network ----------------------------------------------------------------------------------------------


def test_within_subtracted_the_network_has_the_first_weights_minus_all_old_updates() -> None:
    method, untouched = build(), tiny_backbone()
    first = weights(method)
    for i, classes in enumerate([(0, 1), (2, 3)]):
        learn(method, i, task(i, classes))
    learned = weights(method)
    layers = dict(untouched.model.named_modules())
    for site, before, after in zip(method.sites, first, learned, strict=True):
        assert float((after - before).abs().max()) > 1e-3
        layers[site.name].weight.data.copy_(before - (after - before))  # type: ignore[union-attr]
    x = inputs(method)
    with torch.no_grad():
        usual = method.features(x)
        with method.subtracted():
            found = method.features(x)
        assert torch.allclose(found, untouched(x), atol=1e-5)
        assert torch.equal(method.features(x), usual)
    assert float((found - usual).abs().max()) > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(weights(method), learned, strict=True))


def test_weights_are_what_they_were_also_after_an_error_within_subtracted() -> None:
    method = build()
    learn(method, 0, task(0, (0, 1)))
    before = weights(method)

    def interrupted() -> None:
        with method.subtracted():
            assert not torch.equal(method.sites[0].layer.weight, before[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(a, b) for a, b in zip(weights(method), before, strict=True))


def test_old_updates_are_the_sum_of_what_tasks_changed() -> None:
    method = build(sites=("query", "value"))
    first = weights(method)
    for i, classes in enumerate([(0, 1), (2,), (3, 4)]):
        learn(method, i, task(i, classes))
    for site, before, after in zip(method.sites, first, weights(method), strict=True):
        assert torch.allclose((after - before)[site.rows], method._old(site).total, atol=1e-6)


# the space -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "energy"), [(3, 0.99), (9, 0.99), (9, 0.5), (3, 1.0)])
def test_the_space_is_that_of_the_written_out_form(rank: int, energy: float) -> None:
    left, right = draw(40, rank, name="left"), draw(rank, 9, name="right")
    X = ((left * 0.7 ** torch.arange(rank)) @ right).double()
    _, s, V = np.linalg.svd(X.numpy(), full_matrices=False)
    captured = np.cumsum(s**2) / (s**2).sum()
    k = int(np.argmax(captured >= energy - 1e-12)) + 1
    U = drift_resistant(X.T @ X / 40, energy)
    assert U.shape == (9, k)
    assert k <= rank
    assert np.abs((U @ U.T).numpy() - V[:k].T @ V[:k]).max() < 1e-6


def test_the_space_of_a_task_is_what_its_images_span_in_the_subtracted_network() -> None:
    method = build()
    learn(method, 0, task(0, (0, 1)))
    data, fit = task(1, (2, 3)), fit_for(method)
    fit.augmentation = None
    found = method._spaces(data, fit)
    seen: dict[Any, list[Tensor]] = {site.layer: [] for site in method.sites}
    x = batch(method, data.train)
    with torch.no_grad(), method.subtracted(), watch(method.sites, lambda layer: seen[layer].append):
        method.features(x)
    for site in method.sites:
        X = torch.cat(seen[site.layer]).flatten(0, -2).double()
        U = drift_resistant(X.T @ X / len(X), method.energy)
        assert torch.allclose((found[site.name] @ found[site.name].T).double(), U @ U.T, atol=1e-3)


# projected steps -----------------------------------------------------------------------------------------------------


def adam_by_hand(w: np.ndarray, gradients: list[np.ndarray], lr: float, project: Any) -> np.ndarray:
    """Adam (Kingma & Ba, algorithm 1) in float64, each of its updates projected."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w + project(-lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
    return w


@pytest.mark.parametrize("k", [1, 4, 8])
def test_projected_adam_is_the_written_out_form_for_a_and_for_b(k: int) -> None:
    U = torch.linalg.qr(draw(8, k, name="space"))[0]
    P = U.double().numpy() @ U.double().numpy().T
    P = P / np.linalg.norm(P)
    A, B = (torch.nn.Parameter(draw(*shape, name="weight")) for shape in ((3, 8), (16, 3)))
    starts = [A.detach().double().numpy(), B.detach().double().numpy()]
    steps = ProjectedSteps([(A, lambda u: times_p(u, U)), (B, lambda u: p_times(u, U))])
    adam = torch.optim.Adam([A, B], lr=0.01)
    gradients: list[list[np.ndarray]] = [[], []]
    for step in range(12):
        for of_weight, weight in zip(gradients, (A, B), strict=True):
            weight.grad = draw(*weight.shape, name=f"gradient {step}")
            of_weight.append(weight.grad.double().numpy())
        steps.before()
        adam.step()
        steps.after()
    expected = adam_by_hand(starts[0], gradients[0], 0.01, lambda u: u @ P)
    assert np.abs(A.detach().numpy() - expected).max() < 1e-6
    expected = adam_by_hand(starts[1], gradients[1], 0.01, lambda u: np.concatenate([P @ u[:8], P @ u[8:]]))
    assert np.abs(B.detach().numpy() - expected).max() < 1e-6


def test_a_projected_gradient_would_leave_the_space_which_a_projected_step_does_not() -> None:
    U = torch.linalg.qr(draw(8, 2, name="space"))[0]
    outside = torch.eye(8) - U @ U.T

    def left(by_step: bool) -> float:
        A = torch.nn.Parameter(torch.zeros(3, 8))
        adam = torch.optim.Adam([A], lr=0.01)
        steps = ProjectedSteps([(A, lambda u: times_p(u, U))] if by_step else [])
        for step in range(3):
            gradient = draw(3, 8, name=f"gradient {step}")
            A.grad = gradient if by_step else times_p(gradient, U)
            steps.before()
            adam.step()
            steps.after()
        return float((A.detach() @ outside).norm() / A.detach().norm())

    assert left(by_step=True) < 1e-6
    assert left(by_step=False) > 0.1


def test_through_fit_a_projected_step_with_sgd_is_a_projected_gradient() -> None:
    """With SGD both are the same, so that the whole path through `fit` can be checked against a formula."""
    method = LinearProbe(tiny_backbone())
    w = method.weight = torch.nn.Parameter(draw(3, 8, name="weight"), requires_grad=False)
    start, U = w.clone(), torch.linalg.qr(draw(8, 2, name="space"))[0]
    x, y = draw(16, 8), torch.arange(16) % 3
    steps = ProjectedSteps([(w, lambda u: times_p(u, U))])
    fit = fit_for(method)
    fit.augmentation = None
    recipe = Training(epochs=1, lr=0.1, batch_size=16, optimizer="sgd")
    fit(
        TensorSet(x, y),
        lambda f, labels: torch.nn.functional.cross_entropy(f @ w.T, labels),
        [w],
        recipe,
        before_step=steps.before,
        after_step=steps.after,
    )
    p = torch.softmax(x @ start.T, 1) - torch.nn.functional.one_hot(y, 3)
    assert torch.allclose(w, start - 0.1 * times_p(p.T @ x / 16, U), atol=1e-6)


@pytest.mark.parametrize("project_b", [True, False])
def test_from_the_second_task_on_steps_stay_in_the_space(project_b: bool) -> None:
    method = build(energy=0.7, project_b=project_b)
    spaces: list[dict[str, Tensor]] = []
    find = method._spaces
    method._spaces = lambda *given: spaces.append(find(*given)) or spaces[-1]  # type: ignore[method-assign]
    starts: list[list[Tensor]] = []
    old = method._old

    def look(loss: Any, data: Any, tensors: list[Tensor]) -> None:
        starts.append([b.A.clone() for site in method.sites for b in site.layer.of("new")])

    moved: list[tuple[Tensor, Tensor]] = []

    class Watching(Spy):
        def __call__(self, *args: Any, **options: Any) -> Any:
            result = super().__call__(*args, **options)
            moved[:] = [(b.A.clone(), b.B.clone()) for site in method.sites for b in site.layer.of("new")]
            return result

    learn(method, 0, task(0, (0, 1, 2)), Watching(method, look))
    assert not spaces  # the first task has no old updates, and is not projected
    learn(method, 1, task(1, (3, 4, 5)), Watching(method, look))
    assert len(spaces) == 1
    for site, start, (A, B) in zip(method.sites, starts[1], moved, strict=True):
        U = spaces[0][method.reads_as[site.name]]
        assert U.shape[1] < len(U) / 2
        outside = torch.eye(len(U)) - U @ U.T
        change = A - start
        assert float(change.norm()) > 1e-4
        assert float((change @ outside).norm()) < 1e-3 * float(change.norm())
        left = torch.stack([outside @ block for block in B.reshape(-1, len(U), B.shape[1])]).norm() / B.norm()
        assert float(B.norm()) > 1e-4
        assert (float(left) < 1e-3) is project_b
        assert old(site).total.shape == (len(B), len(U))


# the triplet loss ----------------------------------------------------------------------------------------------------


def triplet_by_hand(f: np.ndarray, y: list[int], means: np.ndarray, ids: list[int], margin: float) -> float:
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    protos = [m / np.linalg.norm(m) for m in means]
    losses = []
    for i in range(len(unit)):
        positive = max(np.linalg.norm(unit[i] - unit[j]) for j in range(len(unit)) if y[j] == y[i])
        negatives = [np.linalg.norm(unit[i] - unit[j]) for j in range(len(unit)) if y[j] != y[i]]
        negatives += [np.linalg.norm(unit[i] - m) for m, label in zip(protos, ids, strict=True) if label != y[i]]
        losses.append(max(0.0, positive - min(negatives) + margin) if negatives else 0.0)
    return float(np.mean(losses))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("labels", "ids"), [([5, 5, 6, 7, 6], [0, 1]), ([5, 6, 7, 6, 5], []), ([5] * 5, []), ([5] * 5, [0, 5])]
)
def test_the_triplet_loss_is_the_written_out_form(labels: list[int], ids: list[int], flat: bool) -> None:
    f, means = draw(5, 6, name="features").double(), draw(len(ids), 6, name="means").double()
    if flat:
        f[:, 2:] = 0  # rank 2
    y = torch.tensor(labels)
    for margin in (0.2, 1.0):
        found = augmented_triplet(f.float(), y, means.float(), torch.tensor(ids, dtype=torch.int64), margin)
        assert float(found) == pytest.approx(triplet_by_hand(f.numpy(), labels, means.numpy(), ids, margin), abs=1e-6)


def test_the_triplet_loss_has_finite_gradients_for_equal_samples_and_for_a_single_one() -> None:
    for f in (torch.ones(3, 4), torch.ones(1, 4)):
        f = f.requires_grad_(True)
        augmented_triplet(
            f, torch.zeros(len(f), dtype=torch.int64), torch.ones(1, 4), torch.tensor([1]), 1.0
        ).backward()
        assert f.grad is not None
        assert bool(f.grad.isfinite().all())


def test_the_loss_is_cross_entropy_and_the_weighed_triplet_loss_with_the_means_of_old_classes() -> None:
    method = build(triplet=0.3)
    values: list[tuple[float, float]] = []

    def look(loss: Any, data: Any, tensors: list[Tensor]) -> None:
        x = batch(method, data)
        weight, bias = tensors[-2:]  # of the head, which the method does not keep
        with torch.no_grad():
            f, value = method.features(x), float(loss(x, data.labels))
            logits = (f @ weight.T + bias).double()
        columns = data.labels - data.labels.min()
        cross_entropy = float(torch.nn.functional.cross_entropy(logits, columns))
        means, ids = method.statistics.means.numpy(), list(method.classes)
        values.append(
            (value - cross_entropy, triplet_by_hand(f.double().numpy(), data.labels.tolist(), means, ids, 1.0))
        )

    for i, classes in enumerate([(0, 1, 2), (3, 4)]):
        learn(method, i, task(i, classes), Spy(method, look))
    for found, expected in values:
        assert expected > 0.1
        assert found == pytest.approx(0.3 * expected, abs=1e-5)


def test_a_step_along_the_triplet_loss_moves_samples_away_from_the_mean_of_another_class() -> None:
    f = torch.nn.functional.normalize(draw(1, 6), dim=1).requires_grad_(True)
    mean = f.detach() + 0.1 * draw(1, 6, name="mean")
    augmented_triplet(f, torch.tensor([3]), mean, torch.tensor([0]), 1.0).backward()
    assert f.grad is not None
    cosine = torch.nn.functional.cosine_similarity
    start = f.detach()
    assert float(cosine(start - 0.1 * f.grad, mean)) < float(cosine(start, mean)) - 1e-4


# predictions ---------------------------------------------------------------------------------------------------------


def test_the_nearest_mean_decides_and_old_means_are_those_of_their_own_task() -> None:
    method = build()
    first = task(0, (0, 1, 2))
    learn(method, 0, first)
    x = batch(method, first.train)
    with torch.no_grad():
        features = method.features(x).double()
    means = torch.stack([features[first.train.labels == c].mean(0) for c in (0, 1, 2)])
    assert torch.allclose(method.statistics.means, means, atol=1e-5)
    learn(method, 1, task(1, (3, 4)))
    assert torch.allclose(method.statistics.means[:3], means, atol=1e-5)
    with torch.no_grad():
        f = method.features(inputs(method)).double().numpy()
        logits = method.predict(inputs(method)).numpy()
    m = method.statistics.means.numpy()
    distances = np.linalg.norm(
        f[:, None] / np.linalg.norm(f, axis=1)[:, None, None] - m / np.linalg.norm(m, axis=1)[:, None], axis=2
    )
    assert (logits.argmax(1) == distances.argmin(1)).all()
    assert np.abs(1 - distances**2 / 2 - logits).max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.0}, r"energy 0.0 is outside \(0, 1\]"),
        ({"triplet": -0.1}, "triplet -0.1 is below 0; it weighs a loss, and 0 leaves it out"),
        ({"margin": 0.0}, "margin 0.0 must be above 0; features have length 1, and 1 is usual"),
        (
            {"sites": ("mlp",)},
            r"steps of B cannot be projected on layer 'blocks.0.mlp.fc2': its \d+ output rows are no multiple of its "
            r"\d+ inputs; choose other sites, or set project_b to false",
        ),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
    if "sites" in options:
        learn(build(project_b=False, **options), 0, task(0, (0, 1)))


def test_a_residual_network_is_refused_when_the_method_is_built() -> None:
    with pytest.raises(ValueError, match=r"has no layer with the roles \['key\+value'\]"):
        configured(LoRASub, tiny_residual_backbone())
