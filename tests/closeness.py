"""The one way that tests compare numbers: a tolerance that nobody can set to accept anything."""

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_TOLERANCE = 1e-2


def assert_close(
    found: Tensor | Sequence[float],
    wanted: Tensor | Sequence[float],
    *,
    tolerance: float,
    name: str = "values",
) -> None:
    """Fail if the largest absolute difference is above the tolerance."""
    assert tolerance <= LARGEST_TOLERANCE
    one, other = torch.as_tensor(found), torch.as_tensor(wanted)
    assert one.shape == other.shape, f"{name}: {tuple(one.shape)} is not {tuple(other.shape)}"
    difference = float((one.double() - other.double()).abs().max())
    assert difference <= tolerance, f"{name}: they differ by {difference:.2e} > {tolerance:.0e}"
