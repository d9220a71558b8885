"""soundstage: video and its sound, generated together.

The public names are imported on first use, so that `import soundstage` costs nothing.
"""

__version__ = "0.1.0"
