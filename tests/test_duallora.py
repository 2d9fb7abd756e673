"""What DualLoRA promises: O cannot be felt by old tasks, R lives on its block, its gate knows whose image it is."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from streams import configured, fit_for, images, learn_all, stream, tiny_backbone
from torch import Tensor

from lamella.adapters.adapter import using, watch
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.data.scenario import Task
from lamella.data.transform import plain_view
from lamella.learner.store.state import learned_state, restore_state
from lamella.memory.calibration import Calibration
from lamella.memory.inputs import Inputs
from lamella.methods.duallora import DualLoRA
from lamella.methods.parts import Aligned
from lamella.methods.seq_lora import SeqLoRA
from lamella.methods.shared.heads import Heads

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.02, "rank": 4, "residual_rank": 3, "blocks": 3}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "x", *shape))


def task(i: int, classes: tuple[int, ...]) -> Task:
    every = images(12, 6, "train")
    index = torch.isin(every.labels, torch.tensor(classes)).nonzero()[:, 0]
    return Task(i, f"task {i}", classes, tuple(map(str, classes)), every.subset(index))


STREAM = [task(i, (3 * i, 3 * i + 1, 3 * i + 2)) for i in range(4)]


class Spy:
    """A fit that runs the real one, and keeps every adapter as it was when training began and ended."""

    once = False

    def __init__(self, method: DualLoRA) -> None:
        self.method, self.fit = method, fit_for(method)
        self.scan, self.features = self.fit.scan, self.fit.features
        self.bases: list[Tensor] = []
        self.start: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.end: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.gated: dict[str, bool] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.bases = [self.method.signatures[s.name].basis.clone() for s in self.method.sites]
        self.start = self.adapters()
        self.gated = {
            n: self.method.sites[-1].layer.of(n)[0].gate is not None for n in self.method.sites[-1].layer.branches
        }
        result = self.fit(*args, **options)
        self.end = self.adapters()
        return result

    def adapters(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """(A, B) of each adapter on each site; empty tensors where it has no branch."""
        names = {n for s in self.method.sites for n in s.layer.branches}
        none = (torch.zeros(0), torch.zeros(0))
        return {
            n: [(b[0].A.clone(), b[0].B.clone()) if (b := s.layer.of(n)) else none for s in self.method.sites]
            for n in names
        }


def learn(method: DualLoRA, data: Task) -> Spy:
    spy = Spy(method)
    spy.fit.begin(str(data.id))
    method.learn(data, spy)  # type: ignore[arg-type]
    return spy


def taught(tasks: int = 3, **options: Any) -> tuple[DualLoRA, list[Spy]]:
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | options))
    return method, [learn(method, data) for data in STREAM[:tasks]]


def pixels(method: DualLoRA, data: Task) -> Tensor:
    return data.train.batch(torch.arange(len(data.train)), plain_view(method.backbone.transform))


def recording(method: DualLoRA) -> dict[str, dict[str, Inputs]]:
    """The inputs of the method's latest scans, by their names and layers."""
    seen: dict[str, dict[str, Inputs]] = {}
    scan = method._inputs

    def keep(data: Task, fit: Any, name: str) -> dict[str, Inputs]:
        seen[name] = scan(data, fit, name)
        return seen[name]

    method._inputs = keep  # type: ignore[method-assign]
    return seen


def predicted(method: DualLoRA, x: Tensor) -> Tensor:
    with torch.no_grad():
        return method.eval().predict(x)


@pytest.fixture(scope="module")
def three() -> tuple[DualLoRA, list[Spy]]:
    return taught()


# O -------------------------------------------------------------------------------------------------------------------


def test_the_basis_is_orthonormal_after_every_task(three: Any) -> None:
    method, spies = three
    for step in range(3):
        bases = spies[step + 1].bases if step < 2 else [method.signatures[s.name].basis for s in method.sites]
        for Psi in bases:
            torch.testing.assert_close(Psi.T @ Psi, torch.eye(Psi.shape[1]), atol=3e-6, rtol=0)
    assert all(
        after.shape[1] > before.shape[1] for before, after in zip(spies[1].bases[1:], spies[2].bases[1:], strict=True)
    )


def test_o_does_nothing_on_the_protected_span_after_a_thousand_adam_steps() -> None:
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | {"blocks": 2, "epochs": 1, "batch_size": 1, "lr": 0.01}))
    learn(method, STREAM[0])
    method.epochs = 56  # of 18 images, one a step: 1,008 steps
    spy = learn(method, STREAM[1])
    for Psi, (A, B) in zip(spy.bases, spy.end["orthogonal"], strict=True):
        assert Psi.shape[1] > 0
        assert float((B @ A).norm()) > 0.05  # it did learn
        assert float((B @ A @ Psi).abs().max()) < 1e-5


def test_old_inputs_pass_the_merged_layer_as_before() -> None:
    """W h for inputs in the protected span, before the second task and after its merge."""
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | {"residual": "none"}))
    learn(method, STREAM[0])
    before = [s.layer.weight.clone() for s in method.sites]
    spy = learn(method, STREAM[1])
    for site, W, Psi in zip(method.sites, before, spy.bases, strict=True):
        assert float((site.layer.weight - W).abs().max()) > 1e-3
        assert float(((site.layer.weight - W) @ Psi).abs().max()) < 1e-5
        assert not site.layer.branches


def test_folding_o_leaves_the_outputs_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    method, _ = taught(2)
    x, seen = pixels(method, STREAM[2]), {}

    def scanned(data: Task, fit: Any, name: str) -> dict[str, Any]:
        seen[name] = method.features(x)
        raise StopIteration  # after the merge, before anything else

    def trained(*args: Any, **options: Any) -> None:
        fit(*args, **options)
        seen["unmerged"] = method.features(x)
        assert method.sites[0].layer.of("orthogonal")

    fit, trained.once = fit_for(method), False  # type: ignore[attr-defined]
    monkeypatch.setattr(method, "_inputs", scanned)
    with pytest.raises(StopIteration):
        method.learn(STREAM[2], trained)  # type: ignore[arg-type]
    assert not method.sites[0].layer.of("orthogonal")
    torch.testing.assert_close(seen["inputs-after"], seen["unmerged"], atol=1e-4, rtol=1e-4)


def test_without_o_the_weights_stay() -> None:
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | {"orthogonal": False}))
    before = [s.layer.weight.clone() for s in method.sites]
    spies = [learn(method, data) for data in STREAM[:2]]
    assert all(torch.equal(s.layer.weight, W) for s, W in zip(method.sites, before, strict=True))
    assert set(spies[1].end) == {"residual-1"}
    assert any(float(B.abs().max()) > 0 for _, B in spies[1].end["residual-1"] if B.numel())


def test_the_first_task_without_r_is_plain_lora() -> None:
    method, plain = (
        configured(DualLoRA, tiny_backbone(), **QUICK),
        configured(SeqLoRA, tiny_backbone(), epochs=2, batch_size=8, lr=0.02, rank=4, blocks=3),
    )
    spy = Spy(method)

    def fit(*args: Any, **options: Any) -> Any:
        result = spy(*args, **options)
        with torch.no_grad():
            spy.features = method.features(pixels(method, STREAM[0]))  # type: ignore[attr-defined]
        return result

    fit.scan = spy.scan  # type: ignore[attr-defined]
    spy.fit.begin("0")
    fit.once = False  # type: ignore[attr-defined]
    method.learn(STREAM[0], fit)  # type: ignore[arg-type]
    for site, (A, _) in zip(plain.sites, spy.start["orthogonal"], strict=True):
        site.layer.of("lora")[0].A.data.copy_(A)
    loop = fit_for(plain)
    loop.begin("0")
    plain.learn(STREAM[0], loop)
    assert set(spy.end) == {"orthogonal"}
    for site, (A, B) in zip(plain.sites, spy.end["orthogonal"], strict=True):
        branch = site.layer.of("lora")[0]
        assert torch.equal(A, branch.A)
        assert torch.equal(B, branch.B)
    assert torch.equal(spy.features, plain.features(pixels(method, STREAM[0])))  # type: ignore[attr-defined]
    assert torch.equal(method.heads[0].weight, plain.heads[0].weight)


def test_a_layer_where_nothing_is_free_stays_out_and_a_narrow_one_gets_a_narrow_branch() -> None:
    method, _ = taught(1)
    for site, left in zip(method.sites, (0, 2, None), strict=True):
        signature = method.signatures[site.name]
        if left is not None:
            eye = torch.eye(signature.width)
            free = signature.new_directions(torch.eye(signature.width), 1.0)
            extra = free[:, : free.shape[1] - left]
            signature.basis = torch.cat([signature.basis, extra], dim=1)
            signature.owner = torch.cat([signature.owner, torch.zeros(extra.shape[1], dtype=torch.int64)])
            assert float((signature.basis.T @ signature.basis - torch.eye(len(eye) - left)).abs().max()) < 1e-5
    before = [s.layer.weight.clone() for s in method.sites]
    spy = learn(method, STREAM[1])
    assert [A.shape[0] for A, _ in spy.end["orthogonal"]] == [0, 2, 4]
    assert torch.equal(method.sites[0].layer.weight, before[0])
    assert not torch.equal(method.sites[1].layer.weight, before[1])
    assert predicted(method, pixels(method, STREAM[1])).isfinite().all()


# R -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["prev", "all_prev"])
def test_r_lives_exactly_on_the_directions_it_may_read(residual: str) -> None:
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | {"residual": residual, "epochs": 6}))
    learn(method, STREAM[0])
    assert not method.sites[0].layer.of("residual-0")
    blocks = [method.signatures[s.name].block(0) for s in method.sites]
    spy = learn(method, STREAM[1])
    learned = 0
    for Phi, (A, B) in zip(blocks, spy.end["residual-1"], strict=True):
        assert len(A) == min(3, Phi.shape[1])
        if len(A):
            outside = torch.eye(len(Phi)) - Phi @ Phi.T
            assert float((B @ A @ outside).abs().max()) < 1e-6
            learned += int(float((B @ A).norm()) > 1e-3)
    assert learned >= 2


def test_the_reading_of_the_newest_block_keeps_residuals_of_different_tasks_apart(three: Any) -> None:
    method, spies = three
    R1, R2 = spies[1].end["residual-1"], spies[2].end["residual-2"]
    pairs = [(A1, A2) for (A1, _), (A2, _) in zip(R1, R2, strict=True) if A1.numel() and A2.numel()]
    assert pairs
    for A1, A2 in pairs:
        assert float(A1.norm()) > 0.1
        assert float((A1 @ A2.T).abs().max()) < 1e-6
    for site in method.sites:  # and what was learned stays as it was
        for branch, (A, B) in zip(site.layer.of("residual-1"), [R1[method.sites.index(site)]], strict=False):
            assert torch.equal(branch.A, A)
            assert torch.equal(branch.B, B)


def test_there_is_no_residual_in_the_first_task_nor_where_the_newest_block_is_empty(three: Any) -> None:
    method, spies = three
    assert set(spies[0].end) == {"orthogonal"}
    first = method.sites[0]  # before the first block all class tokens are equal: later tasks add nothing
    assert method.signatures[first.name].block(0).shape[1] == 1
    assert method.signatures[first.name].block(1).shape[1] == 0
    assert first.layer.of("residual-1")
    assert not first.layer.of("residual-2")
    assert method.sites[1].layer.of("residual-2")


# the gate ------------------------------------------------------------------------------------------------------------


def gates(method: DualLoRA, x: Tensor, number: int) -> list[Tensor]:
    """(n,) coefficients that residual `number` is given on each layer that has it, in a real pass."""
    seen: dict[str, Tensor] = {}
    names = {s.layer: s.name for s in method.sites}
    with watch(method.sites, lambda layer: lambda h: seen.update({names[layer]: h})), torch.no_grad():
        method.features(x)
    found = [(s, b) for s in method.sites for b in s.layer.of(f"residual-{number}")]
    return [b.gate(seen[s.name]) for s, b in found]  # type: ignore[operator]


def test_the_gate_is_the_normalised_similarity_with_the_tasks_own_block(three: Any) -> None:
    method, _ = three
    x = pixels(method, STREAM[0])
    seen: dict[str, Tensor] = {}
    names = {s.layer: s.name for s in method.sites}
    with watch(method.sites, lambda layer: lambda h: seen.update({names[layer]: h})), torch.no_grad():
        method.features(x)
    for site in method.sites[1:]:
        h, signature = seen[site.name][:, 0], method.signatures[site.name]
        Phi = signature.basis[:, signature.owner == 2]
        rho = (h @ Phi).norm(dim=1) / h.norm(dim=1)
        expected = (rho / signature.level[2]).clamp_max(1)
        gate = site.layer.of("residual-2")[0].gate
        torch.testing.assert_close(gate(seen[site.name]), expected, atol=1e-5, rtol=1e-5)  # type: ignore[operator,misc]


def test_gates_are_within_0_and_1_and_about_1_on_own_images() -> None:
    method, _ = taught(3, energy=0.99)
    own, old = pixels(method, STREAM[2]), pixels(method, STREAM[0])
    for mine, theirs in zip(gates(method, own, 2), gates(method, old, 2), strict=True):
        for gate in (mine, theirs):
            assert float(gate.min()) >= 0
            assert float(gate.max()) <= 1
        assert float(mine.mean()) > 0.85
        assert float(theirs.mean()) < float(mine.mean()) - 0.1  # closed, more or less, for the images of the first task


def test_an_image_far_from_the_task_is_spared_its_residual() -> None:
    """With rho = 0 on every layer the model answers as if the task's R were not there."""
    method, _ = taught(2)
    x = pixels(method, STREAM[0])[:3]
    open_features = method.features(x)
    for site in method.sites:
        signature = method.signatures[site.name]
        signature.level[1] = 1e9  # makes rho / rho_bar vanish
    closed = method.features(x)
    for site in method.sites:
        for branch in site.layer.of("residual-1"):
            branch.B.data.zero_()
    torch.testing.assert_close(closed, method.features(x), atol=1e-5, rtol=1e-5)
    assert float((open_features - closed).abs().max()) > 1e-3


def test_each_image_of_a_mixed_batch_has_its_own_gate(three: Any) -> None:
    method, _ = three
    x = torch.cat([pixels(method, data)[:2] for data in STREAM[:3]])
    alone = torch.cat([predicted(method, image[None]) for image in x])
    torch.testing.assert_close(predicted(method, x), alone, atol=1e-4, rtol=1e-4)
    first = gates(method, x, 2)[-1]
    assert len(first.unique()) > 1


def test_the_new_residual_trains_open_and_older_ones_as_at_test_time(three: Any) -> None:
    _, spies = three
    assert spies[1].gated == {"orthogonal": False, "residual-1": False}
    assert spies[2].gated == {"orthogonal": False, "residual-1": True, "residual-2": False}


def test_kinds_of_gates() -> None:
    raw, _ = taught(2, gate="cosine")
    off, _ = taught(2, gate="off")
    assert all(b.gate is None for s in off.sites for b in s.layer.of("residual-1"))
    x = pixels(raw, STREAM[1])
    for site, gate in zip(raw.sites, gates(raw, x, 1), strict=True):
        # The mean over a task's own images is its level, as it was measured when R was not yet gated.
        assert float(gate.mean()) == pytest.approx(float(raw.signatures[site.name].level[1]), abs=0.1)
        assert float(gate.max()) < 1


# R on the block of its own task --------------------------------------------------------------------------------------


def test_with_current_r_reads_its_own_block_under_one_gate_in_training_and_test() -> None:
    method, spies = taught(2, residual="current")
    assert [spy.gated for spy in spies] == [
        {"orthogonal": False, "residual-0": True},
        {"orthogonal": False, "residual-0": True, "residual-1": True},
    ]
    for i, site in enumerate(method.sites):
        signature, during = method.signatures[site.name], spies[1].bases[i]
        known = during.shape[1]  # of the bases when training began: those of task 0, its rest, and block 1
        assert torch.equal(signature.basis[:, :known], during)
        owners = signature.owner.tolist()
        assert sorted(set(owners[:known]) - {-1}) == sorted({0, 1} & set(owners))
        assert set(owners[known:]) <= {-1}  # what is protected after training is of no block, so the gate stays
        first = owners.index(1) if 1 in owners else len(owners)
        orthogonal, R = spies[1].end["orthogonal"][i], spies[1].end["residual-1"][i]
        Psi, Phi = signature.basis[:, :first], signature.block(1)
        if orthogonal[0].numel():
            assert float((orthogonal[1] @ orthogonal[0] @ Psi).abs().max()) < 1e-5
        if R[0].numel():
            outside = torch.eye(len(Phi)) - Phi @ Phi.T
            assert float((R[1] @ R[0] @ outside).abs().max()) < 1e-6
    assert any(float((B @ A).norm()) > 1e-3 for A, B in spies[1].end["residual-1"] if A.numel())


def test_the_level_of_the_gate_is_measured_before_training() -> None:
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | {"residual": "current"}))
    seen = recording(method)
    learn(method, STREAM[0])
    assert list(seen) == ["inputs-before", "inputs-after"]
    for name, inputs in seen["inputs-before"].items():
        signature, h = method.signatures[name], inputs.class_tokens
        rho = (h @ signature.block(0)).norm(dim=1) / h.norm(dim=1)
        assert float(rho.mean()) == pytest.approx(float(signature.level[0]), abs=1e-5)


@pytest.mark.parametrize("tokens", ["all", "class"])
def test_a_vector_gate_scales_each_direction_by_its_own_share(tokens: str) -> None:
    options = {"residual": "current", "gate": "vector", "tokens": tokens, "sites": ["out", "mlp"], "energy": 0.999}
    method, _ = taught(2, **options)
    x, checked = pixels(method, STREAM[0]), 0
    for site in method.sites:
        signature = method.signatures[site.name]
        for branch in site.layer.of("residual-1"):
            h = draw(6, 5, signature.width)
            first = signature.owner.tolist().index(1)
            Phi = signature.basis.double().numpy()[:, first : first + branch.rank]
            mean = signature.reach.double().numpy()[first : first + branch.rank]
            B, H = branch.B.double().numpy(), h.double().numpy()
            expected = np.zeros((6, 5, site.layer.weight.shape[0]))
            for i in range(6):
                share = np.abs(Phi.T @ H[i, 0]) / np.linalg.norm(H[i, 0])
                g = np.minimum(1, share / mean)
                for token in range(1 if tokens == "class" else 5):
                    expected[i, token] = B @ (g * (Phi.T @ H[i, token]))
            with using([site], "residual-1"), torch.no_grad():
                found = site.layer(h)
            with using([site]), torch.no_grad():
                found = (found - site.layer(h)).double().numpy()
            np.testing.assert_allclose(found, expected, atol=2e-6 * max(1.0, np.abs(expected).max()))
            checked += int(np.abs(expected).max() > 1e-4)
    assert checked >= 3
    again = configured(DualLoRA, tiny_backbone(), **(QUICK | options))
    restore_state(again, learned_state(method))
    assert torch.equal(predicted(again, x), predicted(method, x))


def test_the_share_of_a_direction_is_its_mean_over_the_tasks_own_images() -> None:
    options = {"residual": "current", "gate": "vector"}
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | options))
    seen = recording(method)
    for data in STREAM[:2]:
        learn(method, data)
        for name, inputs in seen["inputs-before"].items():
            signature, h = method.signatures[name], inputs.class_tokens
            own = signature.owner == data.id
            expected = ((h @ signature.basis).abs() / h.norm(dim=1, keepdim=True)).mean(0)[own]
            torch.testing.assert_close(signature.reach[own], expected, atol=1e-6, rtol=1e-5)
            assert signature.reach.shape == signature.owner.shape


def test_on_class_tokens_o_stays_as_a_branch_of_each_task_and_the_weights_stay() -> None:
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | {"tokens": "class", "sites": ["out", "mlp"]}))
    before = [s.layer.weight.clone() for s in method.sites]
    for data in STREAM[:2]:
        learn(method, data)
    assert all(torch.equal(s.layer.weight, W) for s, W in zip(method.sites, before, strict=True))
    assert set(method.sites[-1].layer.branches) == {"orthogonal-0", "orthogonal-1", "residual-1"}
    assert {b.tokens for s in method.sites for n in s.layer.branches for b in s.layer.of(n)} == {"class"}
    assert method.adapters_of(1) == ("orthogonal-1", "residual-1")


@pytest.mark.parametrize("form", ["add", "scale", "mix"])
def test_calibration_enters_by_the_form_that_is_chosen(three: Any, form: str) -> None:
    method, _ = three
    other = configured(DualLoRA, tiny_backbone(), **(QUICK | {"calibration_form": form}))
    restore_state(other, learned_state(method))
    x = pixels(method, STREAM[1])
    with torch.no_grad():
        found, plain = other.predict(x), other.heads(other.features(x))
    expected = Calibration(1.0, 0.1, form)(plain, other.signatures.scores(), [t for t in range(3) for _ in range(3)])
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, plain)


# scores, one pass, what is kept --------------------------------------------------------------------------------------


def test_strength_zero_is_exactly_the_uncalibrated_logits(three: Any) -> None:
    method, _ = three
    x = pixels(method, STREAM[1])
    with torch.no_grad():
        plain = method.heads(method.features(x))
        calibrated = method.predict(x)
        scores = method.signatures.scores()
    assert not torch.equal(calibrated, plain)
    pi = (scores / 0.1).softmax(1)
    top = pi.sort(1, descending=True).values
    for t in range(3):  # z + conf log pi, task by task
        expected = plain[:, 3 * t : 3 * t + 3] + ((top[:, 0] - top[:, 1]) * pi[:, t].log())[:, None]
        torch.testing.assert_close(calibrated[:, 3 * t : 3 * t + 3], expected, atol=1e-4, rtol=1e-4)
    off = configured(DualLoRA, tiny_backbone(), **(QUICK | {"calibration": 0}))
    restore_state(off, learned_state(method))
    assert torch.equal(predicted(off, x), plain)


def test_a_prediction_is_one_forward_pass(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method, _ = three
    calls: list[int] = []
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: (calls.append(len(x)), forward(self, x))[1])
    predicted(method, pixels(method, STREAM[0]))
    assert calls == [18]
    assert not any(site.layer.watchers for site in method.sites)


def test_the_chosen_task_is_the_one_with_the_best_score(three: Any) -> None:
    method, _ = three
    x = torch.cat([pixels(method, data)[:4] for data in STREAM[:3]])
    seen: dict[str, Tensor] = {}
    names = {s.layer: s.name for s in method.sites}
    with watch(method.sites, lambda layer: lambda h: seen.update({names[layer]: h[:, 0]})), torch.no_grad():
        method.features(x)
        chosen = method.choose_task(x)
    votes = [s.normalised(s.similarity(seen[name])) for name, s in ((n, method.signatures[n]) for n in seen)]
    assert torch.equal(chosen, torch.stack(votes).mean(0).argmax(1))
    assert chosen.shape == (12,)
    assert len(chosen.unique()) > 1


def test_a_class_that_comes_back_counts_for_its_last_task() -> None:
    method = configured(DualLoRA, tiny_backbone(), **QUICK)
    for data in (task(0, (0, 1)), task(1, (2, 0))):
        learn(method, data)
    x = pixels(method, task(0, (0, 1)))[:4]
    with torch.no_grad():
        difference = method.predict(x) - method.heads(method.features(x))
    assert method.classes == (0, 1, 2)
    torch.testing.assert_close(difference[:, 0], difference[:, 2], atol=1e-5, rtol=0)
    assert float((difference[:, 0] - difference[:, 1]).abs().max()) > 1e-3


@pytest.mark.parametrize("options", [{"residual": "prev"}, {"residual": "all_prev", "gate": "cosine"}, {"gate": "off"}])
def test_the_state_brings_gates_back_even_inside_a_part(options: dict[str, Any]) -> None:
    carried = Aligned(configured(DualLoRA, tiny_backbone(), **(QUICK | options)))
    scenario = stream(6, 3)
    learn_all(carried, scenario)
    again = Aligned(configured(DualLoRA, tiny_backbone(), **(QUICK | options)))
    restore_state(again, {k: v.clone() for k, v in learned_state(carried).items()})
    x = pixels(carried.base, STREAM[0])
    with torch.no_grad():
        assert torch.equal(again.base.features(x), carried.base.features(x))
        assert torch.equal(again.base.predict(x), carried.base.predict(x))
        # Carried by alignment, its own reading is still the calibrated one, from the same pass.
        assert torch.equal(carried.readouts(x)["base"], carried.base.predict(x))
    gated = [b.gate is not None for s in again.base.sites for b in s.layer.of("residual-2")]
    assert gated
    assert all(gated) is (options.get("gate") != "off")


def test_no_tensor_of_old_samples_is_kept() -> None:
    """Neither in the state, whose shapes do not follow the number of images, nor elsewhere in the method."""
    method, _ = taught(2)
    widths = {s.layer.weight.shape[1] for s in method.sites}
    for name, value in method.signatures.state_dict().items():
        assert value.shape in {(), (2,)} or value.shape[0] in widths or name.endswith("owner")
    assert not any(isinstance(v, Tensor | TensorSet | Task) for v in vars(method).values())
    with torch.no_grad():
        method.predict(pixels(method, STREAM[0])[:1])
    held = [v for r in method.signatures.readers.values() for v in vars(r).values() if isinstance(v, Tensor)]
    assert {tuple(v.shape) for v in held} == {(1, 2)}  # the last batch's similarities, nothing of the task's images


@pytest.mark.parametrize("basis", ["tokens", "attention_pooled"])
def test_other_bases_protect_what_they_name(basis: str) -> None:
    method, spies = taught(2, basis=basis, energy=0.7)
    plain, _ = taught(1, energy=0.7)
    for Psi, other in zip(spies[1].bases, plain.sites, strict=True):
        assert Psi.shape[1] >= plain.signatures[other.name].dimension
    assert spies[1].bases[0].shape[1] > 1  # patches differ before the first block, where class tokens do not
    assert predicted(method, pixels(method, STREAM[0])).isfinite().all()


def test_only_the_energy_of_the_rule_is_protected() -> None:
    """At least energy + (1 - energy) t / horizon of each task's class tokens, and not everything."""
    method = configured(DualLoRA, tiny_backbone(), **(QUICK | {"energy": 0.8, "horizon": 3}))
    seen = recording(method)
    for i, data in enumerate(STREAM[:3]):
        learn(method, data)
        for site in method.sites:
            H, Psi = seen["inputs-after"][site.name].class_tokens, method.signatures[site.name].basis
            share = float((H @ Psi).square().sum() / H.square().sum())
            assert share >= 0.8 + 0.2 * i / 3 - 1e-5
    assert min(method.signatures[s.name].dimension for s in method.sites) < 10


def test_one_training_step_lowers_the_loss_of_the_tasks_own_head_only() -> None:
    method = configured(DualLoRA, tiny_backbone(), **QUICK)
    learn(method, STREAM[0])
    before = {k: v.clone() for k, v in method.heads[0].state_dict().items()}
    losses: list[float] = []

    def fit(*args: Any, **options: Any) -> None:
        losses.extend(real(*args, **options))

    real = fit_for(method)
    fit.scan, fit.once = real.scan, False  # type: ignore[attr-defined]
    real.begin("1")
    method.epochs = 6
    method.learn(STREAM[1], fit)  # type: ignore[arg-type]
    assert losses[-1] < losses[0]
    assert all(torch.equal(v, before[k]) for k, v in method.heads[0].state_dict().items())
    assert isinstance(method.heads, Heads)
    x = pixels(method, STREAM[1])
    own = method.heads[1](method.features(x))
    assert float(F.cross_entropy(own, method.heads[1].columns(STREAM[1].train.labels))) < 1.1  # log 3 is chance


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number"),
        ({"residual": "next"}, "residual 'next' is unknown; use one of prev, all_prev, current, none"),
        ({"gate": "raw"}, "gate 'raw' is unknown"),
        ({"basis": "patches"}, "basis 'patches' is unknown"),
        ({"head_start": "one"}, "head_start 'one' is unknown"),
        ({"tokens": "patches"}, "tokens 'patches' is unknown; use one of all, class"),
        ({"gate": "vector"}, "gate 'vector' is for the directions of residual 'current', but residual is 'prev'"),
        ({"calibration_form": "times"}, "calibration form 'times' is unknown"),
        ({"orthogonal": False, "residual": "none"}, "nothing is adapted"),
        ({"energy": 2.0}, "energy 2.0 is outside"),
        ({"horizon": 0}, "horizon 0 is too small"),
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"calibration": -1.0}, "strength -1.0 must not be negative"),
        ({"schedule": "linear"}, "schedule 'linear' is unknown"),
    ],
)
def test_bad_settings_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        configured(DualLoRA, tiny_backbone(), **options)
