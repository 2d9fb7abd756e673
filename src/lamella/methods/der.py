"""DER: a new feature extractor for each task beside the frozen ones, and one classifier on all their features.

Yan, Xie & He, "DER: Dynamically Expandable Representation for Class Incremental Learning", CVPR 2021, arXiv 2103.16788.
Not Dark Experience Replay, which shares the short name. Public code read for the form without pruning and its settings:
PyCIL (github.com/G-U-N/PyCIL), whose DER has neither masks nor pruning.

Old extractors never change, so what they tell of old classes stays. The new one is pushed to tell what they do not: an
auxiliary classifier that sees only its features names the new classes, and calls everything old by one name.

    paper                       here
    Phi_t, F_t                  features: those of all extractors side by side; the newest extractor
    u = [Phi_{t-1}(x), F_t(x)]  (n, t d)
    H_t                         heads, as wide as the features
    H_t^a                       auxiliary: |Y_t| + 1 outputs on F_t alone, thrown away after training
    L_Ht, L_Hta                 cross-entropies of both
    lambda_a                    auxiliary_weight
    M_t                         exemplars

Stored after t tasks with c classes: t extractors, c (t d + 1) numbers of the classifier, and the exemplars.

Departures (from the paper [p], from PyCIL's code [c]):
- No masks and no pruning, so every task adds a whole extractor [c]; the paper's second stage makes them smaller [p].
- The classifier is not trained again on balanced data [p]; its new rows are aligned instead (Zhao et al., CVPR 2020)
  [c]; `align=False` leaves them.
- The first task has no auxiliary loss and no alignment [c]; its rate, weight decay and shares of epochs are those of
  later ones.
- A new extractor starts as a copy of the last one [c].
- New columns and rows start as torch's linear layer does by default. Of classes that come back the new rows count, as
  new ones.
"""

import torch
from torch import Tensor, nn

from lamella.data.samples import Samples
from lamella.methods.shared.expanding import Expanding

__all__ = ["DER"]


class DER(Expanding):
    """One extractor a task, with PyCIL's settings for CIFAR-100.

    Args:
        backbone: of any kind; the first task's extractor, copied for later ones.
        seed: of all draws.
        training: see `Training`; of the newest extractor and all heads.
        kept: images of old classes; see `Kept`.
        auxiliary_weight: of the auxiliary classifier's loss; at least 0.
        align: whether new rows are scaled to the mean length of old ones after training.

    Attributes:
        extractors: those of the second and later tasks.

    Raises:
        ValueError: a backbone that joins the class token and the mean of the others.
    """

    copies = "extractors"
    extractors: nn.ModuleList

    def first(self) -> nn.Module:
        return self.backbone.model

    def features(self, x: Samples) -> Tensor:
        """(n, t d) features of all extractors, oldest first."""
        return torch.cat([self.backbone.run(x, one) for one in (self.first(), *self.extractors)], dim=1)

    def trained(self, newest: nn.Module) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """The parameters of the newest extractor that its features depend on; statistics of the others stay too."""
        used = {id(weight) for weight in self.backbone.used_weights()}
        pairs = zip(self.first().parameters(), newest.parameters(), strict=True)
        return [own for original, own in pairs if id(original) in used], [newest]
