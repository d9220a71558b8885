"""Import what a command needs, quickly.

A clip of the small model takes about as long as importing torch, so what can be saved there is felt. Two
things can, by public means. Imported modules are hundreds of thousands of objects that live as long as the
process: Python's garbage collector looks through them again and again while they are imported, and takes them
apart one by one when the process ends. And modules are compiled when they are first imported: after an
installation, `make` has `python -m soundstage.cli.imports` do that for exactly those that a clip needs.
"""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FOR_A_CLIP = (
    "soundstage.cli.generate",
    "soundstage.pipelines.preparation",
    "soundstage.pipelines.pipeline",
    "soundstage.media.mux",
)
LATER = ("tokenizers", "av")  # PyAV is imported by the thread that writes, while the picture is denoised


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage while modules are imported, and never again among what is there afterwards.

    Garbage that is there already is kept, too, so this is for the beginning of a process; where the modules
    had been imported before, nothing is done. Whether garbage is looked for later stays as it was.
    """
    was_enabled, count = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > count:
            gc.freeze()
        if was_enabled:
            gc.enable()


def import_for_a_clip() -> None:
    """Import, at once, all that making and writing a clip needs."""
    with importing():
        for name in FOR_A_CLIP:
            importlib.import_module(name)


def compile_for_a_clip() -> None:
    """Have Python write the compiled files of all that a clip needs, even where it is told to write none."""
    told, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    try:
        for name in ("soundstage.cli.main", "tyro", *FOR_A_CLIP, *LATER):
            importlib.import_module(name)
    finally:
        sys.dont_write_bytecode = told


if __name__ == "__main__":
    compile_for_a_clip()
