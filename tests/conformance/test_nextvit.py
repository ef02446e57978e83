"""Next-ViT: convolutional blocks with FFNs of 1x1 convolutions, attention to means over runs of tokens."""

import copy

import timm
import torch
from torch import Tensor, nn

from tests import narrow_nextvit
from tests.conformance.suite import Case, ConformanceSuite


class TestNextVit(ConformanceSuite):
    cases = (Case("nextvit", narrow_nextvit.NAME),)

    def test_reparameterize(self, trained: nn.Module, folded: nn.Module, images: Tensor) -> None:
        """timm's own fusion of batch norms, which edits the layers inside ours by name, changes no output."""
        for model in (trained, folded):
            wanted = model(images)
            got = timm.utils.reparameterize_model(copy.deepcopy(model))
            assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in got.modules()) < sum(
                isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules()
            )
            assert isinstance(got.stages[1].blocks[-1].e_mhsa.norm, nn.Identity)
            torch.testing.assert_close(got(images), wanted, rtol=1e-3, atol=2e-4 * float(wanted.abs().max()))
