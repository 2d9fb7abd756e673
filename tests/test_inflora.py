"""What InfLoRA's paper promises, and how its numbers are counted."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import configured, fit_for, images, tiny_backbone
from torch import Tensor, nn

from lamella.adapters.adapter import watch
from lamella.backbones import load_backbone
from lamella.common.randomness import generator
from lamella.data.images import ImageSet, TensorSet
from lamella.data.scenario import Task
from lamella.data.transform import plain_view
from lamella.memory.subspace import SecondMoment, Subspace, orthonormal
from lamella.methods.inflora import InfLoRA
from lamella.methods.shared.free_directions import EnergyRule
from lamella.training.fit import Fit
from lamella.training.schedules import SCHEDULES

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "lr": 0.02, "rank": 4, "blocks": 2}


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def frame(d: int, k: int, name: str = "frame") -> Tensor:
    return orthonormal(draw(d, k, name=name))


def moment(spectrum: list[float], d: int = 24, name: str = "moment") -> Tensor:
    """A second moment with these eigenvalues."""
    Q = frame(d, len(spectrum), name)
    return Q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ Q.T


def task(i: int, classes: tuple[int, ...]) -> Task:
    every = images(12, 4, "train")
    index = torch.isin(every.labels, torch.tensor(classes)).nonzero()[:, 0]
    return Task(i, f"task {i}", classes, tuple(map(str, classes)), every.subset(index))


def inputs(method: InfLoRA, data: ImageSet | TensorSet) -> dict[str, Tensor]:
    """(tokens, d) inputs of every adapted layer."""
    seen: dict[str, list[Tensor]] = {site.name: [] for site in method.sites}
    names = {site.layer: site.name for site in method.sites}
    fit = Fit(method, method.backbone.transform, device="cpu")
    with watch(method.sites, lambda layer: seen[names[layer]].append):
        fit.scan(data, lambda x, y: method.features(x))
    return {name: torch.cat([x.flatten(0, -2) for x in parts]) for name, parts in seen.items()}


def spaces(method: InfLoRA) -> list[Subspace]:
    return [space for space in method.memory.values() if isinstance(space, Subspace)]


class Spy:
    """A fit that runs the real one and looks at the branches while they are there."""

    once = False

    def __init__(self, method: InfLoRA, **options: Any) -> None:
        self.method, self.fit, self.A, self.dW, self.ranks = method, fit_for(method, **options), [], [], []
        self.scan = self.fit.scan

    def __call__(self, *args: Any, **options: Any) -> Any:
        branches = [b for site in self.method.sites for b in site.layer.of("new")]
        self.ranks = [b.rank for b in branches]
        self.A = [b.A.clone() for b in branches]
        result = self.fit(*args, **options)
        self.dW = [b.delta(s.layer.weight.shape) for b, s in zip(branches, self.method.sites, strict=True)]
        return result


def learn(method: InfLoRA, i: int, classes: tuple[int, ...]) -> Spy:
    spy = Spy(method)
    spy.fit.begin(str(i))
    method.learn(task(i, classes), spy)  # type: ignore[arg-type]
    return spy


# the paper's claims on a real ViT ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["moment", "inputs"])
def taught(request: pytest.FixtureRequest) -> tuple[InfLoRA, list[Tensor], Spy, list[Tensor]]:
    """InfLoRA after two tasks: the memory before the second, what the second did, the weights before it."""
    method = configured(InfLoRA, tiny_backbone(), design=request.param, **QUICK)
    learn(method, 0, (0, 1, 2))
    protected = [space.inside(torch.eye(space.width)) for space in spaces(method)]
    weights = [site.layer.weight.clone() for site in method.sites]
    return method, protected, learn(method, 1, (3, 4, 5)), weights


def test_rows_of_a_are_orthogonal_to_the_memory_and_have_their_norm(taught: Any) -> None:
    _, protected, spy, _ = taught
    assert len(spy.A) == 2
    for A, P in zip(spy.A, protected, strict=True):
        assert float(P.trace()) > 0.99
        assert float((A @ P).abs().max()) < 1e-6
        assert torch.allclose(A @ A.T, torch.eye(4) / 3, atol=1e-6)


def test_the_update_does_nothing_on_the_memorys_span(taught: Any) -> None:
    method, protected, spy, before = taught
    for dW, P, site, weight in zip(spy.dW, protected, method.sites, before, strict=True):
        assert float(dW.abs().max()) > 1e-3  # it did learn
        assert float((dW @ P).abs().max()) < 1e-5
        full = site.layer.weight - weight  # what was merged: key and value rows only
        assert torch.equal(full[: site.rows.start], torch.zeros_like(full[: site.rows.start]))
        assert torch.allclose(full[site.rows], dW, atol=1e-6)
        assert not site.layer.branches


def test_the_rows_of_the_update_lie_in_the_span_of_a(taught: Any) -> None:
    _, _, spy, _ = taught
    for A, dW in zip(spy.A, spy.dW, strict=True):
        onto = 3 * A.T @ A
        assert torch.allclose(dW @ onto, dW, atol=1e-6)


def test_memory_grows_and_never_exceeds_half_the_width(taught: Any) -> None:
    method, protected, _, _ = taught
    for space, P in zip(spaces(method), protected, strict=True):
        assert space.dimension > round(float(P.trace()))
        assert 2 * space.vectors.shape[1] <= space.width
        assert torch.allclose(space.inside(P), P, atol=1e-5)  # what was protected stays protected


def test_one_sgd_step_on_b_is_the_projected_step_on_w_with_a_third_of_the_rate() -> None:
    backbone = load_backbone("fractal-vit-micro", weights="random")
    method = configured(
        InfLoRA, backbone, **(QUICK | {"batch_size": 64, "optimizer": "sgd", "lr": 0.3, "schedule": "constant"})
    )
    learn(method, 0, (0, 1))
    data, before = task(1, (2, 3)), [site.layer.weight.clone() for site in method.sites]
    twin = configured(InfLoRA, backbone, **QUICK)  # the same merged backbone, for the gradient of W itself
    head = type(method.heads)(backbone.width).grow(data.classes, generator(0, "head", 1))
    x = data.train.batch(torch.arange(len(data.train)), plain_view(backbone.transform))
    weights = [site.layer.weight.requires_grad_(True) for site in twin.sites]
    loss = F.cross_entropy(head(twin.features(x)), head.columns(data.train.labels))
    gradients = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    spy = Spy(method)
    spy.fit.augmentation = None
    method.learn(data, spy)  # type: ignore[arg-type]
    for site, A, G, weight in zip(method.sites, spy.A, gradients, before, strict=True):
        onto = torch.linalg.pinv(A) @ A  # the orthogonal projection onto the span of A's rows
        step = -(0.3 / 3) * G[site.rows] @ onto
        assert float(step.abs().max()) > 1e-5
        assert torch.allclose((site.layer.weight - weight)[site.rows], step, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("energy_of", ["moment", "data"])
def test_the_protected_share_reaches_the_threshold_from_the_second_task_on(energy_of: str) -> None:
    method = configured(InfLoRA, tiny_backbone(), horizon=3, energy=0.9, energy_of=energy_of, **QUICK)
    for i in range(3):
        state: dict[str, Tensor] = {}
        scanned = method.moments_of

        def keep(task: Task, fit: Fit, name: str, scanned: Any = scanned, state: Any = state) -> dict[str, Tensor]:
            found = scanned(task, fit, name)
            state.update(found)  # the last call is the one that the memory is extended by
            return found

        method.moments_of = keep  # type: ignore[method-assign]
        learn(method, i, (3 * i, 3 * i + 1, 3 * i + 2))
        method.moments_of = scanned  # type: ignore[method-assign]
        for space, G in zip(spaces(method), state.values(), strict=True):
            G = G.double()
            inside = space.inside(G)
            if energy_of == "moment":
                share = float(inside.square().sum() / G.square().sum())
            else:
                share = float(space.inside(inside.T).trace() / G.trace())
            assert 2 * space.vectors.shape[1] <= space.width
            assert (share < 0.9) if i == 0 else (share >= 0.9 + 0.1 * i / 3 - 1e-6)


def test_unequal_tasks_and_a_class_that_comes_back() -> None:
    method = configured(InfLoRA, tiny_backbone(), **QUICK)
    for i, classes in enumerate([(0, 1, 2, 3), (4,), (5, 1)]):
        learn(method, i, classes)
    assert method.classes == (0, 1, 2, 3, 4, 5)
    x = torch.randn(2, 3, 32, 32, generator=generator(0, "x"))
    logits = method.predict(x)
    assert torch.equal(logits[:, [5, 1]], method.heads[2](method.features(x)))
    assert torch.equal(logits[:, [0, 2, 3]], method.heads[0](method.features(x))[:, [0, 2, 3]])
    assert method.predict(x, (4, 0)).argmax(1).lt(5).all()


def test_nothing_free_is_a_clear_error_and_leaves_the_method_as_it_was() -> None:
    method = configured(InfLoRA, tiny_backbone(), **QUICK)
    learn(method, 0, (0, 1))
    for space in spaces(method):
        space.extend(torch.eye(space.width))
    state = {k: v.clone() for k, v in method.state_dict().items()}
    with pytest.raises(RuntimeError, match="old tasks protect all directions of every adapted layer"):
        learn(method, 1, (2, 3))
    assert state.keys() == method.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())


def test_layers_whose_inputs_are_zero_are_told_from_layers_without_room() -> None:
    method = configured(InfLoRA, tiny_backbone(), **QUICK)
    for site in method.sites:
        site.layer.register_forward_pre_hook(lambda _, x: (torch.zeros_like(x[0]),))
    with torch.no_grad():
        for name, parameter in method.backbone.model.named_parameters():
            if "norm1" in name:  # what the attention reads
                parameter.zero_()
    with pytest.raises(RuntimeError, match="the inputs of every adapted layer are zero"):
        learn(method, 0, (0, 1))


def test_a_full_layer_stays_out_and_the_others_learn() -> None:
    method = configured(InfLoRA, tiny_backbone(), **QUICK)
    learn(method, 0, (0, 1))
    spaces(method)[0].extend(torch.eye(spaces(method)[0].width))
    before = [site.layer.weight.clone() for site in method.sites]
    spy = fit_for(method)
    method.learn(task(1, (2, 3)), spy)
    assert torch.equal(method.sites[0].layer.weight, before[0])
    assert not torch.equal(method.sites[1].layer.weight, before[1])


# the design of A -----------------------------------------------------------------------------------------------------


def designer(**options: Any) -> InfLoRA:
    return configured(InfLoRA, tiny_backbone(), **(QUICK | options))


def filled(d: int, k: int, name: str = "held") -> tuple[Subspace, Tensor]:
    space, held = Subspace(d), frame(d, k, name)
    space.extend(held.float())
    return space, held


@pytest.mark.parametrize("k", [5, 16])
def test_the_two_designs_are_the_documented_singular_vectors(k: int) -> None:
    space, held = filled(24, k)
    G = moment([5.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.4, 0.3, 0.2])
    P = torch.eye(24, dtype=torch.float64) - held @ held.T
    code, paper = (torch.linalg.svd(M)[0][:, :4] for M in (P @ G, P @ G @ P))
    designs = {}
    for design, expected in (("moment", code), ("inputs", paper)):
        U = designs[design] = designer(design=design).free_directions(G, space)
        assert U.shape == (24, 4)
        assert float((U.T @ U - torch.eye(4)).abs().max()) < 1e-9
        assert float((U @ U.T - expected @ expected.T).abs().max()) < 1e-5
    first, second = designs.values()
    assert float((first @ first.T - second @ second.T).abs().max()) > 0.02


def test_the_first_design_takes_the_leading_directions_of_the_inputs() -> None:
    G = moment([5.0, 4.0, 3.0, 2.0, 1.0])
    U = designer().free_directions(G.float(), Subspace(24))
    expected = torch.linalg.eigh(G)[1][:, -4:]
    assert float((U @ U.T - expected @ expected.T).abs().max()) < 1e-5


@pytest.mark.parametrize("design", ["moment", "inputs"])
def test_the_rank_is_clamped_where_the_free_moment_has_less(design: str) -> None:
    """56 directions are free, but the task's inputs reach only 4 of them: rows 5 to 10 would leave the free space."""
    space, held = filled(64, 8)
    free = orthonormal(space.outside(draw(64, 4, name="free")))
    reach = torch.cat([held, free], dim=1)
    X = reach @ draw(12, 300, name="inputs")
    U = designer(rank=10, design=design).free_directions((X @ X.T / 300).float(), space)
    assert U.shape == (64, 4)
    assert float((held.T @ U).abs().max()) < 1e-5
    assert float((U @ U.T - free @ free.T).abs().max()) < 1e-3


def test_the_rank_is_clamped_where_fewer_directions_are_free() -> None:
    space, held = filled(24, 18)
    U = designer(rank=10).free_directions(moment([1.0] * 24), space)
    assert U.shape == (24, 6)
    assert float((held.T @ U).abs().max()) < 1e-6
    space.extend(torch.eye(24))
    assert designer(rank=10).free_directions(moment([1.0] * 24), space).shape == (24, 0)


# the energy rule -----------------------------------------------------------------------------------------------------

SPECTRUM = [4.0, 2.0, 1.0, 0.5, 0.25]
# Cumulated shares of the squares (which sum to 21.3125): .7507 .9384 .9853 .9971 1; of the values: .516 .774 .903 .968


@pytest.mark.parametrize(
    ("energy", "energy_of", "first", "later"),
    [
        (0.70, "moment", 1, 1), (0.76, "moment", 1, 2), (0.93, "moment", 1, 2), (0.95, "moment", 2, 3),
        (0.99, "moment", 3, 4), (0.50, "data", 1, 1), (0.60, "data", 1, 2), (0.90, "data", 2, 3), (0.95, "data", 3, 4),
    ],
)  # fmt: skip
def test_directions_are_counted_by_hand(energy: float, energy_of: str, first: int, later: int) -> None:
    """The first task keeps one direction fewer than the later rule would, at least one."""
    rule, G = EnergyRule(energy, energy_of, None), moment(SPECTRUM)
    for is_first, count in ((True, first), (False, later)):
        space = Subspace(24)
        rule.protect(space, G, 0 if is_first else 1, first=is_first)
        assert space.dimension == count
        leading = frame(24, 5, "moment")[:, :count]
        assert float((space.inside(leading) - leading).abs().max()) < 1e-5


@pytest.mark.parametrize("energy_of", ["moment", "data"])
@pytest.mark.parametrize("held", [3, 16])
def test_a_later_task_adds_as_few_directions_as_reach_the_threshold(energy_of: str, held: int) -> None:
    space, basis = filled(24, held)
    G = moment([0.8**i for i in range(24)])
    rule = EnergyRule(0.9, energy_of, 4)
    rule.protect(space, G, 2, first=False)
    # Independently: explicit projections and singular values, one direction after the other.
    P = torch.eye(24, dtype=torch.float64) - basis @ basis.T
    M, whole = (P @ G, G.square().sum()) if energy_of == "moment" else (P @ G @ P, G.trace())
    U, s, _ = torch.linalg.svd(M)
    power = s.square() if energy_of == "moment" else s
    count = next(k for k in range(25) if 1 - power[k:].sum() / whole >= 0.95)
    assert 0 < count < 24 - held
    assert space.dimension == held + count
    expected = basis @ basis.T + U[:, :count] @ U[:, :count].T
    assert float((space.inside(torch.eye(24).double()) - expected).abs().max()) < 1e-5
    assert space.complement == (2 * (held + count) > 24)


def test_a_task_that_brings_nothing_new_adds_nothing() -> None:
    space, basis = filled(24, 4)
    EnergyRule(0.95, "moment", None).protect(space, basis @ basis.T, 1, first=False)
    assert space.dimension == 4


@pytest.mark.parametrize(("energy_of", "energy"), [("moment", 1.0), ("data", 1 - 1e-6)])
def test_full_energy_protects_exactly_what_was_seen(energy_of: str, energy: float) -> None:
    space, basis = filled(24, 4)
    new = orthonormal(space.outside(draw(24, 3, name="new")))
    EnergyRule(energy, energy_of, None).protect(space, basis @ basis.T + new @ new.T, 1, first=False)
    assert space.dimension == 7
    assert float((space.inside(new) - new).abs().max()) < 1e-5


def test_a_first_task_that_needs_more_than_half_stores_its_complement() -> None:
    """The authors' code stores the wrong space here."""
    G, space = moment([1.0] * 20), Subspace(24)
    EnergyRule(0.8, "moment", None).protect(space, G, 0, first=True)
    assert space.complement
    assert space.dimension == 15
    protected = space.inside(torch.eye(24).double())
    assert float(protected.trace()) == pytest.approx(15, abs=1e-4)
    assert torch.allclose(G @ protected, protected, atol=1e-5)  # within what the task spans, not outside of it
    A = designer().free_directions(G, space)
    assert float((protected @ A).abs().max()) < 1e-6


def test_the_threshold_grows_with_a_horizon_and_is_constant_without() -> None:
    rule = EnergyRule(0.95, "moment", 10)
    assert [rule.threshold(t) for t in (0, 1, 9, 10, 50)] == pytest.approx([0.95, 0.955, 0.995, 1.0, 1.0])
    assert [EnergyRule(0.95, "moment", None).threshold(t) for t in (0, 7, 1000)] == [0.95] * 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"energy": 0.0}, "energy 0.0 is outside"),
        ({"energy": 95}, "energy 95 is outside"),
        ({"energy_of": "inputs"}, "energy_of 'inputs' is unknown"),
        ({"horizon": 0}, "horizon 0 is too small"),
        ({"design": "data"}, "design 'data' is unknown"),
        ({"rank": 0}, "rank is 0; it must be a whole number"),
        ({"statistics_images": 0}, "statistics_images 0 is too small"),
    ],
)
def test_bad_settings_are_refused_at_once(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        designer(**options)


# schedules, and the scan ---------------------------------------------------------------------------------------------


def test_schedules_have_the_specified_values() -> None:
    run, meant = SCHEDULES["inflora-code"], SCHEDULES["inflora"]
    assert [run(e, 5) for e in range(5)] == pytest.approx([1, 1, 0.925, 0.713, 0.393], abs=1e-3)
    assert [meant(e, 5) for e in range(5)] == pytest.approx([1, 0.925, 0.713, 0.393, 0.016], abs=1e-3)
    assert meant(19, 20) == pytest.approx(0.0157, abs=1e-4)  # whatever the number of epochs
    assert [f(0, 1) for f in (run, meant, SCHEDULES["constant"])] == [1.0, 1.0, 1.0]
    assert SCHEDULES["constant"](7, 20) == 1.0


def test_moments_are_those_of_the_layers_inputs() -> None:
    method = designer()
    fit = fit_for(method)
    fit.augmentation = None
    data = task(0, (0, 1))
    moments = method.moments_of(data, fit, "moment")
    for name, x in inputs(method, data.train).items():
        assert torch.allclose(moments[name], x.T @ x / len(x), atol=1e-5)
    observed = SecondMoment(4)
    observed(torch.eye(4))
    assert isinstance(observed, nn.Module)  # so that `fit` can keep its state through an interruption


def test_moments_may_be_those_of_fewer_images_drawn_anew_for_each_pass() -> None:
    method, seen = designer(statistics_images=3), []
    fit = fit_for(method)
    scan = fit.scan

    def count(data: Any, *args: Any, **options: Any) -> None:
        seen.append(data.keys)
        scan(data, *args, **options)

    fit.scan = count  # type: ignore[method-assign]
    data = task(0, (0, 1))
    for name in ("moment-before", "moment-after", "moment-before"):
        method.moments_of(data, fit, name)
    assert [len(keys) for keys in seen] == [3, 3, 3]
    assert set(seen[0]) <= set(data.train.keys)
    assert seen[0] == seen[2] != seen[1]


def test_blocks_and_sites_choose_the_layers() -> None:
    depth = len(configured(InfLoRA, tiny_backbone()).sites)
    assert len(designer(blocks=1).sites) == 1 < depth
    apart = designer(sites=("key", "value"), blocks=1)
    assert [s.rows.stop - s.rows.start for s in apart.sites] == [64, 64]
    assert len(apart.memory) == 1  # one input, one memory
