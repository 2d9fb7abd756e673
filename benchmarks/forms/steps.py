"""A training step of each method, at the first and at a late task."""

import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from forms.case import Case, Form, Seconds
from forms.network import images as noise
from lamella.backbones import Backbone, load_backbone
from lamella.common.randomness import generator
from lamella.data.images import TensorSet
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.experiments.bench.streams import short_method
from lamella.learner.learner import Learner
from lamella.training.compilation import compiled_blocks
from lamella.training.fit import Fit
from lamella.training.optimizers import build_optimizer, parameter_groups
from lamella.training.precision import computing

CLASSES, RANK = 10, 10
METHODS_SHOWN = ["inflora", "seq-lora", "duallora", "color"]
UNIT = "frozen forward"
SHORT = "forward, last block for the class token"
PRODUCT = "one large matrix product"
COMPILED = ", compiled"


def training_step(
    backbone: str = "vit_tiny_patch16_224",
    size: int = 128,
    batch: int = 32,
    tasks: int = 20,
    images: Annotated[int, typer.Option(help="Of each earlier task: they make subspaces and gates.")] = 12,
    method: Annotated[list[str] | None, typer.Option(help="May be given several times; four by default.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="All but the unit in bfloat16.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Also with compiled blocks.")] = False,
    device: str = "cpu",
) -> Iterator[Case]:
    """A training step of each method, at the first and a late task; 1.00 is timm's frozen forward pass in float32.

    "Activations alone" is what no method can do without: the forward pass and the backward pass through activations as
    far as the first adapted layer. "Authors' form" is InfLoRA's code written out: for every task so far B A as a dense
    matrix, for keys and for values, and attention as two products. A method is taken to its late task by its own
    `learn`, with training replaced by noise; what is timed is the body of the training loop, with the loss and the
    tensors that `learn` hands over. "Products" is the same ratio in counted floating-point operations of matrix
    products; "of the matrix rate" is what they reach of one large product in the precision of all but the unit, timed
    in the same rounds. On a GPU the most memory of each form is there too. For `inflora` a run of Split CIFAR-100 (10
    tasks of 5,000 images, 20 epochs, tests after each) is projected.
    """
    build = lambda: load_backbone(backbone, weights="random", size=size).to(device)  # noqa: E731
    precision = "bf16" if bf16 else "float32"
    x = noise(batch, size).to(device)
    frozen = build()
    forms: dict[str, Form] = {
        UNIT: _forward(frozen.model, x, "float32"),
        SHORT: _forward(frozen, x, precision),
        "activations alone": _activations_alone(build(), x, precision),
    }
    for number in (1, tasks):
        forms[f"authors' form, task {number}"] = _authors(build(), number, x, precision)
    late: dict[str, Callable[[Callable[[nn.Module], object]], Form]] = {}
    for name in method or METHODS_SHOWN:
        step_at = lambda number, prepare, name=name: _step_of(  # noqa: E731
            name, {"name": backbone, "weights": "random", "size": size}, number, images, x, precision, prepare
        )
        late[name] = lambda prepare, step_at=step_at: step_at(tasks, prepare)
        for number in (1, tasks):
            forms[f"{name}, task {number}"] = step_at(number, _as_it_is)
    forms[PRODUCT] = _product(x.device, torch.bfloat16 if bf16 else torch.float32)
    counted = {form: _count(step) for form, step in forms.items()}
    with ExitStack() as stack:
        if compile:
            prepare = lambda network: stack.enter_context(compiled_blocks(network, len(x)))  # noqa: E731
            prepare(plain := build())
            forms[SHORT + COMPILED] = _forward(plain, x, precision)
            forms |= {f"{name}, task {tasks}{COMPILED}": step(prepare) for name, step in late.items()}
        peaks = {form: _peak(step, x.device) for form, step in forms.items()}
        notes = lambda seconds: _notes(seconds, counted, peaks, batch)  # noqa: E731
        remark = lambda seconds: _split_cifar(seconds, f"inflora, task {tasks}", batch)  # noqa: E731
        title = f"{backbone}, {precision}"
        yield Case(title, forms, UNIT, batch, device == "cpu", notes, remark, (PRODUCT,))


def _as_it_is(network: nn.Module) -> None:
    """Nothing is done to it."""


def _notes(seconds: Seconds, counted: dict[str, int], peaks: dict[str, int], batch: int) -> dict[str, dict[str, str]]:
    operations = {form: counted[form.removesuffix(COMPILED)] for form in seconds}
    rates = {form: operations[form] / statistics.median(own) for form, own in seconds.items()}
    memory = {form: {"peak MB": f"{bytes / 1e6:.0f}"} for form, bytes in peaks.items() if bytes}
    return {
        form: {
            "products": f"{operations[form] / operations[UNIT]:.2f}",
            "images/s": f"{batch / statistics.median(own):.1f}",
            "of the matrix rate": f"{rates[form] / rates[PRODUCT]:.0%}",
            **memory.get(form, {}),
        }
        for form, own in seconds.items()
    }


def _forward(model: nn.Module, x: Tensor, precision: str) -> Form:
    def run() -> None:
        with torch.no_grad(), computing(x.device, precision):
            model(x)

    return run


def _activations_alone(backbone: Backbone, x: Tensor, precision: str) -> Form:
    bias = backbone.model.get_parameter("blocks.0.attn.qkv.bias").requires_grad_(True)
    return step_form(lambda x, y: F.cross_entropy(backbone(x)[:, :CLASSES], y), [bias], x, precision)


class _AuthorsAttention(nn.Module):
    """Attention whose keys and values receive a dense update, summed anew from the factors of every task."""

    def __init__(self, attention: Any, tasks: int) -> None:
        super().__init__()
        self.plain, d = attention, attention.proj.in_features
        new = lambda *shape: nn.Parameter(0.01 * torch.randn(shape).to(attention.proj.weight), requires_grad=False)  # noqa: E731
        self.A = nn.ParameterList(new(RANK, d) for _ in range(tasks))
        self.B = nn.ParameterList(new(d, RANK) for _ in range(2 * tasks))

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        attention = self.plain
        heads = lambda t: t.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = (heads(t) for t in attention.qkv(x).chunk(3, dim=2))
        key, value = (torch.stack([B @ A for B, A in zip(self.B[i::2], self.A, strict=True)]).sum(0) for i in (0, 1))
        k, v = k + heads(F.linear(x, key)), v + heads(F.linear(x, value))
        weights = (q @ k.transpose(2, 3) * attention.scale).softmax(-1)
        return attention.proj((weights @ v).transpose(1, 2).flatten(2))


def _authors(backbone: Backbone, number: int, x: Tensor, precision: str) -> Form:
    trained: list[Tensor] = []
    model: Any = backbone.model
    for block in model.blocks:
        block.attn = _AuthorsAttention(block.attn, number)
        trained += list(block.attn.B[-2:])
    head = nn.Linear(backbone.width, CLASSES).to(x.device)
    loss = lambda x, y: F.cross_entropy(head(model(x)), y)  # noqa: E731
    return step_form(loss, [*trained, *head.parameters()], x, precision)


class Reached(Exception):
    """The task to be timed is about to be trained."""

    def __init__(self, *call: Any, **hooks: Any) -> None:
        super().__init__()
        self.call, self.hooks = call, hooks


class Pretended:
    """A `fit` that scans as the true one does, and instead of training adds noise, or stops before the last task."""

    once = False

    def __init__(self, fit: Fit) -> None:
        self.scan, self.features, self.last = fit.scan, fit.features, False

    def __call__(self, data: Any, loss: Any, params: Any, training: Any = None, **options: Any) -> None:
        groups = parameter_groups(params, 1e-4)
        if self.last:
            raise Reached(loss, groups, **{k: options[k] for k in ("before_step", "after_step") if k in options})
        for tensor in (t for group in groups for t in group["params"]):
            tensor.data += 1e-3 * torch.randn(tensor.shape, generator=generator(0, "noise")).to(tensor)


def _step_of(
    name: str,
    backbone: dict[str, Any],
    number: int,
    images: int,
    x: Tensor,
    precision: str,
    prepare: Callable[[nn.Module], object],
) -> Form:
    """The step of task `number`, counted from 1; `prepare` is called with the method before it."""
    table = short_method(name, batch=images) | ({} if name == "color" else {"rank": RANK})
    learner = Learner.create(backbone=backbone, method=table, fit={"device": str(x.device)})
    fit = learner.fit()
    pretended: Any = Pretended(fit)
    try:
        for i in range(number):
            pretended.last = i == number - 1
            classes = tuple(range(i * CLASSES, (i + 1) * CLASSES))
            pixels = torch.randn(images, *x.shape[1:], generator=generator(0, "task", i))
            data = TensorSet(pixels, torch.arange(images) % CLASSES + classes[0])
            fit.begin(str(i))
            learner.method.learn(Task(i, f"task {i}", classes, tuple(map(str, classes)), data), pretended)
    except Reached as reached:
        loss, groups = reached.call
        prepare(learner.method)
        first = (number - 1) * CLASSES
        return step_form(lambda x, y: loss(x, y + first), groups, x, precision, **reached.hooks)
    raise RuntimeError(f"{name} has trained nothing in task {number}")


def late_step(method: Any, tasks: Iterable[Task], x: Samples) -> Form:
    """The training step of the last of some tasks, on the CPU in float32, after a pretended training of the others.

    Args:
        method: what learns them.
        tasks: at least one. Class ids of the last one begin after those of the others.
        x: the samples of the step.
    """
    fit = Fit(method, method.backbone.transform, device="cpu")
    pretended: Any = Pretended(fit)
    *earlier, last = tasks
    try:
        for task in (*earlier, last):
            pretended.last = task is last
            fit.begin(task.name)
            method.learn(task, pretended)
    except Reached as reached:
        loss, groups = reached.call
        first = min(last.classes, default=0)
        return step_form(lambda x, y: loss(x, y + first), groups, x, "float32", **reached.hooks)
    raise RuntimeError(f"{type(method).__name__} has trained nothing in {last.name}")


def step_form(
    loss: Callable[[Any, Tensor], Tensor],
    trained: Any,
    x: Samples,
    precision: str,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Form:
    """The body of `fit`'s loop."""
    groups = parameter_groups(trained, 1e-4)
    for tensor in (t for group in groups for t in group["params"]):
        tensor.requires_grad_(True)
    engine = build_optimizer("adam", groups, weight_decay=0.0, momentum=0.0)
    y = torch.arange(len(x), device=x.device) % CLASSES

    def run() -> None:
        engine.zero_grad(set_to_none=True)
        with computing(x.device, precision):
            value = loss(x, y)
        value.backward()
        if before_step:
            before_step()
        engine.step()
        if after_step:
            after_step()

    return run


def _product(device: torch.device, dtype: torch.dtype) -> Form:
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, generator=generator(0, name)).to(device, dtype) for name in ("left", "right"))
    return lambda: a @ b


def _count(step: Form) -> int:
    """Floating-point operations of the step's matrix products; attention is two of them, and four backwards."""
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


def _peak(step: Form, device: torch.device) -> int:
    """Most bytes that torch holds on a GPU during a step, above what stands there before; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    step()  # a first one may compile
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _split_cifar(seconds: Seconds, form: str, batch: int) -> str:
    """Ten tasks of 5,000 images and 20 epochs, two passes for statistics, and tests of 1,000 images a task."""
    if form not in seconds:
        return ""
    step, forward = (statistics.median(seconds[each]) / batch for each in (form, SHORT))
    total = 10 * 5_000 * (20 * step + 2 * forward) + sum(range(1, 11)) * 1_000 * forward
    return f"Split CIFAR-100 with inflora, projected: {total / 60:.1f} min"
