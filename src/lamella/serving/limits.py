"""How much one request may ask for."""

from dataclasses import dataclass

__all__ = ["MB", "Limits"]

MB = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Bounds on what is taken from a client; what is beyond is refused, and nothing of it is kept.

    Attributes:
        predict_mb: of a request to predict, in 1,000,000 bytes. learn_mb: of an archive to learn from.
        unpacked_mb: of the archive's images together.
        megapixels: of one image, by its header, in 1,000,000 pixels.
        images: in a request to predict. files: in an archive.
        waiting: images that wait for the model at once, of all clients.
        upload_seconds: until a request has arrived. predict_seconds: until it is answered.
        learn_seconds: until a learning is given up.
    """

    predict_mb: float = 64
    learn_mb: float = 512
    unpacked_mb: float = 2048
    megapixels: float = 50
    images: int = 64
    files: int = 5000
    waiting: int = 512
    upload_seconds: float = 600
    predict_seconds: float = 60
    learn_seconds: float = 24 * 3600
