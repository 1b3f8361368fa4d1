"""The residual block as a module, for use inside an `nn.Sequential`."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """x + body(x), or shortcut(x) + body(x) (He et al. 2016).

    body: modules in sequence that keep the shape of x, unless `shortcut` (a Linear or Conv2d, say) follows
    their change. In an energy circuit every weighted layer of the body has a state of its own.
    """

    def __init__(self, *body: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        if not body:
            raise ValueError("a residual block without a body only doubles its input; give its modules")
        self.body = nn.Sequential(*body)
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)
