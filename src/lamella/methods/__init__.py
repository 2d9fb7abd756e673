"""The methods, by the names that a configuration uses. Each method has its own file, and one line here."""

from collections.abc import Callable

from lamella.methods.coda_prompt import CodaPrompt
from lamella.methods.color import CoLoR
from lamella.methods.der import DER
from lamella.methods.dlc.dlc import DLC
from lamella.methods.duallora import DualLoRA
from lamella.methods.e2lora import E2LoRA
from lamella.methods.ewc_lora import EWCLoRA
from lamella.methods.gainlora import GainLoRA
from lamella.methods.icarl import ICaRL
from lamella.methods.inflora import InfLoRA
from lamella.methods.linear_probe import LinearProbe
from lamella.methods.loda import LoDA
from lamella.methods.lora_sub import LoRASub
from lamella.methods.lwf import LwF
from lamella.methods.memo import MEMO
from lamella.methods.method import Method
from lamella.methods.nearest_mean import NearestMean
from lamella.methods.olora import OLoRA
from lamella.methods.ranpac import RanPAC
from lamella.methods.replay import Replay
from lamella.methods.sdlora import SDLoRA
from lamella.methods.seq_finetune import SeqFinetune
from lamella.methods.seq_lora import SeqLoRA
from lamella.methods.slca import SLCA
from lamella.methods.splitlora import SplitLoRA
from lamella.methods.streaming_lda import StreamingLDA
from lamella.methods.wa import WA

__all__ = ["ALIASES", "METHODS", "WHOLE_STREAM", "Method"]

METHODS: dict[str, Callable[..., Method]] = {
    "inflora": InfLoRA,
    "duallora": DualLoRA,
    "nearest-mean": NearestMean,
    "streaming-lda": StreamingLDA,
    "ranpac": RanPAC,
    "linear-probe": LinearProbe,
    "olora": OLoRA,
    "gainlora": GainLoRA,
    "e2lora": E2LoRA,
    "loda": LoDA,
    "splitlora": SplitLoRA,
    "lora-sub": LoRASub,
    "ewc-lora": EWCLoRA,
    "color": CoLoR,
    "coda-prompt": CodaPrompt,
    "seq-lora": SeqLoRA,
    "sdlora": SDLoRA,
    "seq-finetune": SeqFinetune,
    "slca": SLCA,
    "replay": Replay,
    "icarl": ICaRL,
    "lwf": LwF,
    "wa": WA,
    "der": DER,
    "memo": MEMO,
    "dlc": DLC,
    "joint": SeqLoRA,
}

WHOLE_STREAM = frozenset({"joint"})
"""The methods that are upper bounds: the runner gives them all tasks as one, once, at the end."""

ALIASES: dict[str, tuple[str, dict[str, object]]] = {"inflora-b5": ("inflora", {"blocks": 5})}
"""Names for a method with certain settings, such as InfLoRA in the first five blocks only."""
