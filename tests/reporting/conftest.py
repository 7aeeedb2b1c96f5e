from __future__ import annotations

import pytest

from dyndeploy.measure import Profile, profile_bundle
from tests.bundles import parted_bundle, tiny_bundle


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    bundle = tiny_bundle(tmp_path_factory.mktemp("tiny"))
    return profile_bundle(bundle, rates=(0.1, 0.5, 1.0), repeats=4, warmup=1, native="off")


@pytest.fixture(scope="session")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Of a detector, as far as its nodes are named as one's."""
    bundle = parted_bundle(tmp_path_factory.mktemp("parted"), mode="layer")
    return profile_bundle(bundle, rates=(0.0, 1.0), repeats=2, warmup=1, native="off")
