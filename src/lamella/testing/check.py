"""The check of a method: all promises of the contract, one after the other."""

import inspect
from collections.abc import Callable
from typing import Any, cast

from lamella.backbones import Backbone
from lamella.common.options import REQUIRED, arguments, options_of
from lamella.methods import Method
from lamella.testing.checks import CHECKS
from lamella.testing.tiny import MethodCheckError, tiny_vit
from lamella.testing.trial import Trial

__all__ = ["check_method"]

Build = Callable[[Backbone, int], Method]
SHORT = {"epochs": 2, "batch_size": 8}
"""Hyper-parameters of a class that is checked, where it has them: a trial is short."""


def check_method(build: type[Method] | Build, *, backbone: Callable[[], Backbone] = tiny_vit) -> list[str]:
    """Check that a method keeps the contract of `lamella.Method`.

    It learns tasks of a few small images, or short texts, on a tiny backbone, on the CPU, in seconds, and nothing is
    downloaded. What it learns of them is of no interest. Checked are the shapes and the order of logits, that nothing
    stays trainable, that predictions depend on neither their batch nor test samples, that the same seed gives the same
    bits, that saving and loading changes nothing, and that a learning which is killed and resumed ends with the same
    bits.

        from lamella.testing import check_method
        from my_file import EMALoRA

        def test_ema_lora():
            check_method(EMALoRA)

    Args:
        build: the class, which is built as `build(backbone, seed=seed)`, with 2 epochs and batches of 8 where it has
            these hyper-parameters; or a function (backbone, seed) -> the method, for other settings.
        backbone: makes a new backbone at each call, with the same weights; a small vision transformer by default, and
            `lamella.testing.tiny_resnet` is a residual network, `lamella.testing.tiny_bert` an encoder of texts.

    Returns:
        The names of the checks, all of which the method has passed.

    Raises:
        MethodCheckError: an `AssertionError`, whose message says what is wrong, and what to change. Errors of the
            method itself are left as they are.
    """
    function = _of_class(build) if inspect.isclass(build) else cast(Build, build)
    trial = Trial(lambda seed: function(backbone(), seed))
    for check in CHECKS:
        check(trial)
    return [check.__name__ for check in CHECKS]


def _of_class(kind: Any) -> Build:
    """A class as the function that builds it, once its constructor is what a configuration can fill in."""
    name = kind.__name__
    if not issubclass(kind, Method):
        raise MethodCheckError(f"{name} does not derive from lamella.Method")
    if inspect.isabstract(kind):
        raise MethodCheckError(f"{name} does not write {', '.join(sorted(kind.__abstractmethods__))}")
    _check_constructor(kind)
    known = options_of(kind, without={"seed"})
    short = arguments("method", {key: value for key, value in SHORT.items() if key in known}, known)
    build = cast(Callable[..., Method], kind)
    return lambda backbone, seed: build(backbone, seed=seed, **short)


def _check_constructor(kind: type[Method]) -> None:
    """Whether the hyper-parameters can be keys of [method]: keyword-only, annotated, with defaults, seed among them."""
    parameters = list(inspect.signature(kind).parameters.values())
    if "base" in {parameter.name for parameter in parameters}:
        raise MethodCheckError(
            f"{kind.__name__} learns on top of another method; hand check_method a function that builds both: lambda "
            f"backbone, seed: {kind.__name__}(base=..., seed=seed)"
        )
    for parameter in parameters[1:]:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise MethodCheckError(
                f"the constructor of {kind.__name__} takes '{parameter}' otherwise than by keyword alone; write it as "
                "__init__(self, backbone: Backbone, *, seed: int = 0, ...), since hyper-parameters are the keys of "
                "[method]"
            )
        if REQUIRED in (parameter.annotation, parameter.default):
            raise MethodCheckError(
                f"the hyper-parameter '{parameter.name}' of {kind.__name__} lacks an annotation or a default; write "
                f"'{parameter.name}: TYPE = VALUE', by which values of a configuration are checked"
            )
    if "seed" not in {parameter.name for parameter in parameters}:
        raise MethodCheckError(f"the constructor of {kind.__name__} takes no seed; add 'seed: int = 0'")
