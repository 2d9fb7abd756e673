"""CODA-Prompt: prompts that are weighted sums of components, which each task adds to; the backbone stays frozen.

Smith, Karlinsky, Gutta, Cascante-Bonilla, Kim, Arbelle, Panda, Feris & Kira, "CODA-Prompt: COntinual Decomposed
Attention-based Prompting for Rehearsal-Free Continual Learning", CVPR 2023, arXiv 2211.13218. Authors' code:
github.com/GT-RIPL/CODA-Prompt, read at commit 605ac87 on 2026-11-30; features, loss, gradients and the start of new
components were compared (docs/verified.md). Of the paper we had public summaries.

    paper                       here
    Q(x), q(x)                  query: features of the frozen backbone, (n, d)
    P_m                         prompts: a component, `length` key tokens and as many value tokens
    K_m, A_m                    keys, attentions: (d,) each
    M                           `components` for each task, in each of the first `blocks` blocks
    alpha                       weights
    p                           prefixes
    lambda, L_ortho             orthogonality, `Prompts.penalty`

For one block, with cos the cosine and (*) the product of coordinates:

    alpha_m = cos(q(x) (*) A_m, K_m)        how well a component fits what its attention vector lets through
    p = sum_m alpha_m P_m                   the prompt; its halves p_K and p_V stand before the tokens' keys and values
    L_ortho(T) = mean over entries of (T T^T - I)^2     for T the rows P, K and A of all tasks so far

A task adds components, which start as orthonormal rows that are orthogonal to those of older tasks (Gram-Schmidt), and
trains them and its head by cross-entropy among its own classes, plus lambda (L_ortho(P) + L_ortho(K) + L_ortho(A)).
Older components stay as they are, but act in every prompt.

A prediction takes two passes, one for the query. Prompts reach an attention through `adapters/prefix.py`, so a backbone
needs attentions that torch's scaled_dot_product_attention computes: ViTs of timm, most encoders of transformers.

Departures (from the authors' code [c], from the paper [p]):
- The start is the newer code's Gram-Schmidt [c], where the paper starts all tasks' components at once [p]; lambda is 0,
  as its scripts have it since then [c]; the paper's is 0.1 [p].
- New rows are orthogonal to all that older rows span; the code takes off the projection on each older row, which after
  training are not orthogonal to each other [c]. Without training both give the same rows. If older rows span
  everything, new ones are random directions; the code draws again or keeps rounding errors [c].
- The learning rate falls from the first epoch on; the code's falls one epoch late, and ends at 0.1 of the start where
  ours ends at 0.016, for 20 epochs [c]. `schedule = "inflora-code"` is the code's.
- Every batch is used; the code leaves out the last one of an epoch if it is not full [c].
- L_ortho is the mean of squares [c]; the paper has a norm [p]. A first version of the code also has a factor of 1e-6.
- The number of tasks is unknown, so each adds 10 components; the code shares 100 out among its 10 tasks [c].
- Prompts stand before projected keys and values [c]; the paper writes them before these projections [p].
- The query is what the backbone gives as features, such as a mean of tokens; in the paper it is the class token.
- Each task has a head of its own. The code has one layer and hides the logits of older classes, which trains the same
  rows [c]. Eval mode while training; the code's network has no dropout [c].
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamella.adapters.prefix import Prefix
from lamella.backbones import Backbone
from lamella.common.randomness import generator
from lamella.data.samples import Samples
from lamella.data.scenario import Task
from lamella.memory.subspace import orthonormal_start
from lamella.methods.shared.own_heads import OwnHeads
from lamella.training.fit import Fit
from lamella.training.recipe import Training

__all__ = ["CodaPrompt", "Components", "Prompts", "component_weights"]


class Components(nn.Module):
    """The components of one task in all blocks.

    Attributes:
        prompts: (blocks, m, 2, length, width), tokens for keys and for values.
        keys: (blocks, m, d).
        attentions: (blocks, m, d).
    """

    def __init__(self, prompts: Tensor, keys: Tensor, attentions: Tensor) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts, requires_grad=False)
        self.keys = nn.Parameter(keys, requires_grad=False)
        self.attentions = nn.Parameter(attentions, requires_grad=False)


class Prompts(nn.Module):
    """The components of all tasks, and the prompts that they give for a query.

    Args:
        blocks: how many blocks see a prompt.
        length: how many tokens a prompt has, for keys and for values each.
        width: of these tokens.
        query: d, the width of a query.
    """

    here: Tensor

    def __init__(self, blocks: int, length: int, width: int, query: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.shapes = {"prompts": (2, length, width), "keys": (query,), "attentions": (query,)}
        self.tasks = nn.ModuleList()
        self.register_buffer("here", torch.zeros(0), persistent=False)  # new components are put on its device

    def every(self, name: str) -> Tensor:
        """(blocks, M, ...), the prompts, keys or attentions of all tasks."""
        none = self.here.new_zeros(self.blocks, 0, *self.shapes[name])
        return torch.cat([none, *(getattr(task, name) for task in self.tasks)], dim=1)

    def grow(self, count: int, generator: torch.Generator) -> Components:
        """Add the components of a task, `count` in each block, which start by `orthonormal_start`."""
        new: list[Tensor] = []
        for name, shape in self.shapes.items():
            starts = [orthonormal_start(old, count, generator) for old in self.every(name).flatten(2).cpu()]
            new.append(torch.stack(starts).float().unflatten(2, shape))
        self.tasks.append(Components(*new).to(self.here.device))
        return cast(Components, self.tasks[-1])

    def forward(self, query: Tensor) -> list[Prefix]:
        """Return the prompt of each block, sum_m alpha_m P_m, for queries (n, d); no prompts before the first task."""
        if not len(self.tasks):
            return []
        weights = component_weights(query, self.every("attentions"), self.every("keys"))
        summed = torch.einsum("bnm,bmkld->kbnld", weights, self.every("prompts"))
        return [Prefix(keys, values) for keys, values in zip(*summed, strict=True)]

    def penalty(self) -> Tensor:
        """Return the sum over blocks of L_ortho(P) + L_ortho(K) + L_ortho(A)."""
        total = self.here.new_zeros(())
        for name in self.shapes:
            rows = self.every(name).flatten(2)
            with torch.autocast(rows.device.type, enabled=False):  # which would round products that are nearly zero
                total = total + (rows @ rows.mT - torch.eye(rows.shape[1]).to(rows)).square().mean((1, 2)).sum()
        return total

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Make the components that `state_dict` holds, then load it."""
        mine = f"{prefix}tasks."
        numbers = sorted({int(key[len(mine) :].split(".")[0]) for key in state_dict if key.startswith(mine)})
        held = [[state_dict[f"{mine}{i}.{name}"] for name in self.shapes] for i in numbers]
        self.tasks = nn.ModuleList(Components(*map(torch.empty_like, h)) for h in held).to(self.here.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class CodaPrompt(OwnHeads):
    """CODA-Prompt, by default with the settings of the authors' code for CIFAR-100 in ten tasks.

    Args:
        backbone: the feature extractor, of attentions; it stays frozen.
        seed: the seed of every random draw.
        training: how a task's components and head are trained; see `Training`.
        components: how many components each task adds to each block; at least 1.
        length: how many tokens a prompt has for keys, and as many for values; at least 1. The paper's length counts
            both.
        blocks: how many blocks see prompts, counted from the input; at least 1.
        orthogonality: lambda, the weight of the penalty; at least 0, and 0 leaves the penalty out.

    Raises:
        ValueError: a value is not allowed, or the backbone's attentions cannot see prompts.
    """

    own_meanings = frozenset({"blocks", "orthogonality"})

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        training: Training = Training(epochs=20, lr=1e-3, schedule="inflora"),
        components: int = 10,
        length: int = 4,
        blocks: int = 5,
        orthogonality: float = 0.0,
    ) -> None:
        super().__init__(backbone, seed, training)
        for name, value in (("components", components), ("length", length)):
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if not orthogonality >= 0:
            raise ValueError(f"orthogonality {orthogonality} is below 0; it weighs a penalty, and 0 leaves it out")
        self.components = components
        self.orthogonality = orthogonality
        self.prompts = Prompts(blocks, length, backbone.prefix_width(blocks), backbone.width)

    def learn(self, task: Task, fit: Fit) -> None:
        self.eval()
        new = self.prompts.grow(self.components, generator(self.seed, "prompts", len(self.heads)))
        self.train_head(task, fit, new.parameters(), penalty=self.penalty if self.orthogonality else None)

    def penalty(self) -> Tensor:
        """Return lambda (L_ortho(P) + L_ortho(K) + L_ortho(A)), summed over blocks."""
        return self.orthogonality * self.prompts.penalty()

    def features(self, x: Samples) -> Tensor:
        """(n, d) features of n samples, each with prompts made for it."""
        with torch.no_grad():
            query = self.backbone(x)
        return self.backbone.prefixed(x, self.prompts(query))

    @property
    def features_stay(self) -> bool:
        return False  # the components of later tasks act in every prompt

    def linear_classifier(self) -> nn.Linear:
        why = f"it makes prompts for each {self.backbone.transform.noun}"
        raise ValueError(f"CodaPrompt does not classify by one linear layer on the features of one network: {why}")


def component_weights(query: Tensor, attentions: Tensor, keys: Tensor) -> Tensor:
    """Return the weights alpha_m = cos(q (*) A_m, K_m) of components, (blocks, n, M), in float32.

    Args:
        query: (n, d), q of each sample.
        attentions: (blocks, M, d), A.
        keys: (blocks, M, d), K.
    """
    with torch.autocast(query.device.type, enabled=False):  # bfloat16 would round differences between cosines away
        q, A, K = query.float(), attentions.float(), F.normalize(keys.float(), dim=-1)
        # Both sums over d are products of matrices, so that no tensor has n x M x d numbers.
        lengths = (q.square() @ A.square().mT).clamp_min(1e-24).sqrt()
        return (q @ (A * K).mT) / lengths
