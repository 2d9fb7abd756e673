"""Precision: what bfloat16 changes, and what it leaves behind."""

import pytest
import torch
import torch.nn.functional as F
from streams import tiny_backbone

from lamella.common.randomness import generator
from lamella.training.precision import computing

CPU = torch.device("cpu")


def test_bfloat16_features_are_those_of_float32_up_to_its_rounding() -> None:
    backbone = tiny_backbone()
    x = torch.randn(4, 3, 32, 32, generator=generator(0, "images"))
    with torch.no_grad():
        exact = backbone(x)
        with computing(CPU, "bf16"):
            rounded = backbone(x)
        with computing(CPU, "float32"):
            assert torch.equal(backbone(x), exact)
    error = (rounded.float() - exact).norm() / exact.norm()
    assert 0 < float(error) < 0.02


def test_attention_in_bfloat16_is_right_in_both_directions() -> None:
    """Against softmax(q k^T / sqrt d) v written out in float64."""
    q, k, v = (torch.randn(2, 3, 9, 8, generator=generator(i, "attention")).requires_grad_() for i in range(3))
    with computing(CPU, "bf16"):
        F.scaled_dot_product_attention(q, k, v).float().square().sum().backward()
    found = [t.grad for t in (q, k, v)]
    doubles = [t.detach().double().requires_grad_() for t in (q, k, v)]
    a, b, c = doubles
    ((a @ b.mT / 8**0.5).softmax(-1) @ c).square().sum().backward()
    for gradient, exact in zip(found, doubles, strict=True):
        assert gradient is not None
        assert exact.grad is not None
        assert float((gradient - exact.grad).norm() / exact.grad.norm()) < 0.03


def test_the_flag_is_as_before_even_after_an_error() -> None:
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed
    before = allowed()
    with pytest.raises(KeyError), computing(CPU, "bf16"):
        raise KeyError(allowed())
    with computing(CPU, "bf16"):
        assert allowed()
    assert allowed() == before
