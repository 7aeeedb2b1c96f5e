"""Names inside ``reference.npz`` besides those of the graph's tensors."""

MARGIN = "margin/"
"""Before a mask's name: compute logit minus skip logit of every bit."""

FORCED = "forced/"
"""Before a mask's name: random bits; before an output's name: what PyTorch computes under them."""


def exit_logits(number: int) -> str:
    """Name of the logits (n, classes) of an exit, counted from 1."""
    return f"logits/exit{number}"
