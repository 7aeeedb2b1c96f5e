"""What our operators launch on a GPU, for device models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dyndeploy.ops._winograd import fits, transforms
from dyndeploy.ops.base import Launch
from dyndeploy.ops.densities import dilated_density

_RATES = (1.0, 0.5, 0.25)

_MOST_SIDE = 64
"""Of a map, and of its mask, whose lists the blocks of conv1 make themselves (``RowBits`` in opening.h)."""


def spatial_masker_launches(f: Mapping[str, float], element: float) -> Sequence[Launch]:
    """A block for each position pools and multiplies."""
    pooling, products = channel_masker_launches(f, element)
    return (pooling._replace(weights=products.weights),)


def channel_masker_launches(f: Mapping[str, float], element: float) -> Sequence[Launch]:
    """Pooling, then the few products; the mask is small."""
    masked = f["batch"] * f["mask_h"] * f["mask_w"] * f["cout"]
    inner = f["cmid"] or f["cin"]
    weights = f["cmid"] * f["cin"] + inner * f["cout"]
    pooling = Launch(moved=f["batch"] * f["h"] * f["w"] * f["cin"] * element + 4.0 * masked)
    return pooling, Launch(moved=1.0, weights=weights * element)


def conversion_launches(f: Mapping[str, float], element: float) -> Sequence[Launch]:
    """One pass over a map: bytes on one side, halves on the other, whatever ``element`` says."""
    return (Launch(moved=3.0 * f["batch"] * f["h"] * f["w"] * f["cin"]),)


def quantized_bottleneck_launches(
    f: Mapping[str, float], element: float, *, skips_alone: bool = False, skips_channels: bool = False
) -> Sequence[Launch]:
    """Those of :func:`bottleneck_launches` with bytes.

    A projection is rounded on its own, and waits for conv3 as 16 bits a value. With channel skipping one more launch
    copies the weights of active channels, for each image its own.
    """
    launches = list(bottleneck_launches(f, 1.0, skips_alone=skips_alone))
    # No 3x3 of bytes has transformed weights.
    launches = [launch._replace(patches=0.0) for launch in launches]
    if f["projection"]:
        place = next(k for k, launch in enumerate(launches) if launch.layer == "conv3")
        projection, conv3 = launches[place : place + 2]
        # Rounded on its own, in 16 bits a value, which conv3 reads beside the shortcut's place of y.
        moved = conv3.moved + 3.0 * conv3.rows * f["cout"]
        launches[place] = projection._replace(moved=projection.moved + projection.rows * f["cout"], layer="projection")
        launches[place + 1] = conv3._replace(moved=moved, continues=False)
    if skips_channels:
        hidden, copies = f["cmid"] * f["channel_rate"], f["batch"] * launches[1].share
        weights = hidden * (9.0 * hidden / f["groups"] + f["cout"])
        launches.insert(1, Launch(moved=copies * weights, weights=weights))
    return launches


def bottleneck_launches(f: Mapping[str, float], element: float, *, skips_alone: bool = False) -> Sequence[Launch]:
    """Lists and copies, then conv1, conv2 and conv3 (with the projection as a segment of its sums).

    With a squeeze-and-excitation, the map behind conv2 is averaged, the means are squeezed, and what conv3 reads is
    multiplied in place with the factors.

    Args:
        f: Sizes and rates of the operator.
        element: Bytes of an activation.
        skips_alone: Pixels or whole samples, no channels, and no squeeze-and-excitation: the 3x3 may have transformed
            weights, and tiles are chosen for several rates.
    """
    # Given that anything runs: a layer that half of the images skip costs one image all or nothing.
    share = 1.0 - (1.0 - f["rate"]) ** (f["batch"] * f["mask_h"] * f["mask_w"])
    some = max(share, 1e-9)
    hidden, groups, cin, cout = f["cmid"] * f["channel_rate"], f["groups"], f["cin"], f["cout"]
    pixels_in, pixels_out = f["batch"] * f["h"] * f["w"], f["batch"] * f["oh"] * f["ow"]
    need, active = pixels_in * f["rate_conv1"] / some, pixels_out * f["rate"] / some
    second = pixels_out * f["rate_conv2"] / some
    copied = 0.0 if f["projection"] else 2.0 * pixels_out * (1.0 - f["rate"]) * cout * element
    # Tiles are chosen for all, half and a quarter of the patches: which are active is not known at a launch.
    shares: list[tuple[float, float]] = []
    if skips_alone and f["mask_h"] * f["mask_w"] > 1:
        maps = [(int(f[height]), int(f[width])) for height, width in (("h", "w"), ("oh", "ow"), ("mask_h", "mask_w"))]
        for rate in _RATES:
            read = dilated_density(
                rate, in_size=maps[0], out_size=maps[1], mask_size=maps[2], stride=int(f["stride"]),
                dilation=int(f["dilation"]),
            )  # fmt: skip
            shares.append((rate, read))
    size = [int(f[name]) for name in ("cmid", "groups", "stride", "dilation")]
    map_and_mask = [int(f[name]) for name in ("h", "w", "mask_h", "mask_w")]
    transformed = skips_alone and transforms(*size) and fits(*map_and_mask)
    sides = (f["h"], f["w"], f["mask_h"], f["mask_w"], f["dilation"] + 1)
    joins = skips_alone and f["batch"] == 1 and max(sides) <= _MOST_SIDE
    launches = [
        Launch(moved=copied + 4.0 * (need + active) + 1.0, joins=joins),
        Launch(
            need, hidden, cin, moved=need * (cin + hidden) * element, weights=cin * hidden * element, share=share,
            uneven=True, layer="conv1", tried=tuple(pixels_in * read for _, read in shares),
        ),
        Launch(
            second, hidden / groups, 9.0 * hidden / groups, groups, 9.0, moved=(need + second) * hidden * element,
            weights=9.0 * hidden * hidden / groups * element, share=share, uneven=True,
            layer="conv2", patches=second / 4 if transformed else 0.0,
            tried=tuple(pixels_out * rate for rate, _ in shares),
        ),
    ]  # fmt: skip
    conv3 = Launch(
        active, cout, hidden, moved=active * (hidden + 2.0 * cout) * element, weights=hidden * cout * element,
        share=share, uneven=True, layer="conv3", tried=tuple(pixels_out * rate for rate, _ in shares),
    )  # fmt: skip
    if f["projection"]:
        # One launch, whose tiles of active pixels sum the hidden map besides.
        all_pixels = tuple(pixels_out for _ in shares)
        moved, weights = pixels_out * (cin + cout) * element, cin * cout * element
        launches.append(Launch(pixels_out, cout, cin, moved=moved, weights=weights, layer="conv3", tried=all_pixels))
        conv3 = conv3._replace(moved=active * hidden * element, tried=all_pixels, continues=True)
    launches.append(conv3)
    squeezed = f.get("squeezed", 0.0)
    if squeezed:
        excited = f["batch"] * f["rate_excited"] / some
        weights = hidden * squeezed * element
        launches[3:3] = [
            Launch(moved=second * hidden * element, share=share),
            Launch(excited, squeezed, hidden, moved=4.0 * excited * hidden, weights=weights, share=share),
            Launch(excited, hidden, squeezed, moved=2.0 * active * hidden * element, weights=weights, share=share),
        ]
    return launches
