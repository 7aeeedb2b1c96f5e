"""A cycle model of one multiprocessor that runs our kernels' machine code. Its figures are modelled, not measured.

Four schedulers with warps in order; each instruction waits as its control word says. Modelled besides: pairs issued
together (Maxwell, Pascal), the width of what shared memory returns, conversions at a quarter of the rate, the interval
of tensor-core products, a fixed latency of global loads, barriers of a block, copies from global to shared memory and
what waits for groups of them. Not modelled: fetching of instructions, register banks, caches and DRAM bandwidth. A
textbook 128 x 128 x 8 SGEMM gets 71 to 80 % of the FP32 peak in it; on real Maxwell such code is known to reach 80 to
85 %.

What NVIDIA does not say is how many bytes a load of shared memory returns when lanes read the same address: the
pessimistic end counts every lane's, the optimistic one halves the operand that all lanes of a row share. Nor does it
say how long a copy past registers keeps shared memory from loads: as long as it takes to write (optimistic), or as long
as the second-level cache delivers (pessimistic).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sass import MATH, NONE, Code, Instruction, Loop, leaves_loop, walk

from dyndeploy.errors import InputError

SCHEDULERS = 4
_QUARTER = ("F2F", "I2F", "F2I", "MUFU")
_MEMORY = ("LDS", "LDSM", "STS", "LDG", "STG", "LD", "ST")
_QUEUE = 24
"""Cycles of work that the unit of loads and stores takes ahead before a warp has to wait."""


@dataclass(frozen=True)
class Machine:
    """What a multiprocessor does in a cycle.

    Attributes:
        capability: 10 * major + minor.
        tensor_interval: Cycles between tensor-core products of a scheduler as the assembler issues them, by operation.
            Those of warpgroups (HGMMA) follow from their size, see :func:`warpgroup_cycles`.
        tensor_peak: The same at the peak rate of the data sheet.
        lane_interval: Cycles between FFMA or HFMA2 of a scheduler.
        integer_interval: Cycles between other instructions of lanes.
        shared_latency: Cycles of a load from shared memory.
        global_latency: Cycles of a load from the second-level cache.
        registers: Of a multiprocessor.
        shared_bytes: Of its shared memory that blocks may take.
        warps: That it holds at most.
        blocks: That it holds at most.
    """

    capability: int
    tensor_interval: Mapping[str, float] = field(default_factory=dict)
    tensor_peak: Mapping[str, float] = field(default_factory=dict)
    lane_interval: int = 1
    integer_interval: int = 1
    shared_latency: int = 24
    global_latency: int = 250
    registers: int = 65536
    shared_bytes: int = 64 << 10
    warps: int = 64
    blocks: int = 32


# Shared memory returns, and takes, 128 bytes a cycle: LDSM of four matrices and LDGSTS of 16 bytes a lane, 512 bytes a
# warp, 4 cycles each (LDGSTS 8 at the pessimistic end). The second-level cache gives a multiprocessor 64 bytes a cycle
# (NVIDIA's white papers on A100 and H100): 8 cycles a copy. SHFL: 32 lanes a cycle (CUDA programming guide). The
# published microbenchmarks of these instructions are Sun et al., "Dissecting Tensor Cores via Microbenchmarks" (2022),
# and Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture" (2024). The tables of the second were
# found as a reader's notes quote them: of an H800 29.0 cycles for a load from shared memory, 263 from the second-level
# cache, mma.m16n8k16 on average at 62.9 % of the peak (the intervals below give 67 %), and 3942 bytes a cycle from that
# cache to 114 multiprocessors, little more than half of the 64 each that are counted here. The latencies of LDSM and
# LDGSTS here are those of a load from shared memory and of a global load.
# Latencies: Jia et al., "Dissecting the NVIDIA Volta GPU architecture via microbenchmarking" (2018), and the same for
# Turing; of newer ones estimates. Intervals of HMMA at the peak follow from the data sheets' rates, those issued from
# the assembler's own stall counts, where these are longer. IMMA: the data sheets (AGX Xavier, T4, A100, AGX Orin,
# H100) give bytes twice the rate of halves; of sm_90 it is issued as HMMA is. GeForce cards multiply halves at half
# their rate where they sum in floats, as our kernels do: 71 of 142 TFLOP/s of an RTX 3090 (NVIDIA's white paper on
# GA102), 165.2 of 330.3 of an RTX 4090 (that on Ada), 209.5 of 419 of an RTX 5090 (that on RTX Blackwell), all 256
# products a cycle and multiprocessor, and 1024 of bytes (284, 660.6 and 838 TOP/s there; all of them held against
# quotations of these papers' tables, the papers not being at hand); cards for workstations of the same architectures do
# twice as many of halves.
_MMA = {"HMMA.16816": 8, "IMMA.16832": 8}
_GEFORCE = {"HMMA.16816": 32, "IMMA.16832": 16}
_VOLTA, _TURING = {"HMMA.884": 2, "IMMA.8816": 4}, {"HMMA.1688": 8, "IMMA.8816": 4}
_HOPPER, _HOPPER_ISSUED = {"HMMA.16816": 6, "IMMA.16832": 6}, {"HMMA.16816": 4, "IMMA.16832": 4}
# A warpgroup's product of 64 x N x 16 (HGMMA) takes N / 2 cycles of all four schedulers at the rate of the data sheet
# (989 TFLOP/s of an H100, 4096 halves' operations a cycle and multiprocessor), and reads both operands from shared
# memory: 2 KB and 32 N bytes, of which the four warps share the second. That agrees with what Luo et al. measured
# (2024, and "Dissecting the NVIDIA Hopper Architecture through Microbenchmarking and Multiple Level Analysis", 2025, as
# the same notes say): 128.0 cycles for N = 256, more than 95 % of the peak, and operands in shared memory as good as
# ones in registers from N = 64 on. Nobody says how many products wait for a tensor core before the warp does: any
# number (optimistic), or one besides the one that is multiplied (pessimistic).
MACHINES = {
    machine.capability: machine
    for machine in (
        Machine(53),
        Machine(62),
        Machine(70, {"HMMA.884": 2}, {"HMMA.884": 2}, 2, 2, 22, 300, shared_bytes=96 << 10),
        Machine(72, _VOLTA, _VOLTA, 2, 2, 22, 300, shared_bytes=96 << 10),
        Machine(75, _TURING, _TURING, 2, 2, 22, 300, warps=32, blocks=16),
        Machine(80, _MMA, _MMA, 2, 2, 28, 300, shared_bytes=164 << 10),
        Machine(86, _GEFORCE, _GEFORCE, 1, 1, 28, 300, shared_bytes=100 << 10, warps=48, blocks=16),
        Machine(87, _MMA, _MMA, 1, 1, 28, 300, shared_bytes=164 << 10, warps=48, blocks=16),
        Machine(89, _GEFORCE, _GEFORCE, 1, 1, 28, 300, shared_bytes=100 << 10, warps=48, blocks=24),
        Machine(90, _HOPPER, _HOPPER_ISSUED, 1, 1, 28, 300, shared_bytes=228 << 10),
        Machine(120, _GEFORCE, _GEFORCE, 1, 1, 28, 300, shared_bytes=100 << 10, warps=48, blocks=24),
    )
}


_GROUPS = 6
"""In the place of a scoreboard: groups of products of warpgroups."""
_ROWS, _INPUTS = 64, 16
"""Of a product of a warpgroup."""


def warpgroup_cycles(i: Instruction) -> tuple[float, float]:
    """Cycles that a warpgroup's product takes of each scheduler, and of shared memory for each of the four warps."""
    found = re.match(r"HGMMA\.64x(\d+)x16\b", i.operation)
    if found is None:
        raise InputError(f"No timing is known of {i.operation}.")
    columns = int(found[1])
    return columns / 2, (_ROWS + columns) * _INPUTS * 2 / 128 / SCHEDULERS


def resident_blocks(machine: Machine, threads: int, registers: int, shared: int) -> int:
    """Blocks that one multiprocessor holds: registers are given out by 8 for a thread, shared memory by 256 bytes."""
    warps = -(-threads // 32)
    by_registers = machine.registers // (-(-registers // 8) * 8 * 32 * warps) if registers else machine.blocks
    by_shared = machine.shared_bytes // (-(-shared // 256) * 256) if shared else machine.blocks
    return min(machine.blocks, machine.warps // warps, by_registers, by_shared)


# ------------------------------------------------------------------------------------------- ways through a kernel


@dataclass(frozen=True)
class Ways:
    """What a warp of a kernel runs.

    Attributes:
        begin: Before the main loop.
        plain: A strip in the middle of a segment.
        settle: One that ends with sums of halves added to sums of floats; the same as ``plain`` elsewhere.
        first: The first strip of a segment, which finds its rows anew.
        end: Behind the loop.
    """

    begin: Sequence[Instruction]
    plain: Sequence[Instruction]
    settle: Sequence[Instruction]
    first: Sequence[Instruction]
    end: Sequence[Instruction]


def strips_ahead(path: Iterable[Instruction]) -> int:
    """How many strips are on their way when a main loop begins that copies past registers.

    Those that it leaves under way while it waits for one (DEPBAR), and that one.
    """
    for i in path:
        named = re.search(r"SB\d, 0x(\d)", i.text) if i.name == "DEPBAR" else None
        if named is not None:
            return int(named[1]) + 1
    return 1


def _over_the_shorter(code: Code, branch: int, target: int) -> bool:
    """Whether a branch passes over the shorter of two alternatives: going on by a constant, not finding rows anew."""
    over = code.between(branch + 1, target - 1)
    end = over[-1].target if over and over[-1].name == "BRA" and not over[-1].conditional else None
    return end is not None and end > target and len(over) - 1 < len(code.between(target, end - 1))


def ways(code: Code, loop: Loop) -> Ways:
    """The ways through a kernel, told from what conditional branches of its main loop pass over.

    A branch over products, loads of the next strip or stores to shared memory is not taken: there is more to come. One
    over conversions alone leaves out the settling. Any other decides about what only the first strip of a segment does,
    which is the longer of two alternatives.
    Before and behind the loop only ways that store results one by one are left out, and divisions that not all need.
    """

    def strip(kind: str) -> list[Instruction]:
        taken: dict[int, bool] = {}
        for branch in code.between(loop.first, loop.last):
            if branch.name not in ("BRA", "SYNC", "BSYNC") or not branch.conditional:
                continue
            target = branch.target
            if branch.name != "BRA" or target is None or not branch.address < target <= loop.last + 16:
                continue
            over = [i.name for i in code.between(branch.address + 1, target - 1)]
            if sum(name in ("F2F", "HADD2") for name in over) >= 8 and not set(over) & {*MATH, "LDG", "STS"}:
                taken[branch.address] = kind != "settle"
            elif set(over) & {*MATH, "LDG", "LDGSTS", "STS"}:
                taken[branch.address] = False
            else:
                taken[branch.address] = (kind != "first") != _over_the_shorter(code, branch.address, target)
        return walk(code, loop.first, lambda i: taken.get(i.address, False), lambda i: i.address >= loop.last)

    widest = max((i.bytes for i in code.instructions if i.name == "STG"), default=0)
    ahead, turns = strips_ahead(code.between(loop.first, loop.last)), dict[int, int]()

    backs = [(i.target, i.address) for i in code.instructions if i.name == "BRA" and i.target and i.target <= i.address]
    rounds = [(a, b) for a, b in backs if b < loop.first and any(i.name == "LDGSTS" for i in code.between(a, b))]

    def goes_round(branch: Instruction, target: int) -> bool | None:
        """Of a branch that closes or leaves a loop before the main one, which asks for the first strips."""
        closed = branch.address if target <= branch.address else None
        for i in code.between(branch.address + 1, target - 1):
            if i.name == "BRA" and not i.conditional and i.target is not None and i.target <= branch.address:
                closed, target = i.address, i.target
                break
        if closed is None:
            return None
        if not any(i.name == "LDGSTS" for i in code.between(target, closed)):
            return False
        turns[branch.address] = turns.get(branch.address, 0) + 1
        return turns[branch.address] < ahead

    def outside(branch: Instruction) -> bool:
        """Over results that are stored one by one, or a division alone; everything else is run."""
        target = branch.target
        if branch.name != "BRA" and not leaves_loop(code, branch):
            # Who has stored a run leaves out its single numbers, which come next.
            rest = code.between(branch.address + 1, code.instructions[-1].address)
            alone = itertools.takewhile(lambda i: i.name not in ("SYNC", "BSYNC", "BRK", "EXIT"), rest)
            stored = [i.bytes for i in alone if i.name == "STG"]
            return bool(stored) and max(stored) < widest
        if target is None:
            return False
        again = goes_round(branch, target)
        if again is not None:
            return again if target <= branch.address else not again
        over = code.between(branch.address + 1, target - 1)
        if any(first <= branch.address < target <= last + 16 for first, last in rounds):
            return not any(i.name in ("LDGSTS", "LDGDEPBAR") for i in over)  # over the begin of another segment
        stored = [i.bytes for i in over if i.name == "STG"]
        if stored:
            return max(stored) < widest
        names = {i.name for i in over}
        # A place that is found by division, for other layers than most.
        return "MUFU" in names and not names & {*_MEMORY, "BAR", "EXIT", *MATH}

    inside = {i.address for i in code.between(loop.first, loop.last)}
    begin = walk(code, code.instructions[0].address, outside, lambda i: i.address in inside)
    after = [i.address for i in code.instructions if i.address > loop.last]
    end = walk(code, after[0], outside, lambda i: False) if after else []
    return Ways(
        [i for i in begin if i.address not in inside], strip("plain"), strip("settle"), strip("first"),
        [i for i in end if i.address not in inside],
    )  # fmt: skip


def counted_ways(
    code: Code, loop: Loop, rounds: Callable[[Sequence[Instruction]], int], most_loads: int | None = None
) -> Ways:
    """The ways through a kernel whose loops, in and around the main one, go round so often as its sizes say.

    A branch is taken over a loop of no rounds, over the slow way of a division, over what ends the kernel early, and
    over what leaves the main loop out; everything else is run.

    Args:
        code: The kernel.
        loop: The main one; its turns are the strips.
        rounds: How often a loop with this body goes round.
        most_loads: Global loads of its turns at most: a branch is taken over a piece of an unrolled loop that has more.
    """
    backs = {i.target: i.address for i in code.instructions if i.name == "BRA" and i.target and i.target < i.address}

    def turns_of(first: int, last: int) -> int:
        return rounds(code.between(first, last))

    def walked(start: int, until: Callable[[Instruction], bool]) -> list[Instruction]:
        left: dict[int, int] = {}

        def decide(branch: Instruction) -> bool:
            target = branch.target
            if branch.name == "CALL":  # leaves a loop that the next branch closes
                closes = next(i for i in code.instructions if i.address > branch.address)
                left.setdefault(closes.address, turns_of(closes.target or 0, closes.address))
                left[closes.address] -= 1
                if left[closes.address] > 0:
                    return False
                del left[closes.address]
                return True
            if branch.name != "BRA" or target is None:
                return False
            if target <= branch.address:
                left.setdefault(branch.address, turns_of(target, branch.address))
                left[branch.address] -= 1
                if left[branch.address] > 0:
                    return True
                del left[branch.address]
                return False
            over = code.between(branch.address + 1, target - 1)
            if not over:
                return False
            first = next((i.address for i in over if i.name not in ("BSSY", "NOP")), target)
            if first in backs and backs[first] < target and turns_of(first, backs[first]) < 1:
                return True
            loads, turns = sum(i.name == "LDG" for i in over), [a for a in backs if a and branch.address < a < target]
            if most_loads is not None and loads > most_loads and all(turns_of(a, backs[a]) < 1 for a in turns):
                return True
            last = over[-1]
            leaves = last.name == "BRA" and not last.conditional and (last.target or 0) > loop.last > last.address
            ends = any(i.name == "EXIT" and not i.conditional for i in over)
            names = {i.name for i in over}
            return leaves or ends or ("CALL" in names and not names & {*_MEMORY, "BAR", *MATH})

        return walk(code, start, decide, until)

    begin = walked(code.instructions[0].address, lambda i: loop.first <= i.address <= loop.last)
    strip = walked(loop.first, lambda i: i.address >= loop.last)
    after = [i.address for i in code.instructions if i.address > loop.last]
    end = walked(after[0], lambda i: False) if after else []
    return Ways([i for i in begin if not loop.first <= i.address <= loop.last], strip, strip, strip, end)


# ------------------------------------------------------------------------------------------------- the simulation


@dataclass(frozen=True)
class _Step:
    kind: str
    cycles: float
    """That its unit is busy."""
    stall: int
    write: int
    read: int
    waits: tuple[int, ...]
    drain: tuple[int, int] | None
    """Scoreboard and how many of its loads may be left (DEPBAR)."""
    dual: bool
    read_cycles: float = 0.0
    """That shared memory is busy with the operands of a product."""
    closes: bool = False
    """Whether a group of products ends with it."""


def _steps(path: Sequence[Instruction], machine: Machine, optimistic: bool) -> list[_Step]:
    shared = _shared_by_lanes(path) if optimistic else frozenset[str]()
    steps = []
    for i in path:
        kind, cycles = "issue", 0.0
        words = i.bytes / 4
        if i.name == "LDSM":
            kind, cycles = "load", 4.0
        elif i.name == "LDS":
            kind, cycles = "load", max(1.0, words * (0.5 if _base(i) in shared else 1.0))
        elif i.name == "STS":
            kind, cycles = "store", max(1.0, words)
        elif i.name == "SHFL":
            kind, cycles = "load", 1.0
        elif i.name == "LDGSTS":
            kind, cycles = "copy", max(1.0, words if optimistic else 2 * words)
        elif i.name == "LDGDEPBAR":
            kind = "group"
        elif i.name in ("LDG", "LD"):
            kind, cycles = "global", max(1.0, 2 * words)
        elif i.name in ("STG", "ST"):
            kind, cycles = "store", max(1.0, 2 * words)
        elif i.name in _QUARTER:
            kind, cycles = "quarter", 4.0
        elif i.name in ("HMMA", "IMMA"):
            kind, cycles = "tensor", _interval(machine.tensor_interval, i)
        elif i.name == "HGMMA":
            kind, cycles = "warpgroup", warpgroup_cycles(i)[0]
        elif i.name == "BAR":
            kind = "barrier"
        elif i.name in ("FFMA", "HFMA2", "FADD", "FMUL", "HADD2", "HMUL2"):
            kind, cycles = "lanes", float(machine.lane_interval)
        elif machine.integer_interval > 1 and i.name not in ("BRA", "EXIT", "BSYNC", "BSSY", "NOP", "DEPBAR"):
            kind, cycles = "integers", float(machine.integer_interval)
        named = re.search(r"SB(\d), 0x(\d)", i.text) if i.name == "DEPBAR" else None
        drain = (int(named[1]), int(named[2])) if named else None
        left = re.search(r"gsb0, 0x(\d)", i.text) if i.operation.startswith("WARPGROUP.DEPBAR") else None
        steps.append(
            _Step(
                kind, cycles, max(1, i.control.stall), i.control.write, i.control.read,
                tuple(bit for bit in range(6) if i.control.waits >> bit & 1),
                (_GROUPS, int(left[1])) if left else drain, i.dual,
                warpgroup_cycles(i)[1] if kind == "warpgroup" else 0.0, kind == "warpgroup" and "gsb0" in i.text,
            )
        )  # fmt: skip
    return steps


def _interval(table: Mapping[str, float], i: Instruction) -> float:
    return next((cycles for name, cycles in table.items() if i.operation.startswith(name)), 8.0)


def _base(i: Instruction) -> str:
    found = re.search(r"\[(\w+)", i.text)
    return found[1] if found else ""


def _shared_by_lanes(path: Sequence[Instruction]) -> frozenset[str]:
    """Base registers of the left operand, which lanes of a row read alike: it stands first in a stage."""
    offsets: dict[str, list[int]] = {}
    for i in path:
        if i.name == "LDS" and i.bytes >= 8:
            found = re.search(r"\+(-?0x[0-9a-f]+)\]", i.text)
            offsets.setdefault(_base(i), []).append(int(found[1], 16) if found else 0)
    many = {register: min(values) for register, values in offsets.items() if len(values) >= 4}
    if len(many) < 2:
        return frozenset()
    first = min(many.values())
    # Two registers may hold the left operand, of which one begins behind the other.
    half = sum(len(offsets[register]) for register in many) // 2
    found, loads = set[str](), 0
    for register in sorted(many, key=lambda r: many[r]):
        if loads and (loads >= half or many[register] > first + 0x800):
            break
        found.add(register)
        loads += len(offsets[register])
    return frozenset(found)


def two_ended(found: Ways) -> bool:
    """Whether the model's two ends differ: where lanes load an operand that they share, and where there are copies."""
    paths = list(vars(found).values())
    return any(i.name == "LDGSTS" for path in paths for i in path) or any(map(_shared_by_lanes, paths))


class _Warp:
    __slots__ = (
        "at",
        "block",
        "boards",
        "copied",
        "done",
        "free",
        "part",
        "program",
        "step",
        "unit",
        "waiting",
        "when",
    )

    def __init__(self, block: int, unit: dict[str, float], program: Sequence[Sequence[_Step]], free: float) -> None:
        self.block, self.unit, self.program, self.free = block, unit, program, free
        self.part = self.at = 0
        self.step = program[0][0]
        self.done = self.waiting = False
        self.copied = 0.0
        self.boards: list[list[float]] = [[] for _ in range(_GROUPS + 1)]
        self.when = free

    def advance(self) -> None:
        """On to the next instruction."""
        self.at += 1
        if self.at == len(self.program[self.part]):
            self.part, self.at = self.part + 1, 0
            if self.part == len(self.program):
                self.done = True
                return
        self.step = self.program[self.part][self.at]

    def settle(self) -> None:
        """Finds when the next instruction can be issued, for all that the warp knows itself."""
        step, when = self.step, self.free
        for bit in step.waits:
            for time in self.boards[bit]:
                if time > when:
                    when = time
        if step.drain is not None:
            pending = sorted(self.boards[step.drain[0]])
            if len(pending) > step.drain[1]:
                when = max(when, pending[len(pending) - 1 - step.drain[1]])
        self.when = when


def cycles(
    machine: Machine, program: Sequence[Sequence[Instruction]], *, blocks: int, warps: int, optimistic: bool = True,
    stagger: float = 37.0,
) -> float:  # fmt: skip
    """Cycles until every warp of the resident blocks has run its program.

    Args:
        machine: The multiprocessor.
        program: Parts that a warp runs one after the other.
        blocks: Resident at the same time.
        warps: Of a block.
        optimistic: Which end of the model (see the module).
        stagger: Cycles between the begins of two blocks.
    """
    known: dict[int, list[_Step]] = {}
    for part in program:
        if id(part) not in known:
            known[id(part)] = _steps(part, machine, optimistic)
    parts = [known[id(part)] for part in program if part]
    units: list[dict[str, float]] = [{} for _ in range(SCHEDULERS)]
    queues: list[list[_Warp]] = [[] for _ in range(SCHEDULERS)]
    for index in range(blocks * warps):
        place = index % SCHEDULERS
        queues[place].append(_Warp(index // warps, units[place], parts, index // warps * stagger))
    everyone = [w for queue in queues for w in queue]
    memory_free, filled, now = 0.0, 0.0, 0.0
    arrived: dict[int, list[_Warp]] = {}
    turn = [0] * SCHEDULERS
    left = len(everyone)
    behind = {
        "load": machine.shared_latency, "store": 8, "global": machine.global_latency, "copy": machine.global_latency,
    }  # fmt: skip

    def may(w: _Warp) -> bool:
        if w.when > now or w.waiting or w.done:
            return False
        kind = w.step.kind
        if kind in ("issue", "barrier", "group"):
            return True
        if kind in behind:
            return memory_free <= now + _QUEUE
        if kind == "warpgroup":
            return optimistic or w.unit.get("tensor", 0.0) <= now + w.step.cycles
        return w.unit.get(kind, 0.0) <= now

    def issue(w: _Warp) -> bool:
        """Whether the next one may go with it."""
        nonlocal memory_free, filled, left
        step = w.step
        kind = step.kind
        latency = 2.0
        if kind in behind:
            memory_free = max(memory_free, now) + step.cycles
            latency = memory_free + behind[kind] - now
            if kind == "copy":
                filled = max(filled, now) + (2.0 if optimistic else 1.0) * step.cycles
                w.copied = max(w.copied, now + latency, filled + behind[kind])
        elif kind == "group":
            latency = max(2.0, w.copied - now)
        elif kind == "warpgroup":
            memory_free = max(memory_free, now) + step.read_cycles
            w.unit["tensor"] = max(max(w.unit.get("tensor", 0.0), now) + step.cycles, memory_free)
            if step.closes:
                done = w.unit["tensor"] + machine.shared_latency
                w.boards[_GROUPS] = [t for t in w.boards[_GROUPS] if t > now] + [done]
        elif kind != "issue" and kind != "barrier":
            w.unit[kind] = now + step.cycles
            latency = {"quarter": 14.0, "tensor": 33.0}.get(kind, 6.0)
        if step.write != NONE:
            w.boards[step.write] = [t for t in w.boards[step.write] if t > now] + [now + latency]
        if step.read != NONE:
            read = memory_free - now + 2 if kind in ("store", "global", "copy") else 6.0
            w.boards[step.read] = [t for t in w.boards[step.read] if t > now] + [now + max(6.0, read)]
        w.free = now if step.dual else now + step.stall
        w.advance()
        if w.done:
            left -= 1
        if kind == "barrier":
            together = arrived.setdefault(w.block, [])
            together.append(w)
            w.waiting = True
            if len(together) == warps:
                for other in together:
                    other.waiting, other.free = False, max(other.free, now + 6)
                    other.settle()
                together.clear()
        w.settle()
        return step.dual

    while left:
        issued = False
        for s in range(SCHEDULERS):
            queue = queues[s]
            count = len(queue)
            for offset in range(count):
                place = (turn[s] + offset) % count
                w = queue[place]
                if w.when <= now and may(w):
                    turn[s], issued = place, True
                    if issue(w) and may(w):
                        issue(w)
                    break
        if issued:
            now += 1
            continue
        later = [w.when for w in everyone if not w.done and not w.waiting and w.when > now]
        later += [t for unit in units for t in unit.values() if t > now]
        queued = [w for w in everyone if not w.done and not w.waiting and w.step.kind == "warpgroup"]
        later += [t for w in queued if (t := w.unit.get("tensor", 0.0) - w.step.cycles) > now]
        if memory_free > now + _QUEUE:
            later.append(memory_free - _QUEUE)
        now = max(now + 1, min(later, default=now + 1))
    return now


# ---------------------------------------------------------------------------------------------- figures of a kernel


@dataclass(frozen=True)
class Figures:
    """What a kernel does on a multiprocessor with a number of resident blocks, modelled.

    Attributes:
        strip: Cycles of a strip of all resident blocks, settling and first strips of a segment in their proportion.
        fixed: Cycles that begin and end of these blocks add when one block follows another.
        cold: The same when all of them begin together.
        share: Of the peak rate that the main loop reaches.
    """

    strip: float
    fixed: float
    cold: float
    share: float


def peak_cycles(machine: Machine, path: Sequence[Instruction]) -> float:
    """Cycles that the products of one warp need on their scheduler at the peak rate."""
    return sum(
        _interval(machine.tensor_peak, i)
        if i.name in ("HMMA", "IMMA")
        else warpgroup_cycles(i)[0]
        if i.name == "HGMMA"
        else float(machine.lane_interval)
        for i in path
        if i.multiplies
    )


def figures(
    machine: Machine, found: Ways, *, warps: int, blocks: int, segment: int = 0, settles: int = 0,
    optimistic: bool = True, strips: int = 4, follows: bool = True,
) -> Figures:  # fmt: skip
    """Simulates two lengths of the sum and tells a strip from the rest.

    Args:
        machine: The multiprocessor.
        found: The kernel's ways.
        warps: Of a block.
        blocks: Resident.
        segment: Strips of a segment; 0: one segment.
        settles: Strips after which one settles; 0: none does.
        optimistic: Which end.
        strips: In the shorter sum.
        follows: Whether begin and end are played again with blocks that follow another; else they cost as much.
    """

    def program(count: int) -> list[Sequence[Instruction]]:
        parts: list[Sequence[Instruction]] = [found.begin]
        for strip in range(count):
            if segment and strip and strip % segment == 0:
                parts.append(found.first)
            else:
                parts.append(found.settle if settles and strip % settles == settles - 1 else found.plain)
        return [*parts, found.end]

    def run(count: int, times: int = 1, stagger: float = 37.0) -> float:
        return cycles(
            machine, program(count) * times, blocks=blocks, warps=warps, optimistic=optimistic, stagger=stagger
        )

    short = run(strips)
    strip = (run(3 * strips) - short) / (2 * strips)
    cold = fixed = max(0.0, short - strips * strip)
    if follows and blocks > 1:
        apart = short / blocks
        fixed = min(cold, max(0.0, run(strips, 2, apart) - run(strips, 1, apart) - strips * strip))
    needed = peak_cycles(machine, found.plain) * warps * blocks / SCHEDULERS
    return Figures(strip, fixed, cold, needed / strip)
