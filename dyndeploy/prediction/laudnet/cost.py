"""The cost model: seconds of one operator on one device.

A processing element computes one tile at a time; tiles are spread over the elements in waves. Every operator is
``compute + memory + launch``: compute from the waves and from how well a tile fills an element's lanes, memory
from the DRAM traffic and from the L2 traffic of all tiles. Tile sizes are searched exhaustively. The formulas are
those of the LAUDNet reference predictor (its "add" latency mode); where one is faulty, the repaired form stands
beside it under the :class:`~dyndeploy.prediction.laudnet.fixes.Fix` that selects it.

Shapes are per image; ``batch`` multiplies them. Times are seconds per batch. Each search is one evaluation of a
grid: the tile axes are arrays, and numpy's first minimum is the reference's "first strict minimum" because the
axes are laid out in its visiting order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dyndeploy.prediction.densities import BusiestTile, union
from dyndeploy.prediction.laudnet.fixes import Fix
from dyndeploy.prediction.laudnet.tiles import Array, Axis, Plane, fill, sector_efficiency
from dyndeploy.targets.devices import PredictorParameters

_SNAP = 1e-9  # A tile count that is integral but for rounding must not be rounded up.
_PATCHES_IN_PARALLEL = 256


class Cost(NamedTuple):
    """Seconds per batch of one operator, by cause."""

    compute: float
    memory: float
    launch: float

    @property
    def total(self) -> float:
        """Seconds altogether."""
        return self.compute + self.memory + self.launch

    def __add__(self, other: object) -> Cost:
        """Add two costs cause by cause: the operators run one after the other."""
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.compute + other.compute, self.memory + other.memory, self.launch + other.launch)

    def scaled(self, factor: float) -> Cost:
        """Multiply every part by ``factor``."""
        return Cost(self.compute * factor, self.memory * factor, self.launch * factor)


class CostModel:
    """Operator costs of one device under one reading of the predictor.

    Args:
        parameters: The device.
        fixes: Repairs in force; empty reproduces the reference.
        mem_concurrent: Floats per memory sector (the device's own when ``None``); 1 disables the sector model.
        busiest_tile: Expected density of the busiest tile under random channel masks.
    """

    def __init__(
        self,
        parameters: PredictorParameters,
        fixes: frozenset[Fix],
        busiest_tile: BusiestTile,
        mem_concurrent: int | None = None,
    ) -> None:
        self.fixes = fixes
        self._busiest_tile = busiest_tile
        self._pes = parameters.n_pes
        self._lanes = parameters.pe_fp32s
        self._frequency = parameters.frequency_hz
        self._capacity = parameters.pe_fp32s * parameters.fp32_cycles
        self._dram = parameters.mem_bandwidth_bytes_per_s / 4
        self._l2 = self._dram * parameters.l2_speed_frac
        self._sector = mem_concurrent or parameters.mem_concurrent_fp32
        self._launch = parameters.launch_time_s
        self._axes: dict[int, Axis] = {}
        self._planes: dict[tuple[int, int], Plane] = {}
        self._waves: dict[tuple[int, int, int], Array] = {}
        self._rounds: dict[tuple[int, int, int], Array] = {}
        self._positions: dict[tuple[int, int, int, int], Array] = {}
        self._busiest: dict[tuple[int, float, int], Array] = {}
        self._parts: dict[tuple[object, ...], Cost] = {}  # Parts that several squeeze-excites share.

    # Tile grids. Rows are channel tiles, columns are pairs of spatial tiles.

    def _axis(self, size: int) -> Axis:
        axis = self._axes.get(size)
        if axis is None:
            axis = self._axes[size] = Axis(size)
        return axis

    def _plane(self, height: int, width: int) -> Plane:
        plane = self._planes.get((height, width))
        if plane is None:
            plane = Plane(self._axis(height), self._axis(width), width, self._sector)
            self._planes[height, width] = plane
        return plane

    def _fill_rounds(self, channels: int, height: int, width: int) -> Array:
        """Element-cycles of each tile in units of one lane: its elements rounded up to full PE rounds."""
        key = (channels, height, width)
        rounds = self._rounds.get(key)
        if rounds is None:
            rounds = np.multiply.outer(self._axis(channels).tile, self._plane(height, width).pixels)
            rounds /= self._capacity
            np.ceil(rounds, out=rounds)
            rounds *= self._capacity
            self._rounds[key] = rounds
        return rounds

    def _tile_waves(self, channels: int, height: int, width: int) -> Array:
        """Waves times rounded tile size, over all tiles of one image: lane-cycles per element and image."""
        key = (channels, height, width)
        waves = self._waves.get(key)
        if waves is None:
            waves = np.multiply.outer(self._axis(channels).count, self._plane(height, width).count)
            waves /= self._pes
            np.ceil(waves, out=waves)
            waves *= self._fill_rounds(channels, height, width)
            self._waves[key] = waves
        return waves

    def _best(self, compute: Array, memory: Array, launches: int = 1) -> Cost:
        at = int((compute + memory).argmin())
        return Cost(float(compute.flat[at]), float(memory.flat[at]), launches * self._launch)

    # Convolutions.

    def conv(
        self,
        batch: float,
        *,
        c_in: int,
        c_out: int,
        height: int,
        width: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        in_channel_density: float = 1.0,
        out_channel_density: float = 1.0,
        channel_granularity: int = 1,
        density: float = 1.0,
        in_density: float = 1.0,
        patches: tuple[int, int] = (1, 1),
    ) -> Cost:
        """Convolution, static, channel-masked, or (with ``Fix.UNIFIED_CONV``) spatially masked.

        Args:
            batch: Images (an expectation may be fractional).
            c_in: Input channels.
            c_out: Output channels.
            height: Rows of the output map.
            width: Columns of the output map.
            kernel: Side of the square kernel.
            stride: Stride of both axes.
            groups: Convolution groups.
            dilation: Spacing of the kernel's taps.
            in_channel_density: Active fraction of the input channels.
            out_channel_density: Active fraction of the output channels.
            channel_granularity: Channels that are skipped together.
            density: Active fraction of the output positions.
            in_density: Fraction of the input map that is read from DRAM.
            patches: Mask size (rows, columns); one patch means that the whole map is on or off.
        """
        axis = self._axis(c_out)
        c_in_group = c_in // groups
        taps = c_in_group * kernel**2
        groups_per_tile = np.ceil(axis.tile / (c_out // groups))
        ic, oc = in_channel_density, out_channel_density
        span = (kernel - 1) * dilation
        rows_read = height * (min(stride, span + 1) if Fix.CONV_EXTENTS in self.fixes else stride)
        if Fix.WEIGHT_SLICES in self.fixes:
            dram_weights = tile_weights = union(ic * oc, batch)
        else:
            dram_weights = oc if batch == 1 else 1.0
            tile_weights = ic * oc if batch == 1 else 1.0

        dram = (
            c_out * taps * dram_weights * union(density, patches[0] * patches[1] * batch)
            + c_in * rows_read * width * stride * batch * ic * in_density
            + c_out * height * width * batch * oc * density
        )
        # L2 traffic of all tiles = weights + inputs + outputs, each a channel factor times a pixel factor.
        if density < 1.0:
            positions = self._gathered_positions(height, width, stride, span, density, patches, batch)
        else:
            positions = self._dense_positions(height, width, stride, span)
        channel_factors = np.array(
            [
                axis.covered * (taps * tile_weights),
                axis.count * groups_per_tile * (c_in_group * ic * batch),
                axis.covered * (oc * batch),
            ]
        )
        memory = channel_factors.T @ positions
        memory /= self._l2
        memory += dram / self._dram

        if density < 1.0:
            waves = self._masked_waves(c_out, height, width, density, patches)
        else:
            waves = self._tile_waves(c_out, height, width)
        scale = taps * batch / self._frequency / self._lanes
        if ic == 1.0 and oc == 1.0:
            return self._best(waves * scale, memory)
        tile_density = oc if Fix.CHANNEL_COMPUTE in self.fixes else ic * oc
        group = channel_granularity if Fix.CHANNEL_GRANULARITY in self.fixes else 1
        busiest = self._busiest_tiles(c_out, tile_density, group)
        return self._best(waves * (busiest * (ic * scale))[:, None], memory)

    def _busiest_tiles(self, channels: int, density: float, granularity: int) -> Array:
        """Expected active fraction of the busiest tile, for each candidate channel tile."""
        key = (channels, density, granularity)
        busiest = self._busiest.get(key)
        if busiest is None:
            axis = self._axis(channels)
            pairs = zip(axis.count.tolist(), axis.tile.tolist(), strict=True)
            busiest = np.array([self._busiest_tile(int(n), int(c), density, granularity) for n, c in pairs])
            self._busiest[key] = busiest
        return busiest

    def _dense_positions(self, height: int, width: int, stride: int, span: int) -> Array:
        """Sectors moved between L2 and the tiles of one channel: of weights, inputs and outputs, shape (3, n)."""
        key = (height, width, stride, span)
        positions = self._positions.get(key)
        if positions is None:
            plane = self._plane(height, width)
            if Fix.CONV_EXTENTS in self.fixes:
                in_tile = ((plane.rows - 1) * stride + span + 1) * ((plane.columns - 1) * stride + span + 1)
            else:
                in_tile = ((plane.rows + span) * stride) * ((plane.columns + span) * stride)
            per_sector = plane.count / plane.sector
            positions = np.array([per_sector, in_tile * per_sector, plane.pixels * per_sector])
            self._positions[key] = positions
        return positions

    def _gathered_positions(
        self,
        height: int,
        width: int,
        stride: int,
        span: int,
        density: float,
        patches: tuple[int, int],
        batch: float,
    ) -> Array:
        """Sectors moved as in :meth:`_dense_positions` when only active patches are gathered.

        A patch on its own needs its own halo and its own sectors, so per position gathering costs more than the
        dense tile; it never costs more in all, because a kernel may also load the dense tile. At density 1 both
        are the dense figures.
        """
        plane = self._plane(height, width)
        weights, inputs, outputs = self._dense_positions(height, width, stride, span)
        side_h, side_w = math.ceil(height / patches[0]), math.ceil(width / patches[1])
        rows, columns = np.minimum(plane.rows, side_h), np.minimum(plane.columns, side_w)
        pieces = np.ceil(plane.rows / side_h) * np.ceil(plane.columns / side_w)
        sector = sector_efficiency(columns, width - columns, self._sector)
        per_sector = plane.count * pieces / sector
        alone_in = ((rows - 1) * stride + span + 1) * ((columns - 1) * stride + span + 1) * per_sector
        alone_out = rows * columns * per_sector
        return np.array(
            [
                weights * union(density, batch),
                np.minimum(inputs, density * np.maximum(alone_in, inputs)),
                np.minimum(outputs, density * np.maximum(alone_out, outputs)),
            ]
        )

    def _masked_waves(self, channels: int, height: int, width: int, density: float, patches: tuple[int, int]) -> Array:
        """Expected waves when tiles are filled from a list of active patches.

        An image has no active patch with probability (1 - density)^patches and then costs nothing; otherwise
        its mean number of tiles runs in whole waves. Exact for one patch and for many.
        """
        any_active = union(density, patches[0] * patches[1])
        if any_active == 0.0:
            return np.zeros_like(self._tile_waves(channels, height, width))
        positions = np.ceil(self._plane(height, width).count * (density / any_active) - _SNAP)
        waves = np.multiply.outer(self._axis(channels).count, positions)
        waves = np.ceil(waves / self._pes)
        waves *= self._fill_rounds(channels, height, width)
        waves *= any_active
        return waves

    def patch_conv(
        self,
        batch: float,
        *,
        c_in: int,
        c_out: int,
        height: int,
        width: int,
        side: int,
        density: float,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        gathered: bool = False,
    ) -> Cost:
        """Spatially masked convolution as the reference prices it: patches of ``side`` pixels, in sequence.

        The tile is searched at the mean number of patches over all densities and then priced at ``density``.
        ``gathered``: the input lies packed patch by patch; otherwise it is read from the dense map.
        """
        grid_h, grid_w = math.ceil(height / side), math.ceil(width / side)
        active = math.ceil(density * grid_h * grid_w)
        axis, plane = self._axis(c_out), self._plane(side, side)
        parallel = self._axis(_PATCHES_IN_PARALLEL).tile
        taps = c_in // groups * kernel**2
        groups_per_tile = np.ceil(axis.tile / (c_out // groups))
        elements = np.multiply.outer(axis.tile, plane.pixels)
        tiles = np.multiply.outer(axis.count, plane.count)
        weights = (axis.tile * taps)[:, None]
        in_tile = np.multiply.outer(
            groups_per_tile * (c_in // groups),
            ((plane.rows + kernel - 1) * stride) * ((plane.columns + kernel - 1) * stride),
        )
        # The reference orders equal costs by rounding: keep its sequence of operations from here on.
        together = np.multiply.outer(parallel, elements)
        busy = together * taps / self._frequency / self._lanes
        together *= batch
        busy /= fill(together, self._capacity)
        waves = np.ceil(tiles / self._pes)

        def memory(patches: float) -> Array:
            if gathered:
                dense_in = patches * c_in * ((side + kernel - 1) * stride) ** 2
            else:
                dense_in = c_in * height * stride * width * stride
            traffic = (weights + in_tile * patches * batch + elements * patches * batch) * tiles
            dram = c_out * taps + dense_in * batch + patches * c_out * side**2 * batch
            return np.asarray(dram / self._dram + traffic / self._l2)

        mean = (1 + grid_h * grid_w) / 2
        searched = waves * busy * np.ceil(mean / parallel)[:, None, None] * batch
        searched += memory(mean)
        p, c, xy = np.unravel_index(int(searched.argmin()), searched.shape)
        compute = waves[c, xy] * busy[p, c, xy] * math.ceil(active / parallel[p]) * batch if active else 0.0
        return Cost(float(compute), float(memory(active)[c, xy]), self._launch)

    def masker_conv1(
        self, batch: float, *, c_in: int, c_out: int, height: int, width: int, side: int, density: float
    ) -> Cost:
        """Spatial masker and conv1 of the reference: fused (then dense), or a masker and a masked conv1."""
        fused = self.conv(batch, c_in=c_in, c_out=c_out + 1, height=height, width=width)
        apart = self.conv(batch, c_in=c_in, c_out=2, height=height, width=width) + self.patch_conv(
            batch, c_in=c_in, c_out=c_out, height=height, width=width, side=side, density=density
        )
        return min(fused, apart, key=lambda cost: cost.total)

    # Elementwise operators and pooling.

    def add(
        self,
        batch: float,
        *,
        channels: int,
        height: int,
        width: int,
        density: float = 1.0,
        patches: tuple[int, int] = (1, 1),
    ) -> Cost:
        """Elementwise addition; at ``density`` < 1 the second operand exists only on active patches.

        The first operand is copied where the second is missing, so only one of three streams shrinks.
        """
        axis, plane = self._axis(channels), self._plane(height, width)
        moved = np.multiply.outer(axis.covered, plane.pixels * plane.count)
        moved *= (2.0 + density) * batch / self._dram
        if density < 1.0:
            waves = self._masked_waves(channels, height, width, density, patches)
        else:
            waves = self._tile_waves(channels, height, width)
        return self._best(waves * (batch / self._frequency / self._lanes), moved)

    def patch_add(self, batch: float, *, channels: int, height: int, width: int, side: int, density: float) -> Cost:
        """Scatter-add of active patches into a copied identity, as the reference prices it."""
        grid = math.ceil(height / side) * math.ceil(width / side)
        active = math.ceil(density * math.ceil(height / side) * math.ceil(width / side))
        axis, plane, parallel = self._axis(channels), self._plane(side, side), self._axis(grid).tile
        elements = np.multiply.outer(axis.tile, plane.pixels)
        tiles = np.multiply.outer(axis.count, plane.count)
        # The reference orders equal costs by rounding: keep its sequence of operations from here on.
        together = np.multiply.outer(parallel, elements)
        busy = np.ceil(tiles / self._pes) * elements * parallel[:, None, None] / self._frequency / self._lanes
        together *= batch
        busy /= fill(together, self._capacity)

        def memory(patches: float) -> Array:
            dram = (patches * channels * side**2 + 2 * channels * height * width) * batch
            return np.asarray(dram / self._dram + 3 * elements * patches * tiles * batch / self._l2 / plane.sector)

        mean = (1 + grid) / 2
        searched = busy * np.ceil(mean / parallel)[:, None, None] * batch
        searched += memory(mean)
        p, c, xy = np.unravel_index(int(searched.argmin()), searched.shape)
        compute = busy[p, c, xy] * math.ceil(active / parallel[p]) * batch
        return Cost(float(compute), float(memory(active)[c, xy]), self._launch)

    def multiply(self, batch: float, *, channels: int, height: int, width: int) -> Cost:
        """Scale each channel of a map by one number."""
        key = ("multiply", batch, channels, height, width)
        if key not in self._parts:
            self._parts[key] = self._multiply(batch, channels, height, width)
        return self._parts[key]

    def _multiply(self, batch: float, channels: int, height: int, width: int) -> Cost:
        axis, plane = self._axis(channels), self._plane(height, width)
        per_sector = plane.count / plane.sector
        memory = np.multiply.outer(axis.covered, (2 * plane.pixels + 1) * per_sector)
        memory *= batch / self._l2
        memory += (2 * channels * height * width + channels) * batch / self._dram
        compute = self._tile_waves(channels, height, width) * (batch / self._frequency / self._lanes)
        return self._best(compute, memory)

    def avg_pool(
        self, batch: float, *, channels: int, height: int, width: int, out_height: int = 1, out_width: int = 1
    ) -> Cost:
        """Pooling of a map, bound by memory; also used for max pooling."""
        floats = (channels * height * width + channels * out_height * out_width) * batch
        return Cost(0.0, floats * (1 / self._dram + 1 / self._l2), self._launch)

    def _reduction(self, batch: float, tile: Array, elements: int) -> Array:
        """Seconds of the tree that adds ``elements`` partial results of each of ``tile`` channels."""
        levels = []
        left = math.ceil(elements / 2)
        while left > 1:
            levels.append(left)
            left = math.ceil(left / 2)
        if not levels:
            return np.zeros_like(tile)
        work = np.multiply.outer(np.array(levels, dtype=np.float64), tile)
        seconds = np.ceil(work / self._lanes) / fill(work, self._capacity) / self._frequency
        return np.asarray(seconds.sum(0) * batch)

    def reduce(self, batch: float, *, channels: int, height: int, width: int) -> Cost:
        """Reduce each channel of a map to one number (global average pooling of a squeeze-excite)."""
        tile = np.array([2.0**j for j in range(8) if 2**j <= 2 * channels])
        count = np.ceil(channels / tile)
        tiles = count * (height * width)
        compute = tile / self._frequency / self._lanes / fill(tile, self._capacity) * np.ceil(tiles / self._pes)
        compute += self._reduction(batch, tile, height * width)
        memory = (tile / self._dram + tile / self._l2) * tiles
        memory += (tile * (height * width) + tile) / self._l2 * count
        return self._best(compute, memory * batch)

    # Linear layers and squeeze-excite.

    def linear(self, batch: float, *, c_in: int, c_out: int) -> Cost:
        """Fully connected layer on one vector per image."""
        key = ("linear", batch, c_in, c_out)
        if key not in self._parts:
            self._parts[key] = self._linear(batch, c_in, c_out)
        return self._parts[key]

    def _linear(self, batch: float, c_in: int, c_out: int) -> Cost:
        outs, ins = self._axis(c_out), self._axis(c_in)
        o, i = outs.tile[:, None], ins.tile
        reuse = sector_efficiency(ins.tile, np.full_like(ins.tile, c_in), self._sector)
        if Fix.LINEAR_TILES in self.fixes:
            tiles = np.multiply.outer(outs.count, ins.count)
            dram = c_in * c_out + (c_in + c_out) * batch
            traffic = (o * i + (i + o) * batch) * tiles
        else:
            tiles = o * i
            dram = (c_in * c_out + c_in + c_out) * batch
            traffic = (o * i + i + o) * tiles * batch
        work = o * i * batch
        compute = work / self._frequency / self._lanes / fill(work, self._capacity) * np.ceil(tiles / self._pes)
        return self._best(compute, dram / self._dram + traffic / self._l2 / reuse)

    def squeeze_excite(self, batch: float, *, channels: int, squeezed: int, height: int, width: int) -> Cost:
        """Squeeze-excite over the whole map: pool, two linear layers, multiply."""
        return (
            self.reduce(batch, channels=channels, height=height, width=width)
            + self.multiply(batch, channels=channels, height=height, width=width)
            + self.linear(batch, c_in=channels, c_out=squeezed)
            + self.linear(batch, c_in=squeezed, c_out=channels)
        )

    def patch_squeeze_excite(
        self,
        batch: float,
        *,
        channels: int,
        squeezed: int,
        height: int,
        width: int,
        side: int,
        density: float,
    ) -> Cost:
        """Squeeze-excite that pools active patches only, as the reference prices it."""
        grid_h, grid_w = math.ceil(height / side), math.ceil(width / side)
        active = math.ceil(density * grid_h * grid_w)
        axis, plane = self._axis(channels), self._plane(side, side)
        parallel = self._axis(grid_h * grid_w).tile
        elements = np.multiply.outer(axis.tile, plane.pixels)
        tiles = np.multiply.outer(axis.count, plane.count)
        waves = np.ceil(tiles / self._pes)
        row_tiles, column_tiles = np.ceil(height / plane.rows), np.ceil(width / plane.columns)
        partial = axis.tile[:, None] * row_tiles * column_tiles
        # The reference orders equal costs by rounding: keep its sequence of operations from here on.
        packed = np.multiply.outer(parallel, axis.tile)[:, :, None]
        pool = elements * parallel[:, None, None] / self._frequency / self._lanes
        pool /= fill(packed, self._capacity)
        merge = packed / self._frequency / self._lanes / fill(axis.tile, self._capacity)[:, None]

        def memory(patches: float) -> Array:
            dram = patches * channels * side**2 + channels * height * width
            traffic = (elements * patches + axis.tile[:, None]) * tiles + partial + axis.tile[:, None]
            return np.asarray((dram / self._dram + traffic / self._l2 / plane.sector) * batch)

        mean = (1 + grid_h * grid_w) / 2
        searched = waves * (pool * np.ceil(mean / parallel)[:, None, None] + merge) * batch
        reductions = {n: self._reduction(batch, axis.tile, int(n)) for n in set(plane.count.tolist())}
        searched += np.stack([reductions[n] for n in plane.count.tolist()], axis=1)
        searched += memory(mean)
        p, c, xy = np.unravel_index(int(searched.argmin()), searched.shape)
        compute = waves[c, xy] * (pool[p, c, xy] * math.ceil(active / parallel[p]) + merge[p, c, 0]) * batch
        merged = int(row_tiles[xy] * column_tiles[xy])
        compute += self._reduction(batch, axis.tile[c : c + 1], merged)[0]
        return (
            Cost(float(compute), float(memory(active)[c, xy]), self._launch)
            + self.multiply(batch, channels=channels, height=height, width=width)
            + self.linear(batch, c_in=channels, c_out=squeezed)
            + self.linear(batch, c_in=squeezed, c_out=channels)
        )

    # What a real dynamic block needs besides its arithmetic.

    def mask_index(self, batch: float, *, positions: int, logits: int = 2) -> Cost:
        """Compare logits and compact the active positions into an index list (one launch, memory-bound)."""
        floats = (logits + 1) * positions * batch
        return Cost(0.0, floats * (1 / self._dram + 1 / self._l2), self._launch)

    def channel_constants(self, batch: float, *, channels: int, height: int, width: int, border_classes: int) -> Cost:
        """Static bias maps and one subtraction per element, fused into a convolution (no launch).

        ``border_classes`` distinct columns of the map conv2(relu(shift)) exist under zero padding.
        """
        bias = channels * border_classes
        elements = channels * height * width * batch
        return Cost(elements / self._lanes / self._pes / self._frequency, bias / self._dram + bias / self._l2, 0.0)

    # Transformer operators (matrix products, normalisation) of the reference's second predictor.

    def matmul(self, batch: float, *, rows: int, c_in: int, c_out: int) -> Cost:
        """Product of (rows, c_in) per image with (c_in, c_out), as a 1x1 convolution over all rows as pixels.

        The right operand is read once, also where it differs per head and image (attention), as in the reference.
        """
        pixels = max(1, round(rows * batch))
        height = max(1, round(math.sqrt(pixels)))
        return self.conv(1, c_in=c_in, c_out=c_out, height=height, width=max(1, round(pixels / height)))

    def elementwise(self, batch: float, *, rows: int, tokens: int, channels: int) -> Cost:
        """One elementwise operator (addition, GELU) on (rows, tokens, channels) per image."""
        return self.add(1, channels=channels, height=max(1, round(rows * batch)), width=tokens)

    def unfold(self, batch: float, *, c_in: int, c_out: int, height: int, width: int, stride: int) -> Cost:
        """Lay the windows of a map (c_in, height x stride, width x stride) out as channels; bound by memory."""
        read = c_in * height * stride * width * stride * batch
        written = c_out * height * width * batch
        return Cost(0.0, (read + written) / self._dram + 2 * written / self._l2, self._launch)

    def reduce_over(self, batch: float, *, elements: int, reduced: int) -> Cost:
        """Reduce ``elements`` numbers per image over groups of ``reduced``."""
        side = math.ceil(math.sqrt(reduced))
        return self.reduce(1, channels=max(1, round(elements * batch / reduced)), height=side, width=side)

    def softmax(self, batch: float, *, rows: int, tokens: int, channels: int) -> Cost:
        """Softmax over the last of (rows, tokens, channels): four passes in one kernel."""
        return self._four_passes(batch, rows, tokens, channels)

    def layernorm(self, batch: float, *, rows: int, tokens: int, channels: int) -> Cost:
        """Layer normalisation over the last of (rows, tokens, channels): four passes in one kernel."""
        return self._four_passes(batch, rows, tokens, channels)

    def _four_passes(self, batch: float, rows: int, tokens: int, channels: int) -> Cost:
        reduction = self.reduce_over(batch, elements=rows * tokens * channels, reduced=channels)
        each = self.elementwise(batch, rows=rows, tokens=tokens, channels=channels)
        passes = reduction + reduction + each + each
        return passes._replace(launch=self._launch)
