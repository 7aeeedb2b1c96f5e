from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.nets import DynPerceiver, ExitOutput, LaudResNet, exit_macs, full_flops
from dyndeploy.training.evaluation import Evaluation, ExitEvaluation
from dyndeploy.training.losses import self_distillation_loss
from dyndeploy.training.objectives import Moment, Objective, build
from dyndeploy.training.recipe import Recipe
from tests.training.helpers import OWN, own, tiny, tiny_perceiver

START, HALF = Moment(0, 10, 0.0), Moment(5, 10, 0.5)


class Fixed(nn.Module):
    """Exits that say the same whatever they see, so that every loss can be worked out by hand."""

    def __init__(self, logits: list[list[list[float]]]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, x: Tensor) -> ExitOutput:
        return ExitOutput.of(tuple(self.values))


def probabilities(logits: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


LOGITS = [[[1.0, 0.0], [0.0, 2.0]], [[0.5, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]]]


def objective_of(recipe: Recipe) -> Objective:
    torch.manual_seed(0)
    return Objective(recipe, build(recipe, 10)[0], torch.rand(2, 3, 8, 8), torch.tensor([3, 4]), classes=10)


def exit_objective(**changes: Any) -> Objective:
    return objective_of(tiny_perceiver(**changes))


def test_loss_of_exits_by_hand() -> None:
    objective = exit_objective(
        exits={"weights": [0.5, 0.25, 1.0, 2.0]}, distillation={"weight": 0.3, "temperature": 2.0}
    )
    labels = torch.tensor([0, 1])
    network = Fixed(LOGITS)
    loss = objective.loss(network, torch.zeros(2, 3, 1, 1), labels, START, torch.float32)

    cross_entropies = [
        -sum(math.log(probabilities(row)[label]) for row, label in zip(rows, (0, 1), strict=True)) / 2
        for rows in LOGITS
    ]
    distillation = 0.0
    for rows in LOGITS[:3]:
        for row, taught in zip(rows, LOGITS[3], strict=True):
            p, q = probabilities(taught, 2.0), probabilities(row, 2.0)
            distillation += 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    expected = sum(w * c for w, c in zip((0.5, 0.25, 1.0, 2.0), cross_entropies, strict=True)) + 0.3 * distillation
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    assert [loss.terms[f"exit{i}.cross_entropy"].item() for i in (1, 2, 3, 4)] == pytest.approx(cross_entropies)
    assert loss.terms["distillation"].item() == pytest.approx(distillation)

    # The teacher learns from its own cross entropy alone.
    loss.total.backward()
    assert network.values.grad is not None
    for row, label, gradient in zip(LOGITS[3], (0, 1), network.values.grad[3].tolist(), strict=True):
        p = probabilities(row)
        assert gradient == pytest.approx([2.0 * (p[i] - (i == label)) / 2 for i in range(2)])


def test_without_distillation_exits_learn_from_labels_alone() -> None:
    objective = exit_objective(distillation=None)
    loss = objective.loss(Fixed(LOGITS), torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]), START, torch.float32)
    assert loss.terms["distillation"].item() == 0
    terms = [loss.terms[f"exit{i}.cross_entropy"].item() for i in (1, 2, 3, 4)]
    assert loss.total.item() == pytest.approx(sum(w * c for w, c in zip((0.5, 0.5, 1, 1), terms, strict=True)))


def test_soft_targets_and_smoothing_reach_every_exit() -> None:
    objective = exit_objective(distillation=None, label_smoothing=0.2)
    targets = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=torch.float64)
    loss = objective.loss(Fixed(LOGITS), torch.zeros(2, 3, 1, 1), targets, START, torch.float32)
    smoothed = targets * 0.8 + 0.1
    for number, rows in enumerate(LOGITS, 1):
        logs = torch.tensor(rows, dtype=torch.float64).log_softmax(1)
        expected = -(smoothed * logs).sum(1).mean().item()
        assert loss.terms[f"exit{number}.cross_entropy"].item() == pytest.approx(expected)


def test_self_distillation_is_zero_where_all_agree() -> None:
    same = torch.randn(3, 4)
    assert self_distillation_loss([same, same + 1, same], 1.5).item() == pytest.approx(0, abs=1e-6)


def test_exits_cost_what_the_network_says() -> None:
    objective = exit_objective()
    assert isinstance(objective.network, DynPerceiver)
    assert objective.costs.exits == exit_macs(objective.network, (8, 8))


@pytest.mark.parametrize(("best", "expected"), [("all", 0.65), ("reference", 0.8)])
def test_best_epoch_of_exits(best: str, expected: float) -> None:
    exits = tuple(ExitEvaluation(i + 1, a, 0.0, 1.0) for i, a in enumerate((0.9, 0.3, 0.8, 0.6)))
    evaluation = Evaluation(10, 0.6, 0.1, 1.0, 1.0, exits=exits)
    # The reference code ignores the first exit, and takes the best of the others.
    assert exit_objective(exits={"best": best}).score(evaluation) == pytest.approx(expected)


def mask_objective(**changes: Any) -> tuple[Objective, LaudResNet]:
    objective = objective_of(tiny(**changes))
    assert isinstance(objective.network, LaudResNet)
    return objective, objective.network


def test_loss_of_masks_is_the_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    objective, network = mask_objective(sparsity={"target": 0.4, "weight": 3.0}, label_smoothing=0.1)
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
    torch.manual_seed(7)
    loss = objective.loss(network, x, labels, HALF, torch.float32)
    torch.manual_seed(7)
    output = network(x, objective.settings(HALF)["temperature"])
    ratio = output.flops / full_flops(network, 8)
    # Half-way through, no block is bounded any more.
    assert loss.terms["sparsity"].item() == pytest.approx((ratio.item() - 0.4) ** 2, rel=1e-5)
    assert loss.terms["flops_ratio"].item() == pytest.approx(ratio.item(), rel=1e-6)
    expected = F.cross_entropy(output.logits, labels, label_smoothing=0.1)
    assert loss.terms["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(expected.item() + 3 * (ratio.item() - 0.4) ** 2, rel=1e-5)


def test_temperature_and_bounds_follow_the_moment() -> None:
    objective, _ = mask_objective(temperature={"schedule": "linear", "start": 4.0, "end": 2.0})
    assert objective.settings(HALF) == {"temperature": 3.0}
    # Tight in the first epoch, open from a third of the run on.
    assert objective.bounds(START) == pytest.approx((0.5, 0.5))
    assert objective.bounds(HALF) == pytest.approx((0.0, 1.0), abs=1e-12)


def test_without_noise_training_decides_as_evaluation_does() -> None:
    objective, network = mask_objective(temperature={"noise_until": 0.8})
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
    # Logits that are nearly equal: noise flips about half of them.
    for _, block in network.named_blocks():
        for gate in block.gates().values():
            gate.conv.bias.data.zero_()  # type: ignore[union-attr]

    def ratio(moment: Moment) -> float:
        network.train()
        # Batch norm apart, the pass is that of evaluation.
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return objective.loss(network, x, labels, moment, torch.float32).terms["flops_ratio"].item()

    sampled = {ratio(Moment(7, 10, 0.79)) for _ in range(4)}
    decided = {ratio(Moment(8, 10, 0.8)) for _ in range(4)}
    assert len(sampled) > 1
    with torch.no_grad():
        expected = network.eval()(x).flops / full_flops(network, 8)
    assert len(decided) == 1 and decided.pop() == pytest.approx(expected.item(), rel=1e-6)

    # The gradient is still that of the soft decision.
    network.train()
    objective.loss(network, x, labels, Moment(8, 10, 0.8), torch.float32).total.backward()  # type: ignore[no-untyped-call]
    gates = [gate for _, block in network.named_blocks() for gate in block.gates().values()]
    assert gates
    for gate in gates:
        assert gate.conv.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize(("ratio", "expected"), [(0.4, 0.7), (0.519, 0.7), (0.521, None), (0.9, None)])
def test_best_epoch_of_masks_keeps_the_budget(ratio: float, expected: float | None) -> None:
    objective, _ = mask_objective(sparsity={"target": 0.5})
    assert objective.score(Evaluation(10, 0.7, 0.1, 1.0, ratio)) == expected


def test_masks_and_exits_compose() -> None:
    objective = objective_of(own("three_exits", sparsity={"target": 0.4, "weight": 3.0}, distillation={"weight": 0.7}))
    torch.manual_seed(1)
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([1, 2, 3, 4])
    loss = objective.loss(objective.network, x, labels, HALF, torch.float32)
    terms = {name: value.item() for name, value in loss.terms.items()}
    assert list(terms) == [*(f"exit{i}.cross_entropy" for i in (1, 2, 3)), "sparsity", "distillation", "flops_ratio"]
    assert terms["sparsity"] == pytest.approx((terms["flops_ratio"] - 0.4) ** 2, rel=1e-5)
    weighted = sum(w * terms[f"exit{i}.cross_entropy"] for i, w in enumerate((0.5, 1.0, 1.0), 1))
    assert loss.total.item() == pytest.approx(weighted + 3 * terms["sparsity"] + 0.7 * terms["distillation"], rel=1e-5)


def test_a_loss_function_takes_what_the_network_returns() -> None:
    objective = objective_of(own("Embedding", loss=f"{OWN}:on_a_circle"))
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 5, 0, 5])
    torch.manual_seed(3)
    loss = objective.loss(objective.network, x, labels, HALF, torch.float32)
    torch.manual_seed(3)
    places = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    expected = F.mse_loss(objective.network(x)["position"], places)
    assert loss.terms["task"].item() == pytest.approx(expected.item(), rel=1e-3)
    assert loss.logits is None
    assert objective.score(Evaluation(10, None, None, 1.0, 0.4, loss=0.25)) == -0.25


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("detached", {}, UsageError, r"The gate 'layer' of blocks\.0 gets no gradient"),
        ("used_twice", {}, UsageError, r"The block blocks\.0 is used twice"),
        ("Logarithm", {}, DyndeployError, "NaN or infinite values before any training"),
        ("Maps", {}, UsageError, r"\('output', \(2, 12, 8, 8\)\) is no logits .*: write loss: module:function"),
        ("OwnChoice", {}, UsageError, "MACs of OwnChoice cannot be counted"),
        ("Embedding", {"loss": f"{OWN}:per_image"}, UsageError, r"gives shape \(2,\)"),
        ("Embedding", {"loss": f"{OWN}:without_gradient"}, UsageError, "without a gradient"),
        ("Embedding", {"loss": f"{OWN}:on_a_circl"}, UsageError, "Did you mean 'on_a_circle'"),
        ("Embedding", {"loss": "on_a_circle"}, UsageError, "names no function: give module:function"),
        ("Embedding", {"loss": f"{OWN}:on_a_circle", "distillation": {}}, UsageError, "is no logits, which a teacher"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(
    name: str, changes: dict[str, Any], error: type[DyndeployError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        objective_of(own(name, **changes))
    assert "\n" not in str(caught.value)


def test_another_number_of_classes_is_seen_in_the_logits() -> None:
    with pytest.raises(UsageError, match="The images have 10 classes and the network has 7: set model"):
        objective_of(own("SmallCnn", {"classes": 7}))


def test_images_that_a_network_does_not_take() -> None:
    with pytest.raises(UsageError, match=r"TwoLists cannot run on training images \(2, 3, 8, 8\)"):
        recipe = own("TwoLists")
        Objective(recipe, nn.Sequential(nn.Linear(5, 5)), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), classes=10)
