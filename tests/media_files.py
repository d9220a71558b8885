"""Media files of every kind, made with PyAV, and the measures that compare what comes back."""

from fractions import Fraction

import av
import numpy as np
import torch


def clicks(num_samples, sample_rate, seed=0):
    """Short noise bursts at irregular times: their correlation has one sharp peak."""
    generator = torch.Generator().manual_seed(seed)
    waveform = torch.zeros(2, num_samples)
    burst = torch.exp(-torch.arange(600) / 120.0)
    for start in range(sample_rate // 7, num_samples - 600, sample_rate // 3 + 137):
        waveform[:, start : start + 600] += 0.5 * burst * torch.randn(2, 600, generator=generator)
    return waveform.clamp(-1, 1)


def lag(reference, heard):
    """Samples by which `heard` comes late, from the peak of the circular cross-correlation."""
    size = 1 << (max(reference.shape[1], heard.shape[1]) * 2 - 1).bit_length()
    spectrum = torch.fft.rfft(reference, size).conj() * torch.fft.rfft(heard, size)
    peak = int(torch.fft.irfft(spectrum, size).sum(0).argmax())
    return peak if peak < size // 2 else peak - size


def levels(count, height=16, width=16):
    """Grey frames whose level tells their number: 5, 15, 25 ..."""
    values = (torch.arange(count) * 10 + 5).clamp(max=250).to(torch.uint8)
    return values[:, None, None, None].expand(count, height, width, 3).contiguous()


def quadrants(height=32, width=48):
    """A picture of red, green, blue and white quarters: turned or mirrored, it is another one."""
    picture = torch.zeros(height, width, 3, dtype=torch.uint8)
    h, w = height // 2, width // 2
    colours = {(0, 0): (230, 20, 20), (0, 1): (20, 200, 20), (1, 0): (20, 20, 230), (1, 1): (240, 240, 240)}
    for (row, column), colour in colours.items():
        picture[row * h : (row + 1) * h, column * w : (column + 1) * w] = torch.tensor(colour).byte()
    return picture


def corners(picture):
    """The colours in the middle of the four quarters."""
    height, width = picture.shape[:2]
    rows = (height // 4, height // 4, 3 * height // 4, 3 * height // 4)
    columns = (width // 4, 3 * width // 4, width // 4, 3 * width // 4)
    return picture[list(rows), list(columns)].int()


def write_video(
    path, frames, *, codec="libx264", pix_fmt="yuv420p", rate=Fraction(25), ticks=None, matrix=None,
    aspect=None, options=None, colours=None, sound=None, kind=None, shift=0, array_format="rgb24",
    container_options=None,
):  # fmt: skip
    """Write frames (an array each) with any codec, at any times (in ticks of 1/rate), with any tags."""
    ticks = range(len(frames)) if ticks is None else ticks
    with av.open(str(path), "w", format=kind, container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2] if array_format != "yuv" else (0, 0)
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.time_base = 1 / Fraction(rate)
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if colours is not None:
            context.color_primaries, context.color_trc, context.colorspace = colours
        if matrix is not None:
            stream.set_display_matrix(matrix)
        track = None
        if sound is not None:
            track = container.add_stream("aac", rate=sound[1], layout="stereo")
            track.codec_context.time_base = Fraction(1, sound[1])
        for tick, picture in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=array_format)
            if colours is not None:
                frame.colorspace = colours[2] if array_format != "rgb24" else frame.colorspace
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = tick + shift, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            _write_sound(container, track, *sound)
    return path


def _write_sound(container, track, waveform, sample_rate):
    for start in range(0, waveform.shape[1], 1024):
        piece = waveform[:, start : start + 1024].contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))


def write_sound(path, samples, *, codec, sample_format, sample_rate, layout, kind=None):
    """Write packed or planar samples with any codec."""
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=sample_rate, layout=layout)
        stream.codec_context.format = sample_format
        stream.codec_context.time_base = Fraction(1, sample_rate)
        channels = stream.codec_context.layout.nb_channels
        planar = sample_format.endswith("p")
        length = samples.shape[1] // (1 if planar else channels)
        size = stream.codec_context.frame_size or 1024
        for start in range(0, length, size):
            piece = samples[:, start : start + size] if planar else (
                samples[:, start * channels : (start + size) * channels]
            )  # fmt: skip
            piece = np.ascontiguousarray(piece)
            frame = av.AudioFrame.from_ndarray(piece, format=sample_format, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def packets(path):
    """Bytes, time from the first shown frame, and keyframe mark of every packet of the picture."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        origin = stream.start_time or 0
        found = [p for p in container.demux(stream) if p.size]
        return [(bytes(p), (p.pts - origin) * p.time_base, p.is_keyframe) for p in found]


def planes(path):
    """Time and stored pixels of every shown frame, decoded plainly by PyAV."""
    with av.open(str(path)) as container:
        return [(f.pts * f.time_base, f.to_ndarray()) for f in container.decode(video=0)]
