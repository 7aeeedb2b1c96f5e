"""Frames of a GStreamer pipeline through a bundle: python3 gstreamer_appsink.py BUNDLE [PIPELINE]

Needs python3-gi, gir1.2-gst-plugins-base-1.0 and python3-numpy of the system, and dyndeploy_runtime.py beside this file
or on PYTHONPATH. Runs with Python 3.6 and GStreamer 1.14, as on JetPack 4.6. The pipeline ends before the sink, e.g.
"v4l2src device=/dev/video0", or "filesrc location=film.mp4 ! decodebin".
"""

import sys

import gi
import numpy as np
from dyndeploy_runtime import DyndeployError, open_bundle

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

# Of a camera only the newest frame is worth running: leave drop=true out for a film, to run every frame.
SINK = "videoconvert ! video/x-raw,format=RGB ! appsink name=sink sync=false max-buffers=1 drop=%s"


def pixels(sample):
    """RGB bytes of a frame, (H, W, 3); GStreamer fills rows up to four bytes."""
    caps = sample.get_caps().get_structure(0)
    height, width = caps.get_value("height"), caps.get_value("width")
    buffer = sample.get_buffer()
    there, memory = buffer.map(Gst.MapFlags.READ)
    if not there:
        raise RuntimeError("a frame cannot be read")
    try:
        rows = np.frombuffer(memory.data, np.uint8).reshape(height, -1)
        return rows[:, : 3 * width].reshape(height, width, 3).copy()
    finally:
        buffer.unmap(memory)


def frames(pipeline):
    """Frames until the pipeline ends; RuntimeError where it breaks off."""
    sink, bus = pipeline.get_by_name("sink"), pipeline.get_bus()
    pipeline.set_state(Gst.State.PLAYING)
    try:
        while True:
            sample = sink.emit("try-pull-sample", Gst.SECOND)
            if sample is not None:
                yield pixels(sample)
                continue
            message = bus.pop_filtered(Gst.MessageType.ERROR | Gst.MessageType.EOS)
            if message is not None and message.type == Gst.MessageType.ERROR:
                raise RuntimeError(message.parse_error()[0].message)
            if message is not None or sink.get_property("eos"):
                return
    finally:
        pipeline.set_state(Gst.State.NULL)


def main(bundle, source="videotestsrc num-buffers=20"):
    """Print what is seen in every frame."""
    Gst.init(None)
    live = source.startswith(("v4l2src", "nvarguscamerasrc"))
    pipeline = Gst.parse_launch("%s ! %s" % (source, SINK % ("true" if live else "false")))
    with open_bundle(bundle) as session:
        for number, frame in enumerate(frames(pipeline)):
            if session.info["task"] == "detection":
                found = session.detect(frame)
                print("frame %d: %d found, %.2f ms" % (number, len(found.scores), found.ms))
            else:
                found = session.classify(frame)
                name = found.class_name or found.label
                print("frame %d: %s %.4f, exit %s, %.2f ms" % (number, name, found.confidence, found.exit, found.ms))
        print(session.statistics())


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (DyndeployError, RuntimeError, gi.repository.GLib.Error) as error:
        sys.exit("gstreamer_appsink.py: %s" % error)
