"""What `World` settles of GPUs before it uses them; shown without one, by what torch and Accelerate say."""

from collections.abc import Iterator

import pytest
import torch

from distgan.distributed import process_group
from distgan.distributed.process_group import World
from distgan.errors import MachineError

CUDA = torch.device("cuda")


@pytest.fixture
def kernels() -> Iterator[None]:
    """Puts back what choosing kernels changes."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize("tf32", [False, True])
def test_older_and_newer_readers_of_tf32_agree(tf32: bool, kernels: None) -> None:
    """Where only the newer setting is made, torch raises at the older one, which torch.compile reads."""
    process_group._choose_kernels(CUDA, "fast", tf32)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (tf32, tf32)
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    for newer in (cudnn.conv.fp32_precision, matmul.fp32_precision):
        assert (newer == "tf32") == tf32
    with cudnn.flags(enabled=True):  # reads and puts back all settings of cuDNN
        pass


@pytest.mark.parametrize("usual", [False, True])
def test_tf32_is_allowed_for_a_while(usual: bool, kernels: None) -> None:
    """All readers agree within and afterwards, also where what is within fails; a CPU has no part in it."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    process_group._choose_kernels(CUDA, "fast", usual)

    def seen() -> set[bool]:
        newer = (cudnn.conv.fp32_precision, matmul.fp32_precision)
        return {cudnn.allow_tf32, matmul.allow_tf32, *(kind == "tf32" for kind in newer)}

    with pytest.raises(ZeroDivisionError), process_group.allow_tf32(CUDA, True):
        assert seen() == {True}
        raise ZeroDivisionError
    assert seen() == {usual}
    for device, allowed in ((CUDA, False), (torch.device("cpu"), True)):
        with process_group.allow_tf32(device, allowed):
            assert seen() == {usual}


def test_gpus_that_accelerate_refuses_are_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise NotImplementedError("RTX 4000 series doesn't support P2P.")

    monkeypatch.setattr(process_group, "Accelerator", refuse)
    with pytest.raises(MachineError, match=r"RTX 4000 .* NCCL_P2P_DISABLE=1"):
        World()
