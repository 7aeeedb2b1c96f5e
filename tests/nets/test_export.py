"""The networks must be capturable by torch.export; what becomes of the capture is tested with dyndeploy.export."""

from __future__ import annotations

import pytest
import torch

from dyndeploy.nets import DynamicOutput

from .helpers import MODES, build, randomize


@pytest.mark.parametrize("mode", MODES)
def test_capture_computes_the_same(mode: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(3, 3, 32, 24)
    model = randomize(build("laud_resnet14_small", mode=mode, channel_granularity=4), x)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}})
    captured = program.module()
    for batch in (1, 5):
        y = torch.randn(batch, 3, 32, 24)
        with torch.no_grad():
            ours, theirs = model(y), captured(y)
        assert isinstance(theirs, DynamicOutput)
        torch.testing.assert_close(theirs.logits, ours.logits)
        assert theirs.flops.item() == pytest.approx(ours.flops.item(), rel=1e-6)
        for a, b in zip(ours.masks, theirs.masks, strict=True):
            assert a.name == b.name
            for kind in (1, 2):
                assert (a[kind] is None) == (b[kind] is None)
                assert a[kind] is None or torch.equal(a[kind], b[kind])
