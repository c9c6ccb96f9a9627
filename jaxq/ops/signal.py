"""Fourier transforms and what goes with them: windows and mel weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq.errors import ModelError
from jaxq.ops import ELEMENT_TYPES, op, refuse_huge, static_array, static_ints, wider


@op("DFT", since=20, static=("dft_length", "axis"))
def dft(x, dft_length=None, axis=None, *, inverse=0, onesided=0):
    """x [..., 1] (real) or [..., 2] (real and imaginary part), transformed along `axis`."""
    axis = (-2 if axis is None else static_ints(axis, "DFT.axis")[0]) % x.ndim
    to_real = bool(inverse and onesided)
    length = 2 * (x.shape[axis] - 1) if to_real else x.shape[axis]
    if dft_length is not None:
        (length,) = static_ints(dft_length, "DFT.dft_length")
    x = jnp.asarray(x)
    if x.shape[-1] == 1:  # as exact as JAX runs, so that the bins which cancel come out as 0 (the suite wants 1e-7)
        values = x[..., 0].astype(jax.dtypes.canonicalize_dtype(np.float64))
    else:
        values = lax.complex(*(part.astype(wider(x.dtype, jnp.float32)) for part in (x[..., 0], x[..., 1])))
    if to_real:
        return jnp.fft.irfft(values, n=length, axis=axis)[..., None].astype(x.dtype)
    spectrum = jnp.fft.ifft(values, n=length, axis=axis) if inverse else jnp.fft.fft(values, n=length, axis=axis)
    if onesided:
        spectrum = jnp.take(spectrum, np.arange(length // 2 + 1), axis=axis)
    return jnp.stack([spectrum.real, spectrum.imag], axis=-1).astype(x.dtype)


@op("DFT", since=17, static=("dft_length",))
def dft_17(x, dft_length=None, *, axis=1, inverse=0, onesided=0):
    return dft(x, dft_length, np.array(axis), inverse=inverse, onesided=onesided)


@op("STFT", since=17, static=("frame_step", "frame_length"))
def stft(signal, frame_step, window=None, frame_length=None, *, onesided=1):
    """signal [B, L, 1 or 2] in frames, each times the window and transformed: [B, frames, bins, 2]."""
    (step,) = static_ints(frame_step, "STFT.frame_step")
    length = window.shape[0] if window is not None else signal.shape[1]
    if frame_length is not None:
        (length,) = static_ints(frame_length, "STFT.frame_length")
    if window is not None and window.shape[0] != length:
        raise ModelError(f"STFT: a window of {window.shape[0]} samples does not fit frames of {length}")
    starts = np.arange(0, signal.shape[1] - length + 1, step)
    frames = jnp.asarray(signal)[:, starts[:, None] + np.arange(length)]
    if window is not None:
        frames = frames * jnp.reshape(window, (-1, 1))
    return dft(frames, axis=np.array(2), onesided=onesided)


@op("HannWindow", since=17, static=("size",))
def hann_window(size, *, output_datatype=1, periodic=1):
    return cosine_window(size, (0.5, -0.5), output_datatype, periodic)


@op("HammingWindow", since=17, static=("size",))
def hamming_window(size, *, output_datatype=1, periodic=1):
    return cosine_window(size, (25 / 46, -21 / 46), output_datatype, periodic)


@op("BlackmanWindow", since=17, static=("size",))
def blackman_window(size, *, output_datatype=1, periodic=1):
    return cosine_window(size, (0.42, -0.5, 0.08), output_datatype, periodic)


def cosine_window(size, terms: tuple[float, ...], output_datatype: int, periodic: int) -> np.ndarray:
    """The sum over k of terms[k] * cos(2 pi k n / N), with N = size, or size - 1 for a symmetric window."""
    (count,) = static_ints(size, "window size")
    refuse_huge((count, len(terms)), np.float64)
    phase = 2 * np.pi * np.arange(count) / max(count if periodic else count - 1, 1)
    waves = np.stack([term * np.cos(k * phase) for k, term in enumerate(terms)])
    return waves.sum(axis=0).astype(ELEMENT_TYPES[output_datatype])


@op(
    "MelWeightMatrix",
    since=17,
    static=("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"),
)
def mel_weight_matrix(num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz, *, output_datatype=1):
    """[dft_length // 2 + 1, num_mel_bins]: one triangle of height 1 for each mel bin, its corners rounded to DFT bins."""
    given = (num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz)
    mels, length, rate, lower, upper = (static_array(value, "MelWeightMatrix").item() for value in given)
    refuse_huge((length // 2 + 1, mels), np.float64)
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (lower, upper))
    mel = low + np.arange(mels + 2) * (high - low) / (mels + 2)
    corners = ((length + 1) * 700 * (10 ** (mel / 2595) - 1) // rate).astype(int)
    left, center, right = corners[:-2], corners[1:-1], corners[2:]
    row = np.arange(length // 2 + 1)[:, None]
    rising = np.where(left == center, row == center, (row - left) / np.maximum(center - left, 1))
    falling = (right - row) / np.maximum(right - center, 1)
    weights = np.where((row >= left) & (row <= center), rising, 0)
    weights = np.where((row >= center) & (row < right), falling, weights)
    return weights.astype(ELEMENT_TYPES[output_datatype])
