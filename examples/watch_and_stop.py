"""Watch a generation and stop it after a time limit, leaving nothing behind.

python examples/watch_and_stop.py [MODEL] [SECONDS]
"""

import sys
import time

from soundstage import Cancelled, Pipeline, Progress

model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
limit = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
deadline = time.monotonic() + limit


def watch(event: Progress) -> None:
    left = "" if event.seconds_left is None else f", {event.seconds_left:.1f} s left"
    print(f"{event.stage}: {event.step} of {event.num_steps}{left}")
    if time.monotonic() > deadline:
        raise Cancelled(f"more than {limit:g} seconds")


pipeline = Pipeline.load(model)
try:
    clip = pipeline("a blue cube falls on a metal floor", num_frames=9, on_progress=watch)
    print("done:", clip.duration, "seconds of video")
except Cancelled as reason:
    print("stopped:", reason)
