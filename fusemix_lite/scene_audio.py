"""Sounding Scenes, heard: every thing of a scene synthesised from scratch as 3 s of mono sound at 16 kHz.

Size is pitch (big is low), count is the number of events, tempo their spacing. Sources sound one after the other, in the
scene's order. Position, colour and background leave no trace.
"""

import numpy as np
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

from .scenes import ROOMS, SIZES, TEMPI, Scene

RATE = 16_000  # samples a second
SECONDS = 3.0
_SAMPLES = int(RATE * SECONDS)
_OCTAVES = {"small": 0.9, "medium": 0.0, "large": -0.9}  # of pitch, by size
_SPACING = {"slow": 0.46, "steady": 0.31, "fast": 0.20}  # seconds between two events, by tempo


def _time(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * RATE)) / RATE


def _decay(t: np.ndarray, half: float) -> np.ndarray:
    return 0.5 ** (t / half)


def _rise(t: np.ndarray, seconds: float) -> np.ndarray:
    """A smooth attack and release, so that no event clicks."""
    return np.minimum(1, t / seconds) * np.minimum(1, (t[-1] - t) / seconds)


def _harmonics(phase: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    return sum(w * np.sin((k + 1) * phase) for k, w in enumerate(weights))


def _glide(t: np.ndarray, hertz: np.ndarray) -> np.ndarray:
    """Phase of a tone whose frequency is ``hertz[i]`` at sample i."""
    return 2 * np.pi * np.cumsum(hertz) / RATE


def _bell(pitch, rng):
    t = _time(0.9)
    partials = (
        (0.5, 0.4, 0.5),
        (1.0, 1.0, 0.35),
        (1.19, 0.6, 0.25),
        (2.0, 0.5, 0.15),
        (2.74, 0.35, 0.1),
        (3.76, 0.2, 0.06),
    )
    return sum(a * _decay(t, h) * np.sin(2 * np.pi * 600 * pitch * f * t + rng.uniform(0, 6)) for f, a, h in partials)


def _drum(pitch, rng):
    t = _time(0.3)
    body = np.sin(_glide(t, 130 * pitch * (1 + 1.5 * _decay(t, 0.015)))) * _decay(t, 0.06)
    return body + 0.5 * rng.normal(size=t.size) * _decay(t, 0.012)


def _flute(pitch, rng):
    t = _time(0.24)
    vibrato = 1 + 0.008 * np.sin(2 * np.pi * 5.5 * t + rng.uniform(0, 6))
    tone = _harmonics(_glide(t, 650 * pitch * vibrato), (1, 0.25, 0.08))
    return (tone + 0.06 * rng.normal(size=t.size)) * _rise(t, 0.05)


def _guitar(pitch, rng):
    """Karplus-Strong: a burst of noise in a delay line that smooths itself."""
    t = _time(0.6)
    period = int(RATE / (220 * pitch))
    burst = np.zeros(t.size)
    burst[:period] = rng.uniform(-1, 1, period)
    feedback = np.zeros(period + 2)
    feedback[0], feedback[period], feedback[period + 1] = 1, -0.498, -0.498
    return lfilter([1], feedback, burst) * _rise(t, 0.004)


def _bird(pitch, rng):
    t = _time(0.18)
    sweep = 2600 * pitch**0.6 * (1 + 0.25 * np.sin(2 * np.pi * 14 * t) + 0.5 * t / t[-1])
    return np.sin(_glide(t, sweep)) * _rise(t, 0.03)


def _dog(pitch, rng):
    t = _time(0.22)
    throat = _harmonics(_glide(t, 260 * pitch * (1 + 0.5 * np.sin(np.pi * t / t[-1]))), (1, 0.9, 0.8, 0.7, 0.5, 0.3))
    return (throat + 0.6 * rng.normal(size=t.size)) * _rise(t, 0.02) * _decay(t, 0.08)


def _bee(pitch, rng):
    t = _time(0.24)
    wobble = 1 + 0.03 * np.sin(2 * np.pi * rng.uniform(5, 8) * t)
    phase = _glide(t, 210 * pitch * wobble)
    return (
        _harmonics(phase, tuple(1 / k for k in range(1, 10)))
        * (0.7 + 0.3 * np.sin(2 * np.pi * 22 * t))
        * _rise(t, 0.05)
    )


def _clock(pitch, rng):
    t = _time(0.07)
    tick = np.sin(2 * np.pi * 1900 * pitch * t) + 0.6 * np.sin(2 * np.pi * 3100 * pitch**0.8 * t)
    return tick * _decay(t, 0.006)


def _car(pitch, rng):
    t = _time(0.24)
    phase = _glide(t, np.full(t.size, 330 * pitch))
    return (np.tanh(3 * np.sin(phase)) + np.tanh(3 * np.sin(1.26 * phase))) * _rise(t, 0.02)


def _siren(pitch, rng):
    t = _time(0.28)
    return _harmonics(
        _glide(t, 750 * pitch * (1 + 0.35 * np.sin(2 * np.pi * t / t[-1]))), (1, 0, 0.33, 0, 0.2)
    ) * _rise(t, 0.05)


def _rain(pitch, rng):
    t = _time(0.26)
    patter = rng.normal(size=t.size) * (0.4 + 2.5 * (rng.random(t.size) < 0.01))
    band = np.clip(np.array([500, 2600]) * pitch, 80, 7000)
    return sosfilt(butter(2, band, "band", fs=RATE, output="sos"), patter) * 2 * _rise(t, 0.06)


def _whistle(pitch, rng):
    t = _time(0.22)
    trill = 1 + 0.06 * np.sign(np.sin(2 * np.pi * 28 * t))
    return np.sin(_glide(t, 2000 * pitch**0.7 * trill)) * _rise(t, 0.02)


VOICES = {
    "bell": _bell, "drum": _drum, "flute": _flute, "guitar": _guitar, "bird": _bird, "dog": _dog, "bee": _bee,
    "clock": _clock, "car": _car, "siren": _siren, "rain": _rain, "whistle": _whistle,
}  # fmt: skip
assert set(_OCTAVES) == set(SIZES) and set(_SPACING) == set(TEMPI)


def synthesise(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Synthesise a scene: (48000,) float32 in [-1, 1], mono. ``rng`` sets the jitter that no factor names."""
    sound = np.zeros(_SAMPLES)
    start = rng.uniform(0.02, 0.15)
    gap = _SPACING[scene.tempo] * rng.uniform(0.93, 1.07)
    for thing in scene.things:
        pitch = 2.0 ** (_OCTAVES[thing.size] + rng.uniform(-0.2, 0.2))
        gain = rng.uniform(0.7, 1.0)
        for _ in range(thing.count):
            event = VOICES[thing.kind](pitch, rng)
            event *= gain / (np.sqrt(np.mean(event**2)) + 1e-9)  # the same loudness for every source
            at = int((start + rng.normal(0, 0.006)) * RATE)
            at = min(max(at, 0), _SAMPLES - 1)
            end = min(at + event.size, _SAMPLES)
            sound[at:end] += event[: end - at]
            start += gap
        start += 0.6 * gap
    if scene.room == ROOMS[1]:
        t = _time(0.7)
        tail = rng.normal(size=t.size) * _decay(t, 0.09)
        wet = fftconvolve(sound, tail)[:_SAMPLES]
        sound += 0.8 * wet * np.sqrt(np.mean(sound**2) / (np.mean(wet**2) + 1e-12))
    sound *= rng.uniform(0.5, 0.9) / np.abs(sound).max()
    sound += rng.normal(size=_SAMPLES) * 10 ** (scene.noise_db / 20)
    return np.clip(sound, -1, 1).astype(np.float32)
