"""What the decisions of a pass are held to, kind by kind: AdaViT's usage losses for any network with such gates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dyndeploy.blocks import Tape
from dyndeploy.blocks.tape import Decision
from dyndeploy.errors import UsageError
from dyndeploy.ops.gates import BLOCK, HEAD, TOKEN
from dyndeploy.training.losses import UsageTerms, head_usage, layer_usage, token_usage
from dyndeploy.training.recipe import UsageRecipe, UsageTermsRecipe


class UsageLoss(NamedTuple):
    """One kind's.

    Attributes:
        loss: Without its weight, 0-d.
        weight: It.
        share: What the kind's decisions compute, averaged, 0-d.
    """

    loss: Tensor
    weight: float
    share: Tensor


def usage_losses(recipe: UsageRecipe, tape: Tape, name: str) -> dict[str, UsageLoss]:
    """Return the loss of every kind of decision that the recipe names.

    Args:
        recipe: What is asked for.
        tape: Record of a pass.
        name: Of the network, for messages.

    Raises:
        UsageError: The network decides nothing of a kind that is named.
    """
    decisions = list(tape.decisions.values())
    found = {}
    for kind, terms in (
        (TOKEN.name, recipe.token),
        (HEAD.name, recipe.head),
        (BLOCK.name, recipe.layer),
    ):
        if terms is None:
            continue
        own = [decision for decision in decisions if decision.kind == kind]
        if not own:
            kinds = ", ".join(dict.fromkeys(decision.kind for decision in decisions)) or "nothing"
            raise UsageError(f"usage.{kind}: {name} has no gates of that kind (it decides on {kinds}): leave it out.")
        found[kind] = _one(kind, own, decisions, terms, tape)
    return found


def _one(kind: str, own: list[Decision], decisions: list[Decision], terms: UsageTermsRecipe, tape: Tape) -> UsageLoss:
    asked = UsageTerms(terms.target, terms.diverse, terms.entropy, terms.minimal, terms.minimal_weight)
    if kind == BLOCK.name:
        by_block = _by_block(own)
        masks = [torch.cat([_rows(each.mask) for each in group], 1) for group in by_block.values()]
        margins = [torch.cat([_rows(each.margin) for each in group], 1) for group in by_block.values()]
        loss = layer_usage(masks, margins, asked, tape.mean)
    else:
        masks, margins = [_rows(each.mask) for each in own], [_rows(each.margin) for each in own]
        if kind == TOKEN.name:
            loss = token_usage(masks, margins, asked, tape.mean)
        else:
            runs = _by_block([each for each in decisions if each.kind == BLOCK.name])
            active = [_runs(runs.get(each.block, []), mask) for each, mask in zip(own, masks, strict=True)]
            loss = head_usage(masks, margins, active, asked, tape.mean)
    return UsageLoss(loss, terms.weight, tape.mean(torch.cat(masks, 1)).detach())


def _by_block(decisions: list[Decision]) -> dict[str, list[Decision]]:
    groups: dict[str, list[Decision]] = {}
    for decision in decisions:
        groups.setdefault(decision.block, []).append(decision)
    return groups


def _runs(sublayers: list[Decision], like: Tensor) -> Tensor:
    """Whether a block computes anything of an image, (N,)."""
    if not sublayers:
        return torch.ones_like(like[:, 0])
    return (sum(_rows(each.mask).sum(1) for each in sublayers) > 0).to(like.dtype)  # type: ignore[union-attr]


def _rows(mask: Tensor) -> Tensor:
    """(N, decisions), in float at least."""
    return mask.to(torch.promote_types(mask.dtype, torch.float32)).flatten(1)
