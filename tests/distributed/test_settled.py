"""Accelerate wraps modules without emptying the environment, which threads of the process group read."""

import os

import pytest
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

from distgan.distributed.process_group import World, settled


def test_settled_settings_are_the_same_and_leave_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(environment: object) -> None:
        pytest.fail("the environment is emptied")

    for make in (
        lambda: DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=3),
        lambda: GradientAccumulationPlugin(num_steps=1),
    ):
        expected, ours = make().to_kwargs(), settled(make())
        with monkeypatch.context() as patched:
            patched.setattr(type(os.environ), "clear", refuse)
            assert ours.to_kwargs() == expected
            with pytest.raises(pytest.fail.Exception):
                make().to_kwargs()


def test_a_world_gives_accelerate_such_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(type(os.environ), "clear", lambda _: pytest.fail("the environment is emptied"))
    assert world._accelerator.ddp_handler.to_kwargs() == {"gradient_as_bucket_view": True}
