from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dyndeploy.blocks import Tape
from dyndeploy.blocks.gates import gumbel_noise
from dyndeploy.errors import UsageError
from dyndeploy.nets import create_model
from dyndeploy.training import CHECKPOINT, Recipe, train
from dyndeploy.training.processes import (
    Part,
    Processes,
    SharedNoise,
    SynchronizedBatchNorm,
    freeze_batch_norm,
    join_processes,
    stream_seed,
)
from tests.training.helpers import mixed_channels, own, tiny_perceiver

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def launch(folder: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train a folder's recipes on several processes of this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(ROOT / "tests" / "training" / "spread.py"), str(folder), *arguments]
    pipe = subprocess.PIPE
    # A session of its own, to end the training processes with torchrun should they hang.
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, error = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def write(folder: Path, **recipes: Recipe) -> None:
    folder.mkdir()
    for name, recipe in recipes.items():
        (folder / f"{name}.json").write_text(json.dumps(recipe.as_dict()))


def history(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((run / "result.json").read_text())["history"]
    return [{**row, "seconds": 0.0} for row in rows]


def assert_same_curve(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], tolerance: float) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for part in ("training", "held_out", "ema"):
            assert a[part] == pytest.approx(b[part], rel=tolerance, abs=tolerance), part


EXACT = {"batch_norm": "synchronized", "precision": "float64"}


def own_streams() -> Recipe:
    """Dropout and batch norm of each process's own, two parts per batch, a moving average."""
    plain = tiny_perceiver(epochs=2, compute={"accumulation": 2}, ema={"decay": 0.9}).as_dict()
    plain["model"]["options"] |= {"dropout": 0.1, "drop_path_rate": 0.1}
    return Recipe.from_dict(plain)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, all in one start of them: most of the time goes into starting."""
    folder = tmp_path_factory.mktemp("together") / "runs"
    exits, masks = tiny_perceiver(compute=EXACT, epochs=1), mixed_channels(compute=EXACT)
    blocks = own(
        "SmallCnn", {"nested": True}, compute=EXACT, epochs=2, sparsity={"weight": 50.0}, temperature={"end": 1.0}
    )
    both = own("three_exits", compute=EXACT, epochs=1, distillation={}, sparsity={"weight": 50.0})
    write(folder, exits=exits, masks=masks, streams=own_streams(), blocks=blocks, both=both)
    done = launch(folder, 2)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["masks", "exits", "blocks", "both"])
def test_two_processes_give_the_loss_curve_of_one(name: str, together: Path, tmp_path: Path) -> None:
    train(Recipe.from_dict(json.loads((together / f"{name}.json").read_text())), tmp_path, device="cpu")
    # Both processes' images count, each once.
    assert_same_curve(history(tmp_path), history(together / name), 1e-9)


def test_two_killed_processes_go_on_to_the_bit(together: Path, tmp_path: Path) -> None:
    whole, resumed = together / "streams", tmp_path / "runs" / "streams"
    write(tmp_path / "runs", streams=own_streams())
    assert launch(tmp_path / "runs", 2, "2").returncode != 0
    assert not (resumed / "result.json").exists()
    done = launch(tmp_path / "runs", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads((resumed / "result.json").read_text())["resumed_from"] == 1
    assert history(whole) == history(resumed)
    a, b = (torch.load(run / CHECKPOINT, weights_only=True) for run in (whole, resumed))
    for one, other in (
        (a["state_dict"], b["state_dict"]),
        (a["extra"]["training"]["ema"], b["extra"]["training"]["ema"]),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@given(rank=st.integers(0, 7), size=st.integers(1, 8), accumulation=st.integers(1, 4), images=st.integers(2, 6))
def test_parts_cover_a_batch_once(rank: int, size: int, accumulation: int, images: int) -> None:
    batch = size * accumulation * images
    rows = [
        row
        for each in range(size)
        for part in Processes(each, size, CPU).parts(batch, accumulation)
        for row in range(part.start, part.stop)
    ]
    assert sorted(rows) == list(range(batch))
    parts = Processes(rank % size, size, CPU).parts(batch, accumulation)
    assert len(parts) == accumulation
    # The first parts of all processes come first: one process with as many parts computes in the same order.
    alone = Processes(0, 1, CPU).parts(batch, accumulation)
    for part, whole in zip(parts, alone, strict=True):
        assert whole.start <= part.start < part.stop <= whole.stop


def test_batches_that_do_not_split() -> None:
    processes = Processes(0, 4, CPU)
    for batch, accumulation, pairs in ((10, 1, False), (4, 1, False), (8, 2, False), (12, 1, True)):
        with pytest.raises(UsageError, match=f"give a multiple of {8 * accumulation}"):
            processes.parts(batch, accumulation, pairs=pairs)
    assert processes.parts(12, 1) == (Part(0, 3, 12),)


def test_noise_of_a_part_is_that_of_its_rows() -> None:
    logits = torch.zeros(6, 2, 1, 3, 3)
    noise = SharedNoise(CPU)
    noise.begin(Part(0, 6, 6), seed=3)
    whole = [noise(logits), noise(logits[:, :, :, :1])]
    noise.begin(Part(2, 4, 6), seed=3)
    assert torch.equal(noise(logits[:2]), whole[0][2:4])
    assert torch.equal(noise(logits[:2, :, :, :1]), whole[1][2:4])
    assert not torch.equal(whole[0][:, :, :, :1], whole[1])


def test_noise_is_gumbels() -> None:
    noise = SharedNoise(CPU)
    noise.begin(Part(0, 40000, 40000), seed=1)
    own, other = noise(torch.zeros(40000, 2)), gumbel_noise(torch.zeros(40000, 2))
    for sample in (own, other):
        # Mean is Euler's constant, variance pi^2 / 6; three standard errors.
        assert sample.mean().item() == pytest.approx(0.57722, abs=0.014)
        assert sample.var().item() == pytest.approx(1.64493, abs=0.045)


def test_a_network_uses_the_shared_noise() -> None:
    torch.manual_seed(0)
    model = create_model("laud_resnet14_small", mode="both", width_mult=0.1, channel_granularity=1).train()
    freeze_batch_norm(model)
    noise = SharedNoise(CPU)
    x = torch.randn(4, 3, 8, 8)
    with Tape(model, noise=noise, temperature=1.0):
        noise.begin(Part(0, 4, 4), seed=9)
        whole = model(x)
        noise.begin(Part(2, 4, 4), seed=9)
        half = model(x[2:])
    torch.testing.assert_close(half.logits, whole.logits[2:], atol=1e-5, rtol=1e-4)
    for a, b in zip(half.masks, whole.masks, strict=True):
        assert a.spatial is not None and b.spatial is not None and a.channel is not None and b.channel is not None
        assert torch.equal(a.spatial.round(), b.spatial[2:].round())
        assert torch.equal(a.channel.round(), b.channel[2:].round())


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 4)])
def test_synchronized_batch_norm_of_one_process_is_batch_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    plain: nn.Module = nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)
    plain.double()
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
        plain.bias.normal_()  # type: ignore[union-attr, operator]
    twin = type(plain)(5).double()  # type: ignore[call-arg]
    twin.load_state_dict(plain.state_dict())
    ours = SynchronizedBatchNorm(twin, Processes(0, 1, CPU))  # type: ignore[arg-type]
    x = torch.randn(shape, dtype=torch.float64) * 3 + 100
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [plain(inputs[0]), ours(inputs[1])]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-12, rtol=1e-12)
    weights = torch.randn(shape, dtype=torch.float64)
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-12, rtol=1e-10)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), atol=1e-12, rtol=1e-12)


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(3)).train()
    freeze_batch_norm(norm)
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(norm(x), x, atol=1e-4, rtol=1e-4)
    assert int(norm.state_dict()["0.num_batches_tracked"]) == 0


def test_streams_have_seeds_of_their_own() -> None:
    seeds = {
        stream_seed(seed, iteration, stream) for seed in range(5) for iteration in range(20) for stream in range(5)
    }
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_devices() -> None:
    with pytest.raises(UsageError, match="'gpu' is not possible: give cpu or cuda"), join_processes("gpu"):
        pass
    with join_processes("cpu") as processes:
        assert (processes.rank, processes.size, processes.device) == (0, 1, CPU)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="finds no GPU"), join_processes("cuda"):
            pass
