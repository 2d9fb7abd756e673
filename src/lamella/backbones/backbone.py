"""A feature extractor with its width, its transform of inputs and its named places for branches."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from lamella.adapters.adapter import Site, adapt, watch
from lamella.adapters.branches import Adapted, adapter_names
from lamella.adapters.few_bits import has_few_bits
from lamella.adapters.merged import PARTS, UNKNOWN, with_stored_updates
from lamella.adapters.prefix import Prefix, attentions_of, prefixing
from lamella.adapters.tokens import counting
from lamella.backbones.by_length import divisible, in_parts
from lamella.backbones.class_token import class_token_features, is_class_token, others_are_unseen
from lamella.backbones.feature_cache import FeatureCache
from lamella.backbones.probing import call_order, first_readers, is_fused_as_thought, reads_class_token_alone
from lamella.backbones.roles import LayerPlace, find_places, in_order, parse_roles, rows_of
from lamella.common.checksums import digest
from lamella.common.randomness import generator as named_generator
from lamella.data.samples import CPU, Batch, Samples, Transform
from lamella.data.tokens import MASK
from lamella.data.transform import of_images

__all__ = ["Backbone"]


class _AllShown(Exception):
    """Ends a pass that only watchers look at."""


class Backbone(nn.Module):
    """A frozen pre-trained network that turns samples into features. It alone looks into a batch of them.

    Attributes:
        model: maps what the transform makes of n samples, such as images (n, 3, size, size) or a `Batch`, to features
            (n, width); its keys are the original ones.
        width: the number of features of a sample.
        transform: how raw samples become inputs.
        name: the name that it was loaded by.
        weights_sha256: the SHA-256 of all weights as they were loaded, and of the marks.
        marks: digests and settings by name of what features depend on beside the weights, such as a tokenizer.
        pool: "model", the model's own features, or "class+mean": the class token and the mean of the other tokens, side
            by side, twice as wide.

    Args:
        marks: digests and settings by name of what features depend on beside the weights, such as a tokenizer.

    Raises:
        ValueError: pool "class+mean" and the model has no class token, or takes no images.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        width: int,
        transform: Transform,
        pool: str = "model",
        marks: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("model", "class+mean"):
            raise ValueError(f"pool '{pool}' is unknown; use 'model' or 'class+mean'")
        if pool == "class+mean" and not getattr(model, "has_class_token", False):
            raise ValueError(f"'{name}' has no class token, which pool 'class+mean' needs; use pool 'model'")
        if pool == "class+mean":
            of_images(transform, "pool 'class+mean'")
        self.pool = pool
        width = 2 * width if pool == "class+mean" else width
        self.model = model.eval().requires_grad_(False)
        self._calls: Counter[str] = Counter()
        self.recall: FeatureCache | None = None
        self.name = name
        self.width = width
        self.transform = transform
        self._digests = {key: digest(value) for key, value in model.state_dict().items()}
        self.marks = dict(marks or {})
        told = [*sorted(self._digests.items()), *sorted(self.marks.items())]
        self.weights_sha256 = sha256("".join(f"{k}:{v}\n" for k, v in told).encode()).hexdigest()

    def forward(self, x: Samples) -> Tensor:
        """(n, width) features, before any head, of n samples as the transform gives them."""
        return self._features(x) if self.recall is None else self.recall.features(self, self._features, x)

    def run(self, x: Samples, model: Callable[[Any], Tensor] | None = None) -> Tensor:
        """What the model makes of samples in one whole pass.

        Args:
            x: the samples.
            model: what runs them instead: a copy of the model that a method has trained, or another output of it, such
                as the `losses` of a language model.
        """
        model = self.model if model is None else model
        mask = self.tokens_that_count(x)
        if mask is None:
            return model(x)
        with counting(mask):
            return model(x)

    def tokens_that_count(self, x: Samples) -> Tensor | None:
        """(n, tokens) bool, False for padding, which is no input of a layer; None where there is none.

        That is the batch's "attention_mask" where it has one. A network whose layers see other tokens than its batches
        have needs a backbone that says which of those count.
        """
        return x[MASK].bool() if isinstance(x, Batch) and MASK in x.tensors else None

    def example(self, n: int, generator: torch.Generator | None = None) -> Samples:
        """Inputs of n samples on the backbone's device: blank ones, or drawn where there is a generator."""
        return self.transform.example(n, generator).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU for a network without weights."""
        return next((weight.device for weight in self.model.parameters()), CPU)

    def _features(self, x: Samples) -> Tensor:
        if isinstance(x, Batch):
            return in_parts(self.run, x) if divisible(self.model, x) else self.run(x)
        if self.pool == "model":
            alone = is_class_token(self.model) and others_are_unseen(self.model)
            return class_token_features(self.model, x) if alone else self.model(x)
        model: Any = self.model
        tokens = model.forward_features(x)
        return torch.cat([tokens[:, 0], tokens[:, model.num_prefix_tokens :].mean(1)], dim=1)

    @torch.no_grad()
    def show(self, x: Samples, sites: Sequence[Site]) -> None:
        """Run samples only as far as the input of the last of the sites' layers, for watchers.

        To the end where one of them is not from this backbone's `sites`: how often it is called is then not known.
        """
        names = {site.name for site in sites}
        awaited = sum(self._calls[name] for name in names) if names <= self._calls.keys() else 0

        def count(_: Tensor) -> None:
            nonlocal awaited
            awaited -= 1
            if not awaited:
                raise _AllShown

        with watch(sites, lambda _: count, padding_too=True), suppress(_AllShown):
            self.run(x)

    def sites(self, *roles: str, blocks: int | None = None) -> tuple[Site, ...]:
        """Make the layers with these roles able to carry branches.

        Args:
            roles: each entry is a branch: "key+value" for rows that share their A, "query", "value" for one each.
            blocks: only the first so many blocks; all of them by default.

        Raises:
            ValueError: no such role or number of blocks in this backbone, or a site that its forward pass never calls.
        """
        found: list[Site] = []
        every = self.places()
        depth = max((p.block + 1 for p in every), default=0)
        if blocks is not None and every and not 1 <= blocks <= depth:
            raise ValueError(f"blocks = {blocks}, but '{self.name}' has {depth} blocks; use 1 to {depth}")
        places = [p for p in every if blocks is None or p.block < blocks]
        for place in places:
            for entry in roles:
                rows = rows_of(place, parse_roles(entry))
                if rows is not None:
                    found += adapt(self.model, place.name, rows)
        if not found:
            known = sorted({role for p in every for role in p.roles})
            there = "`lamella layers` lists what there is" if any(self.model.children()) else "it has no layers"
            raise ValueError(
                f"'{self.name}' has no layer with the roles {list(roles)}"
                + (f" in its first {blocks} blocks" if blocks else "")
                + (f"; its roles are {', '.join(known)}" if known else f"; {there}")
                + ". Class statistics (--no-train) need no such layers"
            )
        self._check_reached(found)
        self._check_fused([p for p in places if any(s.name == p.name and s.rows != slice(0, p.d_out) for s in found)])
        return tuple(found)

    def places(self) -> list[LayerPlace]:
        """The layers with a known role, whose blocks are counted in the order in which the network runs them."""
        found = find_places(self.model)
        return in_order(found, call_order(self.model, found, lambda: self.run(self.example(1))))

    def _check_fused(self, places: Sequence[LayerPlace]) -> None:
        """Refuse rows of a fused layer that are not what they seem: a branch there would change something else."""
        fused = [place for place in places if len(place.roles) > 1 and "value" in place.roles]
        if not fused:
            return
        x = self.example(2, named_generator(0, "backbone", "probe"))
        laid_out = is_fused_as_thought(self.model, fused, lambda: self.run(x))
        if wrong := [name for name, right in laid_out.items() if not right]:
            roles = ", ".join(fused[0].roles)
            raise ValueError(
                f"the rows of '{wrong[0]}' in '{self.name}' are not {roles} one after the other, so a branch "
                "for one of them would change others too; use the roles 'out' and 'mlp', as in "
                'method.sites=["out","mlp"]'
            )

    @torch.no_grad()
    def _check_reached(self, sites: list[Site]) -> None:
        """Refuse sites whose layer the model bypasses by reading its weight: a branch there would do nothing."""
        self._calls |= self.reached(sites)
        silent = sorted({s.name for s in sites} - self._calls.keys())
        if silent:
            raise ValueError(
                f"'{self.name}' never calls layer '{silent[0]}' in its forward pass (it reads the weight itself), so a "
                "branch there would do nothing; `lamella layers` lists the layers that can carry branches"
            )

    @torch.no_grad()
    def reached(self, sites: Sequence[Site]) -> Counter[str]:
        """How often a forward pass of one blank sample calls each of the sites' layers, those that it calls at all."""
        seen: Counter[str] = Counter()
        names = {site.layer: site.name for site in sites}
        with watch(sites, lambda layer: lambda _: seen.update([names[layer]]), padding_too=True):
            self.run(self.example(1))
        return seen

    @torch.no_grad()
    def check_class_token_alone(self, what: str) -> None:
        """Refuse what changes nothing but class tokens, unless the features are the class token.

        Args:
            what: acts on class tokens alone; it begins the message.

        Raises:
            ValueError: the backbone has no class token, or its features are made of other tokens, too.
        """
        x = self.example(2, named_generator(0, "backbone", "probe"))
        if getattr(self.model, "has_class_token", False):
            if reads_class_token_alone(self.model, self.places(), lambda: self._features(x)):
                return
            reason = "makes its features of other tokens, too"
        else:
            reason = "has no class token"
        raise ValueError(
            f"{what} acts on class tokens alone, but '{self.name}' {reason}; let it act on all tokens, or use a "
            "backbone whose features are its class token, such as a ViT of timm"
        )

    def first_readers(self, sites: Sequence[Site]) -> dict[str, str]:
        """For the layer of each site the first layer among them that reads the very same inputs, often itself."""
        return first_readers(sites, lambda: self.run(self.example(1)))

    def prefixed(self, x: Samples, prefixes: Sequence[Prefix]) -> Tensor:
        """(n, width) features of n samples, where the first attentions see these prefixes; always computed anew."""
        with prefixing(prefixes):
            return self._features(x)

    def prefix_width(self, blocks: int) -> int:
        """The width of the keys and values of the first so many attentions, before which a prefix can stand.

        Raises:
            ValueError: there are not so many, or they are computed in another way, in which they would not see one.
        """
        found = attentions_of(lambda: self.run(self.example(2)))
        if not found:
            raise ValueError(
                f"'{self.name}' has no attention that is computed by torch's scaled_dot_product_attention, so prompts "
                "would do nothing; use another backbone, such as a ViT of timm, or another method"
            )
        if not 1 <= blocks <= len(found):
            raise ValueError(f"blocks = {blocks}, but '{self.name}' has {len(found)} attentions; use 1 to {len(found)}")
        if len(forms := {*found[:blocks]}) > 1 or (form := forms.pop()).rows != 2 or form.keys != form.values:
            raise ValueError(
                f"the first {blocks} attentions of '{self.name}' do not all read whole {self.transform.noun}s at one "
                "width, so prompts cannot stand before their tokens; use another backbone, or another method"
            )
        return form.keys

    def used_weights(self) -> list[nn.Parameter]:
        """The parameters that the features depend on: some networks carry more, for heads that are not there.

        Raises:
            ValueError: most weights are kept in few bits, and cannot be trained.
        """
        if has_few_bits(self.model):
            raise ValueError(
                f"the weights of '{self.name}' are kept in few bits, so they cannot be trained; take storage 'float32'"
            )
        return self.used_parameters()

    def used_parameters(self) -> list[nn.Parameter]:
        """As `used_weights`, but of a network whose weights are kept in few bits only what is not: biases and norms."""
        adapter_of = adapter_names(self.model)
        weights = [p for n, p in self.model.named_parameters() if not adapter_of(n)]
        with torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
            features = self(self.example(1))
            if not features.requires_grad:  # as of hashed words, which no weights make
                weights.clear()
            slopes = torch.autograd.grad(features.sum(), weights, allow_unused=True) if weights else ()
        self.model.requires_grad_(False)
        return [w for w, slope in zip(weights, slopes, strict=True) if slope is not None]

    def learned(self) -> dict[str, Tensor]:
        """What a method that changes the backbone must store, by key of `model`: each tensor that is not as loaded.

        A weight that adapters were merged into, and nothing else has changed, is stored as their factors while these
        are small: KEY.merged.A and so on, see merged.py.
        """
        adapted, found = self._adapted(), dict[str, Tensor]()
        for key, value in self.model.state_dict().items():
            now, loaded = digest(value), self._digests.get(key)
            if now == loaded:
                continue
            updates = adapted[key].merged if key in adapted else None
            if updates is not None and updates.updates and (updates.first, updates.last) == (loaded, now):
                found |= {f"{key}.merged.{part}": tensor for part, tensor in updates.tensors().items()}
            else:
                found[key] = value
        return found

    def load_learned(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn what `learned` gave into tensors for `model.load_state_dict`, and remember what was merged.

        Args:
            state: the tensors by key; those of adapters may be among them.

        Returns:
            A tensor for each key of `model`, those that are not in the state as they are, and the adapters' tensors.

        Raises:
            ValueError: stored factors do not fit, or the weight that they change is stored too, or is not as it was
                loaded.
        """
        state, adapter_of = dict(state), adapter_names(self.model)
        full = {k: v for k, v in self.model.state_dict().items() if not adapter_of(k)}
        adapted = self._adapted()
        for key, layer in adapted.items():
            layer.merged = UNKNOWN if key in state else None
        for key in full:
            parts = {part: state.pop(f"{key}.merged.{part}") for part in PARTS if f"{key}.merged.{part}" in state}
            if not parts:
                continue
            try:
                if key in state:
                    raise ValueError("a weight is stored beside updates of it")
                full[key], merged = with_stored_updates(parts, full[key])
            except ValueError as error:
                raise ValueError(f"the stored state does not fit '{self.name}' ({error}: {key})") from None
            if merged.first != self._digests[key]:
                raise ValueError(f"'{key}' of '{self.name}' is not as it was loaded; restore into a new backbone")
            if key in adapted:  # a method may adapt a layer only when it learns
                adapted[key].merged = merged
        return full | state

    def _adapted(self) -> dict[str, Adapted]:
        """The layers that can have branches, by the key of their weight."""
        return {f"{name}.weight": layer for name, layer in self.model.named_modules() if isinstance(layer, Adapted)}
