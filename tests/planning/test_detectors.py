"""Plans are for classifiers; a detector is refused with what to do instead."""

from __future__ import annotations

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.planning.sources import staged_network

pytestmark = pytest.mark.vision("torchvision")


def test_a_detector_is_refused_before_anything_is_searched() -> None:
    with pytest.raises(UsageError, match="dyndeploy predict laud_retinanet_small --device nano --mode channel"):
        staged_network("laud_retinanet_small", "nano")
    assert staged_network("laud_resnet26_small", "nano") is None
