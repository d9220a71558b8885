"""Make one prompt with several seeds, keep the loudest, and read its record back from the file.

python examples/compare_seeds.py [MODEL] [OUTPUT.mp4]
"""

import sys
from pathlib import Path

from soundstage import GenerationRequest, Pipeline
from soundstage.media.mux import read_metadata

model = sys.argv[1] if len(sys.argv) > 1 else "embedded"
output = Path(sys.argv[2] if len(sys.argv) > 2 else "loudest.mp4")

request = GenerationRequest(prompt="a small green cube bounces on a drum", seed=1, num_frames=9)
clips = list(Pipeline.load(model).each([request], num_videos=3))
loudest = max(clips, key=lambda clip: clip.waveform.square().mean())
loudest.save(output)

again = GenerationRequest.of(read_metadata(output)["request"])
assert again == loudest.request
print(f"seed {again.seed} was the loudest of {len(clips)}; {output} says how to make it again")
