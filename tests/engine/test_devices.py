"""Which of JAX's platforms does the work."""

import jax
import jax.numpy as jnp
import pytest

from jaxq.engine.devices import available, use_device
from jaxq.errors import ConfigError, DeviceError


@pytest.fixture(autouse=True)
def same_device_afterwards():
    before = jax.config.jax_default_device
    yield
    jax.config.update("jax_default_device", before)


def has(platform: str) -> bool:
    try:
        return bool(jax.local_devices(backend=platform))
    except RuntimeError:
        return False


def test_none_leaves_the_choice_to_jax():
    before = jax.config.jax_default_device
    assert use_device(None) == jax.default_backend()
    assert jax.config.jax_default_device is before


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_everything_runs_on_the_platform_that_was_chosen(platform):
    if not has(platform):
        pytest.skip(f"no {platform} here")
    assert use_device(platform) == platform
    assert {device.platform for device in (jax.jit(jnp.negative)(jnp.ones(3))).devices()} == {platform}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_absent_platform_is_an_error_that_says_what_there_is(platform):
    if has(platform):
        pytest.skip(f"there is a {platform} here")
    with pytest.raises(DeviceError, match=rf"no {platform} here: JAX has .*\d+ cpu"):
        use_device(platform)
    assert "cpu" in available()


def test_an_unknown_platform_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="'gpus' is not one of cpu, gpu, tpu; did you mean 'gpu'"):
        use_device("gpus")
