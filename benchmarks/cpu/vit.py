"""Realisation of vision transformers on this CPU, against ONNX Runtime's best static graph, in turn in one process.

    python benchmarks/cpu/vit.py                                   # all tables
    python benchmarks/cpu/vit.py --networks ada_deit_small --batches 8 --threads 1 --cases "token 0.7"

Every network has all its policies and is exported once; a case forces the masks of some kinds and sets the others. The
static twin is the faster one of the bundle's and of a copy with fused attention, skip connections and GELU, found by a
race before the rounds. Weights are random: latency does not depend on them. Results go to benchmarks/results/ as JSON
and as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from contestants import BEST, BF16, BODIES, Dynamic, dynamics, library_of
from onnx import helper

from dyndeploy import Bundle, ExportSettings, create_model, export_model, verify_bundle
from dyndeploy.files import write_json, write_text
from dyndeploy.graphs.forced import forced_feeds, forced_masks, overlay_forced_masks
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.measure.inputs import Schedule
from dyndeploy.measure.loop import Clock, Paired, time_rounds
from dyndeploy.measure.profile import typical_ratio
from dyndeploy.measure.result import samples_of
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.machine import machine_facts

RESULTS = Path(__file__).parent.parent / "results"
NETWORKS = ("ada_deit_small", "ada_t2t_vit_19", "ada_deit_tiny")
POLICIES = {"token_with_mlp": True, "head": True, "layer": True}
Rates = Mapping[str, float]
CASES: Mapping[str, Rates] = {
    "on": {},
    "token 0.7": {"token": 0.7},
    "token 0.5": {"token": 0.5},
    "head 0.7": {"head": 0.7},
    "layer 0.7": {"layer": 0.7},
    "all 0.7": {"token": 0.7, "head": 0.7, "layer": 0.7},
    "all 0.5/0.7/0.7": {"token": 0.5, "head": 0.7, "layer": 0.7},
}
"""Rates by kind of mask; those of other kinds are set."""
LEAST: Mapping[str, Mapping[str, float]] = {
    "ada_deit_small": {
        "on": 1.0, "token 0.7": 1.0, "token 0.5": 1.0, "head 0.7": 0.97, "layer 0.7": 1.0, "all 0.7": 0.92,
    },
    "ada_t2t_vit_19": dict.fromkeys(("token 0.7", "head 0.7", "layer 0.7"), 0.97),
    "ada_deit_tiny": dict.fromkeys(("token 0.7", "head 0.7", "layer 0.7"), 0.90),
}  # fmt: skip
"""Least share of the ideal on one thread at batch 1."""
SECOND_THREAD, LEAST_OF_BATCHES = 0.04, {"token 0.7": 0.95}
"""By so much less with two threads; and of batches."""
WARMUP, RACE = 2, 8


@dataclass(frozen=True)
class Twin:
    """ONNX Runtime's best form of the static twin."""

    path: Path
    name: str
    ms: Mapping[str, float]


def fused_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put ``com.microsoft.MultiHeadAttention`` in the place of every softmax between two products of heads.

    The optimiser that comes with ONNX Runtime finds the norms, skip connections and GELUs of these graphs, but not
    their attention.
    """
    graph = model.graph
    maker = {output: node for node in graph.node for output in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    places, dropped = {}, []

    def before(name: str, *kinds: str) -> list[onnx.NodeProto]:
        chain = []
        for kind in kinds:
            assert maker[name].op_type == kind, (maker[name].op_type, kind)
            chain.append(maker[name])
            name = maker[name].input[0]
        return chain

    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        scale, product = before(softmax.input[0], "Mul", "MatMul")
        weighted = users[softmax.output[0]][0]
        turned = users[weighted.output[0]][0]
        merged = users[turned.output[0]][0]
        assert (weighted.op_type, turned.op_type, merged.op_type) == ("MatMul", "Transpose", "Reshape")
        heads = {}
        for part, name in (("q", product.input[0]), ("k", product.input[1]), ("v", weighted.input[1])):
            found = [maker[name]]
            while found[-1].op_type in ("Transpose", "Reshape"):
                found.append(maker[found[-1].input[0]])
            heads[part] = found[-1].output[0]
            dropped += found[:-1]
            shape = next(constants[node.input[1]] for node in found if node.op_type == "Reshape")
        factor = float(next(constants[name] for name in scale.input if name in constants))
        fused = helper.make_node(
            "MultiHeadAttention", [heads["q"], heads["k"], heads["v"]], list(merged.output), domain="com.microsoft",
            num_heads=int(shape[2]), scale=factor,
        )  # fmt: skip
        places[id(merged)] = fused
        dropped += [softmax, scale, product, weighted, turned]
    gone = {id(node) for node in dropped}
    nodes = [places.get(id(node), node) for node in graph.node if id(node) not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def best_twin(bundle: Bundle, folder: Path, threads: int) -> Twin:
    """Race the forms of the twin; the attention of what the optimiser left is fused by :func:`fused_attention`."""
    from onnxruntime.transformers import optimizer

    assert bundle.static is not None
    forms = {"as exported": bundle.static}
    optimised = optimizer.optimize_model(str(bundle.static), model_type="vit", opt_level=0).model
    forms["optimiser"] = folder / "optimised.onnx"
    onnx.save(optimised, forms["optimiser"])
    for name, model in (("attention", bundle.load_static()), ("optimiser, attention", optimised)):
        forms[name] = folder / f"{name}.onnx"
        onnx.save(fused_attention(model), forms[name])
    with ExitStack() as stack:
        runs = {}
        feeds = _inputs(bundle)
        for name, path in forms.items():
            session = stack.enter_context(OnnxRuntimeSession(path, threads=threads, native="off"))
            runs[name] = session.bind(feeds, [session.outputs[0].name])
        pairs = [Paired(name, [run], [runs["as exported"]]) for name, run in runs.items()]
        time_rounds(pairs, Clock(single_thread=threads == 1), RACE, 0.0, 1, _silent)
    speed = {pair.label: _speedup(pair)[0] for pair in pairs}
    ms = {pair.label: samples_of(pair.visits).median for pair in pairs}
    name = max(speed, key=lambda item: speed[item])
    if name != "as exported" and speed[name] < 1.01:
        name = "as exported"
    return Twin(forms[name], name, ms)


def time_cases(
    bundle: Bundle, who: Sequence[Dynamic], cases: Mapping[str, Rates], threads: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per contestant and case."""
    masks, draws = bundle.manifest.masks, arguments.draws
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        twin = best_twin(bundle, Path(scratch), threads)
        session = stack.enter_context(OnnxRuntimeSession(twin.path, threads=threads, native="off"))
        feeds = _inputs(bundle)
        twin_run = session.bind(feeds, [session.outputs[0].name])
        counter, dense = MacCounter(bundle.load_model()), MacCounter(bundle.load_static()).count().per_sample.mean()
        overlay = overlay_forced_masks(bundle.load_model(), masks)
        outputs = [info.name for info in bundle.manifest.outputs][:1]
        drawn = {
            case: [_masks(masks, rates, seed=1000 * position + draw) for draw in range(draws)]
            for position, (case, rates) in enumerate(cases.items())
        }
        pairs, rows = [], []
        for contestant in who:
            forced = stack.enter_context(contestant.open(overlay, threads))
            for case, found in drawn.items():
                needed = float(np.mean([counter.count(one).per_sample.mean() for one in found]))
                runs = [forced.bind({**feeds, **forced_feeds(one, masks)}, outputs) for one in found]
                pairs.append(Paired(f"{contestant.name}, {case}", runs, [twin_run] * draws))
                rows.append({"contestant": contestant.name, "case": case, "ideal_speedup": float(dense) / needed,
                             "instruction_set": forced.info.native.instruction_set})  # fmt: skip
        clock = Clock(single_thread=threads == 1)
        rounds = time_rounds(pairs, clock, arguments.repeats, arguments.seconds, WARMUP, _silent, settled=True)
    static = samples_of([visit for pair in pairs for visit in pair.twin_visits])
    for row, pair in zip(rows, pairs, strict=True):
        speedup, ratios = _speedup(pair)
        row.update(
            median_ms=samples_of(pair.visits).median, static_ms=static.median, static_form=twin.name,
            static_forms_ms=dict(twin.ms), rounds=rounds, speedup=speedup,
            spread=[float(value) for value in np.percentile(ratios, [25, 75])],
            share=speedup / row["ideal_speedup"], load=os.getloadavg()[0],
        )  # fmt: skip
    return rows


def _speedup(pair: Paired) -> tuple[float, list[float]]:
    """Typical ratio and all ratios: of processor times where the clock tells them, which other load changes less."""
    wall, cpu = ([ratio[position] for ratio in pair.ratios] for position in (1, 2))
    ratios = wall if None in cpu else cpu
    return typical_ratio(ratios, [index for index, _, _ in pair.ratios]), ratios


def _masks(masks: Sequence[Any], rates: Rates, seed: int) -> dict[str, Any]:
    result = {}
    for kind in dict.fromkeys(mask.kind for mask in masks):
        chosen = [mask for mask in masks if mask.kind == kind]
        result.update(forced_masks(chosen, rates.get(kind, 1.0), seed))
    return result


def _inputs(bundle: Bundle) -> dict[str, Any]:
    schedule = Schedule((1.0,), 2, 0.0, WARMUP)
    return dict(schedule.batches(bundle, None)[0][0])


def _silent(message: str, done: float) -> None:
    pass


def least_of(row: Mapping[str, Any]) -> float | None:
    """The share that a row has to reach; None where nothing is asked."""
    if row["contestant"] != BEST:
        return None
    if row["batch"] > 1:
        return LEAST_OF_BATCHES.get(row["case"])
    least = LEAST.get(row["network"], {}).get(row["case"])
    return least if least is None or row["threads"] == 1 else least - SECOND_THREAD


def page(result: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    machine = result["machine"]
    lines = [
        "# Vision transformers on a CPU", "",
        f"Measured, masks forced. {machine['cpu']}; {machine['date']}. Written by `benchmarks/cpu/vit.py`; *share* is "
        "the speed over the static twin divided by the ideal one (multiply-accumulates), the typical ratio of runs in "
        "turn in one process; on one thread of their processor times. *best* is the best instruction set here. Stem, "
        "T2T module and classifier are the same "
        "ONNX Runtime nodes in both and count as static.", "",
        "| network | batch | threads | contestant | case | ms | static ms (form) | speed-up | ideal | share "
        "(quartiles) | at least | verdict | load |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        least = least_of(row)
        low, high = (value / row["ideal_speedup"] for value in row["spread"])
        verdict = "" if least is None else "met" if row["share"] >= least else "**missed**"
        lines.append(
            f"| {row['network']} | {row['batch']} | {row['threads']} | {row['contestant']} "
            f"({row['instruction_set'] or 'standard operators'}) | {row['case']} | {row['median_ms']:.2f} | "
            f"{row['static_ms']:.2f} ({row['static_form']}) | {row['speedup']:.3f} | {row['ideal_speedup']:.3f} | "
            f"{row['share']:.3f} ({low:.3f} .. {high:.3f}) | {'' if least is None else f'{least:.2f}'} | {verdict} | "
            f"{row['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def main() -> None:
    """Export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=_words, default=list(NETWORKS))
    parser.add_argument("--batches", type=_words, default=["1"])
    parser.add_argument("--threads", type=_words, default=["1", "2"])
    parser.add_argument("--cases", type=_words, default=list(CASES))
    parser.add_argument("--contestants", type=_words, help=f"{BEST}, {BF16}, {BODIES}, or an instruction set")
    parser.add_argument("--draws", type=int, default=4, help="masks that are drawn for each case")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing per configuration, 12 rounds at least")
    parser.add_argument("--repeats", type=int, help="rounds, in the place of --seconds")
    parser.add_argument("--native", default="auto")
    parser.add_argument("--bundles", type=Path, help="folder of bundles NETWORK-BATCH, kept and used again")
    parser.add_argument("--output", default="cpu-vit", help="file name in benchmarks/results, without ending")
    parser.add_argument("--resume", action="store_true", help="add to the rows of the output file")
    arguments = parser.parse_args()
    who, left_out = dynamics(arguments.native, arguments.contestants)
    library = library_of(arguments.native)
    output = RESULTS / f"{arguments.output}.json"
    result: dict[str, Any] = {
        "kind": "measured", "masks": "forced", "machine": machine_facts(), "left_out": left_out,
        "best": None if library is None else library.instruction_set(), "rows": [],
    }  # fmt: skip
    if arguments.resume and output.exists():
        result["rows"] = json.loads(output.read_text(encoding="utf-8"))["rows"]
    cases = {case: CASES[case] for case in arguments.cases}
    with tempfile.TemporaryDirectory() as scratch:
        for network in arguments.networks:
            for batch in map(int, arguments.batches):
                folder = (arguments.bundles or Path(scratch)) / f"{network}-{batch}"
                if not folder.exists():
                    torch.manual_seed(0)
                    model = create_model(network, **POLICIES)
                    export_model(model, folder, ExportSettings(static=True, batch=batch))
                bundle = Bundle.open(folder)
                assert verify_bundle(bundle).passed, f"{folder} does not verify"
                for threads in map(int, arguments.threads):
                    for row in time_cases(bundle, who, cases, threads, arguments):
                        result["rows"].append({"network": network, "batch": batch, "threads": threads, **row})
                        shown = {key: row[key] for key in ("contestant", "case", "speedup", "share", "static_form")}
                        print(network, batch, threads, shown, flush=True)
                    result["machine"] = machine_facts()
                    write_json(output, result)
                    write_text(output.with_suffix(".md"), page(result))


if __name__ == "__main__":
    main()
