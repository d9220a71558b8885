"""Make one clip from Python and look at what comes back.

python examples/first_clip.py [MODEL] [OUTPUT.mp4]
"""

import sys

from soundstage import Pipeline

model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
output = sys.argv[2] if len(sys.argv) > 2 else "first_clip.mp4"

pipeline = Pipeline.load(model)
clip = pipeline("a red ball bounces on a wooden floor", seed=7, num_frames=17)

print("picture", tuple(clip.pixels.shape), "in [-1, 1] at", clip.frame_rate, "frames per second")
print("sound  ", tuple(clip.waveform.shape), "in [-1, 1] at", clip.sample_rate, "samples per second")
print("wrote  ", clip.save(output))
