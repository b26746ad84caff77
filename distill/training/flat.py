"""The trained parameters of a module as one vector: an update is then a few operations, not a few per parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class FlatParameters:
    """Parameters that become views of one `vector` `[P]`; the module is used, saved and loaded as before.

    Raises ValueError for parameters of different dtypes or devices, and for none.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        kinds = {(each.dtype, each.device) for each in self.parameters}
        if len(kinds) != 1:
            raise ValueError(f"got parameters of {sorted(map(str, kinds)) or 'no kind'}, expected one dtype and device")
        self.vector = nn.Parameter(torch.cat([each.detach().flatten() for each in self.parameters]))
        for each, view in zip(self.parameters, self.split(self.vector.data), strict=True):
            each.data = view
        self._gradient = torch.empty_like(self.vector.data)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector `[P]`, shaped as the parameters."""
        parts = vector.split([each.numel() for each in self.parameters])
        return [part.view_as(each) for part, each in zip(parts, self.parameters, strict=True)]

    def take_gradient(self) -> Tensor:
        """The gradient `[P]`, also as that of `vector`; a parameter without one counts as zero. Clears the parameters'."""
        assert self.parameters[0].data_ptr() == self.vector.data_ptr(), "the parameters were given memory of their own since"
        parts = [(each if each.grad is None else each.grad).reshape(-1) for each in self.parameters]
        torch.cat([part.detach() for part in parts], out=self._gradient)
        for each, part in zip(self.parameters, self.split(self._gradient), strict=True):
            if each.grad is None:
                part.zero_()
            each.grad = None
        self.vector.grad = self._gradient
        return self._gradient
