"""Branches: nothing changes until they are trained, and every way of computing them gives the explicit update."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import draw
from torch import Tensor, nn

from lamella.adapters.adapter import (
    AdaptedConv2d,
    AdaptedLinear,
    Branch,
    Site,
    adapt,
    adapter_state,
    grow,
    merge,
    using,
    watch,
)
from lamella.adapters.branches import adapter_names
from lamella.common.randomness import generator

D = 12  # width of the small model: qkv maps D -> 3 D


class Small(nn.Module):
    """A fused qkv, a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)
        self.norm = nn.LayerNorm(3 * D)
        self.out = nn.Linear(3 * D, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.qkv(x)))


def small(seed: int = 0) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Small().requires_grad_(False)


def fill(branches: list[Branch], name: str = "fill") -> list[Branch]:
    """Random A and B, as if trained."""
    for i, branch in enumerate(branches):
        branch.A.data.copy_(draw(*branch.A.shape, name=f"{name}{i}A") * 0.3)
        branch.B.data.copy_(draw(*branch.B.shape, name=f"{name}{i}B") * 0.3)
    return branches


def adapted(rows: slice = slice(None), rank: int = 3, name: str = "a", **options: object) -> tuple[Small, Site, Branch]:
    model = small()
    (site,) = adapt(model, "qkv", rows)
    (branch,) = fill(grow([site], name, rank, **options), name)  # type: ignore[arg-type]
    return model, site, branch


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and float((a - b).detach().abs().max()) < tolerance


# adapt and grow ------------------------------------------------------------------------------------------------------


def test_adapting_changes_no_output_no_key_and_no_parameter_object() -> None:
    model, x = small(), draw(4, 7, D)
    before, keys, parameters = model(x), list(model.state_dict()), dict(model.named_parameters())
    sites = adapt(model, ["qkv", "out"])
    assert [type(s.layer) for s in sites] == [AdaptedLinear, AdaptedLinear]
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert len(dict(model.named_parameters())) == len(parameters)


def test_adapting_keeps_the_mode_the_missing_bias_and_what_requires_gradients() -> None:
    model = small().eval()
    model.out.weight.requires_grad_(True)
    (site,) = adapt(model, "out")
    assert not site.layer.training
    assert model.out.bias is None
    assert site.layer.weight.requires_grad


def test_adapting_twice_gives_the_same_layer() -> None:
    model, site, _ = adapted()
    (again,) = adapt(model, "qkv", slice(D, None))
    assert again.layer is site.layer
    assert again.rows == slice(D, 3 * D)
    assert again.layer.of("a")


def test_sites_come_once_each_and_in_the_models_order() -> None:
    assert [s.name for s in adapt(small(), ["out", "q*", "qkv"])] == ["qkv", "out"]


def test_a_layer_that_hangs_in_the_model_twice_carries_branches_on_both_ways() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.ReLU())
    model.append(model[0])
    sites = adapt(model, "0")
    fill(grow(sites, "a", 2))
    assert model[2] is model[0] is sites[0].layer


@pytest.mark.parametrize("rows", [slice(None), slice(D, None), slice(2, 5)])
def test_a_grown_branch_changes_nothing(rows: slice) -> None:
    model, x = small(), draw(4, D)
    before = model(x)
    grow(adapt(model, "qkv", rows), "new", 4, generator=generator(0, "A"))
    assert torch.equal(model(x), before)


def test_a_grown_branch_learns_and_only_its_rows_move() -> None:
    model, x = small(), draw(4, D)
    sites = adapt(model, "qkv", slice(D, 2 * D))
    (branch,) = grow(sites, "new", 4, generator=generator(0, "A"))
    before = model.qkv(x)
    branch.B.requires_grad_(True)
    model.qkv(x).square().sum().backward()
    assert branch.B.grad is not None
    assert branch.B.grad.abs().max() > 0
    with torch.no_grad():
        branch.B -= 0.1 * branch.B.grad
    moved = (model.qkv(x) - before).abs().amax(0) > 0
    assert moved[D : 2 * D].all()
    assert not moved[:D].any()
    assert not moved[2 * D :].any()


def test_a_starts_as_loras_does() -> None:
    layer = nn.Sequential(nn.Linear(400, 8))
    (branch,) = grow(adapt(layer, "0"), "a", 50, generator=generator(0, "A"))
    bound = 400**-0.5
    assert 0.99 * bound < float(branch.A.abs().max()) <= bound
    assert abs(float(branch.A.std()) - bound / 3**0.5) < 0.02 * bound
    assert float(branch.B.abs().max()) == 0


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("qvk", "no layer matches 'qvk'; names look like 'qkv'"), ("blocks.*.attn", "no layer matches 'blocks.*.attn'")],
)
def test_an_unknown_layer_is_refused_with_near_names(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match="no layer matches") as error:
        adapt(small(), pattern)
    assert text in str(error.value)


def test_only_exact_types_are_adapted() -> None:
    attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(TypeError, match="NonDynamicallyQuantizableLinear"):
        adapt(attention, "out_proj")
    with pytest.raises(TypeError, match="grouped convolution"):
        adapt(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "0")
    with pytest.raises(TypeError, match="LayerNorm"):
        adapt(small(), "norm")


def test_a_refused_layer_leaves_the_model_as_it_was() -> None:
    model = small()
    with pytest.raises(TypeError):
        adapt(model, ["qkv", "norm"])
    assert type(model.qkv) is nn.Linear


@pytest.mark.parametrize("rows", [slice(40, 50), slice(30, 37), slice(5, 5), slice(0, 10, 2)])
def test_rows_outside_the_layer_are_refused(rows: slice) -> None:
    with pytest.raises(ValueError, match="36 output rows"):
        adapt(small(), "qkv", rows)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="adapter name"):
        grow(adapt(small(), "qkv"), name, 2)


def test_growing_refuses_a_taken_name_and_bad_ranks() -> None:
    _, site, _ = adapted()
    with pytest.raises(ValueError, match="an adapter 'a' already"):
        grow([site], "a", 2)
    with pytest.raises(ValueError, match="rank 0"):
        grow([site], "b", 0)
    with pytest.raises(ValueError, match="rank 9999999 is too large; the widest of these layers has"):
        grow([site], "b", 9999999)
    with pytest.raises(ValueError, match="2 ranks were given for 1 sites"):
        grow([site], "b", [1, 2])
    with pytest.raises(ValueError, match="no factorisation 'kernel'"):
        grow([site], "b", 2, factorisation="kernel")
    assert "b" not in site.layer.branches


# several branches, and merging ---------------------------------------------------------------------------------------


def test_branches_on_equal_and_different_rows_add_up() -> None:
    model, x = small(), draw(2, 3, D)
    plain = model.qkv(x)
    places = [slice(0, D), slice(D, 3 * D), slice(D, 3 * D), slice(6, 20), slice(None)]
    expected = plain.clone()
    for i, rows in enumerate(places):
        (branch,) = fill(grow(adapt(model, "qkv", rows), f"n{i}", 1 + i, scale=0.5 + i), f"n{i}")
        expected[..., branch.rows] += (0.5 + i) * x @ branch.A.T @ branch.B.T
    assert close(model.qkv(x), expected)
    assert not close(model.qkv(x), plain, 1e-2)


def test_one_adapter_may_have_several_branches_on_one_layer() -> None:
    model, x = small(), draw(2, D)
    query, value = adapt(model, "qkv", slice(0, D)) + adapt(model, "qkv", slice(2 * D, None))
    q, v = fill(grow([query, value], "lora", [2, 3]))
    expected = model.qkv.weight.clone()
    expected[:D] += q.B @ q.A
    expected[2 * D :] += v.B @ v.A
    assert close(model.qkv(x), F.linear(x, expected, model.qkv.bias))
    assert query.layer.of("lora") == [q, v]


def test_a_branch_on_key_and_value_is_two_branches_with_the_same_a() -> None:
    model, _, both = adapted(slice(D, 3 * D))
    other, x = small(), draw(5, D)
    key, value = adapt(other, "qkv", slice(D, 2 * D)) + adapt(other, "qkv", slice(2 * D, None))
    k, v = grow([key, value], "a", 3)
    for branch in (k, v):
        branch.A.data.copy_(both.A)
    k.B.data.copy_(both.B[:D])
    v.B.data.copy_(both.B[D:])
    assert close(model.qkv(x), other.qkv(x), 1e-6)


def test_ten_branches_merged_stacked_and_one_by_one_agree() -> None:
    model, x = small(), draw(8, 5, D)
    site = adapt(model, "qkv", slice(D, None))[0]
    plain = model.qkv(x)
    for i in range(10):
        fill(grow([site], f"t{i}", 1 + i % 4), f"t{i}")
    stacked = model.qkv(x)
    alone = plain.clone()
    for i in range(10):
        with using([site], f"t{i}"):
            alone += model.qkv(x) - plain
    for i in range(10):
        merge([site], f"t{i}")
    assert not close(stacked, plain, 0.1)
    assert close(stacked, alone)
    assert close(stacked, model.qkv(x))


def test_adapter_keys_are_exactly_those_with_branches_and_merging_removes_them() -> None:
    model = small()
    keys = list(model.state_dict())
    sites = adapt(model, ["qkv", "out"])
    fill(grow(sites, "a", 2) + grow(sites, "b", 2))
    mine = [k for k in model.state_dict() if ".branches." in k]
    assert sorted(mine) == sorted(set(model.state_dict()) - set(keys))
    assert sorted(adapter_state(sites, "a")) == sorted(k for k in mine if ".branches.a." in k)
    merge(sites, "a")
    assert all(".branches.b." in k for k in set(model.state_dict()) - set(keys))
    merge(sites, "b")
    assert list(model.state_dict()) == keys
    with pytest.raises(ValueError, match="no adapter 'b' to merge"):
        merge(sites, "b")


def test_merging_keeps_the_parameter_object_and_works_on_trainable_weights() -> None:
    model, site, branch = adapted(slice(D, None))
    weight = model.qkv.weight.requires_grad_(True)
    expected = weight.detach().clone()
    expected[D:] += branch.B @ branch.A
    merge([site], "a")
    assert model.qkv.weight is weight
    assert weight.requires_grad
    assert close(weight, expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_merged_through_float32(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    (site,) = adapt(model, "qkv")
    (branch,) = fill(grow([site], "a", 8, scale=0.3))
    exact = model.qkv.weight.float() + 0.3 * branch.B.float() @ branch.A.float()
    merge([site], "a")
    assert model.qkv.weight.dtype == dtype
    assert torch.equal(model.qkv.weight, exact.to(dtype))


def test_double_weights_lose_nothing_in_a_merge() -> None:
    model = small().double()
    (site,) = adapt(model, "qkv")
    (branch,) = fill(grow([site], "a", 2, scale=1 / 3))
    exact = model.qkv.weight + branch.B @ branch.A / 3
    merge([site], "a")
    assert float((model.qkv.weight - exact).abs().max()) < 1e-15


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_not_plain_floats_are_not_merged(dtype: torch.dtype) -> None:
    model = small()
    sites = adapt(model, ["qkv", "out"])
    fill(grow(sites, "a", 2))
    model.out.weight = nn.Parameter(model.out.weight.data.to(dtype), requires_grad=False)
    before = model.qkv.weight.clone()
    with pytest.raises(TypeError, match=r"layer 'out' has a torch\.\w+ weight"):
        merge(sites, "a")
    assert torch.equal(model.qkv.weight, before)  # all layers or none
    assert all(site.layer.of("a") for site in sites)


def test_sparse_weights_are_not_merged() -> None:
    model, site, _ = adapted()
    model.qkv.weight = nn.Parameter(model.qkv.weight.data.to_sparse(), requires_grad=False)
    with pytest.raises(TypeError, match="dense"):
        merge([site], "a")


def test_gated_branches_are_not_merged() -> None:
    _, site, branch = adapted()
    branch.gate = lambda x: x.mean(-1)
    with pytest.raises(ValueError, match="gated on layer 'qkv'"):
        merge([site], "a")
    assert site.layer.of("a")


# coefficients --------------------------------------------------------------------------------------------------------


def update(branch: Branch, x: Tensor) -> Tensor:
    return x @ branch.A.T @ branch.B.T * branch.scale


@pytest.mark.parametrize("number", [0.0, -1.5, 0.25, 2])
def test_a_number_scales_a_branch(number: float) -> None:
    model, site, branch = adapted(scale=0.7)
    x = draw(4, 6, D)
    plain = F.linear(x, model.qkv.weight, model.qkv.bias)
    with using([site], {"a": number}):
        assert close(model.qkv(x), plain + number * update(branch, x))
        if number == 0:
            assert torch.equal(model.qkv(x), plain)


@pytest.mark.parametrize("shape", [(4, D), (4, 6, D), (4, 2, 3, D), (1, 6, D)])
def test_a_coefficient_a_sample_is_separate_passes(shape: tuple[int, ...]) -> None:
    model, site, _ = adapted(slice(D, None), scale=0.7)
    fill(grow([site], "b", 2), "b")
    x, c = draw(*shape), draw(shape[0], name="c")
    with using([site], {"a": c, "b": -0.5}):
        together = model.qkv(x)
    for i in range(len(x)):
        with using([site], {"a": float(c[i]), "b": -0.5}):
            assert close(together[i : i + 1], model.qkv(x[i : i + 1]), 1e-6)


def test_a_coefficient_may_be_a_function_of_the_layers_input() -> None:
    model, site, branch = adapted()
    x = draw(4, 6, D)
    with using([site], {"a": lambda z: z.mean((1, 2))}):
        y = model.qkv(x)
    plain = F.linear(x, model.qkv.weight, model.qkv.bias)
    assert close(y, plain + x.mean((1, 2))[:, None, None] * update(branch, x))


def test_a_gate_multiplies_with_the_coefficient_and_is_saved_when_it_is_a_module() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(D) / D)

        def forward(self, z: Tensor) -> Tensor:
            return torch.sigmoid((z @ self.w).mean(1))

    model, site, branch = adapted()
    branch.gate = gate = Gate()
    x, c = draw(4, 6, D), draw(4, name="c")
    plain = F.linear(x, model.qkv.weight, model.qkv.bias)
    with using([site], {"a": c}):
        assert close(model.qkv(x), plain + (c * gate(x))[:, None, None] * update(branch, x))
    assert "qkv.branches.a.0.gate.w" in model.state_dict()


def test_a_coefficient_is_trainable() -> None:
    model, site, _ = adapted()
    c = torch.ones(4, requires_grad=True)
    with using([site], {"a": c}):
        model.qkv(draw(4, D)).sum().backward()
    assert c.grad is not None
    assert c.grad.abs().min() > 0


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(4, 1), lambda z: z])
def test_a_coefficient_of_another_shape_is_refused(wrong: Tensor | Callable[[Tensor], Tensor]) -> None:
    model, site, _ = adapted()
    with using([site], {"a": wrong}), pytest.raises(ValueError, match="one value for each of the 4 samples"):
        model.qkv(draw(4, D))


# convolutions --------------------------------------------------------------------------------------------------------

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "reflect", "bias": False},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular", "stride": (2, 1)},
    {"kernel_size": 1},
]


def convolution(factorisation: str, options: dict[str, object]) -> tuple[nn.Sequential, Site, list[Branch]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 6, **options)).requires_grad_(False)  # type: ignore[arg-type]
    sites = adapt(model, "0", slice(2, None)) + adapt(model, "0", slice(0, 3)) + adapt(model, "0", slice(2, None))
    branches = []
    for i, site in enumerate(sites):
        branches += fill(grow([site], f"n{i}", 1 + i, scale=0.5 + i, factorisation=factorisation), f"n{i}")
    return model, sites[0], branches


def explicit(model: nn.Sequential, branches: list[Branch], coefficients: list[float]) -> nn.Sequential:
    """The plain convolution with the updates written into its weight by their definitions."""
    layer = model[0]
    plain = nn.Conv2d(
        4, 6, layer.kernel_size, layer.stride, layer.padding, layer.dilation, 1, layer.bias is not None,
        layer.padding_mode,
    )  # fmt: skip
    weight = layer.weight.clone()
    k = layer.kernel_size[0]
    for b, c in zip(branches, coefficients, strict=True):
        if b.A.ndim == 4:  # a k x k convolution, then a 1 x 1 one
            delta = torch.einsum("or,rihw->oihw", b.B[:, :, 0, 0], b.A)
        else:  # one product, read as a kernel
            delta = (b.B @ b.A).reshape(b.rows.stop - b.rows.start, 4, k, k)
        weight[b.rows] += c * b.scale * delta
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias
    return nn.Sequential(plain)


@pytest.mark.parametrize("factorisation", ["conv", "kernel"])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolution_branches_are_their_explicit_update(factorisation: str, options: dict[str, object]) -> None:
    model, site, branches = convolution(factorisation, options)
    assert isinstance(site.layer, AdaptedConv2d)
    x = draw(3, 4, 9, 8)
    expected = explicit(model, branches, [1, 1, 1])(x)
    plain = explicit(model, branches, [0, 0, 0])(x)
    assert close(model(x), expected)
    assert not close(model(x), plain, 1e-2)
    with using([site], {"n0": -1.0, "n1": 0.0, "n2": 2.0}):
        assert close(model(x), explicit(model, branches, [-1, 0, 2])(x))
    with using([site]):
        assert torch.equal(model(x), plain)
    for name in ("n0", "n1", "n2"):
        merge([site], name)
    assert close(model(x), expected)


@pytest.mark.parametrize("factorisation", ["conv", "kernel"])
def test_convolution_coefficients_a_sample_are_separate_passes(factorisation: str) -> None:
    model, site, branches = convolution(factorisation, CONVOLUTIONS[1])
    x, c = draw(3, 4, 9, 8), draw(3, name="c")
    with using([site], {"n0": c, "n1": 0.5, "n2": lambda z: z.mean((1, 2, 3))}):
        together = model(x)
    for i in range(3):
        own = explicit(model, branches, [float(c[i]), 0.5, float(x[i].mean())])
        assert close(together[i : i + 1], own(x[i : i + 1]))


def test_both_factorisations_act_on_one_layer() -> None:
    model, site, branches = convolution("conv", CONVOLUTIONS[1])
    branches += fill(grow([site], "k", 2, factorisation="kernel"), "k")
    x = draw(3, 4, 9, 8)
    assert close(model(x), explicit(model, branches, [1, 1, 1, 1])(x))


def test_convolution_factorisations_have_the_documented_shapes() -> None:
    (site,) = adapt(nn.Sequential(nn.Conv2d(4, 6, 3)), "0", slice(1, None))
    a, b = grow([site], "conv", 2)[0], grow([site], "kernel", 2, factorisation="kernel")[0]
    assert (tuple(a.A.shape), tuple(a.B.shape)) == ((2, 4, 3, 3), (5, 2, 1, 1))
    assert (tuple(b.A.shape), tuple(b.B.shape)) == ((6, 12), (15, 6))
    with pytest.raises(ValueError, match="unknown factorisation 'kernl'"):
        grow([site], "x", 2, factorisation="kernl")
    (oblong,) = adapt(nn.Sequential(nn.Conv2d(4, 6, (1, 3))), "0")
    with pytest.raises(ValueError, match="square kernel, got 1 x 3"):
        grow([oblong], "x", 2, factorisation="kernel")


# using and watch -----------------------------------------------------------------------------------------------------


def test_using_chooses_nests_and_restores() -> None:
    model, site, _ = adapted()
    fill(grow([site], "b", 2), "b")
    x = draw(4, D)
    both = model.qkv(x)
    with using([site], "a"):
        only_a = model.qkv(x)
        with using([site], ["b"]):
            only_b = model.qkv(x)
            with using([site]):
                plain = model.qkv(x)
            assert torch.equal(model.qkv(x), only_b)
        assert torch.equal(model.qkv(x), only_a)
    assert torch.equal(model.qkv(x), both)
    assert torch.equal(plain, F.linear(x, model.qkv.weight, model.qkv.bias))
    assert close(only_a + only_b - plain, both)
    assert not close(only_a, only_b, 1e-2)


def test_using_and_watch_restore_after_an_error() -> None:
    model, site, _ = adapted()
    x, seen = draw(4, D), []
    both = model.qkv(x)
    with pytest.raises(ZeroDivisionError), using([site]), watch([site], lambda layer: seen.append):
        raise ZeroDivisionError
    assert torch.equal(model.qkv(x), both)
    assert seen == []


def test_using_an_unknown_name_says_what_there_is() -> None:
    model, site, _ = adapted(name="first")
    x = draw(4, D)
    before = model.qkv(x)
    with pytest.raises(ValueError, match="no adapter 'second'; there are: first"), using([site], "second"):
        pass
    assert torch.equal(model.qkv(x), before)
    with pytest.raises(ValueError, match="there are: none"), using(adapt(small(), "qkv"), "a"):
        pass


def test_watch_shows_each_layers_own_input_once() -> None:
    model, x = small(), draw(4, D)
    sites = adapt(model, "qkv", slice(0, D)) + adapt(model, "qkv", slice(D, None)) + adapt(model, "out")
    made: list[str] = []

    def make(layer: nn.Module) -> Callable[[Tensor], None]:
        made.append(next(s.name for s in sites if s.layer is layer))
        return seen.setdefault(made[-1], []).append

    seen: dict[str, list[Tensor]] = {}
    with watch(sites, make) as observers:
        model(x)
    model(x)
    assert made == ["qkv", "out"] == list(observers)
    assert [len(inputs) for inputs in seen.values()] == [1, 1]
    assert torch.equal(seen["qkv"][0], x)
    assert torch.equal(seen["out"][0], model.norm(model.qkv(x)))


# parts of the output, and gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [1.0, torch.linspace(-1, 1, 4), lambda h: h.mean((1, 2))])
def test_parts_of_the_output_are_slices_of_the_whole(coefficient: float | Tensor | Callable[[Tensor], Tensor]) -> None:
    model, x, seen = small(), draw(4, 6, D), []
    sites = [adapt(model, "qkv", rows)[0] for rows in (slice(D, None), slice(2, 2 * D), slice(None))]
    fill(grow(sites, "a", [2, 3, 1]))
    parts = (slice(0, 1), slice(0, D)), (slice(None), slice(D, 3 * D)), (slice(2, 5), slice(3, 4))
    with using(sites, {"a": coefficient}):
        whole = model.qkv(x)
        with watch(sites, lambda layer: seen.append):
            found = model.qkv.forward_parts(x, *parts)
    for part, (tokens, rows) in zip(found, parts, strict=True):
        assert close(part, whole[:, tokens, rows], 1e-6)
    assert len(seen) == 1
    assert seen[0] is x


@pytest.mark.parametrize("coefficient", [1.0, torch.linspace(-1, 1, 3, dtype=torch.float64)])
def test_gradients_are_those_of_the_formula(coefficient: float | Tensor) -> None:
    """By finite differences in float64: the input, A and B of branches on three choices of rows."""
    layer = nn.Sequential(nn.Linear(4, 6).double()).requires_grad_(False)
    sites = [adapt(layer, "0", rows)[0] for rows in (slice(2, None), slice(1, 3), slice(None))]
    branches = [branch.double() for branch in fill(grow(sites, "a", [2, 1, 3], scale=0.5))]
    factors = [factor.requires_grad_(True) for branch in branches for factor in (branch.A, branch.B)]
    x = draw(3, 2, 4).double().requires_grad_(True)

    def output(x: Tensor, *_: Tensor) -> Tensor:  # the factors are moved in place
        return layer(x)

    with using(sites, {"a": coefficient}):
        assert torch.autograd.gradcheck(output, (x, *factors))


# what others do with modules -----------------------------------------------------------------------------------------


def test_a_deep_copy_is_independent() -> None:
    model, site, _ = adapted()
    x = draw(4, D)
    before = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), before)
    merge([site], "a")
    model.qkv.weight.data.zero_()
    assert torch.equal(twin(x), before)
    assert "qkv.branches.a.0.A" in twin.state_dict()


def test_bf16_autocast_runs_and_stays_close() -> None:
    model, site, branch = adapted(slice(D, None))
    branch.B.requires_grad_(True)
    x = draw(4, 6, D)
    exact = model.qkv(x)
    with torch.autocast("cpu", torch.bfloat16), using([site], {"a": torch.ones(4)}):
        y = model.qkv(x)
    assert y.dtype == torch.bfloat16
    assert close(y.float(), exact, 0.05)
    y.sum().backward()
    assert branch.B.grad is not None
    assert branch.B.grad.dtype == torch.float32


@pytest.mark.parametrize("coefficient", [1.0, 0.5, torch.linspace(-1, 1, 4)])
def test_compiles_into_one_graph(coefficient: float | Tensor) -> None:
    model, site, _ = adapted(slice(D, None), scale=0.5)
    fill(grow([site], "b", 2), "b")
    x = draw(4, D)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with using([site], {"a": coefficient, "b": 1.0}):
        assert close(compiled(x), model(x), 1e-6)


def test_a_forward_pass_reads_no_tensor_back_from_the_device() -> None:
    model, _, _ = adapted(slice(D, None), scale=0.5)
    assert model.to("meta").qkv(torch.empty(4, D, device="meta")).shape == (4, 3 * D)  # has no values to read


def test_a_state_dict_rebuilds_branches_on_a_fresh_model() -> None:
    model = small()
    sites = adapt(model, "qkv", slice(D, 2 * D)) + adapt(model, "qkv", slice(0, 5)) + adapt(model, "out")
    fill(grow(sites, "first", [1, 2, 3], scale=1 / 3), "first")
    fill(grow(sites[:1], "second", 4), "second")
    fresh, x = small(1), draw(4, D)
    fresh_sites = adapt(fresh, ["qkv", "out"])
    fill(grow(fresh_sites, "stale", 2))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert set(fresh.state_dict()) == set(model.state_dict())
    restored = fresh_sites[0].layer.of("first")
    assert [b.rows for b in restored] == [slice(D, 2 * D), slice(0, 5)]
    assert [b.scale for b in restored] == [1 / 3, 1 / 3]
    merge(fresh_sites, "first")
    merge(fresh_sites, "second")
    assert close(fresh(x), model(x))


def test_a_branch_that_fits_stays_the_same_object_and_takes_the_numbers_in() -> None:
    model, fresh, x = small(), small(1), draw(4, D)
    fill(grow(adapt(model, "qkv", slice(D, None)), "a", 2, scale=0.5))
    (held,) = grow(adapt(fresh, "qkv", slice(D, None)), "a", 2)
    factors = held.A, held.B
    fresh.load_state_dict(model.state_dict())
    assert fresh.qkv.of("a") == [held]
    assert (held.A, held.B) == factors, "the same Parameters"
    assert (held.scale, float(held.factor)) == (0.5, 0.5)
    assert torch.equal(fresh(x), model(x))
    assert not held.A.requires_grad


@pytest.mark.parametrize(
    ("rows", "rank", "dtype"),
    [(slice(D, None), 3, torch.float32), (slice(0, 2 * D), 2, torch.float32), (slice(D, None), 2, torch.float64)],
    ids=["rank", "rows", "type"],
)
def test_a_branch_that_does_not_fit_is_built_anew(rows: slice, rank: int, dtype: torch.dtype) -> None:
    model, fresh = small(), small(1)
    fill(grow(adapt(model, "qkv", slice(D, None)), "a", 2))
    (held,) = grow(adapt(fresh, "qkv", rows), "a", rank)
    before = held.to(dtype).A.clone()
    fresh.load_state_dict(model.state_dict())
    (restored,) = fresh.qkv.of("a")
    assert restored is not held
    assert torch.equal(held.A, before)
    assert (restored.rows, restored.rank, restored.A.dtype) == (slice(D, 3 * D), 2, torch.float32)
    assert all(torch.equal(fresh.state_dict()[k], t) for k, t in model.state_dict().items())


def test_of_several_branches_those_that_fit_stay_and_those_the_file_lacks_go() -> None:
    model, fresh = small(), small(1)
    first, second = adapt(model, "qkv", slice(0, D)) + adapt(model, "qkv", slice(D, None))
    fill(grow([first, second], "both", [2, 3]))
    fill(grow([first], "one", 2))
    sites = adapt(fresh, "qkv", slice(0, D)) + adapt(fresh, "qkv", slice(D, None))
    both = grow(sites, "both", 2)
    one = grow(sites, "one", 2)
    grow(sites, "none", 2)
    fresh.load_state_dict(model.state_dict())
    assert list(fresh.qkv.branches) == ["both", "one"]
    assert [own is held for own, held in zip(fresh.qkv.of("both"), both, strict=True)] == [True, False]
    assert fresh.qkv.of("one") == one[:1]
    assert all(torch.equal(fresh.state_dict()[k], t) for k, t in model.state_dict().items())


def test_the_order_of_a_files_keys_does_not_move_a_bit() -> None:
    model = small()
    sites = adapt(model, "qkv")
    for i in (10, 9, 2, 1, 0):
        fill(grow(sites, f"t{i}", 3), f"t{i}")
    fresh, x = small(), draw(64, D)
    adapt(fresh, "qkv")
    fresh.load_state_dict(dict(sorted(model.state_dict().items())))
    assert list(sites[0].layer.branches) == ["t10", "t9", "t2", "t1", "t0"]
    assert torch.equal(fresh(x), model(x))


def test_an_adapter_file_restores_its_adapter_alone() -> None:
    model, site, _ = adapted(slice(D, None))
    fresh, x = small(), draw(4, D)
    adapt(fresh, "qkv")
    fresh.load_state_dict(adapter_state([site], "a"), strict=False)
    assert torch.equal(fresh(x), model(x))


# any shape -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_ranks_rows_and_batches_equal_the_explicit_weight(data: st.DataObject) -> None:
    d_in, d_out = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 11))
    shape = [*data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)), d_in]
    model = nn.Sequential(nn.Linear(d_in, d_out)).requires_grad_(False)
    weight, x, coefficients = model[0].weight.double(), draw(*shape), {}
    for i in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, d_out - 1))
        rows = slice(start, data.draw(st.integers(start + 1, d_out)))
        rank = data.draw(st.integers(1, max(d_in, d_out)))
        scale, c = data.draw(st.sampled_from([1.0, 0.3, -2.0])), data.draw(st.sampled_from([1.0, 0.0, -1.0, 0.5]))
        (branch,) = fill(grow(adapt(model, "0", rows), f"n{i}", rank, scale=scale), f"n{i}")
        weight[rows] += c * scale * branch.B.double() @ branch.A.double()
        coefficients[f"n{i}"] = c
    sites = adapt(model, "0")
    expected = F.linear(x.double(), weight, model[0].bias.double()).float()
    with using(sites, coefficients):
        assert close(model(x), expected, 1e-4)
    tensors = {name: torch.full((len(x),), c) for name, c in coefficients.items()}
    with using(sites, tensors):
        assert close(model(x), expected, 1e-4)


class Doubled(AdaptedConv2d):
    """A convolution of another kind."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_convolutions_become_the_class_asked_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    weight, x = model[0].weight, torch.ones(1, 3, 3, 3)
    plain = model[0](x)
    sites = adapt(model, ["0", "2"], convolution=Doubled)
    assert [type(site.layer) for site in sites] == [Doubled, AdaptedLinear]
    assert model[0] is sites[0].layer
    assert model[0].weight is weight
    torch.testing.assert_close(model[0](x), 2 * plain)
    assert adapt(model, "0")[0].layer is model[0]  # it can carry branches already
    adapt(other := nn.Sequential(nn.Conv2d(3, 4, 3)), "0")
    with pytest.raises(TypeError, match=r"layer '0' is of the class AdaptedConv2d already, .* become Doubled; load"):
        adapt(other, "0", convolution=Doubled)


def test_a_networks_own_branches_are_no_adapters() -> None:
    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    network = nn.Module()
    network.stage, network.head = Streams(), nn.Linear(4, 2)
    sites = adapt(network, ["stage.branches.1", "head"])
    grow(sites, "new", 2)
    of = {key: adapter_names(network)(key) for key in network.state_dict()}
    assert {key for key, name in of.items() if name} == {
        f"{layer}.branches.new.0.{tensor}"
        for layer in ("stage.branches.1", "head")
        for tensor in ("A", "B", "extent", "factor")
    }
    assert set(of.values()) == {"", "new"}
