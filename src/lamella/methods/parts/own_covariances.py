"""The settings of classes' own covariances in alignment, and which of them fit together."""

__all__ = ["check_own"]


def check_own(own_covariance: float, prior: float | None, directions: int | str, head: str) -> None:
    """Check the settings of `Aligned` for covariances of each class's own.

    Args:
        own_covariance: the share of each class's own covariance.
        prior: `own_covariance_prior`.
        directions: `own_directions`.
        head: how images are classified.

    Raises:
        ValueError: a value is not allowed, or not beside another one.
    """
    if not 0 <= own_covariance < 1 or (own_covariance and head == "refit"):
        raise ValueError(f"own_covariance {own_covariance} must be within [0, 1), and 0 for head 'refit'")
    if prior is not None and not prior > 0:
        raise ValueError(f"own_covariance_prior {prior} must be above 0, in samples")
    if prior is not None and (own_covariance or head == "refit"):
        beside = f"own_covariance = {own_covariance}" if own_covariance else "head = 'refit'"
        raise ValueError(f"own_covariance_prior {prior} cannot stand beside {beside}; leave one out")
    if directions != "all" and (not isinstance(directions, int) or directions < 1):
        raise ValueError(f"own_directions is {directions!r}; give a whole number of at least 1, or 'all'")
