"""The loop: it trains what it is given, for that call, and goes on where it was cut off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import build, fit_for, images, learn_all, stream, tiny_backbone
from torch import Tensor, nn

from lamella.data.images import TensorSet
from lamella.data.transform import Augmentation, InputTransform
from lamella.memory.subspace import SecondMoment
from lamella.training.checkpoints import Checkpoints
from lamella.training.fit import Fit
from lamella.training.recipe import Training

TRANSFORM = InputTransform(16, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)


class Cut(BaseException):
    """Stands for a process that ends in the middle of a step."""


def points(n: int = 40) -> TensorSet:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g)
    return TensorSet(x, (x[:, 0] > 0).long())


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False)


def loss_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: F.cross_entropy(model(x), y)


def state(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def test_exactly_the_given_tensors_change_and_none_stays_trainable() -> None:
    model = classifier().eval()
    before = state(model)
    Fit(model, TRANSFORM, device="cpu")(points(), loss_of(model), model[3].parameters(), epochs=1, lr=0.1, batch_size=8)
    changed = [
        name for name, old, new in zip(model.state_dict(), before, state(model), strict=True) if not old.equal(new)
    ]
    assert changed == ["3.weight", "3.bias"]
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_tensors_are_released_when_the_loss_fails() -> None:
    model = classifier()

    def broken(x: Tensor, y: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Fit(model, TRANSFORM, device="cpu")(points(), broken, model.parameters(), epochs=1, lr=0.1, batch_size=8)
    assert not any(p.requires_grad for p in model.parameters())


def test_batch_norm_statistics_stand_still_in_eval_mode_and_move_in_train_mode() -> None:
    for mode, moves in ((False, False), (True, True)):
        model = classifier().train(mode)
        before = model[1].running_mean.clone()
        Fit(model, TRANSFORM, device="cpu")(
            points(), loss_of(model), model[3].parameters(), epochs=1, lr=0.1, batch_size=8
        )
        assert (not before.equal(model[1].running_mean)) is moves


def test_a_tensor_without_a_gradient_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "bypassed": nn.Linear(4, 2)}).requires_grad_(False)
    fit = Fit(model, TRANSFORM, device="cpu")
    with pytest.raises(RuntimeError, match=r"2 of 4 trained tensors got no gradient, the first is 'bypassed.weight'"):
        fit(
            points(),
            lambda x, y: F.cross_entropy(model["used"](x), y),
            model.parameters(),
            epochs=1,
            lr=0.1,
            batch_size=8,
        )


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    model = classifier()
    fit = Fit(model, TRANSFORM, device="cpu")
    with pytest.raises(RuntimeError, match="the loss of task 0 became nan in epoch 1"):
        fit(points(), lambda x, y: model(x).sum() * float("nan"), model.parameters(), epochs=1, lr=0.1, batch_size=8)


def test_groups_have_their_own_rates_and_the_schedule_scales_them() -> None:
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    fit = Fit(nn.ParameterList([one, two]), TRANSFORM, device="cpu")
    data = TensorSet(torch.ones(1, 1), torch.zeros(1))
    groups = [{"params": [one]}, {"params": [two], "lr": 0.5}]
    training = Training(epochs=3, lr=0.1, batch_size=1, optimizer="sgd", schedule="milestones", milestones=(0.3, 0.6))
    fit(data, lambda x, y: one.sum() + two.sum(), groups, training)
    assert one.item() == pytest.approx(-0.111)
    assert two.item() == pytest.approx(-0.555)


def test_hooks_around_the_step_see_the_gradient_and_the_new_value() -> None:
    w = nn.Parameter(torch.zeros(1))
    fit = Fit(nn.ParameterList([w]), TRANSFORM, device="cpu")
    seen: list[float] = []

    def halve() -> None:
        assert w.grad is not None
        w.grad /= 2

    fit(TensorSet(torch.ones(1, 1), torch.zeros(1)), lambda x, y: w.sum(), [w], epochs=1, lr=1.0, batch_size=1,
        optimizer="sgd", before_step=halve, after_step=lambda: seen.append(w.item()))  # fmt: skip
    assert seen == [-0.5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adm"}, "use one of adam, adamw, sgd"),
        ({"epochs": 0}, "epochs is 0; it must be a whole number of at least 1"),
        ({"params": []}, "no tensors to train"),
    ],
)
def test_wrong_arguments_are_told(wrong: dict, message: str) -> None:
    model = classifier()
    arguments = {"params": model.parameters(), "epochs": 1, "lr": 0.1, "batch_size": 4} | wrong
    with pytest.raises(ValueError, match=message):
        Fit(model, TRANSFORM, device="cpu")(points(), loss_of(model), **arguments)


def test_empty_data_unknown_precision_and_missing_device_are_told() -> None:
    model = classifier()
    empty = TensorSet(torch.zeros(0, 4), torch.zeros(0))
    with pytest.raises(ValueError, match="nothing to train on"):
        Fit(model, TRANSFORM, device="cpu")(empty, loss_of(model), model.parameters(), epochs=1, lr=1, batch_size=1)
    with pytest.raises(ValueError, match="use one of float32, bf16"):
        Fit(model, TRANSFORM, precision="fp16")
    with pytest.raises(ValueError, match="'tpu' is not available"):
        Fit(model, TRANSFORM, device="tpu")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("cut_at", [1, 5, 7, 14])
def test_a_call_cut_off_at_any_step_ends_bit_equal(tmp_path: Path, optimizer: str, cut_at: int) -> None:
    def train(checkpoints: Checkpoints | None, stop_at: int | None) -> nn.Module:
        model = classifier().train()
        steps = 0

        def loss(x: Tensor, y: Tensor) -> Tensor:
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise Cut
            return F.cross_entropy(model(x), y)

        fit = Fit(model, TRANSFORM, device="cpu", checkpoints=checkpoints)
        extra = {"momentum": 0.9} if optimizer == "sgd" else {}
        training = Training(epochs=3, lr=0.05, batch_size=8, optimizer=optimizer, schedule="cosine")
        fit(points(), loss, model.parameters(), training, **extra)
        return model

    whole = train(None, None)
    with pytest.raises(Cut):
        train(Checkpoints(tmp_path, 0.0), cut_at)
    resumed = train(Checkpoints(tmp_path, 0.0), None)
    assert all(a.equal(b) for a, b in zip(state(whole), state(resumed), strict=True))


def flattened() -> nn.Module:
    """Batch norm on maps of 1 x 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    return model.requires_grad_(False).train()


def train_flattened(
    n: int, batch_size: int = 4, stop_at: int | None = None, **options: Any
) -> tuple[Any, list[list[int]]]:
    """The model after two epochs over n points, and the numbers of the points it saw, batch by batch."""
    model = flattened()
    seen: list[list[int]] = []
    x = torch.randn(n, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0] = torch.arange(float(n))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if len(seen) == stop_at:
            raise Cut
        seen.append(x[:, 0, 0, 0].int().tolist())
        return F.cross_entropy(model(x), y)

    fit = Fit(model, TRANSFORM, device="cpu", **options)
    data = TensorSet(x, torch.arange(n) % 2)
    try:
        fit(data, loss, model.parameters(), epochs=2, lr=0.1, batch_size=batch_size)
    except Cut:
        pass
    return model, seen


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(5, 4, [5]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (3, 2, [3])],
)
def test_batch_norm_never_gets_a_single_image_that_was_left_over(n: int, batch_size: int, sizes: list[int]) -> None:
    _, seen = train_flattened(n, batch_size)
    assert [len(batch) for batch in seen] == 2 * sizes
    for epoch in (seen[: len(sizes)], seen[len(sizes) :]):
        assert sorted(i for batch in epoch for i in batch) == list(range(n))


def test_a_set_of_one_image_and_batches_of_one_stay_as_they_are() -> None:
    for n in (1, 3):
        model, sizes = classifier().eval(), []

        def loss(x: Tensor, y: Tensor, model: nn.Module = model, sizes: list[int] = sizes) -> Tensor:
            sizes.append(len(x))
            return F.cross_entropy(model(x), y)

        data = TensorSet(torch.ones(n, 4), torch.zeros(n, dtype=torch.int64))
        Fit(model, TRANSFORM, device="cpu")(data, loss, model.parameters(), epochs=1, lr=0.1, batch_size=1)
        assert sizes == [1] * n


@pytest.mark.parametrize("cut_at", [1, 2, 3])
def test_a_call_with_a_joined_batch_goes_on_bit_equal(tmp_path: Path, cut_at: int) -> None:
    """Cut after each step: the second of an epoch's two is the joined one, after which nothing of it is left."""
    whole, every = train_flattened(9)
    checkpoints = Checkpoints(tmp_path, 0.0)
    _, before = train_flattened(9, stop_at=cut_at, checkpoints=checkpoints)
    resumed, after = train_flattened(9, checkpoints=checkpoints)
    assert before + after == every
    assert all(a.equal(b) for a, b in zip(state(whole), state(resumed), strict=True))


def test_a_finished_call_is_restored_without_running_again(tmp_path: Path) -> None:
    def train() -> tuple[nn.Module, int, list[float]]:
        model, calls = classifier().train(), []
        fit = Fit(model, TRANSFORM, device="cpu", checkpoints=Checkpoints(tmp_path))

        def loss(x: Tensor, y: Tensor) -> Tensor:
            calls.append(len(x))
            return F.cross_entropy(model(x), y)

        losses = fit(points(), loss, model.parameters(), epochs=2, lr=0.1, batch_size=8)
        return model, len(calls), losses

    (first, calls, losses), (second, again, restored) = train(), train()
    assert (calls, again) == (10, 0)
    assert losses == restored
    assert all(a.equal(b) for a, b in zip(state(first), state(second), strict=True))


def test_a_checkpoint_interval_below_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_seconds is -1"):
        Checkpoints(tmp_path, -1)


def test_a_scan_of_images_cut_off_goes_on_with_the_same_views(tmp_path: Path) -> None:
    def scan(checkpoints: Checkpoints | None, stop_at: int | None = None) -> list[Tensor]:
        views: list[Tensor] = []

        def observe(x: Tensor, y: Tensor) -> None:
            if len(views) == stop_at:
                raise Cut
            views.append(x)

        fit = fit_for(build("nearest-mean"), checkpoints=checkpoints, scan_batch_size=5)
        try:
            fit.scan(images(3, 4, "train"), observe, augment=True, keep={"moment": SecondMoment(4)})
        except Cut:
            pass
        return views

    checkpoints = Checkpoints(tmp_path, 0.0)
    whole, before, after = scan(None), scan(checkpoints, 1), scan(checkpoints)
    assert [len(views) for views in (whole, before, after)] == [3, 1, 2]
    assert all(a.equal(b) for a, b in zip(whole, before + after, strict=True))


def test_a_scan_cut_off_goes_on_where_it_stood(tmp_path: Path) -> None:
    data = TensorSet(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(20))

    def scan(stop_at: int | None) -> tuple[SecondMoment, int]:
        moment, calls = SecondMoment(4), 0
        fit = Fit(moment, TRANSFORM, device="cpu", checkpoints=Checkpoints(tmp_path, 0.0), scan_batch_size=4)

        def observe(x: Tensor, y: Tensor) -> None:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise Cut
            moment(x)

        fit.scan(data, observe, keep={"moment": moment})
        return moment, calls

    with pytest.raises(Cut):
        scan(4)
    moment, calls = scan(None)
    assert calls == 2
    torch.testing.assert_close(moment.mean, data.x.T @ data.x / 20)


def test_calls_of_one_name_have_draws_of_their_own_and_names_do_not_shift_each_other() -> None:
    def order(names: list[str]) -> dict[str, list[int]]:
        model = classifier()
        fit = Fit(model, TRANSFORM, device="cpu")
        seen: dict[str, list[int]] = {}
        data = TensorSet(torch.arange(20.0)[:, None].expand(20, 4), torch.zeros(20))
        for number, name in enumerate(names):
            rows: list[int] = []

            def loss(x: Tensor, y: Tensor, rows: list[int] = rows) -> Tensor:
                rows += x[:, 0].int().tolist()
                return F.cross_entropy(model(x), y)

            fit(data, loss, model.parameters(), epochs=1, lr=0.1, batch_size=20, name=name)
            seen[f"{number} {name}"] = rows
        return seen

    alone, inside = order(["train"]), order(["extra", "train", "train"])
    assert alone["0 train"] == inside["1 train"]
    assert inside["1 train"] != inside["2 train"]


def test_bf16_trains_and_keeps_parameters_and_statistics_in_float32() -> None:
    method = build("inflora+align".split("+")[0])
    fit = fit_for(method, precision="bf16")
    learn_all(method, stream(4, 2), fit)
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert all(space.vectors.dtype == torch.float32 for space in method.memory.values())


def test_features_come_in_the_order_of_the_data_and_without_augmentation() -> None:
    method = build("nearest-mean")
    data = images(3, 4, "train")
    fit = fit_for(method, scan_batch_size=5)
    together = fit.features(data, method.features)
    turned = fit.features(data.subset(torch.arange(11, -1, -1)), method.features)
    assert together.shape == (12, method.backbone.width)
    torch.testing.assert_close(together, turned.flip(0), atol=1e-5, rtol=0)
    assert not together.requires_grad


@pytest.mark.parametrize("usual", [None, Augmentation((0.8, 1.0)), Augmentation((0.8, 1.0), flip=False)])
def test_a_call_may_crop_in_a_way_of_its_own(usual: Augmentation | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call is augmented as the run says again."""
    method, seen = build("seq-finetune", epochs=1), list[Any]()
    view = InputTransform.view
    monkeypatch.setattr(InputTransform, "view", lambda self, *args: (seen.append(args[1:2]), view(self, *args))[1])
    fit = Fit(method, method.backbone.transform, augmentation=usual, device="cpu")
    data, weights = images(2, 4, "train"), list(method.backbone.model.parameters())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return method.backbone.model(x).square().mean()

    fit(data, loss, weights, epochs=2, crop=0.3, name="cropped")
    fit(data, loss, weights, epochs=1, name="usual")
    fit(data, loss, weights, epochs=1, crop=0.3, augment=False, name="plain")
    cropped = Augmentation((0.3, 1.0), flip=usual.flip if usual else False)
    assert seen == [(cropped,)] * 2 + [(usual,) if usual else (), ()]


def test_kept_features_come_back_as_they_were_filed_and_others_are_computed_anew(tmp_path: Path) -> None:
    data, checkpoints = TensorSet(torch.randn(6, 4), torch.zeros(6)), Checkpoints(tmp_path)

    def features(slope: float, keep: bool) -> tuple[Tensor, list[str]]:
        fit = Fit(classifier(), TRANSFORM, device="cpu", checkpoints=checkpoints, scan_batch_size=4)
        fit.features(data, lambda x: x, keep=keep, name="herding")
        return fit.features(data, lambda x: slope * x, keep=keep, name="herding"), list(fit.seconds)

    for keep, slope in ((True, 2.0), (False, 3.0)):
        first, calls = features(2.0, keep)
        again, same_calls = features(3.0, keep)
        assert torch.equal(first, 2 * data.x)
        assert torch.equal(again, slope * data.x)
        assert calls == same_calls == ["herding", "herding-1"]


def test_buffers_that_training_leaves_alone_are_not_in_its_checkpoints(tmp_path: Path) -> None:
    class Memory(nn.Module):
        still_in_training = True

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("images", torch.zeros(3))

    model = nn.ModuleDict({"net": classifier().train(), "memory": Memory()})
    checkpoints = Checkpoints(tmp_path, 0.0)
    fit = Fit(model, TRANSFORM, device="cpu", checkpoints=checkpoints)
    fit(points(), loss_of(model["net"]), model["net"].parameters(), epochs=1, lr=0.1, batch_size=8)
    filed = checkpoints.load("0", "train")
    assert filed is not None
    assert {key for key in filed[0] if key.startswith("buffer.")} == {
        f"buffer.net.1.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_a_model_that_reads_its_weights_itself_is_refused() -> None:
    backbone = tiny_backbone()
    attention = backbone.model.blocks[0].attn
    attention.qkv.forward, inner = None, attention.qkv
    attention.forward = lambda x, **_: attention.proj(F.linear(x, inner.weight, inner.bias)[..., : x.shape[-1]])
    with pytest.raises(ValueError, match=r"never calls layer 'blocks.0.attn.qkv'"):
        backbone.sites("key+value")
