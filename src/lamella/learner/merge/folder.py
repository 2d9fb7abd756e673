"""Merges adapters and writes the result as a folder that PEFT loads, and that a backbone of Lamella can start from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lamella.adapters.merging import RULES, Merging, merged
from lamella.adapters.pairs import Pair, truncated
from lamella.backbones import load_backbone
from lamella.backbones.causal_models import OUTPUT
from lamella.common.files import write_json
from lamella.common.progress import Progress, silent
from lamella.common.words import many
from lamella.data.answers import AnswerSet
from lamella.data.scenario import Source as Data
from lamella.data.sources.readable import load_readable
from lamella.learner.export.drafts import atomic_output
from lamella.learner.export.low_rank import adapter_tensors, lora_options, told_ranks
from lamella.learner.merge.searched import Searched, search_weights
from lamella.learner.merge.sources import Source, read_source

__all__ = ["OF_FOLDERS", "merge_folders"]

OF_FOLDERS = tuple(rule for rule in RULES if rule != "regmean")
"""The rules that need nothing but the adapters."""

_WHOLE = ("ties", "dare", "elect")
"""The rules whose results have no low rank."""


def merge_folders(
    places: Sequence[Path],
    out: Path,
    merging: Merging,
    *,
    weights: Sequence[float] | None = None,
    samples: str | Path | None = None,
    backbone: str | None = None,
    rank: int | None = None,
    seed: int = 0,
    trusted: bool = True,
    progress: Progress = silent,
) -> list[str]:
    """Merge adapters of one network, and write the result.

    Args:
        places: folders of models, or of adapters that PEFT saved; at least one.
        out: the folder to write, which must not exist.
        merging: the rule and its numbers.
        weights: for the rule "weighted", one for each adapter.
        samples: for the rule "weighted" in place of weights, a few labelled samples by which they are searched.
        backbone: the name of the network, for such a search among adapters of PEFT alone.
        rank: the largest rank of a layer's merged update, which is truncated to it. Rules on entries need one.
        seed: the seed of the draws of "dare".
        trusted: False for models of strangers.
        progress: opens a progress bar of the search.

    Returns:
        Lines about the ranks, what truncation keeps, what was left out, and how to use the result.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: `out` exists, an adapter cannot be merged, they belong to different networks, or the rule does not
            fit what was given.
    """
    if merging.rule not in OF_FOLDERS:
        raise ValueError(
            f"rule '{merging.rule}' needs the inputs that each adapter was trained on, which are not here; choose "
            "another rule, such as 'tsv', or call lamella.adapters.merging.merged with second moments"
        )
    if merging.rule == "weighted" and weights is None and samples is None:
        raise ValueError(
            "rule 'weighted' needs weights, a number for each adapter (--weights 1,0.5), or samples by which they are "
            "searched (--samples DATA); rule 'mean' weighs all alike"
        )
    if samples is not None and (merging.rule != "weighted" or weights is not None):
        raise ValueError(
            "samples are for the rule 'weighted', in place of weights: they say how much of each adapter is taken; "
            "leave one of them out"
        )
    if backbone is not None and samples is None:
        raise ValueError("the backbone is needed to search weights with samples, and there are none; leave it out")
    if rank is None and merging.rule in _WHOLE:
        raise ValueError(f"rule '{merging.rule}' gives whole matrices; say by --rank what the LoRA may have")
    with atomic_output(out) as draft:
        sources = [read_source(place, trusted=trusted) for place in places]
        _check_one_base(sources)
        data = None if samples is None else load_readable(samples)
        searched = None if data is None else _searched(sources, backbone, data.whole, seed, progress)
        weights = weights if searched is None else searched.weights
        found = merged([source.pairs for source in sources], merging, weights=weights, seed=seed)
        pairs, kept = _of_rank(found, rank)
        _write(draft, pairs, sources)
    lines = [told_ranks(pairs)] if searched is None else [searched.told, told_ranks(pairs)]
    if data is not None and (bad := data.unreadable):
        first = f"the first is {bad[0].key}: {bad[0].reason}"
        lines.insert(1, f"left out of the samples, cannot be read: {many(len(bad), data.noun)}; {first}")
    lines += [] if rank is None else [f"rank {rank} keeps {100 * kept:.1f} % of the squared norm of the merged update"]
    lines += [f"left out of {source.place}: {source.left_out}" for source in sources if source.left_out]
    how = (
        f"load it: peft.PeftModel.from_pretrained(model, '{out}'), or lamella learn NEW PHOTOS --backbone NETWORK+{out}"
    )
    return [*lines, how]


def _searched(sources: Sequence[Source], name: str | None, data: Data, seed: int, progress: Progress) -> Searched:
    """Return the weights that suit the samples best, on the network of the adapters."""
    if name is not None:
        options = {"output": OUTPUT} if data.train.noun == AnswerSet.noun else {}
        return search_weights(sources, load_backbone(name, **options), data, seed=seed, progress=progress)
    known = next((source.backbone for source in sources if source.backbone is not None), None)
    if known is None:
        raise ValueError(
            f"'{sources[0].place}' does not say which network it belongs to; weights are searched on it, so name it "
            "by --backbone"
        )
    return search_weights(sources, known, data, seed=seed, progress=progress)


def _check_one_base(sources: Sequence[Source]) -> None:
    """Make sure that nothing says that adapters belong to different networks."""
    for what in ("base", "digest"):
        known = [(source, value) for source in sources if (value := getattr(source, what))]
        for source, value in known[1:]:
            first, wanted = known[0]
            if value != wanted:
                of = "the network" if what == "base" else "weights with the checksum"
                raise ValueError(
                    f"'{source.place}' belongs to {of} '{value[:60]}', and '{first.place}' to '{wanted[:60]}'; "
                    "adapters of one network can be merged"
                )
    for source in sources[1:]:
        first = sources[0]
        if not set(first.pairs) & set(source.pairs):
            raise ValueError(
                f"'{source.place}' changes no layer that '{first.place}' changes ('{next(iter(source.pairs))}' and "
                f"'{next(iter(first.pairs))}'), so they belong to different networks, or name its layers differently"
            )
        if first.turned != source.turned:
            raise ValueError(f"'{source.place}' and '{first.place}' differ in fan_in_fan_out; save both in one form")


def _of_rank(pairs: Mapping[str, Pair], rank: int | None) -> tuple[dict[str, Pair], float]:
    """Truncate the pairs of layers that change, and return what of the squared norm of all is kept."""
    changed = {name: pair for name, pair in pairs.items() if _changes(name, pair)}
    if not changed:
        raise ValueError("the merged update is zero on every layer, so there is nothing to write")
    total = sum(float(pair.delta().square().sum()) for pair in changed.values())
    cut = changed if rank is None else {name: truncated(pair, rank)[0] for name, pair in changed.items()}
    return cut, sum(float(pair.delta().square().sum()) for pair in cut.values()) / total


def _changes(name: str, pair: Pair) -> bool:
    """Return whether an update is more than zeros in float32, in which it is stored."""
    stored = pair.delta().float()
    if not all(tensor.float().isfinite().all() for tensor in (*pair, stored)):
        raise ValueError(f"the merged update of layer '{name}' is too large for float32; choose a smaller --scale")
    return bool(stored.any())


def _write(folder: Path, pairs: Mapping[str, Pair], sources: Sequence[Source]) -> None:
    from safetensors.torch import save_file

    stored = {name: Pair(A.float().contiguous(), B.float().contiguous()) for name, (A, B) in pairs.items()}
    digest = next((source.digest for source in sources if source.digest), None)
    config = lora_options(stored) | {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": next((source.base for source in sources if source.base), None),
        "fan_in_fan_out": sources[0].turned,
    }
    notes = {"format": "pt"} | ({"weights_sha256": digest} if digest else {})
    folder.mkdir()
    write_json(folder / "adapter_config.json", config)
    tensors: dict[str, torch.Tensor] = adapter_tensors(stored)
    save_file(tensors, folder / "adapter_model.safetensors", metadata=notes)
