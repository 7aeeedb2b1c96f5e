"""The parts of a detector, in the order in which they run: what its costs are told apart by."""

BACKBONE, NECK, HEADS, POST_PROCESSING = "backbone", "neck", "heads", "post-processing"

PARTS = (BACKBONE, NECK, HEADS, POST_PROCESSING)
"""A classification network for images without its classifier; the feature pyramid; what predicts classes, boxes and
masks from it; and everything between and behind them: decoding boxes, choosing and suppressing them, reading the
pyramid in regions."""
