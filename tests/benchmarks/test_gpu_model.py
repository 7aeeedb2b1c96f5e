"""The cycle model on small machine code, written down here: no CUDA is needed. No time is asserted."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.errors import InputError, UsageError
from dyndeploy.files import write_json

# A loop of four products a turn that stores what the turn before loaded: `cuobjdump -sass` of CUDA 11.8 and 13.0.
MAXWELL = """
 code for sm_53
 Function : late
 .headerflags @"EF_CUDA_SM53 EF_CUDA_PTX_SM(EF_CUDA_SM53)"
 /* 0x001c7c00fe0007f6 */
 /*0008*/ MOV R1, c[0x0][0x20] ; /* 0x4c98078000870001 */
 /*0010*/ { MOV R3, c[0x0][0x150] ; /* 0x4c98078005470003 */
 /*0018*/ S2R R15, SR_TID.X }
 /* 0xf0c800000217000f */
 /* 0x001fd800fea20ff1 */
 /*0028*/ SHL R17, R15.reuse, 0x2 ; /* 0x3848000000270f11 */
 /*0030*/ SHR.U32 R0, R15, 0x1e ; /* 0x3828000001e70f00 */
 /*0038*/ IADD R4.CC, R17, c[0x0][0x140] ; /* 0x4c10800005071104 */
 /* 0x001f8400162007f2 */
 /*0048*/ IADD.X R5, R0, c[0x0][0x144] ; /* 0x4c10080005170005 */
 /*0050*/ LDG.E R0, [R4] ; /* 0xeed4200000070400 */
 /*0058*/ ISETP.GE.AND P0, PT, R3, 0x1, PT ; /* 0x366d038000170307 */
 /* 0x001fc040ff6007f1 */
 /*0068*/ MOV R14, RZ ; /* 0x5c9807800ff7000e */
 /*0070*/ LEA R2.CC, R15.reuse, c[0x0][0x148], 0x2 ; /* 0x4bd7810005270f02 */
 /*0078*/ { LEA.HI.X R3, R15, c[0x0][0x14c], RZ, 0x2 ; /* 0x1a177f8005370f03 */
 /* 0x001fd801fe2007f6 */
 /*0088*/ @!P0 BRA 0x170 }
 /* 0xe24000000e08000f */
 /*0090*/ IADD32I R15, R15, 0x20 ; /* 0x1c00000002070f0f */
 /*0098*/ MOV R16, RZ ; /* 0x5c9807800ff70010 */
 /* 0x001fc020fe2007f0 */
 /*00a8*/ { SHR.U32 R4, R15, 0x1e ; /* 0x3828000001e70f04 */
 /*00b0*/ STS [R17], R0 }
 /* 0xef5c000000071100 */
 /*00b8*/ { IADD32I R16, R16, 0x1 ; /* 0x1c00000000171010 */
 /* 0x001fc000fea007ff */
 /*00c8*/ BAR.SYNC 0x0 }
 /* 0xf0a81b8000070000 */
 /*00d0*/ MEMBAR.CTA ; /* 0xef98000000070000 */
 /*00d8*/ { ISCADD R12.CC, R15, c[0x0][0x140], 0x2 ; /* 0x4c18810005070f0c */
 /* 0x001c4800fe0007f6 */
 /*00e8*/ LDS.U.128 R8, [RZ] }
 /* 0xef4e10000007ff08 */
 /*00f0*/ { IADD.X R13, R4, c[0x0][0x144] ; /* 0x4c1008000517040d */
 /*00f8*/ LDS.U.128 R4, [0x80] }
 /* 0xef4e10000807ff04 */
 /* 0x001ff40035a007f0 */
 /*0108*/ { ISETP.GE.AND P0, PT, R16, c[0x0][0x150], PT ; /* 0x4b6d038005471007 */
 /*0110*/ LDG.E R0, [R12] }
 /* 0xeed4200000070c00 */
 /*0118*/ IADD32I R15, R15, 0x20 ; /* 0x1c00000002070f0f */
 /* 0x001fd800fcc00ff6 */
 /*0128*/ FFMA R4, R4, R8, R14 ; /* 0x5980070000870404 */
 /*0130*/ FFMA R4, R5, R9, R4 ; /* 0x5980020000970504 */
 /*0138*/ FFMA R4, R6, R10, R4 ; /* 0x5980020000a70604 */
 /* 0x001fd400ffe007f1 */
 /*0148*/ FFMA R14, R7, R11, R4 ; /* 0x5980020000b7070e */
 /*0150*/ BAR.SYNC 0x0 ; /* 0xf0a81b8000070000 */
 /*0158*/ MEMBAR.CTA ; /* 0xef98000000070000 */
 /* 0x001fc421fe4017fd */
 /*0168*/ @!P0 BRA 0xa0 ; /* 0xe2400ffff308000f */
 /*0170*/ FADD R0, R14, R0 ; /* 0x5c58000000070e00 */
 /*0178*/ STG.E [R2], R0 ; /* 0xeedc200000070200 */
 /* 0x001f9400fde007ef */
 /* 0x001f8000ffe007ff */
 /*01a8*/ EXIT ; /* 0xe30000000007000f */
 /*01b0*/ BRA 0x1b0 ; /* 0xe2400fffff87000f */
"""
AMPERE = """
 code for sm_80
 .target sm_80
 Function : late
 .headerflags @"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
 /*0000*/ IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ; /* 0x00000a00ff017624 */
 /* 0x000fe400078e00ff */
 /*0010*/ S2R R17, SR_TID.X ; /* 0x0000000000117919 */
 /* 0x000e220000002100 */
 /*0020*/ MOV R2, c[0x0][0x170] ; /* 0x00005c0000027a02 */
 /* 0x000fe20000000f00 */
 /*0030*/ IMAD.MOV.U32 R18, RZ, RZ, 0x4 ; /* 0x00000004ff127424 */
 /* 0x000fe200078e00ff */
 /*0040*/ ULDC.64 UR4, c[0x0][0x118] ; /* 0x0000460000047ab9 */
 /* 0x000fe40000000a00 */
 /*0050*/ ISETP.GE.AND P0, PT, R2, 0x1, PT ; /* 0x000000010200780c */
 /* 0x000fe20003f06270 */
 /*0060*/ IMAD.MOV.U32 R15, RZ, RZ, RZ ; /* 0x000000ffff0f7224 */
 /* 0x000fe400078e00ff */
 /*0070*/ IMAD.WIDE.U32 R4, R17.reuse, R18, c[0x0][0x160] ; /* 0x0000580011047625 */
 /* 0x041fe200078e0012 */
 /*0080*/ LEA R2, P1, R17, c[0x0][0x168], 0x2 ; /* 0x00005a0011027a11 */
 /* 0x000fc800078210ff */
 /*0090*/ LDG.E R0, [R4.64] ; /* 0x0000000404007981 */
 /* 0x000162000c1e1900 */
 /*00a0*/ LEA.HI.X R3, R17, c[0x0][0x16c], RZ, 0x2, P1 ; /* 0x00005b0011037a11 */
 /* 0x000fc800008f14ff */
 /*00b0*/ @!P0 BRA 0x1e0 ; /* 0x0000012000008947 */
 /* 0x000fea0003800000 */
 /*00c0*/ HFMA2.MMA R15, -RZ, RZ, 0, 0 ; /* 0x00000000ff0f7435 */
 /* 0x000fe200000001ff */
 /*00d0*/ IADD3 R14, R17, 0x20, RZ ; /* 0x00000020110e7810 */
 /* 0x000fe40007ffe0ff */
 /*00e0*/ MOV R16, RZ ; /* 0x000000ff00107202 */
 /* 0x000fe40000000f00 */
 /*00f0*/ STS [R17.X4], R0 ; /* 0x0000000011007388 */
 /* 0x0203e20000004800 */
 /*0100*/ IMAD.WIDE.U32 R12, R14, R18, c[0x0][0x160] ; /* 0x000058000e0c7625 */
 /* 0x000fc600078e0012 */
 /*0110*/ BAR.SYNC.DEFER_BLOCKING 0x0 ; /* 0x0000000000007b1d */
 /* 0x000fec0000010000 */
 /*0120*/ LDS.128 R4, [0x80] ; /* 0x00008000ff047984 */
 /* 0x001fe80000000c00 */
 /*0130*/ LDS.128 R8, [RZ] ; /* 0x00000000ff087984 */
 /* 0x000e220000000c00 */
 /*0140*/ IADD3 R16, R16, 0x1, RZ ; /* 0x0000000110107810 */
 /* 0x000fc60007ffe0ff */
 /*0150*/ LDG.E R0, [R12.64] ; /* 0x000000040c007981 */
 /* 0x002368000c1e1900 */
 /*0160*/ BAR.SYNC.DEFER_BLOCKING 0x0 ; /* 0x0000000000007b1d */
 /* 0x000fe20000010000 */
 /*0170*/ ISETP.GE.AND P0, PT, R16, c[0x0][0x170], PT ; /* 0x00005c0010007a0c */
 /* 0x000fe40003f06270 */
 /*0180*/ IADD3 R14, R14, 0x20, RZ ; /* 0x000000200e0e7810 */
 /* 0x000fe20007ffe0ff */
 /*0190*/ FFMA R4, R4, R8, R15 ; /* 0x0000000804047223 */
 /* 0x001fc8000000000f */
 /*01a0*/ FFMA R5, R5, R9, R4 ; /* 0x0000000905057223 */
 /* 0x000fc80000000004 */
 /*01b0*/ FFMA R6, R6, R10, R5 ; /* 0x0000000a06067223 */
 /* 0x000fc80000000005 */
 /*01c0*/ FFMA R15, R7, R11, R6 ; /* 0x0000000b070f7223 */
 /* 0x000fe20000000006 */
 /*01d0*/ @!P0 BRA 0xf0 ; /* 0xffffff1000008947 */
 /* 0x002fea000383ffff */
 /*01e0*/ FADD R15, R15, R0 ; /* 0x000000000f0f7221 */
 /* 0x020fca0000000000 */
 /*01f0*/ STG.E [R2.64], R15 ; /* 0x0000000f02007986 */
 /* 0x000fe2000c101904 */
 /*0200*/ EXIT ; /* 0x000000000000794d */
 /* 0x000fea0003800000 */
 /*0210*/ BRA 0x210; /* 0xfffffff000007947 */
 /* 0x000fc0000383ffff */
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of the benchmark's modules, as the script beside them does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
    return importlib.import_module


def test_control_words_of_three_instructions(gpu: Any) -> None:
    (code,) = gpu("sass").parse(MAXWELL)
    at = {i.address: i for i in code.instructions}
    assert (code.symbol, code.arch) == ("late", 53)
    assert at[0x10].dual and not at[0x18].dual, "the pair is issued together"
    assert at[0x18].text == "S2R R15, SR_TID.X" and at[0x18].control.write == 0
    assert at[0x28].control.waits == 1, "for the special register"
    assert at[0x110].operation == "LDG.E" and at[0x110].control.write == 5
    assert at[0x128].control.waits == 1 and at[0x128].control.stall == 6
    assert at[0xE8].bytes == 16 and at[0x110].bytes == 4


def test_control_words_of_each_instruction(gpu: Any) -> None:
    (code,) = gpu("sass").parse(AMPERE)
    at = {i.address: i for i in code.instructions}
    assert code.arch == 80
    assert at[0x10].control.write == 0 and at[0x90].control.write == 5
    assert at[0xF0].control.waits == 1 << 5, "for what the turn before loaded"
    assert at[0x190].control.stall == 4
    assert at[0x1D0].predicate == "@!P0" and at[0x1D0].target == 0xF0
    assert not at[0xC0].multiplies, "a constant, written as a product of nothing"


@pytest.mark.parametrize(("text", "first", "last"), [(MAXWELL, 0xA0, 0x168), (AMPERE, 0xF0, 0x1D0)])
def test_the_main_loop_and_its_wait(gpu: Any, text: str, first: int, last: int) -> None:
    sass = gpu("sass")
    (code,) = sass.parse(text)
    loop = sass.main_loop(code)
    assert (loop.first, loop.last) == (first, last)
    body = code.between(first, last)
    assert sass.count_math(body) == 4
    assert sass.waits_early(body) == 0.0
    # The same code with a wait for the load in front of the third product.
    index = [n for n, i in enumerate(body) if i.multiplies][2]
    load = next(i for i in body if i.name == "LDG")
    waiting = sass.Control(1, waits=1 << load.control.write)
    third = sass.Instruction(body[index].address, "", body[index].text, False, waiting)
    assert sass.waits_early([*body[:index], third, *body[index + 1 :]]) == 0.5


def test_ways_through_a_kernel(gpu: Any) -> None:
    sass, model = gpu("sass"), gpu("cycle_model")
    (code,) = sass.parse(AMPERE)
    found = model.ways(code, sass.main_loop(code))
    assert [i.address for i in found.plain] == list(range(0xF0, 0x1E0, 16))
    assert [i.name for i in found.end] == ["FADD", "STG", "EXIT"]
    assert found.begin[0].address == 0 and found.begin[-1].address == 0xE0


def test_cycles_of_a_loop(gpu: Any) -> None:
    """A chain of products, one warp: each waits for the one before; a load is waited for where its result is used."""
    sass, model = gpu("sass"), gpu("cycle_model")
    product = sass.Instruction(0, "", "FFMA R4, R4, R8, R15", False, sass.Control(4))
    machine = model.MACHINES[80]
    assert model.cycles(machine, [[product] * 10], blocks=1, warps=1) == pytest.approx(37, abs=2)
    # A second warp of the same scheduler fills the gaps: four blocks of one warp have a scheduler each.
    assert model.cycles(machine, [[product] * 10], blocks=4, warps=1, stagger=0) == pytest.approx(37, abs=2)
    assert model.cycles(machine, [[product] * 10], blocks=16, warps=1, stagger=0) == pytest.approx(80, abs=8)
    load = sass.Instruction(0, "", "LDG.E R0, [R12.64]", False, sass.Control(1, write=1))
    user = sass.Instruction(0, "", "FADD R1, R0, R0", False, sass.Control(1, waits=2))
    took = model.cycles(machine, [[load, user]], blocks=1, warps=1)
    assert machine.global_latency < took < machine.global_latency + 10


def test_dual_issue_and_barriers(gpu: Any) -> None:
    sass, model = gpu("sass"), gpu("cycle_model")
    machine = model.MACHINES[53]
    product = sass.Instruction(0, "", "FFMA R4, R4, R8, R15", False, sass.Control(1))
    first = sass.Instruction(0, "", "MOV R4, R5", True, sass.Control(0))
    alone = model.cycles(machine, [[product] * 64], blocks=1, warps=1)
    pairs = model.cycles(machine, [[first, product] * 64], blocks=1, warps=1)
    assert pairs == pytest.approx(alone, abs=3), "the first of a pair costs no cycle"
    barrier = sass.Instruction(0, "", "BAR.SYNC 0x0", False, sass.Control(1))
    slow = [product] * 100
    waits = model.cycles(machine, [slow, [barrier], [product]], blocks=1, warps=8)
    assert waits > 200, "two warps of a scheduler take turns, and all wait for the last"


def _copying(gpu: Any, left: int, groups: int = 1) -> list[Any]:
    """A strip: waits for a group of copies, asks for the next ones, multiplies."""
    sass = gpu("sass")
    lines = [
        (f"DEPBAR.LE SB0, {left:#x}", 4), ("BAR.SYNC 0x0", 1), *[("LDGSTS.E.BYPASS.128 [R2], [R4.64], P0", 1)] * 2,
        *[("LDGDEPBAR", 1)] * groups, *[("HMMA.16816.F32 R4, R8, R12, R4", 8)] * 8,
    ]  # fmt: skip
    return [
        sass.Instruction(16 * n, "", text, False, sass.Control(stall, write=0 if text == "LDGDEPBAR" else sass.NONE))
        for n, (text, stall) in enumerate(lines)
    ]


def test_copies_past_registers(gpu: Any) -> None:
    """A wait that leaves the newest groups under way is not one for them: with more of them a strip takes less time."""
    sass, model = gpu("sass"), gpu("cycle_model")
    machine = model.MACHINES[90]
    assert [model.strips_ahead(_copying(gpu, left)) for left in (0, 1, 2)] == [1, 2, 3]
    assert sass.waits_early(_copying(gpu, 1)) == 0.0, "the wait stands before the group that it might be for"
    # The same with the wait behind the copies.
    wait, barrier, *rest = _copying(gpu, 1)
    copies, products = rest[:3], rest[3:]
    assert sass.waits_early([barrier, *copies, wait, *products]) == 0.0, "one group may be under way"
    assert sass.waits_early([barrier, *copies, _copying(gpu, 0)[0], *products]) == 1.0

    def per_strip(left: int) -> float:
        strip = _copying(gpu, left)
        first = [i for i in strip if i.name in ("LDGSTS", "LDGDEPBAR")] * left
        times = [model.cycles(machine, [first, *[strip] * count], blocks=1, warps=1) for count in (12, 24)]
        return float(times[1] - times[0]) / 12

    # A group that was just asked for takes the whole latency; of three under way each strip waits for a third of it.
    assert per_strip(2) == pytest.approx(machine.global_latency / 3, rel=0.15)
    assert per_strip(1) == pytest.approx(machine.global_latency / 2, rel=0.15)


def test_copies_share_the_way_from_the_cache(gpu: Any) -> None:
    """64 bytes a cycle from the second-level cache: eight cycles for a warp's 16 bytes, four to put them."""
    sass, model = gpu("sass"), gpu("cycle_model")
    copy = sass.Instruction(0, "", "LDGSTS.E.BYPASS.128 [R2], [R4.64], P0", False, sass.Control(1))
    done = sass.Instruction(0, "", "LDGDEPBAR", False, sass.Control(1, write=0))
    wait = sass.Instruction(0, "", "DEPBAR.LE SB0, 0x0", False, sass.Control(4))
    machine = model.MACHINES[90]
    took = [model.cycles(machine, [[copy] * count + [done, wait]], blocks=1, warps=1) for count in (64, 128)]
    assert took[1] - took[0] == pytest.approx(8 * 64, abs=8)
    # Loads of shared memory go beside them, at the pessimistic end behind them.
    load = sass.Instruction(0, "", "LDSM.16.M88.4 R20, [R20]", False, sass.Control(1, write=1))
    took = [
        model.cycles(machine, [[copy, load] * 64 + [done, wait]], blocks=1, warps=1, optimistic=end)
        for end in (True, False)
    ]
    assert took[1] - took[0] == pytest.approx(4 * 64, abs=16)
    found = model.Ways([copy], [load], [load], [load], [])
    assert model.two_ended(found) and not model.two_ended(model.Ways([], [load], [load], [load], []))


@pytest.mark.parametrize("leaves", ["BRA 0x50", "CALL.REL.NOINC 0x50"])
def test_the_loop_that_asks_for_the_first_strips(gpu: Any, leaves: str) -> None:
    """It is closed by a branch without condition; a way through it goes round once for every strip ahead."""
    sass, model = gpu("sass"), gpu("cycle_model")
    lines = [
        ("", "MOV R1, RZ"),
        ("", "LDGSTS.E.BYPASS.128 [R2], [R4.64], P0"),
        ("", "LDGDEPBAR"),
        ("@P1", leaves),
        ("", "BRA 0x10"),
        ("", "DEPBAR.LE SB0, 0x1"),
        ("", "HMMA.16816.F32 R4, R8, R12, R4"),
        ("@P0", "BRA 0x50"),
        ("", "EXIT"),
    ]
    code = sass.Code(
        "f", 90, tuple(sass.Instruction(16 * n, p, text, False, sass.Control()) for n, (p, text) in enumerate(lines))
    )
    loop = sass.main_loop(code)
    assert (loop.first, loop.last) == (0x50, 0x70)
    assert [i.name for i in model.ways(code, loop).begin].count("LDGSTS") == 2


def test_loops_go_round_as_often_as_sizes_say(gpu: Any) -> None:
    """Of a main loop with an unrolled loop inside: no rounds leave it out, its remainder is run."""
    sass, model = gpu("sass"), gpu("cycle_model")
    lines = [
        ("@P0", "BRA 0x30"),  # over what ends early
        ("", "STG.E [R2], R0"),
        ("", "EXIT"),
        ("", "BAR.SYNC 0x0"),  # the main loop
        ("@P1", "BRA 0x70"),  # over the loop of two
        ("", "LDG.E R0, [R4.64]"),
        ("@P2", "BRA 0x50"),
        ("", "FFMA R4, R4, R8, R15"),
        ("", "BRA.U UP0, 0x30"),
        ("", "EXIT"),
    ]
    code = sass.Code(
        "f", 87, tuple(sass.Instruction(16 * n, p, text, False, sass.Control()) for n, (p, text) in enumerate(lines))
    )
    loop = sass.main_loop(code, "BAR")
    assert (loop.first, loop.last) == (0x30, 0x80)
    assert sass.main_loop(code, "LDS") is None
    for rounds in (0, 1, 3):
        found = model.counted_ways(code, loop, lambda body, rounds=rounds: rounds)
        assert [i.name for i in found.begin] == ["BRA"]
        assert [i.name for i in found.plain].count("LDG") == rounds
        assert found.plain is found.settle is found.first
        assert [i.name for i in found.end] == ["EXIT"]
    assert code.instructions[8].conditional, "a predicate of the whole warp decides, too"


def test_the_innermost_loop(gpu: Any) -> None:
    sass = gpu("sass")
    lines = ["FFMA R1, R1, R1, R1", "FFMA R4, R4, R8, R15", "BRA 0x10", "FFMA R1, R1, R1, R1", "BRA 0x0", "EXIT"]
    code = sass.Code(
        "f",
        87,
        tuple(sass.Instruction(16 * n, "@P0" * ("BRA" in t), t, False, sass.Control()) for n, t in enumerate(lines)),
    )
    assert (sass.inner_loop(code).first, sass.inner_loop(code).last) == (0x10, 0x20)
    assert sass.inner_loop(sass.Code("f", 87, code.instructions[5:])) is None


def test_resident_blocks(gpu: Any) -> None:
    model = gpu("cycle_model")
    nano = model.MACHINES[53]
    assert model.resident_blocks(nano, 128, 152, 16384) == 3  # registers
    assert model.resident_blocks(nano, 64, 100, 11264) == 5  # shared memory
    assert model.resident_blocks(model.MACHINES[90], 256, 120, 39936) == 2
    assert model.resident_blocks(nano, 32, 16, 0) == 32  # blocks


def test_kernels_by_name(gpu: Any) -> None:
    modelled = gpu("modelled")
    lanes = (
        "void dyndeploy::cuda::entry<dyndeploy::cuda::ConvolutionKernel<1, false, "
        "dyndeploy::cuda::LaneTile<__half, 128, 64, 8, 8, 3>, 8> >(dyndeploy::cuda::ConvolutionKernel<1, false, ..."
    )
    assert modelled.describe("", lanes) == {
        "precision": "fp16", "layer": "conv2", "unit": "lanes", "rows": 128, "columns": 64, "depth": 16, "threads": 128,
    }  # fmt: skip
    tensor = "entry<dyndeploy::cuda::LinearKernel<2, false, dyndeploy::cuda::TensorTile<64, 64, 32, 32, 32>, 8>"
    assert modelled.describe("", tensor)["threads"] == 128
    assert modelled.describe("", tensor)["layer"] == "linear"
    mma = "entry<dyndeploy::cuda::ConvolutionKernel<0, false, dyndeploy::cuda::MmaTile<128, 64, 64, 32, 32, 3, 3>, 8>"
    assert modelled.describe("", mma) == {
        "precision": "fp16", "layer": "conv1", "unit": "tensor cores", "rows": 128, "columns": 64, "depth": 32,
        "threads": 128,
    }  # fmt: skip
    quantized = "entry<dyndeploy::cuda::QuantizedConvolutionKernel<3, false, dyndeploy::cuda::"
    ring = quantized + "ByteMmaTile<96, 128, 48, 64, 64, 3, 2, true, (dyndeploy::cuda::Pace)1>, 16>"
    assert modelled.describe("", ring) == {
        "precision": "int8", "layer": "projection", "unit": "tensor cores", "rows": 96, "columns": 128, "depth": 64,
        "threads": 128,
    }  # fmt: skip
    quads = modelled.describe("", quantized + "ByteLaneTile<64, 64, 8, 4, 4>, 16>")
    assert (quads["unit"], quads["depth"], quads["threads"]) == ("lanes", 32, 128)
    assert modelled.describe("", "entry<dyndeploy::cuda::CountKernel>") is None
    attention = (
        "entry<dyndeploy::cuda::AttentionKernel<__half, dyndeploy::cuda::MmaTile<64, 64, 32, 32, 32, 2, 2>, 8> >"
    )
    assert modelled.describe("", attention) == {
        "precision": "fp16", "layer": "attention", "unit": "tensor cores", "rows": 64, "columns": 128, "depth": 64,
        "threads": 128,
    }  # fmt: skip
    sampling = "entry<dyndeploy::cuda::(anonymous namespace)::SamplingKernel<float, 4> >"
    assert modelled.describe("", sampling)["columns"] == 16
    assert modelled.describe("", sampling.replace(", 4>", ", 1>")) is None, "of single elements"
    assert modelled.describe("", "entry<dyndeploy::cuda::RegionsKernel<__half> >")["rows"] == 256


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "capability": 90, "precision": "fp16", "layer": "conv1", "unit": "tensor cores", "rows": 64, "columns": 64,
        "depth": 32, "compiler": "13.0", "resident": 4, "early": 0.0,
        "blocks": {"4": {"share": [0.30], "strip_cycles": [100.0], "fixed_cycles": [0.0], "cold_cycles": [0.0]}},
    }  # fmt: skip
    return row | changes


def test_what_the_check_refuses(gpu: Any) -> None:
    modelled = gpu("modelled")
    share = {"4": {"share": [0.27]}}
    assert modelled.broken_rules(_row(), _row()) == []
    assert "27.0% of the peak, 30.0%" in modelled.broken_rules(_row(blocks=share), _row())[0]
    assert modelled.broken_rules(_row(blocks=share, compiler="13.1"), _row()) == []
    assert "waits for the loads" in modelled.broken_rules(_row(early=0.9), _row())[0]
    assert "not in the table" in modelled.broken_rules(_row(), None)[0]


def test_text_that_is_no_machine_code(gpu: Any, tmp_path: Path) -> None:
    sass, modelled = gpu("sass"), gpu("modelled")
    with pytest.raises(InputError, match="not what 'cuobjdump -sass' prints"):
        sass.parse("Fatbin elf code:\n")
    with pytest.raises(InputError, match="no control word"):
        sass.parse("code for sm_53\n Function : f\n /*0008*/ MOV R1, R2 ; /* 0x4c98078000870001 */\n")
    with pytest.raises(UsageError, match="cannot be run"):
        modelled.release(str(tmp_path / "nvcc"))
    assert modelled.main(["check", "--nvcc", str(tmp_path / "nvcc")]) == 2


def test_the_table_is_whole_and_its_loops_do_not_wait(gpu: Any) -> None:
    """Every tile of an architecture stands in the table, and no main loop waits for its own prefetch."""
    modelled = gpu("modelled")
    rows = modelled.read_table()
    assert rows
    for row in rows:
        assert set(row["blocks"]) == {str(count) for count in modelled.residencies(row["resident"])}
        for figure in row["blocks"].values():
            optimistic, pessimistic = figure["share"]
            # The model is short of steps, and so a little noisy; two blocks that wait for copies keep step by chance.
            noise = 0.15 if row["early"] > modelled.EARLY else 0.07
            assert 0 < pessimistic <= optimistic + noise and optimistic <= 1
    tiles: dict[tuple[Any, ...], set[tuple[int, int]]] = {}
    for row in rows:
        if row["layer"] not in ("linear", *modelled.OTHERS):
            key = row["capability"], row["precision"], row["layer"]
            tiles.setdefault(key, set()).add((row["rows"], row["columns"]))
    for (capability, precision, _), found in tiles.items():
        halves_on_lanes = capability < 70 and precision == "fp16"
        assert len(found) == (4 if halves_on_lanes or (capability >= 80 and precision != "fp32") else 3)


def test_a_table_elsewhere(gpu: Any, tmp_path: Path) -> None:
    modelled = gpu("modelled")
    path = tmp_path / "table.json"
    assert modelled.read_table(path) == []
    modelled.write_table([_row(), _row(capability=53)], path)
    assert [row["capability"] for row in modelled.read_table(path)] == [53, 90]
    assert len(path.read_text().splitlines()) == 7, "a line for each row"
    write_json(path, {"basis": modelled.BASIS, "kernels": [_row()]})
    assert modelled.key_of(modelled.read_table(path)[0]) == (90, "fp16", "conv1", "tensor cores", 64, 64)


def test_what_boards_are_said_to_take(gpu: Any) -> None:
    """Of one board, each part of its report: more tokens and more launches take longer, and nothing is free."""
    boards = gpu("boards")
    orin = boards.load_device("agx_orin")
    found, lines = boards._transformer(orin, "fp16")
    assert all(share == 1.0 for share in found["8, 1"]["shares"][0])
    for batch in (1, 8, 32):
        kept = [found[f"{batch}, {rate:g}"]["kernels_us"] for rate in boards.TOKEN_RATES]
        assert kept == sorted(kept, reverse=True) and kept[-1][0] > 0
    assert any("modelled" in line for line in lines)
    found, _ = boards._blocks(orin, "fp16")
    launch_us = 1e3 * boards.AnalyticalModel(orin, "fp16", "tensorrt").launch_ms
    for block in found.values():
        assert 0 < block["kernels_us"][0] <= block["kernels_us"][1]
        assert block["us"][0] == pytest.approx(block["kernels_us"][0] + block["launches"] * launch_us)
    found, lines = boards._bound(orin, "fp16")
    assert any("modelled" in line for line in lines)
    for stages in found.values():
        whole = stages["network"]
        assert 0 < whole["bound"] < whole["whole"]
        assert sum(times["whole"] for name, times in stages.items() if name != "network") == pytest.approx(
            whole["whole"]
        )
        for times in stages.values():
            spent = sum(ms for name, ms in times.items() if name not in ("whole", "bound"))
            assert spent == pytest.approx(times["whole"]) and min(times.values()) > -1e-9
    assert found["0.25"]["network"]["products"] < found["1.0"]["network"]["products"]
    found, _ = boards._detectors(orin, "fp16")
    assert len(found) == 4 and all(0 < low <= high for low, high in found.values())
