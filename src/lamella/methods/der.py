"""DER: a new feature extractor for each task beside the frozen ones, and one classifier on all their features.

Yan, Xie & He, "DER: Dynamically Expandable Representation for Class Incremental Learning", CVPR 2021, arXiv 2103.16788.
Not Dark Experience Replay, which shares the short name. Public code read for the form without pruning and its settings:
PyCIL (github.com/G-U-N/PyCIL), whose DER has neither masks nor pruning.

Old extractors never change, so their features of old classes stay. The new extractor is trained to add what the old
ones lack: an auxiliary classifier reads its features alone. It separates the new classes from each other and from all
old classes together, which are one class to it.

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
- The first task has no auxiliary loss and no alignment [c]. It has the weight decay and shares of epochs of later ones;
  the code's has 200 epochs with falls at 60, 120 and 170 and a decay of 5e-4 [c].
- A new extractor starts as a copy of the last one [c]. The old rows and columns of the classifier go on [c]; the
  code of the paper's authors begins each task with a fresh classifier without biases, and raises the rate at first.
- New columns and rows start as torch's linear layers do; the code's are `head_start="kaiming"` [c]. A class that comes
  back gets a new row, which replaces its old one and counts as new.
"""

import torch
from torch import Tensor, nn

from lamella.data.samples import Samples
from lamella.methods.shared.expanding import Expanding

__all__ = ["DER"]


class DER(Expanding):
    """One extractor for each task, with PyCIL's settings for CIFAR-100.

    Args:
        backbone: the feature extractor of the first task, of any kind; later tasks get copies of it.
        seed: the seed of every random draw.
        training: how the newest extractor and all heads are trained; see `Training`.
        kept: how many images of old classes are kept, and which; see `Kept`.
        auxiliary_weight: the factor of the auxiliary classifier's loss; at least 0, and 0 leaves the loss out.
        align: whether the classifier rows of new classes are scaled after training to the mean length of the old ones.

    Attributes:
        extractors: the extractors of the second and later tasks.

    Raises:
        ValueError: a value is not allowed, or the backbone joins the class token and the mean of the other tokens.
    """

    copies = "extractors"
    extractors: nn.ModuleList

    def first(self) -> nn.Module:
        return self.backbone.model

    def features(self, x: Samples) -> Tensor:
        """(n, t d) features of all extractors, oldest first."""
        return torch.cat([self.backbone.run(x, one) for one in (self.first(), *self.extractors)], dim=1)

    def trained(self, newest: nn.Module) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """Return the used parameters of the newest extractor, and this extractor, whose statistics alone may move."""
        used = {id(weight) for weight in self.backbone.used_weights()}
        pairs = zip(self.first().parameters(), newest.parameters(), strict=True)
        return [own for original, own in pairs if id(original) in used], [newest]
