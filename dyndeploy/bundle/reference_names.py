"""Names inside ``reference.npz`` besides those of the graph's tensors."""

MARGIN = "margin/"
"""Before a mask's name: compute logit minus skip logit of every bit."""

FORCED = "forced/"
"""Before a mask's name: random bits; before an output's name: what PyTorch computes under them."""
