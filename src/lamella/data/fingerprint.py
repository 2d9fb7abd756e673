"""What tells whether images are still the same ones."""

from hashlib import sha256

from lamella.data.images import Files, ImageSet, PixelArray

__all__ = ["content_sha256"]


def content_sha256(data: ImageSet) -> str:
    """SHA-256 over every image in its order: its pixels where they lie in memory, else its file's size and time."""
    digest = sha256()
    for key, i in zip(data.keys, data.positions.tolist(), strict=True):
        digest.update(f"{key}\x1f".encode("utf-8", "surrogateescape"))
        if isinstance(data.storage, PixelArray):
            pixels = data.storage.images[i]
            digest.update(f"{tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes())
        elif isinstance(data.storage, Files):
            stat = data.storage.paths[i].stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
