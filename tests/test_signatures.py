"""Signatures: what a layer remembers of each task, and what an image's task is guessed from."""

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import tiny_backbone
from torch import Tensor, nn

from lamella.adapters.adapter import grow
from lamella.common.randomness import generator
from lamella.memory.calibration import FORMS, Calibration
from lamella.memory.inputs import Inputs, check_basis, gather
from lamella.memory.signatures import Signature, Signatures, protected_share
from lamella.memory.subspace import orthonormal

D = 24


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name, *shape), dtype=torch.float64)


def moment(H: Tensor) -> Tensor:
    """Of rows H (n, d)."""
    return H.T @ H / len(H)


def shaped(n: int, spectrum: list[float], name: str = "inputs") -> Tensor:
    """(n, d) rows whose energy lies along len(spectrum) random directions."""
    return (
        draw(n, len(spectrum), name=name)
        * torch.tensor(spectrum).sqrt()
        @ orthonormal(draw(D, 9, name=name))[:, : len(spectrum)].T
    )


def taught(*tasks: Tensor, share: float = 0.95) -> Signature:
    signature = Signature(D)
    for H in tasks:
        signature.extend(moment(H), share, H.float())
    return signature


TASKS = [shaped(50, [4.0, 2.0, 1.0, 0.5, 0.25], name=f"task {i}") for i in range(4)]


# the basis -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 0.999), st.integers(1, 6), st.integers(2, 40))
def test_the_basis_is_orthonormal_and_holds_the_share_of_every_task(
    seed: int, share: float, tasks: int, n: int
) -> None:
    signature = Signature(D)
    for i in range(tasks):
        H = torch.randn(n, D, generator=generator(seed, "H", i), dtype=torch.float64) * torch.linspace(0.05, 2, D)
        signature.extend(moment(H), share, H.float())
        Psi = signature.basis.double()
        torch.testing.assert_close(Psi.T @ Psi, torch.eye(Psi.shape[1]).double(), atol=3e-6, rtol=0)
        assert float((H @ Psi).square().sum()) >= (share - 1e-6) * float(H.square().sum())
    assert signature.tasks == tasks
    assert torch.equal(torch.cat([signature.block(i) for i in range(tasks)], dim=1), signature.basis)


def test_as_few_directions_as_reach_the_share_by_gpms_rule() -> None:
    """Against a plain singular value decomposition of the projected inputs, one direction after the other."""
    signature = taught(*TASKS[:2], share=0.8)
    H = draw(60, D, name="next") * torch.linspace(0.1, 2, D)
    Psi = signature.basis.double()
    free = H.T - Psi @ (Psi.T @ H.T)
    U, s, _ = torch.linalg.svd(free)
    held = H.square().sum() - free.square().sum()
    count = next(k for k in range(D) if held + s[:k].square().sum() >= 0.8 * H.square().sum())
    assert 1 < count < D - signature.dimension
    new = signature.new_directions(moment(H), 0.8).double()
    assert new.shape == (D, count)
    torch.testing.assert_close(new @ new.T, U[:, :count] @ U[:, :count].T, atol=1e-6, rtol=0)


def test_directions_counted_by_hand() -> None:
    """Energies 4, 2, 1, 1 of 8: shares .5 .75 .875 1; then one new direction beside an old one."""
    spectrum = torch.diag(torch.tensor([4.0, 2, 1, 1] + [0] * (D - 4)))
    for share, count in ((0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (1.0, 4)):
        assert Signature(D).new_directions(spectrum, share).shape == (D, count)
    signature = Signature(D)
    signature.extend(spectrum, 0.5, torch.eye(D)[:1])
    assert torch.equal(signature.basis.abs(), torch.eye(D)[:, :1])
    later = torch.diag(torch.tensor([6.0, 0, 0, 0, 3, 1] + [0] * (D - 6)))  # 60 % is held already
    for share, count in ((0.6, 0), (0.61, 1), (0.9, 1), (0.91, 2)):
        assert signature.new_directions(later, share).shape == (D, count)


def test_a_task_that_brings_nothing_new_adds_an_empty_block_and_says_nothing() -> None:
    signature = taught(TASKS[0], TASKS[0][:20], TASKS[1], share=0.9)
    assert signature.block(1).shape == (D, 0)
    assert signature.block(2).shape[1] > 0
    assert float(signature.level[1]) == 0
    rho = signature.similarity(TASKS[1].float())
    assert torch.equal(rho[:, 1], torch.zeros(len(rho)))
    assert torch.equal(signature.normalised(rho)[:, 1], torch.ones(len(rho)))


def test_a_full_basis_takes_tasks_in_and_leaves_nothing_outside() -> None:
    signature = Signature(D)
    signature.extend(torch.eye(D), 1.0, draw(5, D).float())
    assert signature.dimension == D
    signature.extend(moment(TASKS[0]), 0.95, TASKS[0].float())
    assert (signature.dimension, signature.tasks) == (D, 2)
    assert float(signature.outside(draw(3, D)).abs().max()) < 1e-6


def test_inputs_of_zeros_and_a_single_image_are_no_trouble() -> None:
    zero = torch.zeros(3, D)
    signature = taught(zero.double(), TASKS[0][:1])
    assert signature.block(0).shape == (D, 0)
    assert signature.block(1).shape == (D, 1)
    assert torch.isfinite(signature.similarity(zero)).all()
    assert float(signature.level[1]) == pytest.approx(1)


def test_a_long_stream_stays_orthonormal() -> None:
    signature = Signature(D)
    for i in range(60):
        H = draw(30, D, name=f"long {i}") * (torch.arange(D) <= i / 2)
        signature.extend(moment(H), 0.99, H.float())
    Psi = signature.basis.double()
    assert signature.tasks == 60
    assert signature.dimension > 20
    torch.testing.assert_close(Psi.T @ Psi, torch.eye(Psi.shape[1]).double(), atol=1e-5, rtol=0)


# similarity ----------------------------------------------------------------------------------------------------------


def test_the_similarity_is_the_cosine_with_each_block() -> None:
    signature = taught(*TASKS)
    h = draw(7, D, name="h")
    rho = signature.similarity(h.float())
    for i in range(4):
        Phi = signature.block(i).double()
        angle = torch.cosine_similarity(h, h @ Phi @ Phi.T, dim=1)
        torch.testing.assert_close(rho[:, i].double(), angle, atol=1e-6, rtol=0)
    torch.testing.assert_close(rho, signature.similarity(5 * h.float()), atol=1e-6, rtol=0)  # length plays no part


def test_the_level_makes_own_images_one_on_average() -> None:
    signature = taught(*TASKS)
    for i, H in enumerate(TASKS):
        own = signature.normalised(signature.similarity(H.float()))[:, i]
        assert float(own.mean()) == pytest.approx(1, abs=1e-5)


def test_statistics_are_not_rounded_by_autocast() -> None:
    signature, h = taught(*TASKS), draw(5, D, name="h").float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(signature.similarity(h), taught(*TASKS).similarity(h))


def test_a_signature_rebuilds_itself_from_its_state() -> None:
    signature, fresh = taught(*TASKS), Signature(D)
    fresh.load_state_dict(signature.state_dict())
    h = draw(5, D).float()
    assert torch.equal(fresh.similarity(h), signature.similarity(h))
    assert fresh.basis.is_contiguous()
    assert signature.basis.is_contiguous()
    empty = taught(*TASKS)
    empty.load_state_dict(Signature(D).state_dict())
    assert (empty.tasks, empty.dimension) == (0, 0)


def test_a_state_holds_directions_and_levels_whatever_the_number_of_images() -> None:
    few, many = (taught(draw(n, 2, name="n") @ draw(2, D, name="span"), share=1.0).state_dict() for n in (3, 300))
    assert {k: v.shape for k, v in few.items()} == {k: v.shape for k, v in many.items()}


def test_levels_pick_the_right_task_on_average_where_the_raw_cosine_always_says_the_first() -> None:
    """Tasks with common directions, which the first block holds, and some of their own: averages over each task."""
    frame = orthonormal(draw(D, 16, name="frame"))
    common, own = frame[:, :4], frame[:, 4:].split(3, dim=1)
    inputs = [
        draw(200, 4, name=f"common {t}") @ common.T + 0.7 * draw(200, 3, name=f"own {t}") @ own[t].T for t in range(4)
    ]
    signature = taught(*inputs, share=0.99)
    raw = torch.stack([signature.similarity(H.float()).mean(0) for H in inputs])
    assert raw.argmax(1).tolist() == [0, 0, 0, 0]
    assert torch.stack([signature.normalised(r) for r in raw]).argmax(1).tolist() == [0, 1, 2, 3]


# scores and calibration ----------------------------------------------------------------------------------------------


def test_the_calibration_term_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.8, 0.6], [0.5, 0.5, 0.5]])
    term = Calibration(2.0, 0.2).term(scores, [0, 2, 1, 0])
    pi = torch.tensor([5.0, 4.0, 3.0]).exp() / torch.tensor([5.0, 4.0, 3.0]).exp().sum()  # s / tau
    expected = 2 * (pi[0] - pi[1]) * pi.log()
    torch.testing.assert_close(term[0], expected[[0, 2, 1, 0]])
    assert torch.equal(term[1], torch.zeros(4))  # a tie is no confidence
    assert torch.equal(Calibration(2.0, 0.2).term(scores[:, :1], [0, 0]), torch.zeros(2, 2))  # one task: no choice
    assert torch.equal(Calibration(0.0, 0.2).term(scores, [0, 1]), torch.zeros(2, 2))


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_the_three_forms_of_calibration_written_out(strength: float) -> None:
    logits, scores = draw(6, 4, name="logits").float(), draw(6, 3, name="scores").float()
    task_of = [0, 2, 1, 0]
    for i, (z, s) in enumerate(zip(logits.double().numpy(), scores.double().numpy(), strict=True)):
        pi = np.exp(s / 0.3) / np.exp(s / 0.3).sum()
        conf = np.sort(pi)[-1] - np.sort(pi)[-2]
        c = min(1 - 1e-6, strength * conf)
        own = np.array(task_of)
        of_all, best = np.exp(z) / np.exp(z).sum(), own == pi.argmax()
        of_best = np.where(best, np.exp(z), 0) / np.exp(z)[best].sum()
        expected = {
            "add": z + strength * conf * np.log(pi[own]),
            "scale": z.min() + (z - z.min()) * (1 - c + c * pi[own]),
            "mix": np.log((1 - c) * of_all + c * of_best),
        }
        for form in FORMS:
            found = Calibration(strength, 0.3, form)(logits, scores, task_of)[i].double().numpy()
            np.testing.assert_allclose(found, expected[form], rtol=2e-6, atol=2e-6 if c < 0.99 else 0.1)


@pytest.mark.parametrize("form", FORMS)
def test_no_form_reorders_classes_of_a_task_nor_moves_what_it_is_unsure_of(form: str) -> None:
    logits, scores, task_of = draw(20, 6, name="logits").float(), draw(20, 3, name="scores").float(), [0, 1, 2] * 2
    found = Calibration(1.0, 0.5, form)(logits, scores, task_of)
    for t in range(3):
        own = torch.tensor([t == owner for owner in task_of])
        assert torch.equal(found[:, own].argmax(1), logits[:, own].argmax(1))
    unsure = Calibration(1.0, 0.5, form)(logits, torch.ones(20, 3), task_of)
    torch.testing.assert_close(unsure.softmax(1), logits.softmax(1))
    off = Calibration(0.0, 0.5, form)(logits, scores, task_of)
    assert torch.equal(off, logits)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0.01, 5))
def test_calibration_prefers_the_better_task_and_never_reorders_within_one(seed: int, tasks: int, tau: float) -> None:
    draws = generator(seed, "scores")
    scores, logits = torch.rand(5, tasks, generator=draws), torch.randn(5, 3 * tasks, generator=draws)
    task_of = [i % tasks for i in range(3 * tasks)]
    term = Calibration(1.0, tau).term(scores, task_of)
    assert torch.isfinite(term).all()
    assert (term <= 1e-6).all()
    best = scores.argmax(1)
    assert (term[torch.arange(5), best] >= term.amax(1) - 1e-6).all()
    for t in range(tasks):
        own = torch.tensor([t == owner for owner in task_of])
        assert torch.equal((logits + term)[:, own].argmax(1), logits[:, own].argmax(1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((-1.0, 0.1), "strength -1.0 must not be negative"),
        ((1.0, 0.0), "temperature 0.0 must be above 0"),
        ((1.0, 0.1, "times"), "calibration form 'times' is unknown; use one of add, scale, mix"),
    ],
)
def test_bad_calibrations_are_refused(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Calibration(*options)


def test_the_protected_share_grows_with_a_horizon_only() -> None:
    assert [protected_share(0.9, t, None) for t in (0, 5, 99)] == [0.9] * 3
    assert [protected_share(0.9, t, 5) for t in (0, 1, 5, 7)] == pytest.approx([0.9, 0.92, 1.0, 1.0])
    for energy, horizon, text in ((0.0, None, "energy 0.0 is outside"), (0.9, 0, "horizon 0 is too small")):
        with pytest.raises(ValueError, match=text):
            protected_share(energy, 0, horizon)


# on a real ViT -------------------------------------------------------------------------------------------------------

IMAGES = draw(6, 3, 32, 32, name="images").float()


def layer_inputs(backbone: Any, sites: Any, x: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [s.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for s in sites]
    with torch.no_grad():
        backbone(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_class_tokens_and_all_tokens_are_those_of_the_layers() -> None:
    backbone = tiny_backbone()
    sites = backbone.sites("key+value", blocks=3)
    wanted = layer_inputs(backbone, sites, IMAGES)
    for basis in ("class_token", "tokens"):
        with gather(backbone.model, sites, basis) as inputs, torch.no_grad():
            backbone(IMAGES[:4])
            backbone(IMAGES[4:])
        for site, x in zip(sites, wanted, strict=True):
            torch.testing.assert_close(inputs[site.name].class_tokens, x[:, 0], atol=1e-5, rtol=1e-5)
            rows = x[:, 0] if basis == "class_token" else x.flatten(0, 1)
            torch.testing.assert_close(inputs[site.name].moment, moment(rows.double()), atol=1e-4, rtol=1e-4)
    assert not any(site.layer.watchers for site in sites)


def test_pooled_inputs_protect_what_the_class_token_reads_through_its_attention() -> None:
    """The value rows turn a pooled input into the attention's own output: that is what makes the basis exact."""
    backbone = tiny_backbone()
    sites = backbone.sites("key+value", blocks=2)
    wanted = layer_inputs(backbone, sites, IMAGES)
    with gather(backbone.model, sites, "attention_pooled") as inputs, torch.no_grad():
        backbone(IMAGES)
    for site, x in zip(sites, wanted, strict=True):
        attention: Any = backbone.model.get_submodule(site.name.rpartition(".")[0])
        q, k, _ = site.layer(x).chunk(3, dim=-1)
        rows = []
        for i in range(len(x)):  # image by image and head by head
            for part in torch.arange(x.shape[2]).chunk(attention.num_heads):
                a = (attention.scale * q[i, 0, part] @ k[i][:, part].T).softmax(0)
                rows.append(a @ x[i])
        torch.testing.assert_close(inputs[site.name].moment, moment(torch.stack(rows).double()), atol=1e-4, rtol=1e-4)
        assert not site.layer._forward_hooks
        assert not attention.proj._forward_pre_hooks


def test_another_kind_of_attention_is_refused_rather_than_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    sites = backbone.sites("key+value", blocks=1)
    attention: Any = backbone.model.get_submodule(sites[0].name.rpartition(".")[0])
    monkeypatch.setattr(attention, "scale", 3.0)  # what we compute is not what the model does any more
    monkeypatch.setattr(attention, "fused_attn", True)
    with (
        pytest.raises(ValueError, match=r"'blocks\.0\.attn\.qkv' is not the plain softmax"),
        gather(backbone.model, sites, "attention_pooled"),
        torch.no_grad(),
    ):
        backbone(IMAGES)
    assert not sites[0].layer._forward_hooks
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.proj' does not show it"):
        check_basis(backbone.model, backbone.sites("out", blocks=1), "attention_pooled")
    with pytest.raises(ValueError, match="basis 'patches' is unknown; use 'class_token', 'tokens'"):
        check_basis(backbone.model, sites, "patches")
    headless: Any = nn.Identity()
    headless.has_class_token = False
    with pytest.raises(ValueError, match="no class token"):
        check_basis(headless, sites, "class_token")


def signed(blocks: int = 3) -> tuple[Any, Any, Signatures]:
    backbone = tiny_backbone()
    sites = backbone.sites("key+value", blocks=blocks)
    signatures = Signatures(sites)
    for part in (IMAGES[:3], IMAGES[3:]):
        with gather(backbone.model, sites) as inputs, torch.no_grad():
            backbone(part)
        signatures.extend(inputs, 0.9)
    return backbone, sites, signatures


def test_scores_are_the_mean_over_the_layers() -> None:
    backbone, sites, signatures = signed()
    with torch.no_grad():
        features = signatures.reading(backbone, IMAGES)
        assert torch.equal(features, backbone(IMAGES))
    expected = []
    for site, x in zip(sites, layer_inputs(backbone, sites, IMAGES), strict=True):
        signature = signatures[site.name]
        expected.append(signature.normalised(signature.similarity(x[:, 0])))
    torch.testing.assert_close(signatures.scores(), torch.stack(expected).mean(0), atol=1e-5, rtol=0)


def test_a_gate_reads_its_own_layer_input_once_and_keeps_no_image_alive() -> None:
    _, sites, signatures = signed()
    signature = signatures[sites[1].name]
    gates = [signatures.gate(sites[1], t) for t in range(2)]
    x = draw(4, 5, signature.width, name="x").float()
    expected = signature.normalised(signature.similarity(x[:, 0])).clamp_max(1)
    calls: list[int] = []
    similarity = signature.similarity
    signature.similarity = lambda h: (calls.append(1), similarity(h))[1]  # type: ignore[method-assign]
    assert torch.equal(torch.stack([g(x) for g in gates], 1), expected)
    assert len(calls) == 1
    y = x.flip(0)
    assert torch.equal(gates[0](y), expected[:, 0].flip(0))
    alive = weakref.ref(y)
    del y
    gc.collect()
    assert alive() is None


def test_a_copied_model_has_gates_of_its_own() -> None:
    backbone, sites, signatures = signed()
    branch = grow(sites[1:2], "r", 2, generator=generator(0, "r"))[0]
    branch.B.data.fill_(0.1)
    branch.gate = signatures.gate(sites[1], 0)
    holder = nn.ModuleList([backbone, signatures])
    twin = copy.deepcopy(holder)
    signatures[sites[1].name].level.mul_(5)
    with torch.no_grad():
        assert not torch.equal(twin[0](IMAGES), holder[0](IMAGES))  # only the original's level was moved


def test_a_layer_without_tokens_is_refused() -> None:
    _, sites, signatures = signed(1)
    with pytest.raises(ValueError, match=r"shape \(4, 64\), not \(samples, tokens, width\)"):
        signatures.gate(sites[0], 0)(torch.zeros(4, 64))


def test_gathered_class_tokens_do_not_keep_the_other_tokens_alive() -> None:
    inputs = Inputs(8, "class_token")
    inputs(torch.rand(4, 5, 8))
    assert inputs.tokens[0].untyped_storage().nbytes() == 4 * 8 * 4
