"""Bundles in the real tritonserver: what is answered, refused, counted, replaced and restarted."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dyndeploy.bundle import Bundle
from dyndeploy.serving import ServingOptions, write_repository
from tests.bundles import resealed, tiny_bundle
from tests.detector_bundles import detector_bundle_by_hand
from tests.plugins.device_runtime import binding
from tests.serving.client import Client, ServerError
from tests.serving.server import TritonServer, triton_venv
from tests.staged_bundles import staged_bundle

pytestmark = [pytest.mark.usefixtures("onnxruntime_library"), pytest.mark.xdist_group("triton")]

NAMES = tuple(f"class {index}" for index in range(10))


@pytest.fixture(scope="module")
def venv() -> Path:
    return triton_venv()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    tiny = tiny_bundle(folder / "tiny", static=False)
    return {
        "tiny": resealed(tiny, network=replace(tiny.manifest.network, class_names=NAMES)),
        "staged": staged_bundle(folder / "staged"),
        "boxes": detector_bundle_by_hand(folder / "boxes", masks=True),
        "nano": tiny_bundle(folder / "nano", static=False, target="nano"),
    }


@pytest.fixture(scope="module")
def options(runtime_library: Path) -> ServingOptions:
    return ServingOptions(library=runtime_library, native="off")


@pytest.fixture(scope="module")
def server(
    venv: Path, bundles: dict[str, Bundle], options: ServingOptions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    scratch = tmp_path_factory.mktemp("server")
    repository = scratch / "repository"
    write_repository({name: bundle.path for name, bundle in bundles.items()}, repository, options)
    for name in bundles:
        rewrite(repository / name / "config.pbtxt")
    loaded = [f"--load-model={name}" for name in ("tiny", "staged", "boxes")]
    with TritonServer(venv, repository, scratch, *loaded) as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    connection = Client(server.http)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def direct(bundles: dict[str, Bundle], runtime_library: Path) -> Callable[[str], Any]:
    """Sessions of the runtime without a server."""
    sessions = {
        name: binding().open_bundle(bundles[name].path, library=runtime_library, native="off")
        for name in ("tiny", "staged", "boxes")
    }
    return sessions.__getitem__


def pictures(count: int, height: int = 40, width: int = 50, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def jpeg(pixels: npt.NDArray[np.uint8], kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def test_a_batch_of_images_is_answered_as_the_runtime_answers(client: Client, direct: Callable[[str], Any]) -> None:
    images = pictures(3)
    answer = client.infer("tiny", {"IMAGE": images})
    expected = direct("tiny").classify_all(list(images))
    assert answer["label"].tolist() == [[item.label] for item in expected]
    np.testing.assert_array_equal(answer["logits"], [item.logits for item in expected])
    np.testing.assert_array_equal(answer["score"][:, 0], np.float32([item.confidence for item in expected]))
    assert answer["class_name"].tolist() == [[NAMES[item.label]] for item in expected]
    np.testing.assert_array_equal(answer["rates"], np.float32([list(item.rates.values()) for item in expected]))
    assert (answer["ms"] > 0).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_files_of_several_sizes_in_one_request(
    client: Client, direct: Callable[[str], Any], tmp_path: Path, kind: str
) -> None:
    contents = [jpeg(pictures(1, 30 + size, 90 - size)[0], kind) for size in (0, 25)]
    answer = client.infer("tiny", {"JPEG": contents})
    for row, content in zip(answer["logits"], contents, strict=True):
        (tmp_path / "file").write_bytes(content)
        np.testing.assert_array_equal(row, direct("tiny").classify(tmp_path / "file").logits)


def test_the_classification_extension_names_classes(client: Client, direct: Callable[[str], Any]) -> None:
    image = pictures(1)
    wanted = {"name": "logits", "parameters": {"classification": 2}}
    (row,) = client.infer("tiny", {"IMAGE": image}, [wanted])["logits"].tolist()
    logits = direct("tiny").classify(image[0]).logits
    best = np.argsort(-logits)[:2]
    assert [text.split(":")[1:] for text in row] == [[str(index), NAMES[index]] for index in best]


def test_only_outputs_that_are_asked_for_are_sent(client: Client) -> None:
    answer = client.infer("tiny", {"IMAGE": pictures(1)}, [{"name": "label", "parameters": {"binary_data": True}}])
    assert set(answer) == {"label", "model_version"}


def test_exits_and_their_counters(server: TritonServer, client: Client, direct: Callable[[str], Any]) -> None:
    contrasts = np.linspace(0.02, 1, 24)[:, None, None, None]
    images = (pictures(24, seed=3) * contrasts).astype(np.uint8)
    before = server.metrics()
    answers = [client.infer("staged", {"IMAGE": part}) for part in images.reshape(3, 8, 40, 50, 3)]
    expected = direct("staged").classify_all(list(images))
    taken = np.concatenate([answer["exit"][:, 0] for answer in answers]).tolist()
    assert taken == [item.exit for item in expected]
    assert len(set(taken)) > 1
    np.testing.assert_allclose(
        np.concatenate([answer["logits"] for answer in answers]),
        [item.logits for item in expected],
        rtol=1e-5,
        atol=1e-5,
    )

    def counted() -> dict[str, float]:
        after = server.metrics()
        return {name: value - before.get(name, 0.0) for name, value in after.items() if 'model="staged"' in name}

    # Counters are written one by one, those of exits last.
    names = {exit: f'dyndeploy_exits_total{{exit="{exit}",model="staged",version="1"}}' for exit in (1, 2, 4)}
    wait_for(lambda: sum(counted()[name] for name in names.values()) == 24)
    counts = counted()
    assert {exit: counts[name] for exit, name in names.items()} == {exit: taken.count(exit) for exit in names}
    assert counts['dyndeploy_images_total{model="staged",version="1"}'] == 24
    buckets = [counts[f'dyndeploy_latency_ms_bucket{{le="{bound}",model="staged",version="1"}}'] for bound in BOUNDS]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 24
    assert counts['dyndeploy_ms_sum{model="staged",version="1"}'] > 0


BOUNDS = ("1", "2", "5", "10", "20", "50", "100", "200", "500", "1000", "2000", "5000", "+Inf")


def test_detections_of_several_images(client: Client, direct: Callable[[str], Any]) -> None:
    images = pictures(2, 60, 80)
    images[1] //= 8
    answer = client.infer("boxes", {"IMAGE": images})
    for index, found in enumerate(direct("boxes").detect_all(list(images))):
        assert answer["count"][index, 0] == len(found)
        np.testing.assert_array_equal(answer["boxes"][index, : len(found)], found.boxes)
        np.testing.assert_array_equal(answer["scores"][index, : len(found)], found.scores)
        np.testing.assert_array_equal(answer["labels"][index, : len(found)], found.labels)
        assert answer["masks"][index, : len(found)].tolist() == found.counts
        assert answer["class_names"][index, : len(found)].tolist() == found.class_names
        assert not answer["boxes"][index, len(found) :].any()
        assert answer["image_size"][index].tolist() == [60, 80]


BAD: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "floats, NaN or not": (
        "tiny", {"IMAGE": np.full((1, 8, 8, 3), np.nan, np.float32)}, 400, "is 'FP32', but model 'tiny' expects"
    ),
    "no batch": ("tiny", {"IMAGE": np.zeros((8, 8, 3), np.uint8)}, 400, "unexpected shape"),
    "four channels": ("tiny", {"IMAGE": np.zeros((1, 8, 8, 4), np.uint8)}, 400, "unexpected shape"),
    "too many": ("tiny", {"IMAGE": np.zeros((9, 8, 8, 3), np.uint8)}, 400, "batch-size must be <= 8"),
    "no rows": ("tiny", {"IMAGE": np.zeros((1, 0, 8, 3), np.uint8)}, 400, "IMAGE is empty"),
    "no file": ("tiny", {"JPEG": [b"not an image"]}, 400, "is not an image that can be read"),
    "an empty file": ("boxes", {"JPEG": [b""]}, 400, "not an image"),
    "both": ("tiny", {"IMAGE": pictures(1), "JPEG": [b""]}, 400, "this request has both"),
    "another input": ("tiny", {"PIXELS": pictures(1)}, 400, "unexpected inference input 'PIXELS'"),
    "an unknown model": ("huge", {"IMAGE": pictures(1)}, 404, "unknown model"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_by_name(client: Client, case: str) -> None:
    model, inputs, status, message = BAD[case]
    with pytest.raises(ServerError, match=message) as caught:
        client.infer(model, inputs)
    assert caught.value.status == status
    assert client.infer("tiny", {"IMAGE": pictures(1)})["label"].shape == (1, 1)


def test_a_bad_file_fails_alone_among_others(server: TritonServer) -> None:
    good, bad = [jpeg(pictures(1)[0])], [jpeg(pictures(1)[0])[:300]]

    def ask(files: list[bytes]) -> int:
        connection = Client(server.http)
        try:
            connection.infer("staged", {"JPEG": files})
            return 200
        except ServerError as error:
            return error.status
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [good, bad] * 12)) == [200, 400] * 12


def test_a_bundle_of_another_machine_is_not_loaded(client: Client) -> None:
    with pytest.raises(ServerError, match=r"is for aarch64 \(nano\), and this server runs on|for nano") as caught:
        client.load("nano")
    assert caught.value.status == 400
    with pytest.raises(ServerError, match="no available versions"):
        client.infer("nano", {"IMAGE": pictures(1)})


def test_garbage_and_broken_connections_do_not_disturb_others(server: TritonServer, client: Client) -> None:
    ended = threading.Event()

    def disturb() -> None:
        generator = np.random.default_rng(1)
        while not ended.is_set():
            for port in server.ports:
                with socket.create_connection(("127.0.0.1", port)) as rude:
                    rude.sendall(generator.bytes(700))
            with socket.create_connection(("127.0.0.1", server.ports[0])) as rude:
                rude.sendall(
                    b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n"
                    b'Inference-Header-Content-Length: 80\r\n\r\n{"inputs": ['
                )
            time.sleep(0.01)

    rude = threading.Thread(target=disturb)
    rude.start()
    try:
        for seed in range(60):
            assert client.infer("tiny", {"IMAGE": pictures(2, seed=seed)})["label"].shape == (2, 1)
    finally:
        ended.set()
        rude.join()
    # Not its readiness: that is lost while any model has failed to load.
    newcomer = Client(server.http)
    assert newcomer.infer("tiny", {"IMAGE": pictures(1)})["label"].shape == (1, 1)
    newcomer.close()


def test_clients_that_leave_are_forgotten(server: TritonServer, client: Client) -> None:
    """Requests whose connection ends before the answer leave nothing under way."""
    body = jpeg(pictures(1, 400, 400)[0])
    for _ in range(12):
        impatient = Client(server.http, seconds=0.002)
        with pytest.raises(OSError, match="timed out"):
            impatient.infer("tiny", {"JPEG": [body] * 4})
        impatient.close()
    assert client.infer("tiny", {"IMAGE": pictures(1)})["label"].shape == (1, 1)


def test_a_flood_is_refused_and_other_models_are_served(
    venv: Path, bundles: dict[str, Bundle], options: ServingOptions, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    write_repository({"flooded": bundles["tiny"].path, "other": bundles["staged"].path}, repository, options)
    rewrite(repository / "flooded" / "config.pbtxt", in_flight=1, queue=3)
    rewrite(repository / "other" / "config.pbtxt")
    # Large: a request takes the model longer than a client needs to see what waits.
    files = [jpeg(pictures(1, 2400, 2400)[0])] * 8

    with TritonServer(venv, repository, tmp_path, "--load-model=*") as server:

        def ask(**parameters: Any) -> tuple[float, int, str]:
            """When it ended, its status, and what was wrong."""
            connection = Client(server.http, 600)
            try:
                connection.infer("flooded", {"JPEG": files}, **parameters)
            except ServerError as error:
                return time.monotonic(), error.status, str(error)
            finally:
                connection.close()
            return time.monotonic(), 200, ""

        polite = Client(server.http, 600)
        with ThreadPoolExecutor(16) as pool:
            flooding = [pool.submit(ask) for _ in range(16)]
            served = [polite.infer("other", {"IMAGE": pictures(1)})["label"].shape for _ in range(10)]
            answers = [future.result() for future in flooding]
        assert served == [(1, 1)] * 10
        assert {status for _, status, _ in answers} == {200, 503}
        assert all("maximum queue size" in message for _, status, message in answers if status == 503)

        # Two requests are on their way in the model, all others wait: the urgent one overtakes.
        def waiting(count: int) -> None:
            name = 'nv_inference_pending_request_count{model="flooded",version="1"}'

            def enough() -> bool:
                if server.metrics()[name] >= count:
                    return True
                # What is sent may have been served meanwhile; what is too much is refused.
                pool.submit(ask)
                return False

            wait_for(enough)

        with ThreadPoolExecutor(16) as pool:
            waiting(2)
            bulk = pool.submit(ask, priority=3)
            waiting(3)
            urgent, hasty = pool.submit(ask, priority=1), pool.submit(ask, priority=3, timeout=1000)
        assert urgent.result()[1] == bulk.result()[1] == 200
        assert urgent.result()[0] < bulk.result()[0]
        assert hasty.result()[1] == 503
        assert "timeout expired" in hasty.result()[2]


@pytest.mark.parametrize("control", ["explicit", "poll"])
def test_a_model_is_replaced_under_load_without_a_lost_request(
    venv: Path, bundles: dict[str, Bundle], options: ServingOptions, tmp_path: Path, control: str
) -> None:
    repository = tmp_path / "repository"
    write_repository({"model": bundles["tiny"].path}, repository, options)
    rewrite(repository / "model" / "config.pbtxt")
    ended = threading.Event()
    versions: list[str] = []

    def ask() -> None:
        connection = Client(server.http)
        while not ended.is_set():
            versions.append(connection.infer("model", {"IMAGE": pictures(1)})["model_version"])
        connection.close()

    how = "--load-model=model" if control == "explicit" else "--repository-poll-secs=1"
    with TritonServer(venv, repository, tmp_path, how, control=control) as server, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask) for _ in range(4)]
        try:
            wait_for(lambda: len(versions) > 20)
            (written,) = write_repository({"model": bundles["tiny"].path}, repository, replace(options, update=True))
            assert written.version == 2
            if control == "explicit":
                admin = Client(server.http)
                admin.load("model")
                admin.close()
            wait_for(lambda: versions[-1] == "2")
            asked = len(versions)
            wait_for(lambda: len(versions) > asked + 20)
        finally:
            ended.set()
        for future in clients:
            future.result()
        assert versions[0] == "1"
        assert versions[-1] == "2"
        # The counters of the new version live on after the old one is gone.
        name = 'dyndeploy_images_total{model="model",version="2"}'
        wait_for(lambda: server.metrics().get(name) == versions.count("2"))


def test_a_killed_server_is_ready_again(
    venv: Path, bundles: dict[str, Bundle], options: ServingOptions, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    write_repository({"model": bundles["tiny"].path}, repository, replace(options, instances=2))
    rewrite(repository / "model" / "config.pbtxt")
    with TritonServer(venv, repository, tmp_path, "--load-model=model") as server:
        connection = Client(server.http)
        for _ in range(8):
            connection.infer("model", {"IMAGE": pictures(2)})
        # Both instances count into one.
        wait_for(lambda: server.metrics()['dyndeploy_images_total{model="model",version="1"}'] == 16)
        models = server.kill()
        assert len(models) >= 2
        server.start()
        assert Client(server.http).infer("model", {"IMAGE": pictures(1)})["label"].shape == (1, 1)
        # Nothing of the killed one goes on.
        wait_for(lambda: not any(process.is_running() and process.status() != "zombie" for process in models))


def test_the_example_client_prints_what_the_server_answers(
    venv: Path, server: TritonServer, direct: Callable[[str], Any], tmp_path: Path
) -> None:
    program = Path(__file__).parent.parent.parent / "examples" / "serving" / "triton_client.py"
    (tmp_path / "photo.jpg").write_bytes(jpeg(pictures(1)[0]))

    def run(photo: str, model: str) -> subprocess.CompletedProcess[str]:
        command = [str(venv / "bin" / "python"), str(program), photo, "--url", server.grpc, "--model", model]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for model in ("tiny", "boxes"):
        done = run(str(tmp_path / "photo.jpg"), model)
        assert done.returncode == 0, done.stderr
        if model == "tiny":
            assert direct("tiny").classify(tmp_path / "photo.jpg").class_name in done.stdout
        else:
            found = direct("boxes").detect(tmp_path / "photo.jpg")
            assert done.stdout.count("\n") == len(found)
            assert found.class_names[0] in done.stdout
    missing = run("nowhere.jpg", "tiny")
    assert missing.returncode == 1
    assert "nowhere.jpg" in missing.stderr


def test_configurations_fit_tritons_own_schema(venv: Path, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """Every backend's, read by the schema that comes with Triton's client."""
    from dyndeploy.serving.config import ONNXRUNTIME, TENSORRT, python_config, tensor_config
    from dyndeploy.serving.policy import make_policy
    from dyndeploy.serving.text_format import text_format

    texts = []
    for name, bundle in bundles.items():
        policy = make_policy(bundle, None, processors=4)
        texts.append(text_format(python_config(name, bundle.manifest, policy, {"key": 'a "quoted" \\ path é'})))
        texts += [
            text_format(tensor_config(name, bundle.manifest, backend, policy, ["/a b/lib.so"]))
            for backend in (ONNXRUNTIME, TENSORRT)
        ]
    for index, text in enumerate(texts):
        (tmp_path / str(index)).write_text(text, encoding="utf-8")
    check = (
        "import pathlib, sys; from google.protobuf import text_format; from tritonclient.grpc import model_config_pb2\n"
        "for p in sys.argv[1:]:\n"
        "    c = text_format.Parse(pathlib.Path(p).read_text(), model_config_pb2.ModelConfig())\n"
        "    print(c.name, c.backend or c.platform, len(c.input), c.parameters['key'].string_value)\n"
    )
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", check, *(str(tmp_path / str(index)) for index in range(len(texts)))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == 'tiny python 2 a "quoted" \\ path é'
    assert [line.split()[1] for line in lines[:3]] == ["python", "onnxruntime", "tensorrt_plan"]
    assert len(lines) == 12


def rewrite(path: Path, in_flight: int | None = None, queue: int | None = None) -> None:
    """Change a configuration as its owner may: requests wait for as long as a busy machine needs."""
    text = re.sub(r"default_timeout_microseconds: \d+", "default_timeout_microseconds: 600000000", path.read_text())
    if in_flight is not None:
        text, count = re.subn(r'(key: "in_flight"\s+value {\s+string_value: )"\d+"', rf'\1"{in_flight}"', text)
        assert count == 1
    if queue is not None:
        text, count = re.subn(r"max_queue_size: \d+", f"max_queue_size: {queue}", text)
        assert count == 3
    path.write_text(text)


def wait_for(happened: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something has happened, which it must."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)
