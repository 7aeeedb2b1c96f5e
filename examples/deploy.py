"""The whole way in Python: train, export, verify, classify, measure, predict a board, and write what it needs."""

from __future__ import annotations

import sys
from pathlib import Path

import dyndeploy
from dyndeploy.data import sample_photographs
from dyndeploy.inference import Failure, classify_images
from dyndeploy.runtimes.tensorrt_engine import trtexec_commands, write_trtexec_files


def main(folder: Path, epochs: int = 1) -> None:
    """Go the whole way once; one epoch teaches little, 26 teach digits."""
    recipe = dyndeploy.load_recipe("digits-laud-resnet14-small-spatial").with_changes(epochs=epochs)
    training = dyndeploy.train(recipe, folder / "run")
    print(f"held-out accuracy {training.evaluation.accuracy:.1%}, FLOPs ratio {training.evaluation.flops_ratio:.2f}")

    network = dyndeploy.create_model(recipe.model.name, **recipe.model.options)
    dyndeploy.load_checkpoint(network, training.checkpoint)
    settings = dyndeploy.ExportSettings(static=True, input_size=recipe.input_size, checkpoint=training.checkpoint)
    bundle = dyndeploy.export_model(network.eval(), folder / "bundle", settings)
    report = dyndeploy.verify_bundle(bundle)
    assert report.passed, report

    for result in classify_images(bundle, sample_photographs()):
        if isinstance(result, Failure):
            print(f"{result.image}: {result.error}")
        else:
            rate = sum(result.rates.values()) / len(result.rates)
            print(f"{Path(result.image or '').name}: class {result.label}, {rate:.0%} of the patches computed")

    profile = dyndeploy.profile_bundle(bundle, rates=(0.5, 1.0), repeats=12)
    print(f"operators: {profile.native['description']}")
    for rate_result in profile.rates:
        print(
            f"forced rate {rate_result.rate:g}: measured {rate_result.realised_speedup:.2f}x the speed of the static "
            f"twin, ideal {rate_result.ideal_speedup:.2f}x"
        )

    nano = dyndeploy.predict(bundle, "nano", rate=0.5)
    print(f"Jetson Nano at rate 0.5: predicted {nano.latency_ms:.2f} ms")
    board_settings = dyndeploy.ExportSettings(target="nano", precision="fp16", input_size=recipe.input_size)
    for_board = dyndeploy.export_model(network, folder / "board", board_settings)
    written = write_trtexec_files(for_board, folder / "trtexec", "8.2.1")
    print("\n".join(trtexec_commands(written, "libdyndeploy_tensorrt.so")))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "deploy"))
