"""Which of JAX's platforms does the work."""

from __future__ import annotations

import jax

from jaxq.errors import ConfigError, DeviceError, did_you_mean

PLATFORMS = ("cpu", "gpu", "tpu")
EXTRAS = {
    "gpu": "`pip install 'jaxq[cuda]'` brings JAX for NVIDIA GPUs",
    "tpu": "`pip install 'jaxq[tpu]'` brings JAX for TPUs",
}


def use_device(name: str | None) -> str:
    """Makes a platform the one that everything runs on from here on; None leaves JAX's own choice.

    Args:
      name: "cpu", "gpu" or "tpu"; on a platform with several devices, the first of them is used.

    Returns:
      The platform in use.

    Raises:
      ConfigError: the name is not one of the three.
      DeviceError: JAX has no such device; the message says what there is.
    """
    if name is None:
        return jax.default_backend()
    if name not in PLATFORMS:
        raise ConfigError(f"device {name!r} is not one of {', '.join(PLATFORMS)}{did_you_mean(name, PLATFORMS)}")
    try:
        device = jax.local_devices(backend=name)[0]
    except RuntimeError:
        advice = f"; {EXTRAS[name]}" if name in EXTRAS else ""
        raise DeviceError(f"there is no {name} here: JAX has {available()}{advice}") from None
    jax.config.update("jax_default_device", device)
    return name


def available() -> str:
    """The devices of this machine in words, e.g. `1 cpu (cpu), 8 gpu (NVIDIA H200)`."""
    found = []
    for platform in PLATFORMS:
        try:
            devices = jax.local_devices(backend=platform)
        except RuntimeError:
            continue
        found.append(f"{len(devices)} {platform} ({devices[0].device_kind})")
    return ", ".join(found)
