"""What CODA-Prompt's paper promises: prompts are weighted sums of components, and those of old tasks stay."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import configured, draw, fit_for, learn, stream, tiny_backbone, tiny_residual_backbone

from lamella.common.randomness import generator
from lamella.memory.subspace import orthonormal_start
from lamella.methods.coda_prompt import CodaPrompt, Prompts, component_weights
from lamella.methods.shared.own_heads import OwnHeads
from lamella.testing.tiny import tiny_tasks
from lamella.training.recipe import Training

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "components": 3, "length": 2, "blocks": 2}


def build(**options: Any) -> Any:
    return configured(CodaPrompt, tiny_backbone(), **QUICK | options)


def grown(tasks: int, blocks: int = 2, length: int = 2, width: int = 6, query: int = 5) -> Prompts:
    """Components of several tasks, with numbers as training might leave them."""
    prompts = Prompts(blocks, length, width, query)
    for i in range(tasks):
        for name, tensor in prompts.grow(3, generator(0, "start", i)).named_parameters():
            tensor.data.add_(0.3 * draw(*tensor.shape, name=f"{name} {i}"))
    return prompts


# the units, each beside its formula written out in NumPy ------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 7))
def test_a_weight_is_the_cosine_of_a_key_with_what_attention_lets_through(n: int, blocks: int, m: int, d: int) -> None:
    q, A, K = draw(n, d, name="q"), draw(blocks, m, d, name="A"), draw(blocks, m, d, name="K")
    found = component_weights(q, A, K)
    for b in range(blocks):
        for i in range(n):
            for j in range(m):
                through, key = (q[i] * A[b, j]).double().numpy(), K[b, j].double().numpy()
                cosine = through @ key / (np.linalg.norm(through) * np.linalg.norm(key))
                assert float(found[b, i, j]) == pytest.approx(cosine, rel=1e-5, abs=1e-6)


def test_a_prompt_is_the_weighted_sum_of_the_components_of_all_tasks() -> None:
    prompts, q = grown(tasks=3), draw(4, 5, name="q")
    found = prompts(q)
    weights = component_weights(q, prompts.every("attentions"), prompts.every("keys")).double().numpy()
    P = prompts.every("prompts").double().numpy()
    assert P.shape == (2, 9, 2, 2, 6)
    for b in range(2):
        for part, values in enumerate(found[b]):
            expected = sum(weights[b, :, j, None, None] * P[b, j, part] for j in range(9))
            np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_penalty_is_how_far_rows_are_from_orthonormal() -> None:
    prompts, expected = grown(tasks=2), 0.0
    for name in ("prompts", "keys", "attentions"):
        for block in prompts.every(name).flatten(2).double().numpy():
            expected += np.mean((block @ block.T - np.eye(6)) ** 2)
    assert float(prompts.penalty()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_new_rows_are_orthonormal_and_orthogonal_to_all_that_old_rows_span(rank: int) -> None:
    """Also where old rows depend on each other; the formula in NumPy: what the old rows' pseudo-inverse leaves."""
    old = draw(5, rank, name="left") @ draw(rank, 12, name="right")
    new = orthonormal_start(old, 12 - min(rank, 5), generator(0, "new")).numpy()
    np.testing.assert_allclose(new @ new.T, np.eye(len(new)), atol=1e-12)
    assert np.abs(new @ old.numpy().T).max() < 1e-6 * max(1.0, float(old.abs().max()))
    drawn = torch.randn(12, 1, generator=generator(0, "new"), dtype=torch.float64).numpy()[:, 0]
    span = old.double().numpy()
    free = drawn - np.linalg.pinv(span, rcond=1e-5) @ (span @ drawn)
    np.testing.assert_allclose(new[0], free / np.linalg.norm(free), atol=1e-6)


def test_rows_beyond_the_last_free_direction_are_unit_rows() -> None:
    new = orthonormal_start(draw(6, 4, name="old"), 3, generator(0, "new"))
    np.testing.assert_allclose(new.norm(dim=1).numpy(), np.ones(3), rtol=1e-12)
    assert new.isfinite().all()
    beyond = orthonormal_start(torch.zeros(0, 4), 6, generator(0, "new"))
    np.testing.assert_allclose(beyond[:4] @ beyond[:4].T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(beyond[4:].norm(dim=1).numpy(), np.ones(2), rtol=1e-12)


# the steps -----------------------------------------------------------------------------------------------------------


def test_a_task_trains_its_own_components_and_head_and_nothing_else() -> None:
    method, tasks = build(), tiny_tasks([2, 2])
    learn(method, 0, tasks[0])
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    learn(method, 1, tasks[1])
    after = method.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name for name in after if name not in before} == {
        *(f"prompts.tasks.1.{name}" for name in ("prompts", "keys", "attentions")),
        *(f"heads.heads.1.{name}" for name in ("weight", "bias", "ids")),
    }


def test_all_components_of_a_task_are_trained_from_their_start() -> None:
    method, tasks = build(lr=0.01), tiny_tasks([2, 2])
    learn(method, 0, tasks[0])
    fresh = Prompts(2, 2, 64, 64).grow(3, generator(0, "prompts", 0))
    for name, start in fresh.named_parameters():
        moved = (getattr(method.prompts.tasks[0], name) - start).flatten(2).norm(dim=2)
        assert (moved > 1e-3).all(), name


def test_new_components_change_the_prompts_of_old_images() -> None:
    """So features of old images drift a little, though no old component moves."""
    method, tasks = build(), tiny_tasks([2, 2])
    x = draw(3, 3, 32, 32)
    learn(method, 0, tasks[0])
    before = method.features(x)
    learn(method, 1, tasks[1])
    assert not torch.allclose(method.features(x), before, rtol=1e-4, atol=1e-4)
    assert not method.features_stay


def test_features_are_those_of_the_backbone_that_sees_the_prompts_of_its_own_query() -> None:
    method, x = build(), draw(3, 3, 32, 32)
    assert torch.equal(method.features(x), method.backbone(x)), "there are no prompts before the first task"
    learn(method, 0, tiny_tasks([2])[0])
    with torch.no_grad():
        expected = method.backbone.prefixed(x, method.prompts(method.backbone(x)))
        assert torch.equal(method.features(x), expected)
        assert not torch.allclose(expected, method.backbone(x), rtol=1e-3, atol=1e-3)


def test_the_query_gets_no_gradient() -> None:
    method = build()
    learn(method, 0, tiny_tasks([2])[0])
    x = draw(2, 3, 32, 32).requires_grad_(True)
    weights = method.prompts(method.backbone(x).detach())
    through_prompts = torch.autograd.grad(method.backbone.prefixed(x, weights).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(method.features(x).sum(), x)[0], through_prompts)


def test_the_penalty_keeps_components_closer_to_orthonormal() -> None:
    found = {}
    for weight in (0.0, 100.0):
        method = build(orthogonality=weight, lr=0.01, epochs=4)
        learn(method, 0, tiny_tasks([2])[0])
        found[weight] = float(method.prompts.penalty())
    assert found[100.0] < 0.5 * found[0.0]


def test_prompts_learn_what_a_head_alone_does_not() -> None:
    task, options = stream(4, 1)[0], {"epochs": 12, "batch_size": 8, "lr": 3e-3}
    prompted, frozen = build(blocks=6, components=10, length=4, **options), HeadAlone(tiny_backbone(), **options)
    losses = {}
    for method in (prompted, frozen):
        fit = Recorder(method)
        learn(method, 0, task, fit)
        losses[method] = fit.losses[-1]
    assert losses[prompted] < losses[frozen] - 0.1


class HeadAlone(OwnHeads):
    """A head on the frozen backbone, trained as the head of CODA-Prompt is."""

    def __init__(self, backbone: Any, **options: Any) -> None:
        super().__init__(backbone, 0, Training(**options, schedule="inflora"))

    def learn(self, task: Any, fit: Any) -> None:
        self.eval()
        self.train_head(task, fit)


class Recorder:
    """The real fit; keeps the losses of its training."""

    def __init__(self, method: Any) -> None:
        self.fit, self.losses = fit_for(method), list[float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fit, name)

    def __call__(self, *args: Any, **options: Any) -> list[float]:
        self.losses = self.fit(*args, **options)
        return self.losses


# what cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"components": 0}, "components 0 must be at least 1"),
        ({"length": 0}, "length 0 must be at least 1"),
        ({"blocks": 7}, "blocks = 7, but 'test_vit' has 6 attentions; use 1 to 6"),
        ({"orthogonality": -1.0}, "orthogonality -1.0 is below 0; it weighs a penalty, and 0 leaves it out"),
    ],
)
def test_settings_that_cannot_be_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(**option)


def test_a_residual_network_is_refused_when_the_method_is_built() -> None:
    with pytest.raises(ValueError, match=r"^'tiny' has no attention that is computed by torch's scaled_dot_product_"):
        CodaPrompt(tiny_residual_backbone())


def test_its_network_has_no_fixed_weights() -> None:
    method = build()
    learn(method, 0, tiny_tasks([2])[0])
    for ask in (method.linear_classifier, method.plain_classifier):
        with pytest.raises(ValueError, match=r"one network: it makes prompts for each image$"):
            ask()
