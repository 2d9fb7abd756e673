"""What tells whether images are still the same ones."""

from hashlib import sha256

from lamella.data.images import ImageSet

__all__ = ["content_sha256"]


def content_sha256(data: ImageSet) -> str:
    """SHA-256 over key and identity of every image in its order; of files, size and time stand for their content."""
    digest = sha256()
    for key, i in zip(data.keys, data.positions.tolist(), strict=True):
        digest.update(f"{key}\x1f".encode("utf-8", "surrogateescape") + data.storage.identity(i))
    return digest.hexdigest()
