"""What is to be measured: captions, and the scenes behind them where they are known."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

from soundstage.core.errors import RequestError
from soundstage.data.world.kind import Split
from soundstage.data.world.kinds import KINDS
from soundstage.data.world.sample import World, WorldConfig
from soundstage.data.world.scene import Scene
from soundstage.evaluation.expectation import expected_of
from soundstage.media.mux import read_metadata

OTHER_AUDIBILITY = ("silent", "off-screen")
VARIED = "varied"  # bounces filmed by a moving camera, or with rain or wind over them


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt to measure, with the scene it was made from where there is one."""

    name: str
    caption: str
    seed: int
    kind: str = ""  # of scene, or "silent" or "off-screen"; empty where nothing is known
    unseen: bool = True  # whether its combination of attributes was kept from training
    scene: Scene | None = None


def case_kinds() -> tuple[str, ...]:
    """Name what can be asked for: the world's kinds of scenes, plain ones, then its other scenes."""
    return (*KINDS, VARIED, *OTHER_AUDIBILITY)


def world_cases(
    config: WorldConfig,
    kinds: Sequence[str],
    num_clips: int,
    seed: int,
    *,
    accepts: Callable[[str], bool] = lambda _: True,
) -> list[Case]:
    """Draw scenes of each kind with their captions, none of which training ever draws.

    Half of a kind's scenes, the odd one more, combine attributes as training never does; the others combine
    them as it does. Training draws its seeds from so many that it practically never meets one of these.

    Args:
        num_clips: Of each kind.
        seed: The scenes are those of this seed and of the next that are of the right kind.
        accepts: Whether a caption can be used; a model may not read long ones.
    """
    unseen = (num_clips + 1) // 2
    halves: tuple[tuple[Split, int], ...] = (("held_out", unseen), ("train", num_clips - unseen))
    return [
        case
        for kind in kinds
        for split, number in halves
        for case in islice(_world_scenes(config, kind, split, seed, accepts), number)
    ]


def _world_scenes(
    config: WorldConfig, kind: str, split: Split, seed: int, accepts: Callable[[str], bool]
) -> Iterator[Case]:
    """Go through the world's seeds and take the scenes of one kind."""
    audibility = kind if kind in OTHER_AUDIBILITY else "normal"
    able = tuple(
        name
        for name, of in KINDS.items()
        if kind == name
        or (kind == VARIED and name == "bounce")
        or (kind == "silent" and of.describe_silent is not None)
        or (kind == "off-screen" and of.describe_unseen is not None)
    )
    if not able:
        return
    world = World(replace(config, split=split, kinds=able))
    for one in count(seed):
        scene = world.scene(one)
        is_wanted = scene.audibility == audibility and (
            kind in OTHER_AUDIBILITY or scene.is_plain == (kind != VARIED)
        )
        if is_wanted and accepts(caption := world.caption(one)):
            yield Case(
                name=f"{kind}-{'unseen' if split == 'held_out' else 'seen'}-{one:05d}",
                caption=caption,
                seed=one,
                kind=kind,
                unseen=split == "held_out",
                scene=scene,
            )


def stored_cases(paths: Sequence[Path]) -> list[tuple[Case, Path]]:
    """List files, and the clips of folders, with the captions they carry; empty where they carry none.

    Raises:
        RequestError: A path does not exist, or a folder has no clip.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            clips = sorted(path.glob("*.mp4"))
            if not clips:
                raise RequestError(f"{path} has no .mp4 files")
            found += clips
        elif path.is_file():
            found.append(path)
        else:
            raise RequestError(f"{path} does not exist")
    return [(_stored(path), path) for path in found]


def _stored(path: Path) -> Case:
    """Make a case of a file; the kind of scene is what its caption speaks of."""
    caption = stored_caption(path)
    kind = expected_of(caption).get("kind", "")
    return Case(name=path.stem, caption=caption, seed=0, kind=kind, unseen=False)


def stored_caption(path: Path) -> str:
    """Read the caption that a file carries; empty where it carries none."""
    stored = read_metadata(path)
    request = stored.get("request")
    prompt = request.get("prompt") if isinstance(request, dict) else stored.get("caption")
    return prompt if isinstance(prompt, str) else ""


CasePaths = Sequence[tuple[Case, Path]]
