"""The methods that can be compared with somebody's code: where that is, and the commit whose names are used."""

from typing import NamedTuple

__all__ = ["KNOWN", "Known"]


class Known(NamedTuple):
    """What a method is compared with.

    Attributes:
        adapter: the module of this folder and its function that compares, such as "ranpac.rows".
        home: where the code comes from.
        commit: the beginning of the commit at which its names were read.
    """

    adapter: str
    home: str
    commit: str


PYCIL = ("github.com/G-U-N/PyCIL", "f3509b8")

KNOWN = {
    "inflora": Known("inflora.rows", "github.com/liangyanshuo/InfLoRA", "e08b00e"),
    "olora": Known("olora.rows", "github.com/cmnfriend/O-LoRA", "07117e1"),
    "sdlora": Known("sdlora.rows", "github.com/WuYichen-97/SD-Lora-CL", "8bacded"),
    "ranpac": Known("ranpac.rows", "github.com/RanPAC/RanPAC", "cf4b301"),
    "icarl": Known("pycil.icarl", *PYCIL),
    "wa": Known("pycil.wa", *PYCIL),
    "lwf": Known("pycil.distilled", *PYCIL),
    "replay": Known("pycil.herded", *PYCIL),
    "nearest-mean": Known("pycil.nearest_mean", *PYCIL),
    "coda-prompt": Known("coda_prompt.rows", "github.com/GT-RIPL/CODA-Prompt", "605ac87"),
    "slca": Known("slca.rows", "github.com/GengDavid/SLCA", "1511c1d"),
    "gainlora": Known("gainlora.rows", "github.com/liangyanshuo/gainlora", "956a228"),
    "lora-sub": Known("lora_sub.rows", "github.com/namphh28/LoraSub_Optimize", "d725a1f"),
    "ewc-lora": Known("ewc_lora.rows", "github.com/Panpz202006/LoSCO", "3578902"),
    "splitlora": Known("splitlora.rows", "github.com/iLearn-Lab/ICLR26-SplitLoRA", "7a3f6d7"),
    "e2lora": Known("e2lora.rows", "github.com/kiddo127/E2-LoRA", "91f4e5d"),
    "loda": Known("loda.rows", "github.com/HHHLF/LoDA_ICML2026", "9943dc7"),
}
