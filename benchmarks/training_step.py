"""A training step of each method as a ratio to the frozen forward pass, at the first and at a late task.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py vit_tiny_patch16_224 --size 128 --repeats 15
    OMP_NUM_THREADS=1 python benchmarks/training_step.py vit_base_patch16_224 --size 224 --batch 8 --images 4
    OMP_NUM_THREADS=1 python benchmarks/training_step.py vit_base_patch16_224 --size 224 --batch 8 --images 4 --bf16
    python benchmarks/training_step.py vit_base_patch16_224 --size 224 --batch 128 --bf16 --device cuda \
        --method inflora --compile

1.00 is the frozen forward pass of timm's own model in float32. "activations alone" is what no method can do without:
the forward pass and the backward pass through activations as far as the first adapted layer, with nothing else to
train. "authors' form" is InfLoRA's code written out: for every task so far B A as a dense matrix, for keys and for
values, and attention as two products. A method is taken to its late task by its own `learn`, with training replaced by
noise; what is timed is the body of `fit`'s loop, with the loss and the tensors that `learn` hands over. With --compile
the forward pass and each method's late step come once more with compiled blocks (`fit.compile`).

"products" is the same ratio in counted floating-point operations of matrix products. All forms take turns in one
process; "time" is the median over the rounds of the ratio within a round, in process time (wall time on a GPU), with
the middle half of them. "of the matrix rate" is what a form's products reach of one large product in the precision of
all but the unit, timed in the same rounds. On a GPU the most memory of each form is printed too. For `inflora` a run of
Split CIFAR-100 (10 tasks of 5,000 images, 20 epochs, tests after each) is projected from its last step and the forward
pass.
"""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lamella.backbones import Backbone, load_backbone
from lamella.common.files import write_json
from lamella.common.randomness import generator
from lamella.common.timing import interleaved, ratio_text
from lamella.data.images import TensorSet
from lamella.data.scenario import Task
from lamella.methods import METHODS
from lamella.training.compilation import compiled_blocks
from lamella.training.fit import Fit
from lamella.training.optimizers import build_optimizer, parameter_groups
from lamella.training.precision import computing
from lamella.training.recipe import LoRA

CLASSES, RANK = 10, 10
METHODS_SHOWN = ["inflora", "seq-lora", "duallora", "color"]

SHORT, PRODUCT = "forward, last block for the class token", "one large matrix product"
COMPILED = ", compiled"

Step = Callable[[], Any]


def main(
    backbone: Annotated[str, typer.Argument()] = "vit_tiny_patch16_224",
    size: int = 128,
    batch: int = 32,
    tasks: int = 20,
    repeats: int = 9,
    images: Annotated[int, typer.Option(help="Of each earlier task: they make subspaces and gates.")] = 12,
    method: Annotated[list[str] | None, typer.Option(help="May be given several times; all four by default.")] = None,
    bf16: Annotated[bool, typer.Option(help="All but the unit in bfloat16.")] = False,
    compile: Annotated[bool, typer.Option(help="Also with compiled blocks.")] = False,
    device: str = "cpu",
    out: Path = Path("runs/benchmarks"),
) -> None:
    """Time all forms."""
    build = lambda: load_backbone(backbone, weights="random", size=size).to(device)  # noqa: E731
    precision = "bf16" if bf16 else "float32"
    x = torch.randn(batch, 3, size, size, generator=generator(0, "images")).to(device)
    frozen = build()
    product = _product(x.device, torch.bfloat16 if bf16 else torch.float32)
    forms: dict[str, Step] = {
        "frozen forward": _forward(frozen.model, x, "float32"),
        SHORT: _forward(frozen, x, precision),
        "activations alone": _activations_alone(build(), x, precision),
    }
    for number in (1, tasks):
        forms[f"authors' form, task {number}"] = _authors(build(), number, x, precision)
    methods = method or METHODS_SHOWN
    for name in methods:
        for number in (1, tasks):
            forms[f"{name}, task {number}"] = _step_of(name, build(), number, images, x, precision)
    forms[PRODUCT] = product
    counted = {form: _count(step) for form, step in forms.items()}
    with ExitStack() as stack:
        if compile:
            forms[SHORT + COMPILED] = _forward(_compiled(build(), x, stack), x, precision)
            for name in methods:
                step = _step_of(name, build(), tasks, images, x, precision, lambda m: _compiled(m, x, stack))
                forms[f"{name}, task {tasks}{COMPILED}"] = step
        peaks = {form: _peak(step, x.device) for form, step in forms.items()}
        seconds = interleaved(forms, repeats, processor=device == "cpu")
    counted = {form: counted[form.removesuffix(COMPILED)] for form in forms}
    setting = {"backbone": backbone, "size": size, "batch": batch, "tasks": tasks, "precision": precision,
               "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}  # fmt: skip
    file = out / f"training-step-{backbone}-{precision}-{device}.json"
    write_json(file, {"setting": setting, "seconds": seconds, "operations": counted, "peak_bytes": peaks})
    _print(seconds, counted, peaks, batch,
           f"{backbone}, {size} px, {batch} images, {precision}, {torch.get_num_threads()} threads")  # fmt: skip
    if f"inflora, task {tasks}" in forms:
        spent = {form: statistics.median(own) / batch for form, own in seconds.items()}
        minutes = _split_cifar(spent[f"inflora, task {tasks}"], spent[SHORT]) / 60
        print(f"Split CIFAR-100 with inflora, projected: {minutes:.1f} min")


def _compiled(network: nn.Module, x: Tensor, stack: ExitStack) -> Any:
    stack.enter_context(compiled_blocks(network, len(x)))
    return network


def _forward(model: nn.Module, x: Tensor, precision: str) -> Step:
    def run() -> None:
        with torch.no_grad(), computing(x.device, precision):
            model(x)

    return run


def _activations_alone(backbone: Backbone, x: Tensor, precision: str) -> Step:
    bias = backbone.model.get_parameter("blocks.0.attn.qkv.bias").requires_grad_(True)
    return _step(lambda x, y: F.cross_entropy(backbone(x)[:, :CLASSES], y), [bias], x, precision)


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


def _authors(backbone: Backbone, number: int, x: Tensor, precision: str) -> Step:
    trained: list[Tensor] = []
    model: Any = backbone.model
    for block in model.blocks:
        block.attn = _AuthorsAttention(block.attn, number)
        trained += list(block.attn.B[-2:])
    head = nn.Linear(backbone.width, CLASSES).to(x.device)
    loss = lambda x, y: F.cross_entropy(head(model(x)), y)  # noqa: E731
    return _step(loss, [*trained, *head.parameters()], x, precision)


class _Reached(Exception):
    """The task to be timed is about to be trained."""

    def __init__(self, *call: Any, **hooks: Any) -> None:
        super().__init__()
        self.call, self.hooks = call, hooks


class _Pretended:
    """A `fit` that scans as the true one does, and instead of training adds noise, or stops before the last task."""

    def __init__(self, fit: Fit) -> None:
        self.scan, self.features, self.last = fit.scan, fit.features, False

    def __call__(self, data: Any, loss: Any, params: Any, training: Any, **options: Any) -> None:
        groups = parameter_groups(params, 1e-4)
        if self.last:
            raise _Reached(loss, groups, **{k: options[k] for k in ("before_step", "after_step") if k in options})
        for tensor in (t for group in groups for t in group["params"]):
            tensor.data += 1e-3 * torch.randn(tensor.shape, generator=generator(0, "noise")).to(tensor)


def _step_of(
    name: str, backbone: Backbone, number: int, images: int, x: Tensor, precision: str,
    prepared: Callable[[nn.Module], Any] = lambda learner: learner,
) -> Step:  # fmt: skip
    """The step of task `number`, counted from 1; `prepared` is done to the method before it."""
    learner: Any = METHODS[name](backbone, **({} if name == "color" else {"lora": LoRA(rank=RANK)}))
    fit = Fit(learner, backbone.transform, device=str(x.device))
    pretended = _Pretended(fit)
    try:
        for i in range(number):
            pretended.last = i == number - 1
            classes = tuple(range(i * CLASSES, (i + 1) * CLASSES))
            pixels = torch.randn(images, *x.shape[1:], generator=generator(0, "task", i))
            data = TensorSet(pixels, torch.arange(images) % CLASSES + classes[0])
            fit.begin(str(i))
            learner.learn(Task(i, f"task {i}", classes, tuple(map(str, classes)), data), pretended)
    except _Reached as reached:
        loss, groups = reached.call
        prepared(learner)
        first = (number - 1) * CLASSES
        return _step(lambda x, y: loss(x, y + first), groups, x, precision, **reached.hooks)
    raise RuntimeError(f"{name} has trained nothing in task {number}")


def _step(
    loss: Callable[[Tensor, Tensor], Tensor], trained: Any, x: Tensor, precision: str,
    before_step: Callable[[], None] = lambda: None, after_step: Callable[[], None] = lambda: None,
) -> Step:  # fmt: skip
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
        before_step()
        engine.step()
        after_step()

    return run


def _product(device: torch.device, dtype: torch.dtype) -> Step:
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, generator=generator(0, name)).to(device, dtype) for name in ("left", "right"))
    return lambda: a @ b


def _count(step: Step) -> int:
    """Floating-point operations of the step's matrix products; attention is two of them, and four backwards."""
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


def _peak(step: Step, device: torch.device) -> int:
    """Most bytes that torch holds on a GPU during a step, above what stands there before; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    step()  # a first one may compile
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _split_cifar(step: float, forward: float) -> float:
    """Seconds of ten tasks of 5,000 images and 20 epochs, two passes for statistics, and tests of 1,000 images a task.

    Args:
        step, forward: seconds an image.
    """
    return 10 * 5_000 * (20 * step + 2 * forward) + sum(range(1, 11)) * 1_000 * forward


def _print(
    seconds: dict[str, list[float]], counted: dict[str, int], peaks: dict[str, int], batch: int, title: str
) -> None:
    table = Table("form", title=title)
    for column in ("time", "products", "images/s", "of the matrix rate", *(["peak MB"] if any(peaks.values()) else [])):
        table.add_column(column, justify="right")
    unit = next(iter(seconds))
    rates = {form: counted[form] / statistics.median(own) for form, own in seconds.items()}
    for form in (form for form in seconds if form != PRODUCT):
        per_second = batch / statistics.median(seconds[form])
        peak = [f"{peaks[form] / 1e6:.0f}"] if any(peaks.values()) else []
        table.add_row(form, ratio_text(seconds[form], seconds[unit]), f"{counted[form] / counted[unit]:.2f}",
                      f"{per_second:.1f}", f"{rates[form] / rates[PRODUCT]:.0%}", *peak)  # fmt: skip
    Console(width=130).print(table)
    print(f"1.00 is {statistics.median(seconds[unit]):.3f} s, torch {torch.__version__}")


if __name__ == "__main__":
    typer.run(main)
