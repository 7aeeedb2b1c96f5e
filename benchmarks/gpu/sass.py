"""Machine code of kernels, as ``cuobjdump -sass`` prints it: instructions, their waits, loops, ways through them.

Each instruction carries a control word that the assembler wrote: for how many cycles the warp pauses behind it, which
of six scoreboards it sets when its result is there (``write``) or its operands were read (``read``), and which ones it
waits for. Up to Pascal one word of 64 bits holds those of three instructions, from Volta on each has its own. That
layout is undocumented by NVIDIA; it is described by the public assemblers maxas (Maxwell) and CuAssembler (Volta on).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dyndeploy.errors import InputError

NONE = 7
"""Number of no scoreboard."""

MATH = ("FFMA", "HFMA2", "HMMA", "HGMMA", "IMMA", "IDP")
"""What products are made of."""

_MEETS = ("SYNC", "BSYNC", "BRK")
"""They go where the SSY, BSSY or PBK before says."""

_FUNCTION = re.compile(r"Function : (\S+)")
_ARCH = re.compile(r"code for sm_(\d+)")
_LINE = re.compile(
    r"\s+/\*(?P<address>[0-9a-f]{4,5})\*/\s+(?P<dual>\{)?\s*(?P<predicate>@!?U?\w+\s+)?(?P<text>[^;}]*?)\s*(;|\})"
)
_WORD = re.compile(r"/\* 0x([0-9a-f]{16}) \*/")
_HEX = re.compile(r"0x([0-9a-f]+)")


@dataclass(frozen=True)
class Control:
    """Control word of an instruction.

    Attributes:
        stall: Cycles until the warp may issue its next instruction.
        write: Scoreboard that is released when the result is there; :data:`NONE` for none.
        read: Scoreboard that is released when the operands were read.
        waits: Scoreboards that must be free before it is issued, as bits.
    """

    stall: int = 1
    write: int = NONE
    read: int = NONE
    waits: int = 0

    @classmethod
    def decode(cls, word: int) -> Control:
        """From its 21 bits."""
        return cls(word & 15, word >> 5 & 7, word >> 8 & 7, word >> 11 & 63)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: In bytes from the kernel's begin.
        predicate: ``"@P0"``, ``"@!P1"`` or ``""``.
        text: Operation and operands.
        dual: Whether the next instruction is issued in the same cycle (Maxwell, Pascal).
        control: Its control word.
    """

    address: int
    predicate: str
    text: str
    dual: bool
    control: Control

    @property
    def operation(self) -> str:
        """With its modifiers, e.g. ``"LDS.U.128"``."""
        return self.text.split()[0]

    @property
    def name(self) -> str:
        """Without them, e.g. ``"LDS"``."""
        return self.operation.partition(".")[0]

    @property
    def multiplies(self) -> bool:
        """Whether it is a product: not one of nothing, by which newer compilers write constants."""
        return self.name in MATH and "-RZ, RZ" not in self.text

    @property
    def bytes(self) -> int:
        """That one lane loads or stores."""
        modifiers = self.operation.split(".")
        for size in (128, 64):
            if str(size) in modifiers:
                return size // 8
        return 2 if {"U16", "S16"} & set(modifiers) else 1 if {"U8", "S8"} & set(modifiers) else 4

    @property
    def target(self) -> int | None:
        """Address that a branch goes to, or that paths meet at."""
        found = _HEX.findall(self.text)
        return int(found[-1], 16) if found else None

    @property
    def conditional(self) -> bool:
        """Whether some warps take it and others do not: by a predicate, a condition code, or one of the whole warp."""
        decided = self.name == "BRA" and re.search(r"\bCC\b|\bUP\d", self.text) is not None
        return self.predicate not in ("", "@PT") or decided


@dataclass(frozen=True)
class Code:
    """Instructions of one kernel.

    Attributes:
        symbol: Its mangled name.
        arch: Compute capability, 10 * major + minor.
        instructions: By address.
    """

    symbol: str
    arch: int
    instructions: tuple[Instruction, ...]

    def between(self, first: int, last: int) -> list[Instruction]:
        """Those at addresses from ``first`` to ``last``."""
        return [i for i in self.instructions if first <= i.address <= last]


@dataclass(frozen=True)
class Loop:
    """Addresses of its first instruction and of the branch that closes it."""

    first: int
    last: int


def parse(text: str) -> list[Code]:
    """Kernels in the output of ``cuobjdump -sass``.

    Raises:
        InputError: There are none, or an instruction has no control word.
    """
    codes: list[Code] = []
    found: list[tuple[re.Match[str], Control | None]] = []
    symbol, arch = "", 0
    ahead: list[int] = []  # Control words of instructions to come, up to Pascal.
    expects_encoding = False  # The second of a pair that is issued together has its encoding on a line of its own.

    def close() -> None:
        if symbol:
            codes.append(Code(symbol, arch, tuple(_instruction(match, control, symbol) for match, control in found)))

    for line in text.splitlines():
        if match := _FUNCTION.search(line):
            close()
            symbol, found, ahead, expects_encoding = match[1], [], [], False
        elif match := _ARCH.search(line):
            close()
            symbol, found, arch = "", [], int(match[1])
        elif not symbol:
            continue
        elif (match := _LINE.match(line)) and match["text"]:
            old = arch < 70
            found.append((match, Control.decode(ahead.pop(0)) if old and ahead else None))
            expects_encoding = old and _WORD.search(line) is None
        elif match := _WORD.search(line):
            word = int(match[1], 16)
            if arch >= 70:
                if found:
                    found[-1] = (found[-1][0], Control.decode(word >> 41 & 0x1FFFFF))
            elif expects_encoding:
                expects_encoding = False
            else:
                ahead = [word >> 21 * i & 0x1FFFFF for i in range(3)]
    close()
    if not codes:
        raise InputError("No kernel stands in this text: it is not what 'cuobjdump -sass' prints.")
    return codes


def _instruction(match: re.Match[str], control: Control | None, symbol: str) -> Instruction:
    if control is None:
        raise InputError(f"The instruction at {match['address']} of {symbol} has no control word.")
    return Instruction(
        int(match["address"], 16),
        (match["predicate"] or "").strip(),
        match["text"].strip(),
        bool(match["dual"]),
        control,
    )


def count_math(instructions: Iterable[Instruction]) -> int:
    """How many multiply."""
    return sum(i.multiplies for i in instructions)


def main_loop(code: Code, holds: str | None = None) -> Loop | None:
    """The loop with most products; of two with as many the shorter one. None where no loop has any.

    Args:
        code: The kernel.
        holds: Name of an instruction that it must hold.
    """
    best: tuple[int, int, Loop] | None = None
    for branch in code.instructions:
        target = branch.target
        if branch.name != "BRA" or target is None or target >= branch.address:
            continue
        body = code.between(target, branch.address)
        found = (count_math(body), -len(body), Loop(target, branch.address))
        held = holds is None or any(i.name == holds for i in body)
        if held and found[0] and (best is None or found[:2] > best[:2]):
            best = found
    return None if best is None else best[2]


def inner_loop(code: Code) -> Loop | None:
    """Of the loops that hold no other the one with most products; None where no loop has any."""
    backs = [(i.target, i.address) for i in code.instructions if i.name == "BRA" and i.target and i.target < i.address]
    inner = [(a, b) for a, b in backs if not any((c, d) != (a, b) and a <= c and d <= b for c, d in backs)]
    counts = [(count_math(code.between(a, b)), Loop(a, b)) for a, b in inner]
    best = max(counts, key=lambda each: each[0], default=(0, None))
    return best[1] if best[0] else None


def walk(
    code: Code, start: int, decide: Callable[[Instruction], bool], until: Callable[[Instruction], bool]
) -> list[Instruction]:
    """Instructions in the order in which a warp runs them.

    Args:
        code: The kernel.
        start: Address of the first one.
        decide: Whether a conditional branch is taken.
        until: Whether the walk ends behind this instruction; it does behind an ``EXIT`` without predicate, too.

    Raises:
        InputError: It does not end.
    """
    addresses = [i.address for i in code.instructions]
    place = {address: index for index, address in enumerate(addresses)}

    def at(address: int) -> int:
        # Addresses of control words are skipped.
        return place[address] if address in place else sum(a < address for a in addresses)

    index, path, meets = at(start), [], list[tuple[str, int]]()
    while index < len(code.instructions):
        i = code.instructions[index]
        path.append(i)
        if until(i) or (i.name == "EXIT" and not i.conditional):
            return path
        if len(path) > 20000:
            raise InputError(f"The way through {code.symbol} does not end.")
        index += 1
        if i.name in ("SSY", "BSSY", "PBK") and i.target is not None:
            meets.append((_meeting(i), at(i.target)))
        elif i.name in ("BRA", *_MEETS) or leaves_loop(code, i):
            if i.conditional and not decide(i):
                continue
            if i.name not in _MEETS and i.target is not None:
                index = at(i.target)
            elif i.name in _MEETS:
                named = [n for n, (meeting, _) in enumerate(meets) if meeting == _meeting(i)]
                if named:
                    index = meets.pop(named[-1])[1]
    return path


def leaves_loop(code: Code, i: Instruction) -> bool:
    """Whether it is a CALL that assemblers write for a branch: out of a loop, in front of the branch that closes it."""
    if not (i.name == "CALL" and i.conditional):
        return False
    after = next((other for other in code.instructions if other.address > i.address), None)
    return after is not None and after.name == "BRA" and not after.conditional and (after.target or 0) < i.address


def _meeting(i: Instruction) -> str:
    """Where paths that part meet again: a barrier with a name from Volta on, before the last one of a kind."""
    words = i.text.replace(",", " ").split()
    named = len(words) > 1 and words[1].startswith("B")
    return words[1] if named else {"PBK": "BRK", "SSY": "SYNC"}.get(i.name, i.name)


def waits_early(path: Sequence[Instruction]) -> float:
    """Share of a strip's products that stand behind the first wait for a load that the same strip began.

    0: all multiply while the next strip is on its way; 1: none do.
    """
    total, done, groups = count_math(path), 0, 0
    pending: set[int] = set()
    for i in path:
        named = re.search(r"SB(\d)(?:, 0x(\d))?", i.text) if i.name == "DEPBAR" else None
        waits = {bit for bit in range(6) if i.control.waits >> bit & 1} | ({int(named[1])} if named else set())
        # Copies past registers: a wait that leaves all of this strip's groups under way is one for earlier strips.
        if waits & pending or (named and named[2] and int(named[2]) < groups):
            return (total - done) / total
        done += i.multiplies
        groups += i.name == "LDGDEPBAR"
        if i.name == "LDG" and i.control.write != NONE:
            pending.add(i.control.write)
    return 0.0
