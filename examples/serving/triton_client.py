"""Ask a Triton server what is in photographs: a classifier's class, or a detector's boxes.

    dyndeploy serve-config bundle -o repository
    tritonserver --model-repository=repository
    pip install tritonclient[grpc] pillow
    python examples/serving/triton_client.py photo.jpg --model bundle

Files are sent as they are; the server decodes and resizes them. ``--priority 1`` is served before all that waits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton


def main() -> int:
    """Print a line for every photograph, or for every object in it; 1 where one could not be answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="JPEG or PNG file")
    parser.add_argument("--model", required=True, help="as the repository's folder is called")
    parser.add_argument("--url", default="127.0.0.1:8001", help="host and gRPC port of the server")
    parser.add_argument("--priority", type=int, choices=(1, 2, 3), default=2, help="1 comes first")
    parser.add_argument("--timeout-ms", type=float, help="refuse where it would wait for longer")
    options = parser.parse_args()
    client, failed = triton.InferenceServerClient(options.url), False
    for photo in options.photos:
        try:
            answer = ask(client, options.model, Path(photo).read_bytes(), options.priority, options.timeout_ms)
        except (OSError, triton.InferenceServerException) as error:
            print(f"{photo}: {error}", file=sys.stderr)
            failed = True
            continue
        for line in described(answer):
            print(f"{photo}: {line}")
    return int(failed)


def ask(
    client: triton.InferenceServerClient, model: str, content: bytes, priority: int, timeout_ms: float | None
) -> triton.InferResult:
    """Send one file, and wait for its answer."""
    given = triton.InferInput("JPEG", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[content]], np.object_))
    waits = None if timeout_ms is None else round(1000 * timeout_ms)
    return client.infer(model, [given], priority=priority, timeout=waits)


def described(answer: triton.InferResult) -> list[str]:
    """What an answer says, in lines."""
    if answer.as_numpy("boxes") is None:
        label, score = int(answer.as_numpy("label")[0, 0]), float(answer.as_numpy("score")[0, 0])
        names, exits = answer.as_numpy("class_name"), answer.as_numpy("exit")
        left = "" if exits is None else f", exit {exits[0, 0]}"
        return [f"{label if names is None else names[0, 0].decode()} {score:.3f}{left}"]
    names = answer.as_numpy("class_names")
    lines = []
    for index in range(int(answer.as_numpy("count")[0, 0])):
        name = answer.as_numpy("labels")[0, index] if names is None else names[0, index].decode()
        corners = " ".join(f"{value:.1f}" for value in answer.as_numpy("boxes")[0, index])
        lines.append(f"{name} {answer.as_numpy('scores')[0, index]:.3f} at {corners}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
