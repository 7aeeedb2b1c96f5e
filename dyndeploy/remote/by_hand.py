"""What a person does with a bundle on a board: ``python3 agent.py build | run | verify | profile``.

It stands beside ``agent.py`` in a bundle's device/ folder and runs under the board's own Python (3.6 or newer). Bundles
are opened by the runtime for applications (``dyndeploy_runtime.py`` beside it, which needs NumPy): what is measured
here is what an application runs. Not part of dyndeploy's import tree: nothing here may import dyndeploy.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

HERE = os.path.dirname(os.path.abspath(__file__))
BUILT, PREBUILT, SOURCES = "built", "prebuilt", "plugins"
PROGRAM, OPERATORS = "dyndeploy-run", "libdyndeploy_ort_cpu.so"
PACKAGES = "sudo apt-get install cmake make g++ rapidjson-dev libjpeg-dev libpng-dev"
LEAVE, STAY = 0.0, 2.0  # Thresholds: every confidence reaches the first, none the second.

Json = Dict[str, Any]


class HandError(Exception):
    """What went wrong, in one line."""


def main(agent: Any, arguments: List[str]) -> int:
    """Do what a command line says; ``agent`` is the module of ``agent.py``. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int({"build": build, "run": run, "verify": verify, "profile": profile}[options.command](agent, options))
    except (HandError, agent.AgentError) as error:
        message = str(error)
    except OSError as error:
        message = "%s: %s" % (error.filename, error.strerror) if error.filename else str(error)
    except KeyboardInterrupt:
        message = "interrupted"
    except Exception as error:
        # The runtime's own errors are one line each, and so is what a broken file makes of anything else.
        message = str(error) if hasattr(error, "code") else "%s: %s" % (type(error).__name__, error)
    sys.stderr.write("agent.py: %s\n" % " ".join(message.split()))
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent.py", description="A bundle of dyndeploy, by hand on a board.")
    commands = parser.add_subparsers(dest="command")

    def command(name: str, text: str, bundle: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        if bundle:
            added.add_argument("bundle", metavar="BUNDLE", help="folder that 'dyndeploy export' wrote")
            added.add_argument("--threads", type=_count, default=1, help="threads that compute (default: 1)")
            added.add_argument("--native", default="auto", help="operator library: auto, off or its path")
            added.add_argument("--onnxruntime", metavar="PATH", help="libonnxruntime.so, or its folder")
            added.add_argument("--thresholds", metavar="A,B,..", type=_numbers, help="least confidence of every exit "
                               "but the last (default: the bundle's)")  # fmt: skip
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    built = command("build", "Build the runtime and, where TensorRT is, its plugins; into built/.", bundle=False)
    built.add_argument("--prebuilt", action="store_true", help="take prebuilt files instead of compiling the runtime")
    built.add_argument("--no-plugins", action="store_true", help="build no TensorRT plugins")
    ran = command("run", "Classify images: a line each, with the fields of 'dyndeploy run'.")
    ran.add_argument("images", metavar="IMAGE", nargs="+", help="JPEG or PNG files")
    command("verify", "Check every checksum, and the results on the reference tensors against PyTorch's.")
    timed = command("profile", "Time the network next to its static twin on the reference tensors; and its energy.")
    timed.add_argument("--repeats", type=_count, help="rounds (default: as many as fill 10 seconds)")
    timed.add_argument("--energy-seconds", type=_seconds, default=4.0, metavar="S", help="how long each network runs "
                       "while the power sensor is read; 0: not at all (default: 4)")  # fmt: skip
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number of at least 1, not %s" % text)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError("seconds from 0 to 3600, not %s" % text)
    return value


def _numbers(text: str) -> List[float]:
    values = [float(part) for part in text.split(",")]
    if not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError("numbers with commas between them, not %s" % text)
    return values


# ---------------------------------------------------------------- build


def build(agent: Any, options: Any) -> int:
    """Fill ``built/``."""
    os.makedirs(os.path.join(HERE, BUILT), exist_ok=True)
    log_path = os.path.join(HERE, BUILT, "build.log")
    with open(log_path, "w", encoding="utf-8", errors="replace") as log:
        done = {"runtime": _build_runtime(agent, options, log)}
        done["plugins"] = "left out" if options.no_plugins else _build_plugins(agent, log)
    done.update({"folder": os.path.join(HERE, BUILT), "log": log_path})
    if options.json:
        print(json.dumps(done))
    else:
        for name in ("runtime", "plugins"):
            print("%s: %s" % (name, done[name]))
        print("in %s (what the tools said: %s)" % (done["folder"], os.path.basename(log_path)))
    return 0


def _tell(message: str, fraction: float) -> None:
    sys.stderr.write("%3d %% %s\n" % (round(100 * fraction), message))
    sys.stderr.flush()


def _install(path: str, name: str) -> None:
    """Put a file into ``built/`` in one step."""
    target = os.path.join(HERE, BUILT, name)
    shutil.copyfile(path, target + ".part")
    os.chmod(target + ".part", 0o755)
    os.replace(target + ".part", target)


def _build_runtime(agent: Any, options: Any, log: Any) -> str:
    source = os.path.join(HERE, SOURCES, "runtime")
    ready = os.path.join(HERE, PREBUILT, platform.machine())
    names = sorted(os.listdir(ready)) if os.path.isdir(ready) else []
    cmake = agent.tool("cmake")
    lacking = "cmake" if not cmake else "the sources" if not os.path.isdir(source) else ""
    if not lacking and not options.prebuilt:
        _tell("building the runtime", 0.0)
        with tempfile.TemporaryDirectory(prefix="dyndeploy-") as folder:
            try:
                agent.run_logged([cmake, "-DCMAKE_BUILD_TYPE=Release", source], folder, _environment(), _ignore, log)
                workers = "-j%d" % max(1, len(os.sched_getaffinity(0)))
                agent.run_logged([cmake, "--build", ".", "--", workers], folder, _environment(), _progress, log)
            except agent.AgentError as error:
                if not names:
                    raise HandError("%s. What a build needs: %s" % (error, PACKAGES))
                lacking = "what a build needs (%s)" % PACKAGES
            else:
                for name in sorted(os.listdir(folder)):
                    if name == PROGRAM or name.endswith(".so"):
                        _install(os.path.join(folder, name), name)
                # The operators for processors are not compiled on boards.
                for name in [name for name in names if name == OPERATORS]:
                    _install(os.path.join(ready, name), name)
                return "compiled here"
    if not names:
        why = "there is nothing prebuilt for %s" % platform.machine()
        raise HandError("%s%s. Build it: %s" % (why, ", and %s is missing" % lacking if lacking else "", PACKAGES))
    for name in names:
        _install(os.path.join(ready, name), name)
    why = "%s is missing" % lacking if lacking else "as asked"
    return "prebuilt (%s): reads no JPEG or PNG files, but cameras and RGB" % why


def _build_plugins(agent: Any, log: Any) -> str:
    spec = agent.read_json(os.path.join(HERE, "build.json"))
    source = os.path.join(HERE, SOURCES)
    if not isinstance(spec, dict) or not os.path.isdir(os.path.join(source, str(spec.get("project")))):
        return "left out: this folder has no sources of them"
    if not agent.tensorrt_headers():
        return "left out: this machine has no TensorRT headers (NvInferRuntime.h)"
    names = [
        os.path.relpath(os.path.join(folder, name), source) for folder, _, found in os.walk(source) for name in found
    ]
    with tempfile.TemporaryDirectory(prefix="dyndeploy-") as folder:
        made = agent.build_plugins(source, sorted(names), folder, spec, _tell, log)
        _install(made, spec["library"])
    return "compiled here"


def _environment() -> Dict[str, str]:
    return dict(os.environ)


def _ignore(line: str) -> None:
    del line


def _progress(line: str) -> None:
    if line.startswith("[") and "%]" in line:
        sys.stderr.write(line)
        sys.stderr.flush()


# ---------------------------------------------------------------- run and verify


def _runtime() -> Any:
    sys.path.insert(0, HERE)
    try:
        return __import__("dyndeploy_runtime")
    except ImportError as error:
        raise HandError("%s: NumPy is needed (sudo apt-get install python3-numpy)" % error)


def _open(bundle: str, options: Any, thresholds: Optional[List[float]] = None) -> Any:
    """A session of the runtime."""
    return _runtime().open_bundle(
        bundle, options.threads, options.thresholds if thresholds is None else thresholds, options.native,
        options.onnxruntime,
    )  # fmt: skip


def run(agent: Any, options: Any) -> int:
    """Classify images, and go on where one cannot be read."""
    failed, titled = 0, False
    with _open(options.bundle, options) as session:
        warm = False
        for path in options.images:
            try:
                if not warm:
                    session.classify(path)  # The very first run allocates memory: it is not timed.
                    warm = True
                found = session.classify(path)
            except Exception as error:
                if getattr(error, "code", None) is None or getattr(error, "code", None) == 1:
                    raise
                failed += 1
                if options.json:
                    print(json.dumps({"image": path, "error": str(error)}))
                else:
                    sys.stderr.write("agent.py: %s\n" % error)
                continue
            if options.json:
                value = {"image": path, "label": found.label, "confidence": found.confidence, "ms": found.ms}
                value.update({"exit": found.exit, "rates": found.rates, "class_name": found.class_name})
                value.update({"operators": session.info["operators"], "preprocessing_ms": found.preprocessing_ms})
                why = "the bundle was exported for %s" % session.info["target"]
                value["runtime"] = {"name": session.info["runtime"], "why": why}
                print(json.dumps(value))
            else:
                if not titled:
                    title = "exit" if found.exit else "mean rate"
                    print("%-32s  confidence  %9s        ms  image" % ("class", title))
                    titled = True
                decision = str(found.exit) if found.exit else "-"
                if not found.exit and found.rates:
                    decision = "%.3f" % statistics.mean(found.rates.values())
                name = str(found.label) if found.class_name is None else found.class_name
                print("%-32s  %10.3f  %9s  %8.2f  %s" % (name, found.confidence, decision, found.ms, path))
            sys.stdout.flush()
    if failed:
        sys.stderr.write("agent.py: %d of %d images failed.\n" % (failed, len(options.images)))
    return 1 if failed else 0


def verify(agent: Any, options: Any) -> int:
    """Check a bundle and its results."""
    count = len(_manifest(agent, options.bundle).get("files", {}))
    start = time.monotonic()
    with _open(options.bundle, options, _thresholds(agent, options)) as session:
        session.verify()
        info = session.info
    seconds = time.monotonic() - start
    if options.json:
        value = {"verified": True, "files": count, "seconds": round(seconds, 2), "runtime": info["runtime"]}
        print(json.dumps(dict(value, network=info["network"], operators=info["operators"])))
    else:
        print("verified: %d files and the reference results, in %.1f s (%s)" % (count, seconds, _told(info)))
    return 0


def _told(info: Json) -> str:
    runtime = info.get("runtime")
    text = " ".join(str(runtime[key]) for key in sorted(runtime)[:2]) if isinstance(runtime, dict) else str(runtime)
    return "%s, operators: %s" % (text, info.get("operators") or "none dynamic")


def _manifest(agent: Any, bundle: str) -> Json:
    value = agent.read_json(os.path.join(bundle, "bundle.json"))
    if not isinstance(value, dict):
        raise HandError("%s has no bundle.json that can be read: it is no bundle" % bundle)
    return value


def _thresholds(agent: Any, options: Any) -> Optional[List[float]]:
    """What to open a bundle with where no image has to leave anywhere: any thresholds will do."""
    exits = _manifest(agent, options.bundle).get("exits")
    if exits is None or options.thresholds is not None:
        return None
    return [STAY] * (len(exits["stages"]) - 1)


# ---------------------------------------------------------------- profile


def profile(agent: Any, options: Any) -> int:
    """Time a network next to its static twin; of early exits every exit."""
    manifest = _manifest(agent, options.bundle)
    loop, exits = _module("loop"), manifest.get("exits")
    with contextlib.ExitStack() as stack:
        if exits is None:
            sessions = [("network", stack.enter_context(_open(options.bundle, options)))]
        else:
            count = len(exits["stages"])
            sessions = []
            for index in range(count):
                limits = [STAY] * index + [LEAVE] * (count - 1 - index)
                session = stack.enter_context(_open(options.bundle, options, limits))
                sessions.append(("exit %d" % exits["stages"][index]["exit"], session))
        inputs = _reference(agent, options.bundle, manifest)
        runs = {name: _runs(session, inputs) for name, session in sessions}
        twin = None
        folder = stack.enter_context(_twin(agent, options.bundle, manifest))
        if folder is not None:
            twin = _runs(stack.enter_context(_open(folder, argparse.Namespace(**dict(vars(options), thresholds=None)))),
                         inputs)  # fmt: skip
        pairs = [loop.Paired(name, own, own if twin is None else twin) for name, own in runs.items()]
        teller = _Teller()
        rounds = loop.time_rounds(pairs, loop.DeviceClock(), options.repeats, 10.0, 3, teller)
        entries = [] if twin is None else [("static twin", twin)]
        # A GPU is read by nvidia-smi only where it computes.
        gpu = "tensorrt" in json.dumps(sessions[0][1].info.get("runtime", "")).lower()
        energy = agent.measure_energy(entries + list(runs.items()), options.energy_seconds, gpu, teller)
        result = _result(manifest, sessions, pairs, twin is not None, rounds, energy)
    if options.json:
        print(json.dumps(result))
    else:
        _print(result)
    return 0


class _Teller:
    """Says on stderr, now and then, what is being done."""

    def __init__(self) -> None:
        self._last, self._told = "", 0.0

    def __call__(self, message: str, fraction: float) -> None:
        step = message.partition(" ")[0]
        if step != self._last or time.monotonic() - self._told > 2:
            self._last, self._told = step, time.monotonic()
            _tell(message, fraction)


def _module(name: str) -> Any:
    sys.path.insert(0, HERE)
    try:
        return __import__(name)
    except ImportError:
        raise HandError("%s.py is not beside this file: copy the whole device folder of the bundle" % name)


def _reference(agent: Any, bundle: str, manifest: Json) -> List[Json]:
    """Batches of the reference inputs."""
    numpy = agent.import_or_refuse("numpy")
    path, batch = os.path.join(bundle, "reference.npz"), manifest["batch"]
    names = [info["name"] for info in manifest["inputs"]]
    try:
        with numpy.load(path, allow_pickle=False) as archive:
            # A single input may be stored under this name, whatever its graph calls it.
            stored = {name: name if name in archive.files or len(names) > 1 else "input" for name in names}
            arrays = {name: archive[stored[name]] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise HandError("cannot read %s: %s" % (path, error))
    count = len(arrays[names[0]])
    batches = [
        {name: value[start : start + batch] for name, value in arrays.items()}
        for start in range(0, count - batch + 1, batch)
    ]
    if not batches:
        raise HandError("%s holds no whole batch" % path)
    return batches


def _runs(session: Any, inputs: List[Json]) -> List[Callable[[], float]]:
    """Runs that give their own milliseconds: those of the network, by the runtime's clock."""

    def one(feeds: Json) -> Callable[[], float]:
        call = session.prepare(feeds)
        return lambda: float(call())

    return [one(feeds) for feeds in inputs]


@contextlib.contextmanager
def _twin(agent: Any, bundle: str, manifest: Json) -> Iterator[Optional[str]]:
    """The static twin as a bundle of its own, as long as the context lasts; None where there is none."""
    if "static.onnx" not in manifest["files"]:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="dyndeploy-") as folder:
        for name, source in (("model.onnx", "static.onnx"), ("reference.npz", "reference.npz")):
            os.symlink(os.path.join(os.path.abspath(bundle), source), os.path.join(folder, name))
        files = {"model.onnx": manifest["files"]["static.onnx"], "reference.npz": manifest["files"]["reference.npz"]}
        value = dict(manifest, masks=[], operators=[], exits=None, files=files)
        del value["manifest_sha256"]
        # The seal of dyndeploy/bundle/manifest.py.
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        value["manifest_sha256"] = hashlib.sha256(text.encode("utf-8")).hexdigest()
        agent.write_json(os.path.join(folder, "bundle.json"), value)
        yield folder


def _result(
    manifest: Json, sessions: List[Any], pairs: List[Any], twin: bool, rounds: int, energy: Optional[Json]
) -> Json:
    batch, info = manifest["batch"], sessions[0][1].info
    exits = manifest.get("exits") is not None
    spent = {entry["name"]: entry for entry in energy["entries"]} if energy else {}

    def row(name: str, visits: List[Any], ratios: Optional[List[float]], session: Any) -> Json:
        times = sorted(ms / batch for visit in visits for ms in visit.ms)
        quarters = [times[len(times) // 4], times[(3 * len(times)) // 4]]
        entry = spent.get(name)
        statistics_of = {} if session is None else session.statistics()
        rates = statistics_of.get("rates") or {}
        return {
            "name": name,
            "median_ms": statistics.median(times),
            "p25_ms": quarters[0],
            "p75_ms": quarters[1],
            "runs": len(times),
            "speedup": statistics.median(ratios) if ratios else None,
            "mean_rate": statistics.mean(rates.values()) if rates else None,
            "mj_per_image": entry["power_mw"] * entry["ms"] / 1000 / batch if entry else None,
            "power_mw": entry["power_mw"] if entry else None,
        }

    rows = []
    if twin:
        rows.append(row("static twin", [visit for pair in pairs for visit in pair.twin_visits], None, None))
    for (name, session), pair in zip(sessions, pairs):
        rows.append(row(name, pair.visits, [ratio[1] for ratio in pair.ratios] if twin else None, session))
    return {
        "kind": "measured_by_hand",
        "network": manifest["network"]["name"],
        "batch": batch,
        "exits": exits,
        "rounds": rounds,
        "runtime": info.get("runtime"),
        "operators": info.get("operators"),
        "results": rows,
        "energy": None if energy is None else {key: energy[key] for key in ("source", "rail", "idle_mw")},
    }


def _print(result: Json) -> None:
    where = "measured in %d rounds on the reference tensors" % result["rounds"]
    print("%s, %s (%s)" % (result["network"], where, _told(result)))

    def shown(form: str, value: Any) -> str:
        return "-" if value is None else form % value

    print("%-14s %10s %10s %10s %9s %8s %10s" % ("what", "median ms", "p25", "p75", "speed-up", "rate", "mJ/image"))
    for row in result["results"]:
        cells = (row["name"], "%.3f" % row["median_ms"], "%.3f" % row["p25_ms"], "%.3f" % row["p75_ms"])
        more = (shown("%.2fx", row["speedup"]), shown("%.3f", row["mean_rate"]), shown("%.2f", row["mj_per_image"]))
        print("%-14s %10s %10s %10s %9s %8s %10s" % (cells + more))
    energy = result["energy"]
    if energy is None:
        print("energy: no power sensor could be read here")
    else:
        print("energy: %s by %s, idle %.2f W" % (energy["rail"], energy["source"], energy["idle_mw"] / 1000))
